"""The frozen data types that flow between the stages.

Arrays are indexed ``[z, y, x]``, physical vectors are ``(x, y, z)`` in millimetres, LPS.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from operator import index
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from .errors import InputError

#: A NumPy array on the CPU back end, a CuPy array on the CUDA back end.
Array: TypeAlias = Any
FloatArray: TypeAlias = NDArray[np.float64]
Modality: TypeAlias = Literal["ct", "mr"]
#: Which placement of a NIfTI header counts if it holds two, see `dinoreg_rt.io.nifti_placement`.
OrientationChoice: TypeAlias = Literal["auto", "sform", "qform"]
_N = TypeVar("_N", int, float)


def _three(values: Any, number: Callable[[Any], _N], name: str) -> tuple[_N, _N, _N]:
    try:
        first, second, third = (number(value) for value in values)
    except (TypeError, ValueError) as error:
        kind = "whole numbers" if number is index else "numbers"
        raise InputError(f"{name} = {values}; wanted three {kind}") from error
    return first, second, third


@dataclass(frozen=True, eq=False)
class Geometry:
    """Where the voxel centres of a grid lie.

    ``p_lps_mm = origin_mm + direction @ (spacing_mm * index_xyz)``, as in SimpleITK.

    Attributes:
        shape_zyx: number of voxels along each array axis.
        spacing_mm: distance of neighbouring voxels along index axes x, y, z.
        origin_mm: LPS position of the centre of voxel (0, 0, 0).
        direction: 3x3; column j is the LPS unit vector of index axis j (x, y, z).
        notes: what the file's header leaves in doubt about the grid, one sentence each; see
            `dinoreg_rt.io`. Grids made from this one do not have them.

    Lists and arrays of numbers become tuples.

    Raises:
        InputError: not three whole numbers, three numbers, or a 3x3 matrix.
    """

    shape_zyx: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]
    direction: FloatArray
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name, number in (("shape_zyx", index), ("spacing_mm", float), ("origin_mm", float)):
            object.__setattr__(self, name, _three(getattr(self, name), number, name))
        try:
            direction = np.array(self.direction, dtype=np.float64).reshape(3, 3)
        except (TypeError, ValueError) as error:
            raise InputError(f"direction = {self.direction}; wanted a 3x3 matrix") from error
        direction.setflags(write=False)
        object.__setattr__(self, "direction", direction)

    @property
    def shape_xyz(self) -> tuple[int, int, int]:
        """Number of voxels along index axes x, y, z."""
        z, y, x = self.shape_zyx
        return (x, y, z)


@dataclass(frozen=True, eq=False)
class Volume:
    """A scalar image: ``array (D, H, W) float32`` on a `Geometry`."""

    array: Array
    geometry: Geometry
    #: NumPy name of the pixel type in the file, which results are written back in.
    pixel_type: str = "float32"
    #: Path or other name for messages and reports.
    name: str = ""


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Integer labels or a mask: ``array (D, H, W) int32`` on a `Geometry`; 0 is background."""

    array: Array
    geometry: Geometry
    pixel_type: str = "uint8"
    name: str = ""


@dataclass(frozen=True, eq=False)
class AffineTransform:
    """``p_moving = matrix @ p_fixed + translation_mm``, LPS mm, fixed points to moving points."""

    matrix: FloatArray
    translation_mm: FloatArray

    def __post_init__(self) -> None:
        for name, shape in (("matrix", (3, 3)), ("translation_mm", (3,))):
            value = np.array(getattr(self, name), dtype=np.float64).reshape(shape)
            value.setflags(write=False)
            object.__setattr__(self, name, value)

    @classmethod
    def identity(cls) -> AffineTransform:
        """The transform that leaves every point where it is."""
        return cls(np.eye(3), np.zeros(3))

    def is_identity(self) -> bool:
        """Whether it is exactly that transform."""
        return np.array_equal(self.matrix, np.eye(3)) and not self.translation_mm.any()


@dataclass(frozen=True, eq=False)
class DisplacementField:
    """``p_to = p_from + u(p_from)``: vectors in mm, components x, y, z, LPS, linear in between.

    Attributes:
        vectors_mm: (D, H, W, 3) float32.
        geometry: the grid the vectors live on: the fixed image's for a registration (maps fixed
            points to moving points), the moving image's for its inverse.
    """

    vectors_mm: Array
    geometry: Geometry


Transform: TypeAlias = AffineTransform | DisplacementField


@dataclass(frozen=True)
class RunQuality:
    """What a run says about its own result; no labels needed.

    Attributes:
        feature_distance_before: mean weighted squared difference of the features after the
            initial alignment.
        feature_distance_after: the same at the end; lower is better, 0 is a perfect match.
        folded_percent: share of fixed-grid voxels with det J <= 0, in percent.
        jacobian_min: smallest det J on the fixed grid.
        jacobian_max: largest det J on the fixed grid.
        sdlogj: standard deviation of log det J over voxels with det J > 0.
        inverse_consistency_mean_mm: mean of |u(p) + v(p + u(p))| over the control points, v being
            the inverse of u.
        inverse_consistency_max_mm: its maximum.
        overlap_percent: share of the fixed image's weight whose match lies inside the moving
            image's field of view and mask.
        decoy_ratio: misfit after a coarse search (`quality.mirror_test`) over that of the best of
            the moving image's three mirror images; 1 and above: they match as well. NaN: not
            measured; if `unrelated_ratio` was, the moving image is too small for it.
        unrelated_ratio: feature difference after that search over that of unrelated features.
            NaN: not measured.
        alignment_similarity: of both images at the initial alignment, coarse and not deformed, see
            `dinoreg_rt.align.shifts`; higher is better. NaN: it was given, not searched for.
        inverse_missed_percent: share of the moving grid's points inside the field that the
            inverse misses: the mapping takes it to another point, more than 0.1 mm away. NaN: no
            inverse was asked for, or a velocity field gave it.
        inverse_missed_max_mm: the largest of these distances. NaN: as above.
    """

    feature_distance_before: float
    feature_distance_after: float
    folded_percent: float
    jacobian_min: float
    jacobian_max: float
    sdlogj: float
    inverse_consistency_mean_mm: float
    inverse_consistency_max_mm: float
    overlap_percent: float
    decoy_ratio: float = math.nan
    unrelated_ratio: float = math.nan
    alignment_similarity: float = math.nan
    inverse_missed_percent: float = math.nan
    inverse_missed_max_mm: float = math.nan


@dataclass(frozen=True)
class EncodedPlaneSummary:
    """What became of the slices of one plane.

    Attributes:
        plane: axial, coronal or sagittal.
        weight: of its features among those of all planes.
        token_grid: rows and columns of tokens per slice of the fixed image.
        moving_token_grid: the same of the moving image.
        token_mm: height and width of a token of the fixed and of the moving image.
        slices: encoded ones of the fixed and of the moving image.
        from_cache: whether each image's tokens were there already.
        feature_scale: factor on the projected tokens.
        explained_variance: share of the tokens' variance along each component of the joint PCA.
    """

    plane: str
    weight: float
    token_grid: tuple[int, int]
    moving_token_grid: tuple[int, int]
    token_mm: tuple[tuple[float, float], tuple[float, float]]
    slices: tuple[int, int]
    from_cache: tuple[bool, bool]
    feature_scale: float
    explained_variance: tuple[float, ...]


@dataclass(frozen=True)
class DeviceMemory:
    """What a registration will take of a GPU's memory, predicted before its work.

    Attributes:
        stages: bytes at the peak of each stage, beside what the caller holds.
        available_bytes: that it may take: a budget, or what was free.
        budget: whether it is a budget.
    """

    stages: dict[str, int]
    available_bytes: int
    budget: bool

    @property
    def largest_stage(self) -> str:
        """The stage that needs most."""
        return max(self.stages, key=lambda stage: self.stages[stage])

    @property
    def peak_bytes(self) -> int:
        """What that stage needs."""
        return self.stages[self.largest_stage]


@dataclass(frozen=True)
class EncodingSummary:
    """What an encoder contributed to a registration.

    Attributes:
        model: such as ``dinov3-vitl16``.
        precision: of the bundle.
        bundle_sha256: of its manifest, which holds the hashes of all its files.
        random_weights: the features mean nothing.
        engine: that ran it.
        planes: one, or all three.
    """

    model: str
    precision: str
    bundle_sha256: str
    random_weights: bool
    engine: str
    planes: tuple[EncodedPlaneSummary, ...]
