"""Loads libdinoreg through ctypes and turns its statuses into exceptions."""

from __future__ import annotations

import ctypes
import functools
from ctypes import POINTER, c_char_p, c_int, c_int32, c_size_t, c_uint64, c_void_p
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from . import _measure_structs, _structs
from ._errors import KernelCancelled, KernelError, KernelNotRecorded, KernelUnavailable

_CALLS = {
    "dr_image_resample": _structs.ResampleArgs,
    "dr_labels_resample": _structs.LabelsArgs,
    "dr_slices_cut": _structs.SlicesArgs,
    "dr_field_map": _structs.MapArgs,
    "dr_field_jacobian": _structs.JacobianArgs,
    "dr_field_compose": _structs.ComposeArgs,
    "dr_field_invert": _structs.InvertArgs,
    "dr_mind_compute": _structs.MindArgs,
    "dr_local_compute": _structs.LocalArgs,
    "dr_features_pool": _structs.PoolArgs,
    "dr_solver_run": _structs.SolverArgs,
    "dr_weights_multiply": _measure_structs.MultiplyArgs,
    "dr_values_sum": _measure_structs.SumsArgs,
    "dr_quality_measure": _measure_structs.QualityArgs,
    "dr_agreement_measure": _measure_structs.AgreementArgs,
    "dr_mirror_compare": _measure_structs.MirrorArgs,
    "dr_tokens_sample": _structs.TokensArgs,
    "dr_tissue_cover": _structs.TissueArgs,
    "dr_features_join": _structs.JoinArgs,
}
#: Calls that take a workspace, whose size the library tells.
_SIZED = (
    "dr_mind_compute",
    "dr_local_compute",
    "dr_solver_run",
    "dr_values_sum",
    "dr_quality_measure",
    "dr_agreement_measure",
    "dr_mirror_compare",
)


_SESSIONS = {
    "dr_session_create": [c_int32, POINTER(c_void_p)],
    "dr_session_begin": [c_void_p, POINTER(_structs.Execution), c_uint64],
    "dr_session_recording": [c_void_p],
    "dr_session_end": [c_void_p],
    "dr_session_abandon": [c_void_p, POINTER(c_int32)],
    "dr_session_count": [c_void_p, POINTER(_structs.SessionCounts)],
    "dr_session_destroy": [c_void_p],
}
#: The distribution whose library also has the CUDA kernels, and the package that holds it.
CUDA_DISTRIBUTION, _CUDA_PACKAGE = "dinoreg-kernels-cu13", "dinoreg_kernels_cu13"
_OWN_DISTRIBUTION = "dinoreg-rt"


def library_file() -> Path:
    """Find libdinoreg: that of `CUDA_DISTRIBUTION` if it is installed, otherwise this package's.

    An editable package has two folders: the sources, and where the library was installed. Beside
    the library are the folders ``include``, ``cmake`` and ``pkgconfig``.

    Raises:
        KernelUnavailable: `CUDA_DISTRIBUTION` has another version than this package.
    """
    import dinoreg_kernels

    folders = list(dinoreg_kernels.__path__)
    if (cuda := find_spec(_CUDA_PACKAGE)) is not None:
        _check_version()
        folders = list(cuda.submodule_search_locations or ())
    files = [Path(folder) / "libdinoreg.so.1" for folder in folders]
    return next((file for file in files if file.exists()), files[0])


def _check_version() -> None:
    """Refuse CUDA kernels of another release, whose structs and results may differ."""
    own, cuda = metadata.version(_OWN_DISTRIBUTION), metadata.version(CUDA_DISTRIBUTION)
    if own != cuda:
        raise KernelUnavailable(
            f"{CUDA_DISTRIBUTION} {cuda} is installed beside {_OWN_DISTRIBUTION} {own}; wanted the "
            f"same version: pip install '{CUDA_DISTRIBUTION}=={own}', or pip uninstall "
            f"{CUDA_DISTRIBUTION} to use the CPU alone"
        )


@functools.cache
def library() -> ctypes.CDLL:
    """Load the library.

    Raises:
        KernelUnavailable: There is no library to load; the message says what to do.
    """
    path = library_file()
    try:
        lib = ctypes.CDLL(str(path))
    except OSError as error:
        raise KernelUnavailable(
            f"libdinoreg cannot be loaded ({error}); install the package with `pip install .`, "
            "which compiles it, instead of running from the source folder"
        ) from error
    for name, struct in _CALLS.items():
        call = getattr(lib, name)
        call.argtypes = [POINTER(_structs.Execution), POINTER(struct)]
        call.restype = c_int
    for name in ("dr_cpu_isa", "dr_cuda_problem", "dr_last_error_message"):
        getattr(lib, name).restype = c_char_p
    for name in _SIZED:
        size = getattr(lib, name.rpartition("_")[0] + "_workspace_bytes")
        size.argtypes, size.restype = [POINTER(_CALLS[name])], c_size_t
    for name, parameters in _SESSIONS.items():
        getattr(lib, name).argtypes = parameters
    lib.dr_session_destroy.restype = None
    return lib


def call(name: str, execution: _structs.Execution, args: ctypes.Structure) -> None:
    """Call the library; a status other than DR_OK becomes an exception."""
    check(name, getattr(library(), name)(ctypes.byref(execution), ctypes.byref(args)))


def check(name: str, status: int) -> None:
    """Raise the exception of a status other than DR_OK, which the function `name` returned."""
    if status == 0:
        return
    message = library().dr_last_error_message().decode()
    if status == 5:
        raise KernelCancelled(message)
    if status == 6:
        raise KernelNotRecorded(message)
    if status in (3, 4):
        raise KernelUnavailable(f"{name}: {message}")
    raise KernelError(f"{name}: {message}")


def workspace_bytes(name: str, args: ctypes.Structure) -> int:
    """Return the bytes of workspace that a call with these sizes needs."""
    size = int(getattr(library(), name)(ctypes.byref(args)))
    if size == 0:
        raise KernelError(f"{name}: {library().dr_last_error_message().decode()}")
    return size
