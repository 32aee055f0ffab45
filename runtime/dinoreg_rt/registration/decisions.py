"""What a plan decided, as values for programs; `Plan.choices` gives the reasons in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..geometry import centre_lps_mm, transform_points
from ..types import AffineTransform, FloatArray, Geometry, Modality

if TYPE_CHECKING:
    from ..images.pair import PairImage
    from .plan import Plan

_Three = tuple[float, float, float]


@dataclass(frozen=True)
class ImageDecisions:
    """What was decided about one image.

    Attributes:
        modality: ``ct`` or ``mr``.
        modality_certain: whether the modality is beyond doubt.
        window: intensities that map to 0 and 1.
        water: intensity of water in a CT; null for an MR and for a CT that is not in HU.
        padding_replaced: whether padding was found and counts as air.
        body_mask: whether voxels outside the body count less.
    """

    modality: Modality
    modality_certain: bool
    window: tuple[float, float]
    water: float | None
    padding_replaced: bool
    body_mask: bool


@dataclass(frozen=True)
class AlignmentDecisions:
    """The initial alignment, which maps fixed to moving points in LPS mm.

    The 3x3 part of its matrix is the product ``R S`` of a rotation and a symmetric matrix of
    scales (polar decomposition).

    Attributes:
        method: the parameter `initial`.
        matrix: (4, 4), row by row.
        shift_mm: where the centre of the fixed image goes, minus the centre.
        rotation_deg: angles of R about the axes x, y, z, with ``R = Rz Ry Rx``.
        turn_deg: angle of R about its own axis, from 0 to 180.
        scales: the eigenvalues of S, largest first; above 1 the moving anatomy is larger.
        mirrored: whether the determinant is negative; R is then the rotation after a mirroring.
    """

    method: str
    matrix: tuple[tuple[float, float, float, float], ...]
    shift_mm: _Three
    rotation_deg: _Three
    turn_deg: float
    scales: _Three
    mirrored: bool


@dataclass(frozen=True)
class GridDecisions:
    """A grid over the box of the fixed image, axes x, y, z.

    Attributes:
        shape_xyz: number of voxels.
        spacing_mm: distance of neighbouring voxels.
    """

    shape_xyz: tuple[int, int, int]
    spacing_mm: _Three

    @classmethod
    def of(cls, grid: Geometry) -> GridDecisions:
        """Describe a grid."""
        return cls(grid.shape_xyz, grid.spacing_mm)


@dataclass(frozen=True)
class Decisions:
    """The decisions about one registration.

    Attributes:
        device: ``cpu`` or ``cuda:N``.
        fixed: about the fixed image.
        moving: about the moving image.
        alignment: the initial alignment.
        working_grid: grid on which features are computed.
        control_grid: grid of the displacement.
        encoder: name of the encoder; null without one.
        search_features: feature set of each level of the search: ``mind``, ``encoder``, ``joined``.
        refinement_features: feature set of the refinement.
        local_intensities: whether windowed intensities are part of MIND-SSC's features.
    """

    device: str
    fixed: ImageDecisions
    moving: ImageDecisions
    alignment: AlignmentDecisions
    working_grid: GridDecisions
    control_grid: GridDecisions
    encoder: str | None
    search_features: tuple[str, ...]
    refinement_features: str
    local_intensities: bool

    @classmethod
    def of(cls, plan: Plan) -> Decisions:
        """Collect the decisions of a plan."""
        fixed, moving = plan.pair
        search, refinement = plan.config.stage_features
        return cls(
            device=plan.device.name,
            fixed=_of_image(fixed),
            moving=_of_image(moving),
            alignment=describe_alignment(plan.config.initial, plan.initial, fixed.volume.geometry),
            working_grid=GridDecisions.of(plan.grids.working),
            control_grid=GridDecisions.of(plan.grids.control),
            encoder=None if plan.encoding is None else plan.encoding.bundle.name,
            search_features=tuple(search),
            refinement_features=refinement,
            local_intensities=plan.config.computes_mind and plan.config.intensity == "on",
        )


def _of_image(image: PairImage) -> ImageDecisions:
    return ImageDecisions(
        modality=image.modality,
        modality_certain=image.modality_certain,
        window=image.window,
        water=image.water,
        padding_replaced=image.padded,
        body_mask=image.body is not None,
    )


def describe_alignment(method: str, affine: AffineTransform, fixed: Geometry) -> AlignmentDecisions:
    """Decompose an affine map of points of the `fixed` grid into shift, rotation and scales."""
    left, scales, right = np.linalg.svd(affine.matrix)
    mirrored = bool(np.linalg.det(left @ right) < 0)
    left[:, 2] *= -1 if mirrored else 1
    turn = left @ right
    angles = np.array(
        [
            np.arctan2(turn[2, 1], turn[2, 2]),
            np.arcsin(np.clip(-turn[2, 0], -1, 1)),
            np.arctan2(turn[1, 0], turn[0, 0]),
        ]
    )
    whole = np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1))
    middle = centre_lps_mm(fixed)
    rows = np.vstack([np.column_stack([affine.matrix, affine.translation_mm]), [0, 0, 0, 1]])
    return AlignmentDecisions(
        method=method,
        matrix=tuple(_floats(row) for row in rows),
        shift_mm=_floats(transform_points(affine, middle[None])[0] - middle),
        rotation_deg=_floats(np.rad2deg(angles)),
        turn_deg=float(np.rad2deg(whole)),
        scales=_floats(scales),
        mirrored=mirrored,
    )


def _floats(values: FloatArray) -> Any:
    return tuple(float(value) for value in values)
