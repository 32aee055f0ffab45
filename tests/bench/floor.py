"""Each stage of a registration beside the least time that its bytes and operations take.

    python floor.py --fixed FIXED --moving MOVING

One core. The ceilings are measured in the same run: bandwidth with NumPy on arrays that leave every
cache, arithmetic with a float32 matrix product. An operation is one lane of a vector instruction, a
fused multiply-add counting once. Work that jumps in memory (interpolation at arbitrary points)
cannot fill vectors; its operations are counted at the scalar rate, four instructions where the
product starts two vectors. The counts are those of the formulas as written, from memory to memory.
"""

from __future__ import annotations

import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # before NumPy is loaded

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

import dinoreg_kernels as kernels
from dinoreg_rt import RegistrationConfig
from dinoreg_rt.device import Device
from dinoreg_rt.features import feature_source
from dinoreg_rt.io import as_volume
from dinoreg_rt.preprocess import weight_on
from dinoreg_rt.registration import _working_images, plan
from dinoreg_rt.solve import inverse_consistency_mm, solve, solver_options, whole_displacement
from dinoreg_rt.types import AffineTransform
from dinoreg_rt.warp import warp_volume

LANES = 16


@dataclass(frozen=True)
class Stage:
    """Work of one stage: bytes from and to memory, operations, and whether they fill vectors."""

    name: str
    bytes: float
    operations: float
    scalar: bool
    run: Callable[[], object]
    without: Callable[[], object] | None = None  # its time is taken off


def best_of(run: Callable[[], object], repeats: int = 3) -> float:
    """Least CPU seconds of a call."""
    times = []
    for _ in range(repeats):
        began = time.process_time()
        run()
        times.append(time.process_time() - began)
    return min(times)


def bandwidth() -> float:
    """Bytes per second of c = a + b; the write allocates its line: four arrays move."""
    a, b, c = (np.ones(32_000_000, np.float32) for _ in range(3))
    return 4 * a.nbytes / best_of(lambda: np.add(a, b, out=c), 7)


def operations_per_second() -> float:
    """Multiply-adds per second of a matrix product."""
    a = np.random.default_rng(0).random((1536, 1536), np.float32)
    return 1536**3 / best_of(lambda: a @ a, 7)


def stages(fixed_path: str, moving_path: str) -> list[Stage]:
    """The stages of the default registration of a pair, with their work."""
    fixed, moving = as_volume(fixed_path), as_volume(moving_path)
    plan_ = plan(fixed, moving, RegistrationConfig(device="cpu", threads=1, initial="none"))
    device, config, grids, lattice = (
        Device("cpu", threads=1),
        plan_.config,
        plan_.grids,
        plan_.lattice,
    )
    identity = AffineTransform.identity()
    images = _working_images(fixed, moving, plan_)
    source = feature_source(config)
    features = source.compute(images[0], images[1], device)
    weights = (features.fixed_weight, features.moving_weight)
    solution = solve(
        features, weights, grids, lattice.offset_zyx, solver_options(config, grids), device
    )
    displacement = whole_displacement(
        solution.field, grids.control, fixed.geometry, identity, device
    )

    v = math.prod(fixed.geometry.shape_zyx)
    w = sum(math.prod(i.array.shape) for i in images)
    c = math.prod(grids.control.shape_zyx)
    stride, channels = features.fixed.shape[-1], features.channels
    radius = round(config.mind_radius_mm / min(grids.working.spacing_mm))
    n = math.prod(
        -(-s // f) for s, f in zip(grids.control.shape_zyx, grids.search_factor_zyx, strict=True)
    )
    shifts = math.prod(2 * r + 1 for r in grids.search_radius_zyx)
    passes = 2 * (len(config.coupling) + 1)

    def solver(**changes: object) -> Callable[[], object]:
        options = solver_options(config.model_copy(update=changes), grids)
        return lambda: solve(features, weights, grids, lattice.offset_zyx, options, device)

    searching = solver(iterations=(0,))
    still = plan_.grids.__class__(
        grids.working, grids.pool_zyx, grids.control, grids.search_factor_zyx, (0, 0, 0)
    )

    def refining(iterations: tuple[int, ...]) -> Callable[[], object]:
        options = solver_options(config.model_copy(update={"iterations": iterations}), still)
        return lambda: solve(features, weights, still, lattice.offset_zyx, options, device)

    # Bytes of one Adam iteration and voxel: both features, weights (8), two smoothings of three
    # components (48), gradient of the match (24), smoothness (36), folds (20), Adam's state (84).
    # Operations: blocks of eight channels at 36 each, smoothing, and about 60 for the rest.
    taps = math.ceil(2.5 * config.smoothing_mm / min(grids.control.spacing_mm))
    adam_bytes = 4 * stride + 8 + 48 + 24 + 36 + 20 + 84
    adam_operations = 36 * stride + 2 * 9 * (2 * taps + 1) + 60
    fine = config.iterations[-1]
    coarse = sum(
        k / 8 ** (len(config.iterations) - 1 - i) for i, k in enumerate(config.iterations[:-1])
    )
    return [
        # Twelve distances: difference and square, three sums over the patch, minimum, mean, exp.
        Stage(
            "MIND-SSC and local intensities",
            4 * w + 4 * c * stride,
            w * 12 * (2 + 3 * (2 * radius + 1) + 18),
            False,
            lambda: source.compute(images[0], images[1], device),
        ),
        Stage(
            "field-of-view weight",
            4 * c,
            8 * 20 * c,
            True,
            lambda: weight_on(lattice.control, moving, None, plan_.initial, device),
        ),
        # A cost: subtract and multiply-add per channel, three smoothings of 7 taps, minimum.
        Stage(
            "discrete search",
            0.0,
            float(n) * shifts * passes * (2 * channels + 21 + 10),
            False,
            searching,
            refining((0,)),
        ),
        Stage(
            f"refinement, coarse ({config.iterations[:-1]} iterations)",
            coarse * c * adam_bytes,
            coarse * c * adam_operations,
            False,
            refining((*config.iterations[:-1], 0)),
            refining((0,)),
        ),
        Stage(
            f"refinement, fine ({fine} iterations)",
            fine * c * adam_bytes,
            fine * c * adam_operations,
            False,
            refining(config.iterations),
            refining((*config.iterations[:-1], 0)),
        ),
        Stage(
            "field on the fixed grid",
            12 * v + 12 * c,
            75.0 * v,
            True,
            lambda: whole_displacement(
                solution.field, grids.control, fixed.geometry, identity, device
            ),
        ),
        Stage(
            "warp",
            12 * v + 8 * v,
            60.0 * v,
            True,
            lambda: warp_volume(moving, displacement, device=device),
        ),
        Stage(
            "Jacobian",
            12 * v + 4 * v,
            45.0 * v,
            False,
            lambda: kernels.jacobian_determinant(displacement.vectors_mm, np.eye(3)),
        ),
        # Some eight rounds of interpolating the field at three components.
        Stage(
            "inverse consistency",
            24 * c,
            8 * 85.0 * c,
            True,
            lambda: inverse_consistency_mm(solution.field, grids.control, device),
        ),
    ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fixed", required=True)
    parser.add_argument("--moving", required=True)
    args = parser.parse_args()
    bytes_per_s, operations_per_s = bandwidth(), operations_per_second()
    scalar_per_s = operations_per_s / LANES * 2
    print(
        f"one core: {bytes_per_s / 1e9:.1f} GB/s, {operations_per_s / 1e9:.1f} G multiply-adds/s, "
        f"{scalar_per_s / 1e9:.1f} G scalar operations/s\n"
    )
    print(
        "| stage | MB | G operations | floor, ms | measured, ms | ratio |\n"
        "|---|---|---|---|---|---|"
    )
    for stage in stages(args.fixed, args.moving):
        rate = scalar_per_s if stage.scalar else operations_per_s
        floor = max(stage.bytes / bytes_per_s, stage.operations / rate)
        measured = best_of(stage.run) - (best_of(stage.without) if stage.without else 0.0)
        print(
            f"| {stage.name} | {stage.bytes / 1e6:.0f} | {stage.operations / 1e9:.2f} "
            f"| {1e3 * floor:.0f} | {1e3 * measured:.0f} | {measured / floor:.1f} |"
        )


if __name__ == "__main__":
    main()
