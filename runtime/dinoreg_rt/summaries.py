"""What a registration says about itself: the measures and numbers that reports hold."""

from __future__ import annotations

import math
from dataclasses import dataclass


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
            `dinoreg_rt.align.sides`); higher is better. NaN: the alignment was given.
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
class RegionQuality:
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
