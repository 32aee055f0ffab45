"""The solution as a mapping in LPS mm on the grids of the images, and the warped image."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from dinoreg_kernels import Solution

from ..device.choice import Device, StageTimer
from ..device.placement import Placement, delivering
from ..fields.solve import (
    confidence,
    deformable_displacement,
    inverse_displacement,
    inverse_misses,
    negative_displacement,
    solver_options,
    whole_displacement,
)
from ..fields.warp import warp_volume
from ..quality.finite import check_finite, extremes
from ..types import Array, DisplacementField, Volume
from .plan import Plan


@dataclass(frozen=True, eq=False)
class Fields:
    """A solution in LPS mm: the whole mapping on the grids of the images, and its own part.

    Attributes:
        extremes: the `extremes` of all other arrays but the deformable part.
    """

    deformable: DisplacementField | None
    displacement: DisplacementField
    warped: Volume
    inverse: DisplacementField | None
    inverse_misses: tuple[Array, Array] | None
    confidence: Array | None
    extremes: Array

    @contextmanager
    def delivering(self, placement: Placement, device: Device) -> Iterator[Callable[[], Fields]]:
        """Start to move the arrays to the caller's destination, beside the work of the block.

        Yields:
            A function that waits for them and returns the fields with these arrays. It raises
            `RegistrationError` if a value is not finite.
        """
        checked = _results(self.displacement, self.warped, self.inverse, self.confidence)
        results = checked | {"deformable": _vectors(self.deformable)}
        with delivering(placement, device, results, self.extremes) as arrays:

            def delivered() -> Fields:
                placed, (found,) = arrays()
                check_finite(checked, found)
                return replace(
                    self,
                    deformable=_with_vectors(self.deformable, placed["deformable"]),
                    displacement=replace(self.displacement, vectors_mm=placed["displacement"]),
                    warped=replace(self.warped, array=placed["warped"]),
                    inverse=_with_vectors(self.inverse, placed["inverse"]),
                    inverse_misses=None,
                    confidence=placed["confidence"],
                    extremes=found,
                )

            yield delivered


def _results(
    displacement: DisplacementField,
    warped: Volume,
    inverse: DisplacementField | None,
    confidence: Array | None,
) -> dict[str, Array | None]:
    return {
        "displacement": displacement.vectors_mm,
        "warped": warped.array,
        "inverse": _vectors(inverse),
        "confidence": confidence,
    }


def _vectors(field: DisplacementField | None) -> Array | None:
    return None if field is None else field.vectors_mm


def _with_vectors(
    field: DisplacementField | None, vectors: Array | None
) -> DisplacementField | None:
    return None if field is None else replace(field, vectors_mm=vectors)


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
    report("warp", 0.0)
    fields = timer.recorded("warp", lambda: _queued(solution, images, plan))
    report("warp", 1.0)
    return fields


def _queued(solution: Solution, images: tuple[Volume, Volume], plan: Plan) -> Fields:
    """Queue what `compute_fields` returns."""
    fixed, moving = images
    device, control = plan.device, plan.grids.control
    deformable = None
    if plan.config.linear_transform is None:
        deformable = deformable_displacement(solution.field, control, device)
    displacement = whole_displacement(solution.field, control, fixed.geometry, plan.initial, device)
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
    found = extremes(_results(displacement, warped, inverse, certainty), device)
    return Fields(deformable, displacement, warped, inverse, misses, certainty, found)


def _inverse(
    solution: Solution, moving: Volume, plan: Plan
) -> tuple[DisplacementField | None, tuple[Array, Array] | None]:
    """Return the inverse, if requested, and its misses, if it was found by iteration."""
    of_plan = plan.grids.control, moving.geometry, plan.initial, plan.device
    if not plan.config.inverse:
        return None, None
    if solution.inverse is not None:
        return negative_displacement(solution.inverse, *of_plan), None
    inverse, missed_mm = inverse_displacement(solution.field, *of_plan)
    return inverse, inverse_misses(missed_mm, plan.device)
