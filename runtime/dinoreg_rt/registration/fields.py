"""The solution as a mapping in LPS mm on the grids of the images, and the warped image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from dinoreg_kernels import Solution

from ..device.choice import Device, StageTimer
from ..device.placement import Placement, deliver
from ..fields.solve import (
    confidence,
    deformable_displacement,
    inverse_displacement,
    negative_displacement,
    solver_options,
    whole_displacement,
)
from ..fields.warp import warp_volume
from ..types import Array, DisplacementField, Volume
from .plan import Plan


@dataclass(frozen=True, eq=False)
class Fields:
    """A solution in LPS mm: the whole mapping on the grids of the images, and its own part.

    `missed_mm` holds the misses of an inverse that was found by iteration.
    """

    deformable: DisplacementField | None
    displacement: DisplacementField
    warped: Volume
    inverse: DisplacementField | None
    missed_mm: Array | None
    confidence: Array | None

    def delivered(self, placement: Placement, device: Device) -> Fields:
        """Return the fields with their arrays at the caller's destination."""
        displacement, warped, inverse, certainty = deliver(
            placement, device, self.displacement, self.warped, self.inverse, self.confidence
        )
        deformable = self.deformable
        if deformable is not None and not placement.on_device:
            vectors = device.download(deformable.vectors_mm)
            deformable = replace(deformable, vectors_mm=vectors)
        return Fields(deformable, displacement, warped, inverse, None, certainty)


def compute_fields(
    solution: Solution,
    images: tuple[Volume, Volume],
    plan: Plan,
    timer: StageTimer,
    report: Callable[[str, float], None],
) -> Fields:
    """Compute displacement and warped image and, if requested, inverse and confidence.

    Args:
        solution: the solution on the control grid.
        images: fixed and moving image, on the plan's device.
        plan: the plan.
        timer: times the stage.
        report: is told about progress.
    """
    fixed, moving = images
    device, control = plan.device, plan.grids.control
    with timer.stage("warp"):
        report("warp", 0.0)
        deformable = None
        if plan.config.linear_transform is None:
            deformable = deformable_displacement(solution.field, control, device)
        displacement = whole_displacement(
            solution.field, control, fixed.geometry, plan.initial, device
        )
        certainty = None
        if solution.spread is not None:
            options = solver_options(plan.config, plan.grids)
            certainty = confidence(solution.spread, plan.grids, options, fixed.geometry, device)
        inverse, misses = _inverse(solution, moving, plan)
        warped = warp_volume(
            moving,
            displacement,
            device=device,
            download=False,
            outside=min(0.0, plan.pair[1].lowest),
            known=True,
        )
        report("warp", 1.0)
    return Fields(deformable, displacement, warped, inverse, misses, certainty)


def _inverse(
    solution: Solution, moving: Volume, plan: Plan
) -> tuple[DisplacementField | None, Array | None]:
    """Return the inverse, if requested, and its misses, if it was found by iteration."""
    of_plan = plan.grids.control, moving.geometry, plan.initial, plan.device
    if not plan.config.inverse:
        return None, None
    if solution.inverse is not None:
        return negative_displacement(solution.inverse, *of_plan), None
    return inverse_displacement(solution.field, *of_plan)
