"""The layers of both encoder families, each in the precision that it needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dinoreg_rt.bundle.manifest import Precision

from .builder import ONNX_TYPES, GraphBuilder, Storage

#: Type of the weights of products and convolutions; int8 graphs are quantised from float32.
STORAGE: dict[Precision, Storage] = {
    "fp32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
    "int8": "float32",
}


def arithmetic(precision: Precision, *, verified: bool = False) -> Arithmetic:
    """Return the arithmetic of the products of a graph.

    Args:
        precision: precision of the bundle.
        verified: make a graph for verification on ONNX Runtime's CPU, which has no bfloat16
            products: rounding gives the same numbers there.
    """
    return Arithmetic(STORAGE[precision], rounded=verified and precision == "bf16")


_FLOAT = ONNX_TYPES["float32"]


@dataclass(frozen=True)
class Arithmetic:
    """Arithmetic of the matrix products and convolutions of a graph.

    Attributes:
        storage: type of weights, inputs and outputs; sums are accumulated in float32.
        rounded: use float32 operators and round their inputs and outputs to `storage`, for engines
            that have no operators of that type.
    """

    storage: Storage
    rounded: bool = False


class Layers:
    """Adds layers to a graph, with float32 values between layers and lowered values inside.

    Lowered values have the type of the products, `arithmetic.storage`.
    """

    def __init__(self, builder: GraphBuilder, arithmetic: Arithmetic, epsilon: float) -> None:
        self.builder = builder
        self.epsilon = epsilon
        self._low = ONNX_TYPES[arithmetic.storage]
        self._rounded = arithmetic.rounded

    def lower(self, x: str) -> str:
        """Lower a float32 value."""
        if self._low == _FLOAT:
            return x
        low = self.builder.node("Cast", x, to=self._low)
        return self.builder.node("Cast", low, to=_FLOAT) if self._rounded else low

    def restore(self, x: str) -> str:
        """Convert a lowered value to float32."""
        plain = self._low == _FLOAT or self._rounded
        return x if plain else self.builder.node("Cast", x, to=_FLOAT)

    def product(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with lowered inputs and a lowered result."""
        y = self.builder.node(kind, *inputs, **attributes)
        return self.lower(y) if self._rounded else y

    def weight(self, name: str) -> str:
        """Add the lowered weight of a product."""
        stored = self.builder.weight(name)
        low = self._rounded and self._low != _FLOAT
        return self.builder.node("Cast", stored, to=_FLOAT) if low else stored

    def linear(self, x: str, name: str) -> str:
        """Add a linear layer: float32 (..., in) -> lowered (..., out)."""
        y = self.product("MatMul", self.lower(x), self.weight(f"{name}.weight"))
        bias = f"{name}.bias"
        return self.product("Add", y, self.weight(bias)) if self.builder.has(bias) else y

    def convolution(self, x: str, name: str, **attributes: Any) -> str:
        """Add a convolution: float32 (N, in, H, W) -> float32 (N, out, H', W')."""
        weights = (self.weight(f"{name}.weight"), self.weight(f"{name}.bias"))
        return self.restore(self.product("Conv", self.lower(x), *weights, **attributes))

    def norm(self, x: str, name: str) -> str:
        """Add a layer norm over the last axis, in float32."""
        weights = (self.builder.weight(f"{name}.weight"), self.builder.weight(f"{name}.bias"))
        return self.builder.node("LayerNormalization", x, *weights, axis=-1, epsilon=self.epsilon)

    def gelu(self, x: str) -> str:
        """Add ``x (1 + erf(x / sqrt 2)) / 2`` in float32, in the order that runtimes can fuse."""
        b = self.builder
        erf = b.node("Erf", b.node("Div", x, b.constant(np.array(np.sqrt(2), np.float32))))
        y = b.node("Mul", x, b.node("Add", erf, b.constant(np.array(1, np.float32))))
        return b.node("Mul", y, b.constant(np.array(0.5, np.float32)))
