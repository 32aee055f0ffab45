"""What each precision of an export stands for."""

from __future__ import annotations

from dinoreg_rt.bundle.manifest import Precision

from .builder import Storage
from .layers import Arithmetic

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
