"""libdinoreg loaded through ctypes: the structs of dinoreg.h and how their errors are raised."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
from collections.abc import Iterator
from ctypes import POINTER, c_char_p, c_double, c_float, c_int, c_int32, c_size_t, c_void_p
from pathlib import Path

from ._errors import KernelCancelled, KernelError

_Int3 = c_int32 * 3
_Double3 = c_double * 3
_Double9 = c_double * 9
_Double12 = c_double * 12

PROGRESS = ctypes.CFUNCTYPE(c_int, c_void_p, c_int, c_float)


class Execution(ctypes.Structure):
    """`dr_execution`."""

    _fields_ = (
        ("device", c_int),
        ("threads", c_int32),
        ("stream", c_void_p),
        ("progress", PROGRESS),
        ("progress_user", c_void_p),
    )


class PointMap(ctypes.Structure):
    """`dr_point_map`."""

    _fields_ = (
        ("affine", _Double12),
        ("field", c_void_p),
        ("field_shape", _Int3),
        ("to_field", _Double12),
        ("matrix", _Double9),
    )


class ResampleArgs(ctypes.Structure):
    """`dr_resample_args`."""

    _fields_ = (
        ("input", c_void_p),
        ("in_shape", _Int3),
        ("out", c_void_p),
        ("out_shape", _Int3),
        ("inside", c_void_p),
        ("map", PointMap),
        ("samples", _Int3),
        ("outside", c_float),
        ("extend", c_int32),
    )


class LabelsArgs(ctypes.Structure):
    """`dr_labels_args`."""

    _fields_ = (
        ("input", c_void_p),
        ("in_shape", _Int3),
        ("out", c_void_p),
        ("out_shape", _Int3),
        ("map", PointMap),
        ("nearest", c_int32),
        ("outside", c_int32),
    )


class SlicesArgs(ctypes.Structure):
    """`dr_slices_args`."""

    _fields_ = (
        ("image", c_void_p),
        ("shape", _Int3),
        ("strides", _Int3),
        ("slices", POINTER(c_int32)),
        ("count", c_int32),
        ("size", c_int32 * 2),
        ("samples", c_int32 * 2),
        ("window", c_double * 2),
        ("channels", c_int32),
        ("mean", POINTER(c_double)),
        ("std", POINTER(c_double)),
        ("out", c_void_p),
    )


class MapArgs(ctypes.Structure):
    """`dr_map_args`."""

    _fields_ = (("out", c_void_p), ("out_shape", _Int3), ("map", PointMap))


class JacobianArgs(ctypes.Structure):
    """`dr_jacobian_args`."""

    _fields_ = (
        ("field", c_void_p),
        ("out", c_void_p),
        ("shape", _Int3),
        ("index_from_unit", _Double9),
    )


class ComposeArgs(ctypes.Structure):
    """`dr_compose_args`."""

    _fields_ = (
        ("first", c_void_p),
        ("shape", _Int3),
        ("second", c_void_p),
        ("second_shape", _Int3),
        ("to_second", _Double12),
        ("spacing_mm", _Double3),
        ("out", c_void_p),
    )


class InvertArgs(ctypes.Structure):
    """`dr_invert_args`."""

    _fields_ = (
        ("field", c_void_p),
        ("field_shape", _Int3),
        ("matrix", _Double9),
        ("spacing_mm", _Double3),
        ("target", _Double12),
        ("wanted", c_void_p),
        ("from_point", _Double12),
        ("from_index", _Double12),
        ("out", c_void_p),
        ("residual_mm", c_void_p),
        ("out_shape", _Int3),
        ("iterations", c_int32),
        ("tolerance_mm", c_double),
    )


class MindArgs(ctypes.Structure):
    """`dr_mind_args`."""

    _fields_ = (
        ("image", c_void_p),
        ("shape", _Int3),
        ("radius", _Int3),
        ("dilation", _Int3),
        ("pool", _Int3),
        ("out", c_void_p),
        ("structure", c_void_p),
        ("channels", c_int32),
        ("scale", c_float),
        ("workspace", c_void_p),
        ("workspace_bytes", c_size_t),
    )


class LocalArgs(ctypes.Structure):
    """`dr_local_args`."""

    _fields_ = (
        ("image", c_void_p),
        ("shape", _Int3),
        ("pool", _Int3),
        ("spacing_mm", _Double3),
        ("sigma_mm", POINTER(c_double)),
        ("windows", c_int32),
        ("noise", c_double),
        ("scale", c_double),
        ("out", c_void_p),
        ("channels", c_int32),
        ("first_channel", c_int32),
        ("workspace", c_void_p),
        ("workspace_bytes", c_size_t),
    )


class SolverArgs(ctypes.Structure):
    """`dr_solver_args`."""

    _fields_ = (
        ("fixed", c_void_p),
        ("fixed_weight", c_void_p),
        ("fixed_shape", _Int3),
        ("moving", c_void_p),
        ("moving_weight", c_void_p),
        ("moving_shape", _Int3),
        ("moving_offset", _Int3),
        ("stride", c_int32),
        ("channels", c_int32),
        ("spacing_mm", _Double3),
        ("search_factor", _Int3),
        ("search_radius", _Int3),
        ("search_levels", c_int32),
        ("cost_smoothing_mm", c_double),
        ("field_smoothing_mm", c_double),
        ("coupling", POINTER(c_double)),
        ("coupling_rounds", c_int32),
        ("consistency_rounds", c_int32),
        ("iterations", POINTER(c_int32)),
        ("levels", c_int32),
        ("learning_rate_mm", c_double),
        ("adam_epsilon", c_double),
        ("smoothing_mm", c_double),
        ("smoothness", c_double),
        ("feature_weight", c_double),
        ("feature_similarity", c_int32),
        ("trust_cost", c_double),
        ("fixed_image", c_void_p),
        ("moving_image", c_void_p),
        ("correlation_weight", c_double),
        ("correlation_window_mm", c_double),
        ("correlation_noise", c_double),
        ("fold_penalty", c_double),
        ("fold_margin", c_double),
        ("squarings", c_int32),
        ("field", c_void_p),
        ("inverse", c_void_p),
        ("spread", c_void_p),
        ("feature_distance", c_void_p),
        ("workspace", c_void_p),
        ("workspace_bytes", c_size_t),
    )


_CALLS = {
    "dr_image_resample": ResampleArgs,
    "dr_labels_resample": LabelsArgs,
    "dr_slices_cut": SlicesArgs,
    "dr_field_map": MapArgs,
    "dr_field_jacobian": JacobianArgs,
    "dr_field_compose": ComposeArgs,
    "dr_field_invert": InvertArgs,
    "dr_mind_compute": MindArgs,
    "dr_local_compute": LocalArgs,
    "dr_solver_run": SolverArgs,
}


def library_file() -> Path:
    """Where libdinoreg is; beside the sources or, in an editable install, where it was installed.

    The header is in the folder ``include`` beside it.
    """
    import dinoreg_kernels

    files = [Path(folder) / "libdinoreg.so" for folder in dinoreg_kernels.__path__]
    return next((file for file in files if file.exists()), files[0])


@contextlib.contextmanager
def _short_spin() -> Iterator[None]:
    """Let idle OpenMP threads sleep soon, unless the user has decided about it.

    libgomp reads this when it is loaded. By default its threads burn a millisecond before they
    sleep: with one of two cores busy elsewhere, `register` took 6.5 s instead of 2.9 s.
    """
    if {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        yield
        return
    os.environ["GOMP_SPINCOUNT"] = "2000"
    try:
        yield
    finally:
        del os.environ["GOMP_SPINCOUNT"]


@functools.cache
def library() -> ctypes.CDLL:
    """The loaded library; raises `KernelError` with what to do when it is not there."""
    path = library_file()
    try:
        with _short_spin():
            lib = ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelError(
            f"libdinoreg cannot be loaded ({error}); install the package with `pip install .`, "
            "which compiles it, instead of running from the source folder"
        ) from error
    for name, struct in _CALLS.items():
        call = getattr(lib, name)
        call.argtypes = [POINTER(Execution), POINTER(struct)]
        call.restype = c_int
    for name in ("dr_cpu_isa", "dr_cuda_problem", "dr_last_error_message"):
        getattr(lib, name).restype = c_char_p
    lib.dr_mind_workspace_bytes.argtypes = [POINTER(MindArgs)]
    lib.dr_local_workspace_bytes.argtypes = [POINTER(LocalArgs)]
    lib.dr_solver_workspace_bytes.argtypes = [POINTER(SolverArgs)]
    for name in ("dr_mind", "dr_local", "dr_solver"):
        getattr(lib, f"{name}_workspace_bytes").restype = c_size_t
    return lib


def call(name: str, execution: Execution, args: ctypes.Structure) -> None:
    """One call of the library; a status other than DR_OK becomes an exception."""
    lib = library()
    status = getattr(lib, name)(ctypes.byref(execution), ctypes.byref(args))
    if status == 0:
        return
    message = lib.dr_last_error_message().decode()
    if status == 5:
        raise KernelCancelled(message)
    raise KernelError(f"{name}: {message}")


def workspace_bytes(name: str, args: ctypes.Structure) -> int:
    """Bytes of workspace that a call with these extents needs."""
    size = int(getattr(library(), name)(ctypes.byref(args)))
    if size == 0:
        raise KernelError(f"{name}: {library().dr_last_error_message().decode()}")
    return size
