"""Registration kernels: thin functions over libdinoreg for NumPy and CuPy arrays.

Arrays are C-contiguous with the axes ``(z, y, x[, channel])``; vectors and matrices use the order
z, y, x as well. ``index_map`` arguments are (3, 4) matrices that are applied to ``(z, y, x, 1)``.
Every function runs where its arrays are, NumPy on the CPU and CuPy on the current device and
stream, and returns arrays of the same kind. Arguments that cannot be used raise `KernelError`.
"""

from ._arrays import Array, Progress, shared_workspace
from ._errors import KernelCancelled, KernelError, KernelNotRecorded, KernelUnavailable
from .fields import compose, invert, jacobian_determinant, map_field
from .images import (
    coverage,
    local_intensity,
    local_workspace_bytes,
    mind_ssc,
    mind_workspace_bytes,
    resample,
    resample_labels,
)
from .info import BuildInfo, CudaDevices, build_info, cuda_devices, current_device_problem
from .measures import (
    BINS,
    REGIONS,
    Agreement,
    Quality,
    WeighedImages,
    agreement_workspace_bytes,
    measure_agreement,
    measure_quality,
    multiply_weights,
    numbers_of,
    quality_workspace_bytes,
    sum_values,
)
from .mirror import MirrorSearch, MirrorTest, compare_mirrored, mirror_workspace_bytes
from .options import SolverOptions
from .pool import join_channels, pool_features
from .session import Session, SessionCounts, release_idle_memory, sessions
from .slices import cut_slices
from .solver import SearchFeatures, Solution, solve, solver_workspace_bytes
from .tokens import cover_tissue, sample_tokens

__all__ = [
    "BINS",
    "REGIONS",
    "Agreement",
    "Array",
    "BuildInfo",
    "CudaDevices",
    "KernelCancelled",
    "KernelError",
    "KernelNotRecorded",
    "KernelUnavailable",
    "MirrorSearch",
    "MirrorTest",
    "Progress",
    "Quality",
    "SearchFeatures",
    "Session",
    "SessionCounts",
    "Solution",
    "SolverOptions",
    "WeighedImages",
    "agreement_workspace_bytes",
    "build_info",
    "compare_mirrored",
    "compose",
    "cover_tissue",
    "coverage",
    "cuda_devices",
    "current_device_problem",
    "cut_slices",
    "invert",
    "jacobian_determinant",
    "join_channels",
    "local_intensity",
    "local_workspace_bytes",
    "map_field",
    "measure_agreement",
    "measure_quality",
    "mind_ssc",
    "mind_workspace_bytes",
    "mirror_workspace_bytes",
    "multiply_weights",
    "numbers_of",
    "pool_features",
    "quality_workspace_bytes",
    "release_idle_memory",
    "resample",
    "resample_labels",
    "sample_tokens",
    "sessions",
    "shared_workspace",
    "solve",
    "solver_workspace_bytes",
    "sum_values",
]
