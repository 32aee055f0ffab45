"""Compare the time of each part of a registration with the least that its work can take.

    python floor.py --fixed FIXED --moving MOVING

Each part runs alone on one core and is measured in CPU seconds. `dinoreg-rt bench` compares whole
stages; the work of the parts is the same (`dinoreg_rt.registration.needs`).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

import dinoreg_kernels as kernels
import dinoreg_rt
from dinoreg_rt import RegistrationConfig
from dinoreg_rt.device.ceilings import best_seconds, measure_ceilings
from dinoreg_rt.device.choice import Device
from dinoreg_rt.features.mind import MindFeatures, control_intensities
from dinoreg_rt.fields.solve import (
    solve,
    solver_options,
    whole_displacement,
)
from dinoreg_rt.fields.warp import warp_volume
from dinoreg_rt.images.resample import weight_on
from dinoreg_rt.io import as_volume
from dinoreg_rt.quality.mirror_test import search_decoys
from dinoreg_rt.registration.features import working_images
from dinoreg_rt.registration.needs import registration_work
from dinoreg_rt.registration.plan import Plan
from dinoreg_rt.types import AffineTransform, Volume

CPU = Device("cpu", threads=1)
IDENTITY = AffineTransform.identity()


@dataclass(frozen=True)
class Timed:
    """A part, and what has to run with it and is subtracted from its time."""

    run: Callable[[], object]
    without: Callable[[], object] | None = None

    def cpu_s(self, repeats: int = 3) -> float:
        """Return the least CPU seconds."""
        spent = best_seconds(self.run, repeats, time.process_time)
        if self.without is not None:
            spent -= best_seconds(self.without, repeats, time.process_time)
        return spent


def timed_parts(fixed: Volume, moving: Volume, plan: Plan) -> dict[str, Timed]:
    """Return the parts of a default registration, by their names in `registration_work`."""
    config, grids, offset = plan.config, plan.grids, plan.moving_grids.offset_zyx
    images = working_images(plan.sides(fixed, moving), grids.pool_zyx, CPU)
    source = MindFeatures.of(config)
    features = source.compute(*images, CPU)
    weights = (features.fixed_weight, features.moving_weight)
    options = solver_options(config, grids)
    unsearched = replace(grids, search_radius_zyx=(0, 0, 0))
    intensities = control_intensities(images, CPU)
    compared = kernels.WeighedImages(
        features.fixed,
        features.moving,
        *weights,
        *intensities,
        grids.control.spacing_mm[::-1],
        offset,
    )

    def solver(
        iterations: tuple[int, ...], over=unsearched, correlation: float = 0.0
    ) -> Callable[[], object]:
        changes = {"iterations": iterations, "correlation_weight": correlation}
        own = solver_options(config.model_copy(update=changes), over)
        beside = {"images": intensities} if correlation else {}
        return lambda: solve(features, weights, over, offset, own, CPU, **beside)

    field = solver(config.iterations, grids)().field
    *first, _ = config.iterations
    none, coarse, fine = solver((0,)), solver((*first, 0)), solver(config.iterations)
    correlated = solver(config.iterations, correlation=config.correlation_weight)

    def on_the_fixed_grid():
        return whole_displacement(field, grids.control, fixed.geometry, IDENTITY, CPU)

    displacement = on_the_fixed_grid()
    return {
        "MIND-SSC and local intensities": Timed(lambda: source.compute(*images, CPU)),
        "field-of-view weight": Timed(
            lambda: weight_on(plan.moving_grids.control, moving, None, plan.initial, CPU)
        ),
        "discrete search": Timed(solver((0,), grids), none),
        "refinement, coarse": Timed(coarse, none),
        "refinement, fine": Timed(fine, coarse),
        "local correlation": Timed(correlated, fine),
        "search in mirror images": Timed(
            lambda: search_decoys(compared, features.channels, grids, options, CPU, field)
        ),
        "field on the fixed grid": Timed(on_the_fixed_grid),
        "warp": Timed(lambda: warp_volume(moving, displacement, device=CPU)),
        "Jacobian": Timed(
            lambda: kernels.jacobian_determinant(displacement.vectors_mm, np.eye(3), threads=1)
        ),
        "inverse consistency": Timed(
            lambda: kernels.measure_quality(
                field=field, spacing_mm=grids.control.spacing_mm[::-1], threads=1
            )
        ),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fixed", required=True)
    parser.add_argument("--moving", required=True)
    args = parser.parse_args()
    fixed, moving = as_volume(args.fixed), as_volume(args.moving)
    config = RegistrationConfig(device="cpu", threads=1, initial="none")
    plan = dinoreg_rt.plan(fixed, moving, config)
    ceilings = measure_ceilings(CPU)
    print(
        f"one core: {ceilings.bytes_per_s / 1e9:.1f} GB/s, "
        f"{ceilings.vector_per_s / 1e9:.1f} G multiply-adds/s, "
        f"{ceilings.scalar_per_s / 1e9:.1f} G scalar operations/s\n"
    )
    print(
        "| part | MB | G operations | floor, ms | measured, ms | ratio |\n|---|---|---|---|---|---|"
    )
    timed = timed_parts(fixed, moving, plan)
    for work in (part for parts in registration_work(plan.sizes).values() for part in parts):
        floor, measured = work.floor_s(ceilings), timed[work.name].cpu_s()
        print(
            f"| {work.name} | {work.bytes / 1e6:.0f} | {work.operations / 1e9:.2f} "
            f"| {1e3 * floor:.0f} | {1e3 * measured:.0f} | {measured / floor:.1f} |"
        )


if __name__ == "__main__":
    main()
