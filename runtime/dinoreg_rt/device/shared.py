"""Device arrays that several streams use, where it is not known which stream will use them last.

CuPy gives the memory of a freed array to the next allocation on the stream where the array was
made, and does not ask which other streams still read it. An array that outlives a registration is
therefore made on a stream of its own, its home, which nothing else uses while the array is alive:
each user first waits for the home, and the home waits for each user at the end.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

from numpy.typing import DTypeLike

from ..types import Array
from .choice import Device
from .streams import give_stream, take_stream

#: The homes of all arrays that are alive, by the arrays' identities.
_homes: dict[int, Any] = {}


def shared_empty(device: Device, shape: Sequence[int], dtype: DTypeLike) -> Array:
    """Return an array on a CUDA device, for use on the current stream at first."""
    home = take_stream(device, "tokens")
    with home:
        array = device.xp.empty(shape, dtype)
    _homes[id(array)] = home
    weakref.finalize(array, _end, id(array), device, home).atexit = False
    device.xp.cuda.get_current_stream().wait_event(home.record())
    return array


def end_of_use(array: Array, device: Device) -> None:
    """Let the memory of an array be reused only after the work queued on the current stream.

    Arrays that were not made by `shared_empty` are left alone.
    """
    home = _homes.get(id(array))
    if home is not None:
        home.wait_event(device.xp.cuda.get_current_stream().record())


def _end(key: int, device: Device, home: Any) -> None:
    del _homes[key]
    give_stream(device, "tokens", home)
