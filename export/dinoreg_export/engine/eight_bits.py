"""The two 8-bit types of quantised engines, with their scales and rounding.

Both types are symmetric: a value is an 8-bit number times a scale, and 0 stays 0. Scales are
float16, the type of the surrounding products, and rounded up so that the rounding clips nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dinoreg_rt.engines.trt.record import EightBits
from dinoreg_rt.errors import ConfigError

#: Smallest scale; a smaller one would be a float16 with fewer than six significant bits.
_LEAST_SCALE = np.float16(2.0**-18)


@dataclass(frozen=True)
class Format:
    """An 8-bit type.

    Attributes:
        onnx_type: number of the type in the ONNX format.
        largest: largest magnitude that the type holds.
    """

    name: EightBits
    onnx_type: int
    largest: float

    def scale(self, ranges: NDArray[np.float32]) -> NDArray[np.float16]:
        """Return scales that hold magnitudes up to `ranges`, non-negative and of any shape.

        Raises:
            ConfigError: a range is not finite, or too large for a scale in float16.
        """
        wanted = np.asarray(ranges, np.float32) / np.float32(self.largest)
        if not bool((wanted <= np.finfo(np.float16).max).all()):  # also refuses NaN
            raise ConfigError(
                f"values reach {float(np.max(ranges)):.3g}, which {self.name} with scales in "
                "float16 cannot hold; use --precision bf16"
            )
        rounded = wanted.astype(np.float16)
        above = np.nextafter(rounded, np.float16(np.inf))
        up = np.where(rounded.astype(np.float32) < wanted, above, rounded)
        return np.maximum(up, _LEAST_SCALE)

    def quantise(
        self, values: NDArray[np.float32], scale: NDArray[np.float16]
    ) -> NDArray[np.uint8]:
        """Round ``values / scale`` to the nearest numbers, ties to even.

        Args:
            values: values of any shape.
            scale: scales that broadcast against the values.

        Returns:
            The bytes of the numbers, in the shape of the values.
        """
        numbers = np.asarray(values, np.float32) / scale.astype(np.float32)
        numbers = np.clip(numbers, -self.largest, self.largest)
        if self.name == "int8":
            return np.rint(numbers).astype(np.int8).view(np.uint8)
        import ml_dtypes  # NumPy has no 8-bit floating point type

        return numbers.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)


#: -128 is not used, so that the type is symmetric; engines do the same for weights.
INT8 = Format("int8", 3, 127.0)
#: Four bits of exponent, three of mantissa, no infinity (E4M3FN).
FP8 = Format("fp8", 17, 448.0)
FORMATS: dict[EightBits, Format] = {"fp8": FP8, "int8": INT8}
#: Lowest compute capability whose tensor cores multiply fp8.
_OLDEST_FP8 = (8, 9)


def multiplies_fp8(capability: str) -> bool:
    """Return whether GPUs of a compute capability, such as ``8.9``, have tensor cores for fp8.

    Raises:
        ConfigError: the text is not a compute capability.
    """
    parts = capability.split(".")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise ConfigError(
            f"'{capability}' is not a compute capability; give two numbers, such as 8.9"
        )
    return (int(parts[0]), int(parts[1])) >= _OLDEST_FP8
