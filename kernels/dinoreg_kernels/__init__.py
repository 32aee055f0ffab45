"""Registration kernels: thin functions over libdinoreg for NumPy and CuPy arrays.

Arrays are C-contiguous with the axes ``(z, y, x[, channel])``; vectors and matrices use the order
z, y, x as well. ``index_map`` arguments are (3, 4) matrices that are applied to ``(z, y, x, 1)``.
Every function runs where its arrays are, NumPy on the CPU and CuPy on the current device and
stream, and returns arrays of the same kind. Arguments that cannot be used raise `KernelError`.
"""

from ._arrays import Array, Progress
from ._errors import KernelCancelled, KernelError, KernelUnavailable
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
from .options import SolverOptions
from .pool import join_channels, pool_features
from .slices import cut_slices
from .solver import SearchFeatures, Solution, solve, solver_workspace_bytes
from .tokens import cover_tissue, sample_tokens

__all__ = [
    "Array",
    "BuildInfo",
    "CudaDevices",
    "KernelCancelled",
    "KernelError",
    "KernelUnavailable",
    "Progress",
    "SearchFeatures",
    "Solution",
    "SolverOptions",
    "build_info",
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
    "mind_ssc",
    "mind_workspace_bytes",
    "pool_features",
    "resample",
    "resample_labels",
    "sample_tokens",
    "solve",
    "solver_workspace_bytes",
]
