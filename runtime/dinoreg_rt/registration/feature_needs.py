"""Memory and work of the stages that make features: field of view, encode, features."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..align.coarse import POOL, cell_size_mm
from ..features.joined import joins_in_place
from ..features.mind import padded_channels
from .sizes import DOUBLE, FLOAT, HALF, Sizes, Stage, Work, set_bytes

if TYPE_CHECKING:
    from ..encoder.encoding import EncodingPlan
    from ..encoder.slice_stack import PlaneStacks


def _view_bytes(sizes: Sizes) -> int:
    """Return the bytes of the weights of both images, and of what one of them is made of.

    The last factor of a weight is the share of a body mask and of its grid in each voxel.
    """
    cell_mm = cell_size_mm(sizes.fixed, sizes.moving) / POOL
    body = max(
        math.prod(n * mm / cell_mm for n, mm in zip(g.shape_xyz, g.spacing_mm, strict=True))
        for g in (sizes.fixed, sizes.moving)
    )
    return sizes.weights + 2 * FLOAT * max(sizes.control) + FLOAT * int(body)


def _view_work(sizes: Sizes) -> Iterator[Work]:
    """Yield the resampling of one image's weight."""
    control = sizes.control[0]
    yield Work("field-of-view weight", FLOAT * control, 8 * 20 * control)


def _encode_bytes(sizes: Sizes) -> int:
    """Return the bytes of one plane's tokens, its batch, and the features of earlier planes."""
    encoding = sizes.encoding
    if encoding is None:
        return 0
    made = _room_bytes(sizes, encoding)  # taken for all planes with the first one
    peak = max(
        (i > 0) * made
        + sizes.tokens(encoding, plane)
        + encoding.batch_bytes(plane, on_gpu=sizes.on_gpu)
        + (sizes.lingering if i else 0)
        for i, plane in enumerate(encoding.planes)
    )
    return sizes.weights + sizes.engine + peak


def encode_beside_gpu(sizes: Sizes) -> int:
    """Return the bytes of an engine that runs on the host, and of tokens that are kept there."""
    encoding = sizes.encoding
    if encoding is None:
        return 0
    engine = 0
    if not encoding.on_gpu:
        under_way = max(encoding.batch_bytes(p, on_gpu=False) for p in encoding.planes)
        engine = encoding.engine_bytes() + under_way
    return engine + max(encoding.host_token_bytes(p, sizes.config) for p in encoding.planes)


def _encode_work(sizes: Sizes) -> Iterator[Work]:
    """Yield the work of the encoder and of the second moments of all tokens."""
    from ..encoder.estimate import slice_operations

    encoding = sizes.encoding
    if encoding is None:
        return
    operations = moved = products = 0.0
    channels = encoding.bundle.manifest.channels
    for plane in encoding.planes:
        slices = sum(len(stack.encoded) for stack in plane.stacks)
        each = slice_operations(encoding.bundle, plane.graph) or 0.0
        operations += slices * each / 2  # multiply-adds
        moved += slices * FLOAT * (encoding.pixels(plane) + encoding.slice_tokens(plane))
        moved += -(-slices // encoding.batch) * encoding.weight_bytes
        products += encoding.kept_tokens(plane) * channels**2
    yield Work("encoder", moved, operations, "matrix")
    yield Work("second moments of the tokens", 0.0, products)


def _features_bytes(sizes: Sizes) -> int:
    """Return the bytes of all finished feature sets and of the one that is being made."""
    config, voxels = sizes.config, sum(sizes.control)
    parts = peak = 0  # finished sets; the most that was alive
    if sizes.encoding is not None:
        parts, peak = _encoded_features(sizes, sizes.encoding)
    images = 0
    if config.computes_mind or config.correlation_weight:
        images = FLOAT * sum(sizes.working)
        peak = max(peak, parts + images)
    if config.computes_mind:
        grids = (sizes.grids.working, sizes.moving_grids.working)
        for grid, control in zip(grids, sizes.control, strict=True):
            workspace = sizes.mind.workspace_bytes(grid, sizes.grids.pool_zyx, on_gpu=sizes.on_gpu)
            parts += set_bytes(sizes.strides["mind"], control)
            peak = max(peak, parts + images + workspace)
    parts += sizes.intensities
    if "joined" in sizes.compared:
        # Unless it is made in place, the joined set exists beside its parts.
        made = 0 if joins_in_place(config) else HALF * sizes.compared["joined"]
        parts += (made + FLOAT) * voxels
    last = parts + images + sizes.lingering
    return sizes.weights + sizes.engine + max(peak, last)


def _encoded_features(sizes: Sizes, encoding: EncodingPlan) -> tuple[int, int]:
    """Return the bytes of an encoder's features, and the peak while they are made."""
    parts = _room_bytes(sizes, encoding)
    several = FLOAT * sum(sizes.control) if len(encoding.planes) > 1 else 0  # weights of a plane
    peak = max(
        parts
        + several
        + sizes.tokens(encoding, plane)
        + (sizes.lingering if i else 0)
        + _plane_bytes(sizes, encoding, plane)
        for i, plane in enumerate(encoding.planes)
    )
    return parts, peak


def _room_bytes(sizes: Sizes, encoding: EncodingPlan) -> int:
    """Return the bytes of the features of all planes, and of what is joined to them in place."""
    beside = sizes.mind.channels if joins_in_place(sizes.config) else 0
    return set_bytes(padded_channels(encoding.channels + beside), sum(sizes.control))


def _plane_bytes(sizes: Sizes, encoding: EncodingPlan, plane: PlaneStacks) -> int:
    """Return the bytes beside the tokens of one plane on their way to features."""
    from ..encoder.moments import slices_at_once

    spans, projected = [], 0
    for image in (0, 1):
        count, *size = encoding.token_shape(plane, image)
        slices = min(count, slices_at_once(math.prod(size), "cuda" if sizes.on_gpu else "cpu"))
        spans.append(slices * math.prod(size))
        stored = count * size[0] * size[1] * padded_channels(encoding.components)
        projected = max(projected, FLOAT * stored)
    # The tokens of a product, on their way from the host and with some of their layers.
    from_host = sizes.on_gpu and not encoding.tokens_on_device
    half = HALF * max(spans) * (from_host + (len(encoding.layers) > 1))
    single, unit = FLOAT * max(spans), encoding.standardisation.scale == "length"
    square = encoding.bundle.manifest.channels**2
    return max(
        # For moments: tokens, their squares or those of them that count, and products.
        half + (1 + (encoding.masked or unit)) * single + 2 * FLOAT * square,
        # For the PCA: scatter of both images, scaled, and their sum; the block is much smaller.
        5 * DOUBLE * square,
        half + projected + (1 + unit) * single,
    )


def _features_work(sizes: Sizes) -> Iterator[Work]:
    """Yield the encoder's features and MIND-SSC."""
    control, config, encoding = sizes.control[0], sizes.config, sizes.encoding
    if encoding is not None:
        tokens = sum(encoding.kept_tokens(plane) for plane in encoding.planes)
        projections = tokens * encoding.bundle.manifest.channels * encoding.components
        sampled = 2 * control * encoding.channels
        yield Work("projection of the tokens", 0.0, float(projections))
        yield Work("features on the control grid", HALF * sampled, 8 * sampled)
    if config.computes_mind:
        voxels = sum(sizes.working)
        radius = round(config.mind_radius_mm / min(sizes.grids.working.spacing_mm))
        # Twelve distances: difference and square, three sums over the patch, minimum, mean, exp.
        operations = voxels * 12 * (2 + 3 * (2 * radius + 1) + 18)
        moved = FLOAT * voxels + 2 * HALF * control * sizes.strides["mind"]
        yield Work("MIND-SSC and local intensities", moved, operations)


FEATURE_STAGES = (
    Stage("field of view", _view_bytes, _view_work),
    Stage("encode", _encode_bytes, _encode_work, encode_beside_gpu),
    Stage("features", _features_bytes, _features_work),
)
