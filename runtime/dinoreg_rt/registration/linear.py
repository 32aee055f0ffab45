"""Linear registration: the initial alignment refined by the objective of the deformable solver.

Both images are compared on the control grid of a working grid, coarse to fine. After each step the
moving image is sampled again through the whole map, so that its features rotate with it. The host
reads the sums after each evaluation and chooses the next step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ..align.descent import Frame, descend
from ..align.normal_equations import (
    NormalEquations,
    Points,
    Sampled,
    Windows,
    correlation_equations,
    feature_equations,
)
from ..config.image_parameters import LinearModel
from ..device.unread import Unread, read_all
from ..errors import RegistrationError
from ..features.mind import MindFeatures, control_intensity
from ..geometry import (
    coarsened_grid,
    corners_lps_mm,
    index_to_lps,
    resampled_grid,
    shifted_grid,
    transform_points,
)
from ..images.body import bounding_box
from ..images.grids import whole_voxels
from ..images.moving_grids import plan_moving_grids
from ..images.pair import SolverSide
from ..io.arrays import as_numpy
from ..types import AffineTransform, Array, FloatArray, Geometry
from .features import nothing_left, side_weight, weight_by, working_image
from .plan import Plan

#: Largest control spacing of a level, in mm: about the cells of the initial alignment.
_COARSEST_MM = 12.0
#: Largest number of evaluations on a level, and on the finest of several, which starts close.
_EVALUATIONS, _FINEST_EVALUATIONS = 12, 3
#: A step that moves a typical point by a smaller share of a control voxel ends the finest level,
#: and a coarser one, whose remaining error the next level corrects.
_LEAST_STEP_VOX, _COARSE_STEP_VOX = 0.02, 0.1
#: Width of the correlation's blocks, as a multiple of the width at which a block has the variance
#: of the deformable refinement's Gaussian windows. A few parameters need less locality than a
#: field: for T1 with T2 of one patient wider blocks reduced the distance to the results of ANTs and
#: elastix from 0.59 and 0.35 mm to 0.45 and 0.16 mm.
_WINDOW = 2.0
#: Margin around the compared voxels, in control voxels, so that features at their border are whole.
_MARGIN = 3


def refine_linear(
    plan: Plan,
    model: LinearModel,
    organ_weight: Array | None,
    report: Callable[[str, float], None],
) -> Plan:
    """Return the plan with its alignment refined within `model`, and the grids that follow.

    Args:
        plan: a plan whose alignment is of the model.
        model: rigid, similarity or affine.
        organ_weight: (D, H, W) on the fixed grid; None: 1 everywhere.
        report: called with ``linear`` and the finished fraction.

    Raises:
        RegistrationError: nothing is left to compare.
    """
    transform, factors = plan.initial, level_factors(plan.grids.control)
    evaluations = 0
    for number, factor in enumerate(factors):
        report("linear", number / len(factors))
        level = _Level.of(plan, factor, organ_weight)
        close = factor == 1 and len(factors) > 1
        least = _LEAST_STEP_VOX if factor == 1 else _COARSE_STEP_VOX
        found = descend(
            level.objective,
            transform,
            model,
            level.frame,
            least_step_mm=least * min(level.control.spacing_mm),
            most_evaluations=_FINEST_EVALUATIONS if close else _EVALUATIONS,
        )
        transform = found.transform
        evaluations += found.evaluations
    report("linear", 1.0)
    refined = replace(
        plan,
        start=plan.initial,
        alignment=replace(plan.alignment, transform=transform),
        moving_grids=plan_moving_grids(plan.grids, plan.pair[1].volume.geometry, transform),
    )
    text = f"{model}, {len(factors)} levels, {evaluations} evaluations; moved the corners of the "
    text += f"fixed image by {moved_mm(refined):.2f} mm on average"
    return replace(refined, choices=plan.choices | {"linear refinement": text})


def moved_mm(plan: Plan) -> float:
    """Return how far the refinement moved the corners of the fixed image, in mm on average."""
    corners = corners_lps_mm(plan.pair[0].volume.geometry)
    ends = [
        transform_points(affine, corners) for affine in (plan.start or plan.initial, plan.initial)
    ]
    return float(np.linalg.norm(ends[1] - ends[0], axis=1).mean())


def level_factors(control: Geometry) -> list[int]:
    """Return by how much each level is coarser than the plan's grids, coarse to fine."""
    finest = min(control.spacing_mm)
    doublings = max(0, math.floor(math.log2(max(1.0, _COARSEST_MM / finest))))
    return [2**k for k in range(doublings, -1, -1)]


@dataclass(frozen=True, eq=False)
class _Level:
    """One level: its grids, the fixed image there, and what is compared at which points."""

    plan: Plan
    working: Geometry
    pool_zyx: tuple[int, int, int]
    control: Geometry
    mind: MindFeatures
    fixed: Sampled
    points: Points
    windows: Windows
    unrelated: float
    frame: Frame

    @classmethod
    def of(cls, plan: Plan, factor: int, organ_weight: Array | None) -> _Level:
        """Plan the grids of a level and sample the fixed image."""
        config, image = plan.config, plan.pair[0]
        working, pool = _cropped(plan, factor)
        control = coarsened_grid(working, pool)
        mind = _coarser(MindFeatures.of(config), factor)
        side = SolverSide(image, working, control, AffineTransform.identity())
        fixed = _sampled(side, pool, mind, plan)
        if organ_weight is not None:
            weight = weight_by(side, image.volume, organ_weight, plan.device)
            fixed = replace(fixed, weight=fixed.weight * weight)
        spacing = control.spacing_mm[::-1]
        centre = _centre_vox(fixed.weight, side, weighted=organ_weight is not None)
        points = Points.of(fixed.weight, spacing, centre, plan.device)
        width_mm = _WINDOW * math.sqrt(12) * config.correlation_window_mm * factor
        z, y, x = (max(1, round(width_mm / mm)) for mm in spacing)
        return cls(
            plan,
            working,
            pool,
            control,
            mind,
            fixed,
            points,
            Windows.of(points, (z, y, x)),
            _unrelated(fixed, points, mind.channels),
            Frame(
                transform_points(index_to_lps(control), centre[None, ::-1])[0],
                control.direction,
                points.radius_mm,
            ),
        )

    def objective(self, affine: AffineTransform) -> NormalEquations:
        """Compare both images through `affine`."""
        config = self.plan.config
        side = SolverSide(self.plan.pair[1], self.working, self.control, affine)
        moving = _sampled(side, self.pool_zyx, self.mind, self.plan)
        terms = []
        if config.feature_weight > 0:
            features = feature_equations(
                self.fixed,
                moving,
                self.points,
                self.mind.channels,
                unrelated=self.unrelated,
                trust_cost=config.trust_cost,
            )
            terms.append(_scaled(features, config.feature_weight))
        if config.correlation_weight > 0:
            noise = config.correlation_noise
            correlation = correlation_equations(
                self.fixed, moving, self.points, self.windows, noise
            )
            terms.append(_scaled(correlation, config.correlation_weight))
        found = read_all(terms, self.plan.device)
        return found[0] if len(found) == 1 else found[0] + found[1]


def _cropped(plan: Plan, factor: int) -> tuple[Geometry, tuple[int, int, int]]:
    """Return a level's working grid, cropped to the body, and its voxels per control voxel."""
    grid, image = plan.grids.working, plan.pair[0]
    if factor > 1:
        voxel = factor * min(grid.spacing_mm)
        x, y, z = (max(mm, voxel) for mm in grid.spacing_mm)
        grid = resampled_grid(grid, (x, y, z))
    pool = whole_voxels(plan.config.control_spacing_mm * factor, grid)
    side = SolverSide(image, grid, coarsened_grid(grid, pool), AffineTransform.identity())
    box = bounding_box(side_weight(side, plan.device.host) > 0, _MARGIN)
    first = [part.start * p for part, p in zip(box, pool, strict=True)]
    z, y, x = (
        min(part.stop * p, n) - f
        for part, p, n, f in zip(box, pool, grid.shape_zyx, first, strict=True)
    )
    return shifted_grid(grid, (first[0], first[1], first[2]), (z, y, x)), pool


def _coarser(mind: MindFeatures, factor: int) -> MindFeatures:
    """Return the same features for voxels that are `factor` times as long."""
    return replace(
        mind,
        radius_mm=mind.radius_mm * factor,
        dilation_mm=mind.dilation_mm * factor,
        intensity_windows_mm=tuple(mm * factor for mm in mind.intensity_windows_mm),
    )


def _sampled(
    side: SolverSide, pool: tuple[int, int, int], mind: MindFeatures, plan: Plan
) -> Sampled:
    """Sample one image on a level's grids."""
    device = plan.device
    image = working_image(side, pool, device)
    features, structure = mind.of_image(image, device)
    correlates = plan.config.correlation_weight > 0
    weight = device.upload(side_weight(side, device.host), np.float32)
    return Sampled(
        features, weight * structure, control_intensity(image, device) if correlates else None
    )


def _scaled(equations: Unread[NormalEquations], factor: float) -> Unread[NormalEquations]:
    return Unread(equations.values, lambda numbers: equations.make(numbers).scaled(factor))


def _centre_vox(weight: Array, side: SolverSide, *, weighted: bool) -> FloatArray:
    """Return the centre of the weights, z, y, x in voxels."""
    axes = [tuple(a for a in range(3) if a != axis) for axis in range(3)]
    sums = np.concatenate([weight.sum(axis=others, dtype=np.float64) for others in axes])
    by_axis = np.split(as_numpy(sums), np.cumsum(weight.shape)[:2])
    if by_axis[0].sum() <= 0:
        raise RegistrationError(nothing_left(side, weighted=weighted))
    return np.array([float(one @ np.arange(one.size)) / float(one.sum()) for one in by_axis])


def _unrelated(fixed: Sampled, points: Points, channels: int) -> float:
    """Return the squared difference of independent draws from the fixed image's features."""
    stored = fixed.features.shape[-1]
    values = fixed.features.reshape(-1, stored)[points.flat, :channels].astype(np.float32)
    return 2 * float(values.var(axis=0).sum()) if len(values) else 0.0
