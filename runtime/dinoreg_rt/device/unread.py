"""Results that wait for numbers from a device, so that the host waits once for many of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..types import Array
from .choice import Device

_Made = TypeVar("_Made")


@dataclass(frozen=True, eq=False)
class Unread(Generic[_Made]):
    """A result whose numbers are still on the device.

    Attributes:
        values: small arrays on the device.
        make: returns the result from all their numbers, in order.
    """

    values: tuple[Array, ...]
    make: Callable[[list[float]], _Made]


def read_all(unread: Sequence[Unread[_Made]], device: Device) -> list[_Made]:
    """Return all results after waiting for the device once."""
    values = [value for one in unread for value in one.values]
    numbers = iter(device.numbers(*values) if values else [])
    counts = [sum(int(value.size) for value in one.values) for one in unread]
    return [
        one.make([next(numbers) for _ in range(count)])
        for one, count in zip(unread, counts, strict=True)
    ]


def read_masks(masks: Sequence[Array], device: Device) -> list[NDArray[np.bool_]]:
    """Return bool arrays of one shape as NumPy arrays; a GPU sends one bit for each voxel."""
    if device.kind == "cpu":
        return list(masks)
    xp, shape = device.xp, (len(masks), *masks[0].shape)
    bits = device.download(xp.packbits(xp.stack(masks)))
    return list(np.unpackbits(bits, count=math.prod(shape)).reshape(shape).astype(bool))


def read_arrays(arrays: Sequence[Array], device: Device) -> list[Array]:
    """Return float32 arrays of the device as NumPy arrays after waiting for it once."""
    if device.kind == "cpu" or not arrays:
        return list(arrays)
    together = device.download(device.xp.concatenate([array.ravel() for array in arrays]))
    ends = np.cumsum([int(array.size) for array in arrays])
    parts = np.split(together, ends[:-1])
    return [part.reshape(array.shape) for part, array in zip(parts, arrays, strict=True)]
