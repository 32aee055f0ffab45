"""How many bytes and operations each part of a registration takes: the ground under its time.

An operation is one lane of a vector instruction; a fused multiply-add counts once. Work that jumps
in memory (interpolation at arbitrary points) cannot fill vectors and is ``scalar``. The counts are
those of the formulas as written, from memory to memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from ..device.ceilings import Ceilings
from ..features.mind import MindFeatures, padded_channels
from ..types import FloatArray, Geometry

if TYPE_CHECKING:
    from ..encoder.encoding import EncodingPlan
    from ..registration.plan import Plan


@dataclass(frozen=True)
class Work:
    """One part of a registration.

    Attributes:
        stage: of the timer, that it belongs to.
        name: what it is.
        bytes: from and to memory.
        operations: see above.
        kind: which rate they can reach at most.
        jumps: scalar operations beside those.
    """

    stage: str
    name: str
    bytes: float
    operations: float
    kind: Literal["vector", "scalar", "matrix"] = "vector"
    jumps: float = 0.0

    def floor_s(self, ceilings: Ceilings) -> float:
        """Least seconds."""
        rates = {
            "vector": ceilings.vector_per_s,
            "scalar": ceilings.scalar_per_s,
            "matrix": ceilings.matrix_per_s,
        }
        arithmetic_s = self.operations / rates[self.kind] + self.jumps / ceilings.scalar_per_s
        return max(self.bytes / ceilings.bytes_per_s, arithmetic_s)


def registration_work(plan: Plan, fixed: Geometry, moving: Geometry) -> list[Work]:
    """Of every part, in the order of the stages.

    Args:
        plan: what will be done.
        fixed: grid of the fixed image.
        moving: grid of the moving image.
    """
    parts = [] if plan.encoding is None else _encoder_work(plan.encoding, plan)
    if plan.config.computes_mind:
        parts.append(_mind_work(plan))
    parts += _solver_work(plan)
    if plan.config.trust:
        parts.append(_decoy_work(plan))
    return [*parts, *_result_work(plan, fixed, moving)]


def _channels(plan: Plan) -> int:
    """Channels that the refinement compares."""
    _, refinement = plan.config.stage_features
    mind = MindFeatures.of(plan.config).channels
    encoder = 0 if plan.encoding is None else plan.encoding.channels
    return {"mind": mind, "encoder": encoder, "joined": mind + encoder}[refinement]


def _control_voxels(plan: Plan) -> int:
    return math.prod(plan.grids.control.shape_zyx)


def _mind_work(plan: Plan) -> Work:
    voxels = sum(math.prod(g.shape_zyx) for g in (plan.grids.working, plan.moving_grids.working))
    stride = MindFeatures.of(plan.config).stored_channels
    radius = round(plan.config.mind_radius_mm / min(plan.grids.working.spacing_mm))
    # Twelve distances: difference and square, three sums over the patch, minimum, mean, exp.
    operations = voxels * 12 * (2 + 3 * (2 * radius + 1) + 18)
    moved = 4 * voxels + 4 * _control_voxels(plan) * stride
    return Work("features", "MIND-SSC and local intensities", moved, operations)


def _encoder_work(encoding: EncodingPlan, plan: Plan) -> list[Work]:
    from ..encoder.estimate import slice_operations

    weights = sum(f.size_bytes for f in encoding.bundle.manifest.files)
    operations = moved = products = projections = 0.0
    manifest = encoding.bundle.manifest
    channels = manifest.channels
    for plane in encoding.planes:
        rows, columns = encoding.bundle.token_grid(plane.graph)
        slices = sum(len(stack.encoded) for stack in plane.stacks)
        tokens = slices * rows * columns
        kept = sum(math.prod(encoding.token_shape(plane, i)[:3]) for i in (0, 1))
        each = slice_operations(encoding.bundle, plane.graph) or 0.0
        operations += slices * each / 2  # multiply-adds
        pixels = 3 * plane.graph.height * plane.graph.width
        moved += slices * 4 * pixels + 4 * tokens * channels
        moved += -(-slices // encoding.batch) * weights
        products += kept * channels**2
        projections += kept * channels * encoding.components
    sampled = 2 * _control_voxels(plan) * encoding.channels
    return [
        Work("encode", "encoder", moved, operations, "matrix"),
        Work("encode", "second moments of the tokens", 0.0, products),
        Work("features", "projection of the tokens", 0.0, projections),
        Work("features", "features on the control grid", 2 * sampled, 8 * sampled),
    ]


def _solver_work(plan: Plan) -> list[Work]:
    config, grids = plan.config, plan.grids
    c, stride = _control_voxels(plan), padded_channels(_channels(plan))
    # Bytes of one Adam iteration and voxel: both features, weights (8), two smoothings of three
    # components (48), gradient of the match (24), smoothness (36), folds (20), Adam's state (84).
    # Operations: blocks of eight channels at 36 each (of the cosine, which walks twice, at 64; none
    # where each is correlated), smoothing, and about 60 for the rest.
    taps = math.ceil(2.5 * config.smoothing_mm / min(grids.control.spacing_mm))
    adam_bytes = 4 * stride + 8 + 48 + 24 + 36 + 20 + 84
    match = {"mse": 36, "cosine": 64, "lncc": 0}[config.feature_similarity]
    adam_operations = match * stride + 2 * 9 * (2 * taps + 1) + 60
    # One gradient more on each level for Adam's epsilon.
    *first, last = (k + (config.adam_epsilon > 0) for k in config.iterations)
    coarse = sum(k / 8 ** (len(first) - i) for i, k in enumerate(first))
    # There and back, on each level.
    levels = [
        _search_work(plan, grids.control.shape_zyx, factor, radius, _channels(plan))
        for factor, radius in grids.search_grids()
    ]
    search = 2 * np.sum(levels, axis=0)
    return [
        Work("field of view", "field-of-view weight", 4 * c, 8 * 20 * c),
        Work("solve", "discrete search", search[0], search[1]),
        Work("solve", "refinement, coarse", coarse * c * adam_bytes, coarse * c * adam_operations),
        Work("solve", "refinement, fine", last * c * adam_bytes, last * c * adam_operations),
        *_correlation_work(plan, (coarse + last) * c),
    ]


def _correlation_work(plan: Plan, visits: float) -> list[Work]:
    """Of the local correlation of intensities and channels, for voxels times iterations."""
    config = plan.config
    images = int(config.correlation_weight > 0)
    if config.feature_similarity == "lncc" and config.feature_weight > 0:
        images += _channels(plan)
    if images == 0:
        return []
    visits *= images
    spacing_mm = min(plan.grids.control.spacing_mm)
    taps = math.ceil(2.5 * config.correlation_window_mm / spacing_mm)
    # Bytes: nine window sums (72), six products (72), warped image and weight (32), the factors
    # of the gradient (40), the gradient (60). Operations: sums along three axes, products, factors;
    # value and slope of the moving image are sampled twice.
    operations = 9 * 3 * (2 * taps + 1) + 18 + 30
    return [
        Work("solve", "local correlation", 276 * visits, operations * visits, jumps=90 * visits)
    ]


def _search_work(
    plan: Plan,
    shape_zyx: Sequence[int],
    factor_zyx: Sequence[int],
    radius_zyx: Sequence[int],
    channels: int,
) -> FloatArray:
    """Bytes and operations of a search in one direction, over cells of so many voxels."""
    cells = math.prod(-(-s // f) for s, f in zip(shape_zyx, factor_zyx, strict=True))
    costs = cells * math.prod(2 * r + 1 for r in radius_zyx)
    rounds = len(plan.config.coupling)
    # A cost: subtract and multiply-add per channel and three smoothings of 7 taps, once; written,
    # read in each coupled round, and compared with the least so far in all passes.
    return np.array([4.0 * costs * (1 + rounds), costs * (2.0 * channels + 21 + 10 * (1 + rounds))])


def _decoy_work(plan: Plan) -> Work:
    """Four searches on a lattice of half the fineness: in the moving image, and mirrored.

    In MIND-SSC, whatever else is compared.
    """
    channels = MindFeatures.of(plan.config).channels
    shape = [-(-n // 2) for n in plan.grids.control.shape_zyx]
    factor = [max(1, (f + 1) // 2) for f in plan.grids.search_factor_zyx]
    moved = 2 * 2 * padded_channels(channels) * _control_voxels(plan)
    radius = plan.grids.search_radius_zyx
    searches = 4 * any(radius) * _search_work(plan, shape, factor, radius, channels)
    return Work("trust", "search in mirror images", moved + searches[0], searches[1])


#: Operations on a point: interpolating the field, then some three times its slopes, too, and a
#: Newton step each.
_INVERSION = 85.0 + 3 * 250.0


def _result_work(plan: Plan, fixed: Geometry, moving: Geometry) -> list[Work]:
    v, c = math.prod(fixed.shape_zyx), _control_voxels(plan)
    parts = [
        Work("warp", "field on the fixed grid", 12 * v + 12 * c, 75.0 * v, "scalar"),
        Work("warp", "warp", 12 * v + 8 * v, 60.0 * v, "scalar"),
        Work("quality", "Jacobian", 12 * v + 4 * v, 45.0 * v),
        Work("quality", "inverse consistency", 24 * c, _INVERSION * c, "scalar"),
    ]
    if plan.config.inverse:
        m = math.prod(moving.shape_zyx)
        parts.insert(2, Work("warp", "inverse", 16 * m + 12 * c, _INVERSION * m, "scalar"))
    return parts
