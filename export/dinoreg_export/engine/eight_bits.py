"""The two 8-bit types of quantised engines: their scales, and weights rounded to them.

Both are symmetric: a value is its number times a scale, and 0 stays 0. Scales are float16, the type
that the products around them have, and rounded up, so that nothing is clipped by the rounding.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dinoreg_rt.engines.trt.record import EightBits
from dinoreg_rt.errors import ConfigError

#: Smaller scales would keep less than six of float16's bits.
_LEAST_SCALE = np.float16(2.0**-18)


@dataclass(frozen=True)
class Format:
    """An 8-bit type.

    Attributes:
        name: as the precision is called.
        onnx_type: its number in the ONNX format.
        largest: number that it holds, in both directions.
    """

    name: EightBits
    onnx_type: int
    largest: float

    def scale(self, ranges: NDArray[np.float32]) -> NDArray[np.float16]:
        """Scales with which values up to `ranges` in magnitude are held; any shape, at least 0.

        Raises:
            ConfigError: a range that is not finite, or too large for a scale in float16.
        """
        wanted = np.asarray(ranges, np.float32) / np.float32(self.largest)
        if not bool((wanted <= np.finfo(np.float16).max).all()):  # NaN is refused as well
            raise ConfigError(
                f"values reach {float(np.max(ranges)):.3g}, which {self.name} with scales in "
                "float16 cannot hold; --precision bf16 can"
            )
        rounded = wanted.astype(np.float16)
        above = np.nextafter(rounded, np.float16(np.inf))
        up = np.where(rounded.astype(np.float32) < wanted, above, rounded)
        return np.maximum(up, _LEAST_SCALE)

    def quantise(
        self, values: NDArray[np.float32], scale: NDArray[np.float16]
    ) -> NDArray[np.uint8]:
        """Numbers nearest to ``values / scale``, ties to even, as the bytes of the type.

        Args:
            values: any shape.
            scale: broadcasts against them.
        """
        numbers = np.asarray(values, np.float32) / scale.astype(np.float32)
        numbers = np.clip(numbers, -self.largest, self.largest)
        if self.name == "int8":
            return np.rint(numbers).astype(np.int8).view(np.uint8)
        import ml_dtypes  # NumPy has no 8-bit floating point of its own

        return numbers.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)


#: -128 is left out, as engines do for weights: the type is symmetric.
INT8 = Format("int8", 3, 127.0)
#: Four bits of exponent, three of mantissa, no infinity.
FP8 = Format("fp8", 17, 448.0)
FORMATS: dict[EightBits, Format] = {"fp8": FP8, "int8": INT8}
#: Compute capability from which on tensor cores multiply fp8.
_OLDEST_FP8 = (8, 9)


def multiplies_fp8(capability: str) -> bool:
    """Whether a GPU of this compute capability, such as ``8.9``, has tensor cores for fp8.

    Raises:
        ConfigError: no compute capability.
    """
    parts = capability.split(".")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise ConfigError(f"'{capability}' is no compute capability; wanted such as 8.9")
    return (int(parts[0]), int(parts[1])) >= _OLDEST_FP8
