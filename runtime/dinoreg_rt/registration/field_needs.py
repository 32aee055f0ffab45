"""Memory and work of the stages that make fields: linear, solve, trust, warp, quality, deliver."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from dinoreg_kernels import agreement_workspace_bytes, quality_workspace_bytes

from ..align.normal_equations import MOST_POINTS
from ..fields.solve import solver_options, solver_workspace_bytes
from ..quality.agreement import sampling_step
from ..quality.mirror_test import HELD_BYTES, coarser, decoy_workspace_bytes
from .feature_needs import encode_beside_gpu
from .sizes import FLOAT, HALF, VECTOR, Sizes, Stage, Work, set_bytes

#: Operations of inverting a field at one point: one interpolation, then about three Newton steps,
#: each with an interpolation of the field and its slopes.
_INVERSION = 85.0 + 3 * 250.0


def _linear_bytes(sizes: Sizes) -> int:
    """Return the bytes of refining a linear map: both images on the fixed image's grids."""
    if sizes.config.linear_transform is None:
        return 0
    grid, control = sizes.grids.working, sizes.control[0]
    one = set_bytes(sizes.strides["mind"], control) + 2 * FLOAT * control
    made = FLOAT * sizes.working[0] + sizes.mind.workspace_bytes(grid, sizes.grids.pool_zyx)
    points = min(MOST_POINTS, control)
    # Features, their difference and slopes, and their intermediate values; sums of the equations.
    compared = (7 * sizes.strides["mind"] + 50) * FLOAT * points
    return 2 * one + max(made, compared)


def _compared(sizes: Sizes) -> int:
    """Return the bytes of weights, features, their products and intensities.

    The engine and tokens that outlive the features count too.
    """
    voxels, config = sum(sizes.control), sizes.config
    sets = sum(set_bytes(stride, voxels) for stride in sizes.compared.values())
    if config.trust and "mind" not in sizes.compared:
        sets += set_bytes(sizes.strides["mind"], voxels) + sizes.weights
    products = len(sizes.compared) * sizes.weights
    beside = sizes.engine + sizes.lingering
    return sizes.weights + beside + sets + products + sizes.intensities


def _solve_bytes(sizes: Sizes) -> int:
    """Return the bytes of the compared arrays, the solution and the solver's workspace."""
    workspace = solver_workspace_bytes(
        sizes.config,
        sizes.grids,
        sizes.moving_grids.control,
        sizes.strides,
        on_gpu=sizes.on_gpu,
    )
    return _compared(sizes) + sizes.solution + workspace


def _solve_work(sizes: Sizes) -> Iterator[Work]:
    """Yield the discrete search, the refinement, and the local correlation in it."""
    config, control = sizes.config, sizes.control[0]
    _, refinement = config.stage_features
    stride = sizes.strides[refinement]
    # Bytes of one Adam iteration per voxel: both features; the displacement, weights, folds and
    # gradient that go with them (36), smoothing of the variable (24), folds (16), smoothing of the
    # gradient with Adam's step (84).
    # Operations: 36 per channel (64 for the cosine, which reads features twice; none where each
    # channel is correlated), smoothing, and about 60 for the rest.
    adam_bytes = 2 * HALF * stride + 36 + 24 + 16 + 84
    match = {"mse": 36, "cosine": 64, "lncc": 0}[config.feature_similarity]
    adam_operations = match * stride + 2 * 9 * _taps(sizes, config.smoothing_mm) + 60
    # Adam's epsilon takes one more gradient on each level.
    *first, last = (k + (config.adam_epsilon > 0) for k in config.iterations)
    coarse = sum(k / 8 ** (len(first) - i) for i, k in enumerate(first))
    # In both directions, on each level.
    levels = [
        _search(sizes, sizes.grids.control.shape_zyx, factor, radius, sizes.channels)
        for factor, radius in sizes.grids.search_grids()
    ]
    moved, operations = (2 * sum(values) for values in zip(*levels, strict=True))
    yield Work("discrete search", moved, operations)
    for name, visits in (("coarse", coarse * control), ("fine", last * control)):
        yield Work(f"refinement, {name}", visits * adam_bytes, visits * adam_operations)
    correlated = int(config.correlation_weight > 0)
    if config.feature_similarity == "lncc" and config.feature_weight > 0:
        correlated += sizes.channels
    if correlated:
        # Bytes: warped image and weight (16), windows of their products, up to the factors of the
        # gradient (24), and windows of these, with the gradient (60). Operations: sums along three
        # axes, products, factors; value and slope of the moving image are sampled twice.
        visits = (coarse + last) * control * correlated
        operations = 9 * 3 * _taps(sizes, config.correlation_window_mm) + 18 + 30
        yield Work("local correlation", 100 * visits, operations * visits, jumps=90 * visits)


def _taps(sizes: Sizes, sigma_mm: float) -> int:
    """Return the width of a Gaussian window along the finest axis of the control grid."""
    return 2 * math.ceil(2.5 * sigma_mm / min(sizes.grids.control.spacing_mm)) + 1


def _search(
    sizes: Sizes,
    shape_zyx: Sequence[int],
    factor_zyx: Sequence[int],
    radius_zyx: Sequence[int],
    channels: int,
) -> tuple[float, float]:
    """Return bytes and operations of one search; its cells have `factor_zyx` control voxels."""
    cells = math.prod(-(-s // f) for s, f in zip(shape_zyx, factor_zyx, strict=True))
    costs = cells * math.prod(2 * r + 1 for r in radius_zyx)
    rounds = len(sizes.config.coupling)
    # A cost: subtract and multiply-add per channel and three smoothings of 7 taps, once; written,
    # read in each coupled round, and compared with the least so far in all passes.
    operations = costs * (2.0 * channels + 21 + 10 * (1 + rounds))
    return float(FLOAT) * costs * (1 + rounds), operations


def _trust_bytes(sizes: Sizes) -> int:
    """Return the bytes of comparing the images with the field, or of the mirror test's searches."""
    if not sizes.config.trust:
        return 0
    searches = decoy_workspace_bytes(
        sizes.grids.control.shape_zyx,
        sizes.moving_grids.control.shape_zyx,
        sizes.moving_grids.offset_zyx,
        sizes.strides["mind"],
        sizes.grids.control.spacing_mm[::-1],
        solver_options(sizes.config, sizes.grids),
    )
    shape = sizes.grids.control.shape_zyx
    agreement = agreement_workspace_bytes(shape, sampling_step(shape))
    return _compared(sizes) + sizes.solution + max(searches, agreement) + _tested(sizes)


def _tested(sizes: Sizes) -> int:
    """Return the bytes of the mirror test's results, which later stages keep."""
    return HELD_BYTES * sizes.config.trust


def _trust_work(sizes: Sizes) -> Iterator[Work]:
    """Yield the averaging and six searches: in the moving image and in five mirror images."""
    if not sizes.config.trust:
        return
    grids, mind = sizes.grids, sizes.mind
    shape, factor = coarser(grids.control.shape_zyx), coarser(grids.search_factor_zyx)
    radius = grids.search_radius_zyx
    moved, operations = (
        6 * any(radius) * n for n in _search(sizes, shape, factor, radius, mind.channels)
    )
    moved += 2 * HALF * sizes.strides["mind"] * sizes.control[0]
    yield Work("search in mirror images", moved, operations)


def _misses(sizes: Sizes) -> int:
    """Return the bytes of an iterated inverse's misses."""
    iterated = sizes.config.inverse and sizes.config.transform != "velocity"
    return FLOAT * sizes.images[1] * iterated


def _warp_bytes(sizes: Sizes) -> int:
    """Return the bytes of the results, and of what confidence and inverse need meanwhile."""
    config, (fixed, moving) = sizes.config, sizes.images
    made = VECTOR * (fixed + sizes.control[0])
    peak = made + 2 * VECTOR * fixed * config.confidence
    made += FLOAT * fixed * config.confidence
    if config.inverse:
        made += VECTOR * moving + _misses(sizes)
    return sizes.kept + _tested(sizes) + max(peak, made + FLOAT * fixed)


def _warp_work(sizes: Sizes) -> Iterator[Work]:
    """Yield the displacement field, the warped image and the inverse."""
    (fixed, moving), control = sizes.images, sizes.control[0]
    yield Work("field on the fixed grid", VECTOR * (fixed + control), 75.0 * fixed, "scalar")
    yield Work("warp", (VECTOR + 2 * FLOAT) * fixed, 60.0 * fixed, "scalar")
    if sizes.config.inverse:
        moved = (VECTOR + FLOAT) * moving + VECTOR * control
        yield Work("inverse", moved, _INVERSION * moving)


def _quality_bytes(sizes: Sizes) -> int:
    """Return the bytes of the results, and of the workspace of their measures."""
    measures = quality_workspace_bytes(
        sizes.fixed.shape_zyx,
        sizes.grids.control.shape_zyx,
        inverted=sizes.config.transform == "velocity",
        misses=_misses(sizes) // FLOAT,
    )
    return sizes.kept + _tested(sizes) + sizes.results + _misses(sizes) + measures


def _quality_work(sizes: Sizes) -> Iterator[Work]:
    """Yield the Jacobian determinant and the inverse consistency."""
    fixed, control = sizes.images[0], sizes.control[0]
    yield Work("Jacobian", (VECTOR + FLOAT) * fixed, 45.0 * fixed)
    yield Work("inverse consistency", 2 * VECTOR * control, _INVERSION * control)


def _deliver_beside_gpu(sizes: Sizes) -> int:
    """Return the bytes of the results and of the encoder, whose engine stays open."""
    return encode_beside_gpu(sizes) + sizes.results


FIELD_STAGES = (
    Stage("linear", _linear_bytes),
    Stage("solve", _solve_bytes, _solve_work),
    Stage("trust", _trust_bytes, _trust_work),
    Stage("warp", _warp_bytes, _warp_work),
    Stage("quality", _quality_bytes, _quality_work),
    Stage("deliver", beside_gpu=_deliver_beside_gpu),
)
