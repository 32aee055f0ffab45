"""Layers that both families are made of, each in the precision that it needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dinoreg_rt.bundle.manifest import Precision

from .builder import ONNX_TYPES, GraphBuilder, Storage

#: Type of the weights of products and convolutions, as the graph is built; int8 starts from it.
STORAGE: dict[Precision, Storage] = {
    "fp32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
    "int8": "float32",
}


def arithmetic(precision: Precision, *, verified: bool = False) -> Arithmetic:
    """What the products of a graph compute with.

    Args:
        precision: of the bundle.
        verified: for the graph that ONNX Runtime's CPU is to evaluate, which has no products of
            bfloat16 numbers: the same numbers by rounding.
    """
    return Arithmetic(STORAGE[precision], rounded=verified and precision == "bf16")


_FLOAT = ONNX_TYPES["float32"]


@dataclass(frozen=True)
class Arithmetic:
    """What the matrix products and convolutions of a graph compute with.

    Attributes:
        storage: type of their weights, inputs and outputs; they add up in float32.
        rounded: the same numbers from float32 operators, by rounding every input and output to
            `storage`: for engines that have no operators of that type.
    """

    storage: Storage
    rounded: bool = False


class Layers:
    """Adds layers to a graph. Values are float32 between layers, `arithmetic.storage` inside."""

    def __init__(self, builder: GraphBuilder, arithmetic: Arithmetic, epsilon: float) -> None:
        self.builder = builder
        self.epsilon = epsilon
        self._low = ONNX_TYPES[arithmetic.storage]
        self._rounded = arithmetic.rounded

    def lower(self, x: str) -> str:
        """float32 -> what products compute with."""
        if self._low == _FLOAT:
            return x
        low = self.builder.node("Cast", x, to=self._low)
        return self.builder.node("Cast", low, to=_FLOAT) if self._rounded else low

    def restore(self, x: str) -> str:
        """What products compute with -> float32."""
        plain = self._low == _FLOAT or self._rounded
        return x if plain else self.builder.node("Cast", x, to=_FLOAT)

    def product(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """A node on lowered values, whose result is one too."""
        y = self.builder.node(kind, *inputs, **attributes)
        return self.lower(y) if self._rounded else y

    def weight(self, name: str) -> str:
        """A weight of a product."""
        stored = self.builder.weight(name)
        low = self._rounded and self._low != _FLOAT
        return self.builder.node("Cast", stored, to=_FLOAT) if low else stored

    def linear(self, x: str, name: str) -> str:
        """float32 (..., in) -> lowered (..., out)."""
        y = self.product("MatMul", self.lower(x), self.weight(f"{name}.weight"))
        bias = f"{name}.bias"
        return self.product("Add", y, self.weight(bias)) if self.builder.has(bias) else y

    def convolution(self, x: str, name: str, **attributes: Any) -> str:
        """float32 (N, in, H, W) -> float32 (N, out, H', W')."""
        weights = (self.weight(f"{name}.weight"), self.weight(f"{name}.bias"))
        return self.restore(self.product("Conv", self.lower(x), *weights, **attributes))

    def norm(self, x: str, name: str) -> str:
        """Over the last axis, in float32."""
        weights = (self.builder.weight(f"{name}.weight"), self.builder.weight(f"{name}.bias"))
        return self.builder.node("LayerNormalization", x, *weights, axis=-1, epsilon=self.epsilon)

    def gelu(self, x: str) -> str:
        """x (1 + erf(x / sqrt 2)) / 2 in float32, in the order of operations that runtimes fuse."""
        b = self.builder
        erf = b.node("Erf", b.node("Div", x, b.constant(np.array(np.sqrt(2), np.float32))))
        y = b.node("Mul", x, b.node("Add", erf, b.constant(np.array(1, np.float32))))
        return b.node("Mul", y, b.constant(np.array(0.5, np.float32)))
