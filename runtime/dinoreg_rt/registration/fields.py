"""The solution as a mapping in LPS mm on the grids of the images, and the warped image."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from numpy.typing import NDArray

from dinoreg_kernels import Solution

from ..device.choice import Device, StageTimer
from ..device.placement import Placement, delivering
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

    @contextmanager
    def delivering(
        self, placement: Placement, device: Device
    ) -> Iterator[Callable[[Sequence[Array]], tuple[Fields, list[NDArray[Any]]]]]:
        """Start to move the arrays to the caller's destination, beside the work of the block.

        Args:
            placement: the destination.
            device: device of the arrays.

        Yields:
            A function that takes further arrays, which are always downloaded, waits for all arrays
            and returns the fields with theirs, and the others.
        """
        results = {
            "displacement": self.displacement.vectors_mm,
            "warped": self.warped.array,
            "inverse": _vectors(self.inverse),
            "confidence": self.confidence,
            "deformable": _vectors(self.deformable),
        }
        with delivering(placement, device, results) as arrays:

            def delivered(others: Sequence[Array]) -> tuple[Fields, list[NDArray[Any]]]:
                placed, read = arrays(*others)
                fields = Fields(
                    deformable=_with_vectors(self.deformable, placed["deformable"]),
                    displacement=replace(self.displacement, vectors_mm=placed["displacement"]),
                    warped=replace(self.warped, array=placed["warped"]),
                    inverse=_with_vectors(self.inverse, placed["inverse"]),
                    missed_mm=None,
                    confidence=placed["confidence"],
                )
                return fields, read

            yield delivered


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
