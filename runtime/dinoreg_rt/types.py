"""The frozen data types that the stages exchange.

Arrays are indexed ``[z, y, x]``, physical vectors are ``(x, y, z)`` in millimetres, LPS.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from operator import index
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from .errors import InputError

if TYPE_CHECKING:
    import os

    import SimpleITK as sitk

#: A NumPy array on the CPU, a CuPy array on a CUDA device.
Array: TypeAlias = Any
FloatArray: TypeAlias = NDArray[np.float64]
Modality: TypeAlias = Literal["ct", "mr"]
_N = TypeVar("_N", int, float)


def _three(values: Any, number: Callable[[Any], _N], name: str) -> tuple[_N, _N, _N]:
    try:
        first, second, third = (number(value) for value in values)
    except (TypeError, ValueError) as error:
        kind = "whole numbers" if number is index else "numbers"
        raise InputError(f"{name} = {values}; wanted three {kind}") from error
    return first, second, third


def _numbers(values: tuple[float, ...], separator: str) -> str:
    return separator.join(f"{value:.4g}" for value in values)


@dataclass(frozen=True, eq=False)
class Geometry:
    """A regular grid: where its voxel centres lie in space.

    ``p_lps_mm = origin_mm + direction @ (spacing_mm * index_xyz)``, as in SimpleITK.

    Lists and arrays of numbers are accepted and become tuples.

    Attributes:
        shape_zyx: number of voxels along each array axis.
        spacing_mm: distance of neighbouring voxels along index axes x, y, z.
        origin_mm: LPS position of the centre of voxel (0, 0, 0).
        direction: (3, 3); column j is the LPS unit vector of index axis j (x, y, z).
        notes: what the file's header leaves in doubt about the grid, one sentence each; see
            `dinoreg_rt.io`. Grids made from this one do not have them.
        sides_in_doubt: the file's header leaves open which side of the image is left; said in
            `notes`, too.

    Raises:
        InputError: a shape, spacing or origin is not three numbers, or the direction no 3x3 matrix.
    """

    shape_zyx: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]
    direction: FloatArray
    notes: tuple[str, ...] = ()
    sides_in_doubt: bool = False

    def __post_init__(self) -> None:
        for name, number in (("shape_zyx", index), ("spacing_mm", float), ("origin_mm", float)):
            object.__setattr__(self, name, _three(getattr(self, name), number, name))
        try:
            direction = np.array(self.direction, dtype=np.float64).reshape(3, 3)
        except (TypeError, ValueError) as error:
            raise InputError(f"direction = {self.direction}; wanted a 3x3 matrix") from error
        direction.setflags(write=False)
        object.__setattr__(self, "direction", direction)

    @classmethod
    def from_sitk(cls, image: sitk.Image) -> Geometry:
        """Return the grid of a SimpleITK image.

        Raises:
            InputError: the image is not 3D.
        """
        if image.GetDimension() != 3:
            raise InputError(f"the image is {image.GetDimension()}D; a 3D image is needed")
        x, y, z = image.GetSize()
        return cls((z, y, x), image.GetSpacing(), image.GetOrigin(), image.GetDirection())

    @property
    def shape_xyz(self) -> tuple[int, int, int]:
        """Number of voxels along index axes x, y, z."""
        z, y, x = self.shape_zyx
        return (x, y, z)

    def __repr__(self) -> str:
        return f"<Geometry {self.summary()}, origin {_numbers(self.origin_mm, ', ')}>"

    def summary(self) -> str:
        """Return shape and spacing in words, axes x, y, z."""
        shape = " x ".join(str(n) for n in self.shape_xyz)
        return f"{shape} voxels of {_numbers(self.spacing_mm, ' x ')} mm (x, y, z)"


@dataclass(frozen=True, eq=False)
class Volume:
    """A scalar image.

    Attributes:
        array: (D, H, W) float32.
        geometry: the image's grid.
        pixel_type: NumPy name of the pixel type in the file; results are written in it.
        name: path or other name for messages and reports.
    """

    array: Array
    geometry: Geometry
    pixel_type: str = "float32"
    name: str = ""
    #: Modality according to the file's header (DICOM); None if it names neither.
    modality_hint: Modality | None = None
    #: What was corrected when the file was read, as clauses about it, for reports.
    notes: tuple[str, ...] = ()

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Volume:
        """Read an image file or the folder of a DICOM series; see `dinoreg_rt.io.read_volume`.

        Raises:
            InputError: the file is missing or damaged, or the image cannot be used.
        """
        from .io import read_volume

        return read_volume(path)

    @classmethod
    def from_sitk(cls, image: sitk.Image, name: str = "image") -> Volume:
        """Return a SimpleITK image, 3D and scalar, as a volume; float32 voxels are shared.

        Args:
            image: must not be changed afterwards.
            name: name for messages and reports.

        Raises:
            InputError: the image cannot be used.
        """
        from .io import volume_from_sitk

        return volume_from_sitk(image, name)

    def __repr__(self) -> str:
        return _described(self)


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Integer labels or a mask, ``array (D, H, W) int32``; 0 is background. See `Volume`."""

    array: Array
    geometry: Geometry
    pixel_type: str = "uint8"
    name: str = ""

    def __repr__(self) -> str:
        return _described(self)


def _described(image: Volume | LabelMap) -> str:
    name = f" {image.name}" if image.name else ""
    return f"<{type(image).__name__}{name}: {image.geometry.summary()}>"


@dataclass(frozen=True, eq=False)
class AffineTransform:
    """An affine map of points in LPS mm: ``p_moving = matrix @ p_fixed + translation_mm``."""

    matrix: FloatArray
    translation_mm: FloatArray

    def __post_init__(self) -> None:
        for name, shape in (("matrix", (3, 3)), ("translation_mm", (3,))):
            value = np.array(getattr(self, name), dtype=np.float64).reshape(shape)
            value.setflags(write=False)
            object.__setattr__(self, name, value)

    @classmethod
    def identity(cls) -> AffineTransform:
        """Return the transform that leaves every point in place."""
        return cls(np.eye(3), np.zeros(3))

    def is_identity(self) -> bool:
        """Return whether this is exactly the identity."""
        return np.array_equal(self.matrix, np.eye(3)) and not self.translation_mm.any()


@dataclass(frozen=True, eq=False)
class DisplacementField:
    """A map of points given by displacements: ``p_to = p_from + u(p_from)``.

    Attributes:
        vectors_mm: (D, H, W, 3) float32, LPS mm, components x, y, z; linear between voxels.
        geometry: the vectors' grid: the fixed image's for a registration, which maps fixed to
            moving points, and the moving image's for its inverse.
    """

    vectors_mm: Array
    geometry: Geometry

    def __repr__(self) -> str:
        return f"<DisplacementField {self.geometry.summary()}>"


Transform: TypeAlias = AffineTransform | DisplacementField


@dataclass(frozen=True)
class RunQuality:
    """Measures of a registration's result that need no labels.

    J is the Jacobian matrix of the mapping from fixed to moving points.

    Attributes:
        feature_distance_before: mean weighted squared difference of the features after the
            initial alignment.
        feature_distance_after: the same after registration; 0 is a perfect match.
        folded_percent: share of voxels of the fixed grid with det J <= 0, in percent.
        jacobian_min: smallest det J on the fixed grid.
        jacobian_max: largest det J on the fixed grid.
        sdlogj: standard deviation of log det J over voxels with det J > 0.
        inverse_consistency_mean_mm: mean of |u(p) + v(p + u(p))| over the control grid, where v
            is the inverse of u.
        inverse_consistency_max_mm: maximum of the same.
        overlap_percent: share of the fixed image's weight whose match lies inside the moving
            image's field of view and mask, in percent.
        decoy_ratio: misfit of the moving image after the mirror test's coarse search, over that of
            the best of its three mirror images (`quality.mirror_test`); from 1 on a mirror image
            matches as well. NaN: not measured, or, if `unrelated_ratio` is a number, the moving
            image is too small to have a mirror image.
        sides_ratio: the same over the misfit of the image mirrored from left to right alone.
        turned_ratio: the same over the better of the other two mirror images.
        symmetry: correlation of the fixed image with its own mirror image, left to right, after
            such a search; at most 1. NaN: not measured.
        unrelated_ratio: feature difference after that search over that of unrelated features.
            NaN: not measured.
        mind_distance_before: mean weighted squared difference of MIND-SSC after the initial
            alignment, whatever was matched. NaN: not measured.
        mind_distance_after: the same with the final field.
        information_before: mutual information of the intensities after the initial alignment, in
            nats. NaN: not measured.
        information_after: the same with the final field.
        alignment_similarity: similarity of both coarse images after the initial alignment (see
            `dinoreg_rt.align.shifts`); higher is better. NaN: the alignment was given.
        inverse_missed_percent: share of the moving grid's points inside the field that the inverse
            misses: mapped back, they land more than 0.1 mm away. NaN: there is no inverse, or it
            comes from a velocity field.
        inverse_missed_max_mm: largest of these distances. NaN: as above.
        sides_in_doubt: a header leaves open which side of its image is left
            (`Geometry.sides_in_doubt`).
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
    sides_ratio: float = math.nan
    turned_ratio: float = math.nan
    symmetry: float = math.nan
    unrelated_ratio: float = math.nan
    mind_distance_before: float = math.nan
    mind_distance_after: float = math.nan
    information_before: float = math.nan
    information_after: float = math.nan
    alignment_similarity: float = math.nan
    inverse_missed_percent: float = math.nan
    inverse_missed_max_mm: float = math.nan
    sides_in_doubt: bool = False


@dataclass(frozen=True)
class Region:
    """How well the images agree in a region of the body, with the final field.

    Attributes:
        place: where it lies, such as ``upper left, back``; the sides are the person's.
        share_percent: share of the fixed image's weight that lies in it, in percent.
        matched_percent: share of that which has a match inside the moving image, in percent.
        information: mutual information of the intensities of both images there, in nats; higher is
            better. NaN: less than half of the region has a match.
    """

    place: str
    share_percent: float
    matched_percent: float
    information: float


@dataclass(frozen=True)
class EncodedPlaneSummary:
    """How the slices of one plane were encoded.

    Attributes:
        plane: ``axial``, ``coronal`` or ``sagittal``.
        weight: weight of the plane's features; those of all planes sum to 1.
        token_grid: rows and columns of tokens in a slice of the fixed image.
        moving_token_grid: the same for the moving image.
        token_mm: height and width of a token in the fixed and in the moving image.
        slices: number of encoded slices of the fixed and of the moving image.
        from_cache: whether the tokens of each image came from the cache.
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
    """The GPU memory that a registration needs, predicted before its work begins.

    Attributes:
        stages: bytes at the peak of each stage, in addition to what the caller holds.
        available_bytes: bytes that may be used: a budget, or what was free.
        budget: whether `available_bytes` is a budget.
    """

    stages: dict[str, int]
    available_bytes: int
    budget: bool

    @property
    def largest_stage(self) -> str:
        """The stage that needs most memory."""
        return max(self.stages, key=lambda stage: self.stages[stage])

    @property
    def peak_bytes(self) -> int:
        """Bytes that the largest stage needs."""
        return self.stages[self.largest_stage]


@dataclass(frozen=True)
class EncodingSummary:
    """What an encoder contributed to a registration.

    Attributes:
        model: name of the model, such as ``dinov3-vitl16``.
        precision: precision of the bundle's weights.
        bundle_sha256: hash of the bundle's manifest, which holds the hashes of all its files.
        random_weights: whether the weights are random, so that the features mean nothing.
        engine: name of the engine that ran the encoder.
        planes: one plane, or all three.
    """

    model: str
    precision: str
    bundle_sha256: str
    random_weights: bool
    engine: str
    planes: tuple[EncodedPlaneSummary, ...]
