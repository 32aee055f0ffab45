"""Destinations of a result's arrays: new host arrays, the device, or the caller's buffers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, InputError
from ..types import Array, Geometry
from .choice import Device
from .pinned import downloads


@dataclass(frozen=True, eq=False)
class Placement:
    """Destination of a result's arrays; by default they are new NumPy arrays.

    The new arrays of a CUDA device lie in page-locked memory as long as all results that are alive
    take at most `dinoreg_rt.device.pinned.MOST_BYTES` (1 GiB) of it, and in ordinary memory beyond.
    They give it back when they are freed.

    Attributes:
        on_device: leave the arrays where they were computed: CuPy arrays on a CUDA device, which
            DLPack and ``__cuda_array_interface__`` share with other libraries.
        displacement: host memory for the vectors, (D, H, W, 3) float32 on the fixed grid.
            Page-locked memory is filled faster.
        warped: the same for the warped moving image, (D, H, W) on the fixed grid.
        inverse: the same for the inverse, (D, H, W, 3) on the moving grid.
    """

    on_device: bool = False
    displacement: Array | None = None
    warped: Array | None = None
    inverse: Array | None = None

    def check(self, fixed: Geometry, moving: Geometry, *, inverse: bool) -> None:
        """Find buffers that do not fit before the work begins.

        Raises:
            InputError: a buffer has another shape, type or layout.
            ConfigError: there are buffers together with `on_device`, or one for an inverse that is
                not computed.
        """
        buffers = {
            "displacement": (self.displacement, (*fixed.shape_zyx, 3)),
            "warped": (self.warped, fixed.shape_zyx),
            "inverse": (self.inverse, (*moving.shape_zyx, 3)),
        }
        for name, (buffer, shape) in buffers.items():
            if buffer is None:
                continue
            if self.on_device:
                raise ConfigError(
                    f"with on_device=True results stay on the device; leave out the buffer '{name}'"
                )
            _check_buffer(buffer, shape, name)
        if self.inverse is not None and not inverse:
            raise ConfigError(
                "the placement has a buffer 'inverse', but no inverse is computed; set inverse=True"
                " in the configuration, or leave the buffer out"
            )


def checked_placement(placement: Placement | None) -> Placement:
    """Return the caller's placement; None stands for new NumPy arrays.

    Raises:
        ConfigError: it is something else.
    """
    if placement is None:
        return Placement()
    if isinstance(placement, Placement):
        return placement
    raise ConfigError(
        f"placement is a {type(placement).__name__}; wanted a Placement, such as "
        "Placement(on_device=True) or Placement(displacement=buffer)"
    )


@contextmanager
def delivering(
    placement: Placement, device: Device, results: Mapping[str, Array | None]
) -> Iterator[Callable[..., tuple[dict[str, Array | None], list[NDArray[Any]]]]]:
    """Start to move the arrays of a result to the destination, which has been checked already.

    From a CUDA device they are copied beside the work of the block.

    Args:
        placement: the destination.
        device: device of the arrays.
        results: arrays of the result by their names; None for what was not computed.

    Yields:
        A function that takes further arrays, which are always downloaded, waits for all arrays and
        returns both groups.
    """
    names = [name for name, array in results.items() if array is not None]
    moved = [] if placement.on_device else names
    into = [getattr(placement, name, None) for name in moved]
    if device.kind == "cpu":

        def placed(*others: Array) -> tuple[dict[str, Array | None], list[NDArray[Any]]]:
            done = dict(results)
            for name, buffer in zip(moved, into, strict=True):
                array = results[name]
                if buffer is not None and array is not None:
                    np.copyto(buffer, array)
                    done[name] = buffer
            return done, list(others)

        yield placed
        return
    arrays = [device.xp.ascontiguousarray(results[name]) for name in moved]
    with downloads(device, arrays, into) as values:

        def downloaded(*others: Array) -> tuple[dict[str, Array | None], list[NDArray[Any]]]:
            host = values(*others)
            return {**results, **dict(zip(moved, host, strict=False))}, host[len(moved) :]

        yield downloaded


def _check_buffer(buffer: Array, shape: tuple[int, ...], name: str) -> None:
    wanted = f"a writable, C-contiguous NumPy array of float32, shape {shape}"
    if not isinstance(buffer, np.ndarray):
        raise InputError(f"the buffer '{name}' is a {type(buffer).__name__}; wanted {wanted}")
    if buffer.dtype != np.float32 or buffer.shape != shape:
        have = f"{buffer.dtype} of shape {buffer.shape}"
        raise InputError(f"the buffer '{name}' is {have}; wanted {wanted}")
    if not (buffer.flags.c_contiguous and buffer.flags.writeable):
        raise InputError(f"the buffer '{name}' is read-only or not contiguous; wanted {wanted}")
