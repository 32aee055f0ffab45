"""An encoder's features of an image pair on the control grid: encode, joint PCA, sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from ..config.parameters import RegistrationConfig
from ..device.choice import Device, StageTimer
from ..errors import RegistrationError
from ..features.mind import FeaturePair, join_features, padded_channels
from ..images.pair import PairImage, Sides, SolverSide
from ..images.resample import weight_on
from ..summaries import EncodedPlaneSummary, EncodingSummary
from ..types import AffineTransform, Array
from .encoding import EncodingPlan
from .moments import SliceMoments
from .open_encoders import EncoderPool
from .pair_tokens import PairTokens, tokens_of_pair
from .pca import FeatureBasis, fit_basis, project
from .planes import upright_view
from .sampling import sample_features
from .slice_stack import PlaneStacks, SliceStack
from .standardise import position_directions, read_tokens, standardise
from .token_stores import TokenStores
from .tokens import PatchTokens

_IDENTITY = AffineTransform.identity()


def encoder_features(
    plan: EncodingPlan,
    sides: Sides,
    config: RegistrationConfig,
    device: Device,
    timer: StageTimer,
    report: Callable[[str, float], None],
    encoders: EncoderPool,
) -> tuple[FeaturePair, Callable[[], EncodingSummary]]:
    """Encode both images and compute the features of all planes.

    Only one plane's tokens exist at a time, except those that are being cached. The stages are
    ``encode`` and ``features``.

    Returns:
        The features, and a function that waits for them and returns their summary.

    Raises:
        DinoregError: the engine or the memory is not available, or a mask covers no token.
    """
    pairs: list[FeaturePair] = []
    summaries: list[Callable[[], EncodedPlaneSummary]] = []
    with TokenStores(encoders, config, device) as stores:
        for plane in plan.planes:
            inside = tokens_inside(plane, sides, device.host)
            with timer.stage("encode"):
                made = tokens_of_pair(plan, plane, sides, config, device, report, encoders, stores)
            with timer.stage("features"):
                report("features", 0.0)
                moments = moments_of_pair(plan, made, inside, device)
                basis, scale, projected = project_pair(
                    plan, made, moments, config.feature_scale, device
                )
                pairs.append(_sampled(made.tokens, projected, sides, device))
                summaries.append(partial(_summary, plane, basis, scale, made.cached))
            stores.release()
            del made
    features = join_features(pairs, [plane.weight for plane in plan.planes], device)
    return features, partial(_encoding_summary, plan, summaries)


def tokens_inside(plane: PlaneStacks, sides: Sides, host: Device) -> list[Array | None]:
    """Find the tokens of each image that touch its mask and body.

    Returns:
        For each image (encoded slices, tokens per slice) bool, or None where all tokens count.

    Raises:
        RegistrationError: an image has no such token.
    """
    found: list[Array | None] = []
    for side, stack in zip(sides, plane.stacks, strict=True):
        image = side.image
        if image.mask is None and image.body is None:
            found.append(None)
            continue
        inside = _inside(stack, image, host)
        if not inside.any():
            raise RegistrationError(
                f"the {image.role} mask (or the body in it) covers no token of an encoded slice; "
                "use a smaller --slice-stride or a larger mask"
            )
        found.append(inside.reshape(len(inside), -1))
    return found


def moments_of_pair(
    plan: EncodingPlan, made: PairTokens, inside: Sequence[Array | None], device: Device
) -> list[SliceMoments]:
    """Return the moments of each image's tokens that count (`tokens_inside`)."""
    read = _reader(plan, device)
    return [
        SliceMoments.of(_inner_tokens(of_image, kept, read, device), device)
        for of_image, kept in zip(made.tokens, inside, strict=True)
    ]


def project_pair(
    plan: EncodingPlan,
    made: PairTokens,
    moments: Sequence[SliceMoments],
    feature_scale: float,
    device: Device,
) -> tuple[FeatureBasis, Array, Iterator[Array]]:
    """Fit the joint basis to moments (`moments_of_pair`) and project each image's tokens onto it.

    Returns:
        The basis, the factor on the features, and an iterator that makes each image's features
        (n, rows, columns, K) float32 in turn.
    """
    read, kind = _reader(plan, device), plan.standardisation
    channels = moments[0].means.shape[1]
    directions = device.xp.zeros((channels, 0), np.float64)
    if made.constant is not None:
        constant = read(made.constant)
        directions = position_directions(constant, kind.position_components, device)
    standards = [
        standardise(of_image, kind, tokens.stack.positions_mm, directions, device)
        for of_image, tokens in zip(moments, made.tokens, strict=True)
    ]
    basis = fit_basis([standard.moments for standard in standards], plan.components, device)
    scale = basis.scale(feature_scale)
    projected = (
        project(of_image.tokens, read, standard, basis, scale, device)
        for of_image, standard in zip(made.tokens, standards, strict=True)
    )
    return basis, scale, projected


def _reader(plan: EncodingPlan, device: Device) -> Callable[[Array], Array]:
    """Return the function that reads the compared layers of one slice's tokens as float32."""
    return partial(
        read_tokens,
        layers=len(plan.bundle.manifest.layers),
        wanted=plan.layers,
        unit=plan.standardisation.scale == "length",
        device=device,
    )


def _inner_tokens(
    of_image: PatchTokens,
    inside: Array | None,
    read: Callable[[Array], Array],
    device: Device,
) -> Iterator[Array]:
    """Yield the tokens of each slice that count."""
    for i, slice_ in enumerate(of_image.tokens):
        tokens = read(slice_)
        # Indices instead of a mask: counting its set elements would make the host wait for a GPU.
        yield (
            tokens if inside is None else tokens[device.upload(np.flatnonzero(inside[i]), np.int64)]
        )


def _inside(stack: SliceStack, scan: PairImage, host: Device) -> Array:
    """Return whether each token of the encoded slices touches mask and body, (n, rows, columns)."""
    inside = np.ones(stack.tokens.shape_zyx, bool)
    for image, mask in (
        (scan.volume, scan.mask),
        (scan.body, None if scan.body is None else scan.body.array),
    ):
        if image is not None and mask is not None:
            inside &= weight_on(stack.tokens, image, mask, _IDENTITY, host) > 0
    return inside[list(stack.encoded)]


def _sampled(
    tokens: Sequence[PatchTokens], projected: Iterator[Array], sides: Sides, device: Device
) -> FeaturePair:
    """Sample the projected tokens of both images on their control grids."""
    arrays, weights = [], []
    for of_image, planes, side in zip(tokens, projected, sides, strict=True):
        channels = planes.shape[-1]
        out = device.xp.zeros((*side.control.shape_zyx, padded_channels(channels)), np.float16)
        sample_features(
            planes, of_image.stack, side.control, side.affine, out[..., :channels], device
        )
        arrays.append(out)
        weights.append(_tissue_weight(of_image.stack, side, device))
    return FeaturePair(arrays[0], arrays[1], weights[0], weights[1], channels)


def _tissue_weight(stack: SliceStack, side: SolverSide, device: Device) -> Array:
    """Return 1 where a control voxel holds tissue in a slice that can meet the other image, else 0.

    Tissue is anything above the window's dark end. As with MIND-SSC, flat background looks alike
    everywhere and must not count as a match; slices that cannot meet the other image are not
    encoded.
    """
    tissue = device.upload(stack.volume.array, np.float32) > np.float32(stack.window[0])
    slices = upright_view(tissue, stack.volume.geometry, stack.plane)
    slices[: stack.needed[0]] = False
    slices[stack.needed[1] + 1 :] = False
    cover = weight_on(side.control, stack.volume, tissue, side.affine, device)
    return (cover > 0).astype(np.float32)


def _summary(
    plane: PlaneStacks,
    basis: FeatureBasis,
    scale: Array,
    cached: Sequence[bool],
) -> EncodedPlaneSummary:
    feature_scale, *explained = basis.device.numbers(scale, basis.explained)
    fixed, moving = (stack.tokens for stack in plane.stacks)
    return EncodedPlaneSummary(
        plane=plane.plane,
        weight=plane.weight,
        token_grid=fixed.shape_zyx[1:],
        moving_token_grid=moving.shape_zyx[1:],
        token_mm=(fixed.spacing_mm[1::-1], moving.spacing_mm[1::-1]),
        slices=(len(plane.stacks[0].encoded), len(plane.stacks[1].encoded)),
        from_cache=(cached[0], cached[1]),
        feature_scale=feature_scale,
        explained_variance=tuple(explained),
    )


def _encoding_summary(
    plan: EncodingPlan, planes: Sequence[Callable[[], EncodedPlaneSummary]]
) -> EncodingSummary:
    manifest = plan.bundle.manifest
    return EncodingSummary(
        model=manifest.model,
        precision=manifest.precision,
        bundle_sha256=manifest.hash(),
        random_weights=manifest.source.random_weights,
        engine=plan.engine,
        planes=tuple(plane() for plane in planes),
    )
