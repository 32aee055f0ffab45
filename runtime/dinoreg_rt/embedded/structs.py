"""The structs of ``dinoreg_host.h`` for ctypes, and the arrays that they describe."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_double, c_int, c_int32, c_int64, c_size_t, c_void_p
from types import SimpleNamespace
from typing import Any

import numpy as np

from ..errors import InputError
from ..io.arrays import as_array, float32_at
from ..types import Array, Geometry, Volume

PROGRESS = ctypes.CFUNCTYPE(c_int, c_void_p, c_char_p, c_double)
LOG = ctypes.CFUNCTYPE(None, c_void_p, c_int, c_char_p)

#: The type of the voxels by its number, `dr_voxel_type`.
_TYPES = ("float32", "float64", "int8", "uint8", "int16", "uint16", "int32", "uint32")


class VolumeStruct(ctypes.Structure):
    """`dr_volume`."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("voxels", c_void_p),
        ("voxel_type", c_int32),
        ("on_cuda", c_int32),
        ("size", c_int64 * 3),
        ("stride", c_int64 * 3),
        ("spacing", c_double * 3),
        ("origin", c_double * 3),
        ("direction", c_double * 9),
    )


class Arguments(ctypes.Structure):
    """`dr_registration_args`."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("fixed", POINTER(VolumeStruct)),
        ("moving", POINTER(VolumeStruct)),
        ("fixed_mask", POINTER(VolumeStruct)),
        ("moving_mask", POINTER(VolumeStruct)),
        ("weights", POINTER(VolumeStruct)),
        ("labels", POINTER(VolumeStruct)),
        ("initial", POINTER(c_double)),
        ("displacement", c_void_p),
        ("inverse", c_void_p),
        ("warped", c_void_p),
        ("warped_labels", c_void_p),
        ("outputs_on_cuda", c_int32),
        ("has_stream", c_int32),
        ("stream", c_void_p),
        ("progress", c_void_p),
        ("log", c_void_p),
        ("user", c_void_p),
    )


class Result(ctypes.Structure):
    """`dr_registration_result`."""

    _fields_ = (
        ("struct_size", c_size_t),
        ("trusted", c_int32),
        ("initial", c_double * 12),
        ("report", c_void_p),
    )


def grid_of(volume: VolumeStruct, name: str) -> Geometry:
    """Return the grid of a volume.

    Raises:
        InputError: there are no voxels along an axis, or more than an array can have.
    """
    size = list(volume.size)
    if not all(1 <= n < 2**31 for n in size):
        raise InputError(f"{name}: has size {size}; wanted at least one voxel along each axis")
    return Geometry(
        (size[2], size[1], size[0]),
        tuple(volume.spacing),
        tuple(volume.origin),
        np.reshape(list(volume.direction), (3, 3)),
    )


def volume_at(struct: VolumeStruct, name: str) -> Volume:
    """Return a volume over the caller's memory, whose voxels have not been checked.

    Raises:
        InputError: the voxels are null, of an unknown type, or overlap.
        DeviceError: the voxels lie in CUDA memory and CuPy is not installed.
    """
    grid = grid_of(struct, name)
    if not 0 <= struct.voxel_type < len(_TYPES):
        raise InputError(
            f"{name}: has voxel_type {struct.voxel_type}; wanted a dr_voxel_type, 0 to "
            f"{len(_TYPES) - 1}"
        )
    if not struct.voxels:
        raise InputError(f"{name}: the pointer to the voxels is null")
    dtype = np.dtype(_TYPES[struct.voxel_type])
    strides = _strides(struct, dtype.itemsize, name)
    shape = grid.shape_zyx
    if struct.on_cuda:
        on_device = as_array(_on_cuda(struct.voxels, shape, strides, dtype), name)
        return Volume(on_device, grid, dtype.name, name)
    extent = dtype.itemsize + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    memory = (ctypes.c_char * extent).from_address(struct.voxels)
    array: Array = np.ndarray(shape, dtype, memoryview(memory), strides=strides)
    array.setflags(write=False)
    return Volume(array, grid, dtype.name, name)


def _strides(volume: VolumeStruct, item: int, name: str) -> tuple[int, int, int]:
    """Return the bytes between neighbours along z, y, x."""
    given = list(volume.stride)
    x, y, _ = volume.size
    if given == [0, 0, 0]:
        return item * x * y, item * x, item
    axes = sorted(zip(given, volume.size, strict=True))
    needed = item
    for stride, count in axes:
        if count > 1 and (stride < needed or stride % item):
            raise InputError(
                f"{name}: has strides {given}; wanted positive multiples of the voxel's {item} "
                "bytes with which no voxels overlap, or three zeros for contiguous voxels"
            )
        needed = max(needed, stride * count)
    return given[2], given[1], given[0]


def _on_cuda(address: int, shape: tuple[int, ...], strides: tuple[int, ...], dtype: Any) -> Any:
    """Return an object with `__cuda_array_interface__`.

    It names no stream, because the registration works on the caller's stream or after the default
    stream.
    """
    interface = {
        "version": 3,
        "shape": shape,
        "strides": strides,
        "typestr": dtype.str,
        "data": (address, True),
        "stream": None,
    }
    return SimpleNamespace(__cuda_array_interface__=interface)


def host_output(address: int | None, *shape: int) -> Array | None:
    """Return float32 memory of the caller as an array to fill; None for a null pointer."""
    return None if not address else float32_at(address, shape, None)


def affine_of(numbers: Any) -> tuple[Any, Any]:
    """Return matrix and translation of 12 numbers, the rows of a 3 x 4 matrix."""
    rows = np.reshape([numbers[i] for i in range(12)], (3, 4))
    return rows[:, :3], rows[:, 3]
