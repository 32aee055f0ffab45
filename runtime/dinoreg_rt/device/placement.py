"""Destinations of a result's arrays: new host arrays, the device, or the caller's buffers."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..errors import ConfigError, InputError
from ..types import Array, DisplacementField, Geometry, Volume
from .choice import Device


@dataclass(frozen=True, eq=False)
class Placement:
    """Destination of a result's arrays; by default they are new NumPy arrays.

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


def deliver(
    placement: Placement,
    device: Device,
    displacement: DisplacementField,
    warped: Volume,
    inverse: DisplacementField | None,
    confidence: Array | None = None,
) -> tuple[DisplacementField, Volume, DisplacementField | None, Array | None]:
    """Move the arrays of a result to the destination, which has been checked already."""

    def placed(array: Array, buffer: Array | None) -> Array:
        if placement.on_device:
            return array
        if buffer is None:
            return device.download(array)
        if device.kind == "cpu":
            np.copyto(buffer, array)
        else:
            array.get(out=buffer)
        return buffer

    return (
        replace(displacement, vectors_mm=placed(displacement.vectors_mm, placement.displacement)),
        replace(warped, array=placed(warped.array, placement.warped)),
        None
        if inverse is None
        else replace(inverse, vectors_mm=placed(inverse.vectors_mm, placement.inverse)),
        None if confidence is None else placed(confidence, None),
    )


def _check_buffer(buffer: Array, shape: tuple[int, ...], name: str) -> None:
    wanted = f"a writable, C-contiguous NumPy array of float32, shape {shape}"
    if not isinstance(buffer, np.ndarray):
        raise InputError(f"the buffer '{name}' is a {type(buffer).__name__}; wanted {wanted}")
    if buffer.dtype != np.float32 or buffer.shape != shape:
        have = f"{buffer.dtype} of shape {buffer.shape}"
        raise InputError(f"the buffer '{name}' is {have}; wanted {wanted}")
    if not (buffer.flags.c_contiguous and buffer.flags.writeable):
        raise InputError(f"the buffer '{name}' is read-only or not contiguous; wanted {wanted}")
