"""An encoder's features of an image pair on the control grid: encode, joint PCA, sample."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from ..config.parameters import RegistrationConfig
from ..device.choice import Device, StageTimer
from ..errors import RegistrationError
from ..features.joined import NOTHING_BESIDE, Joined
from ..features.mind import FeaturePair, padded_channels
from ..images.pair import PairImage, Sides
from ..images.resample import weight_on
from ..summaries import EncodedPlaneSummary, EncodingSummary
from ..types import AffineTransform, Array
from .encoding import EncodingPlan
from .moments import PairMoments
from .open_encoders import EncoderPool
from .pair_tokens import PairTokens, tokens_of_pair
from .pca import FeatureBasis, ProjectedTokens, fit_basis, project
from .sampling import sample_features, tissue_weight
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
    beside: Joined = NOTHING_BESIDE,
) -> tuple[FeaturePair, Callable[[], EncodingSummary]]:
    """Encode both images and compute the features of all planes.

    Only one plane's tokens exist at a time, except those that are being cached. The stages are
    ``encode`` and ``features``.

    Args:
        plan: the plan for encoding.
        sides: both images on `device`.
        config: the configuration.
        device: runs the registration.
        timer: measures the stages.
        report: called with a stage's name and its finished fraction.
        encoders: keeps encoders open.
        beside: features that are joined to these (`add_features`). The arrays have room for them,
            and the factors on these features account for their weight.

    Returns:
        The features, and a function that returns their summary.

    Raises:
        DinoregError: the engine or the memory is not available, or a mask covers no token.
    """
    features: FeaturePair | None = None
    summaries: list[EncodedPlaneSummary] = []
    with TokenStores(encoders, config, device) as stores:
        for plane in plan.planes:
            inside = tokens_inside(plane, sides, device.host)
            with timer.stage("encode"):
                made = tokens_of_pair(plan, plane, sides, config, device, report, encoders, stores)
            with timer.stage("features"):
                report("features", 0.0)
                basis, projected = project_pair(
                    plan, made, moments_of_pair(plan, made, inside, device), device
                )
                scale = basis.scale(config.feature_scale)
                factor = scale * (plane.weight / (1.0 + beside.weight)) ** 0.5
                features = features or _no_features(plan, sides, beside, device)
                features = _sampled(features, made.tokens, projected, factor, sides, device)
                summaries.append(_summary(plane, basis, scale, made.cached))
            stores.release()
            del made, projected  # the iterator holds the tokens of the image it projected last
    assert features is not None
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
) -> PairMoments:
    """Return the moments of each image's tokens that count (`tokens_inside`)."""
    tokens = [of_image.tokens for of_image in made.tokens]
    return PairMoments.of(list(zip(tokens, inside, strict=True)), _reader(plan, device), device)


def project_pair(
    plan: EncodingPlan, made: PairTokens, moments: PairMoments, device: Device
) -> tuple[FeatureBasis, Iterator[ProjectedTokens]]:
    """Fit the joint basis to moments (`moments_of_pair`) and project each image's tokens onto it.

    Returns:
        The basis, and an iterator that projects each image's tokens in turn.
    """
    read, kind = _reader(plan, device), plan.standardisation
    directions = np.zeros((moments.within.shape[-1], 0))
    if made.constant is not None:
        constant = read(made.constant)
        directions = position_directions(constant, kind.position_components, device)
    standards = [
        standardise(moments, image, kind, tokens.stack.positions_mm, directions, device)
        for image, tokens in enumerate(made.tokens)
    ]
    basis = fit_basis(moments.within, standards, plan.components, device)
    stride = padded_channels(plan.components)
    projected = (
        project(of_image.tokens, read, standard, basis, stride, device)
        for of_image, standard in zip(made.tokens, standards, strict=True)
    )
    return basis, projected


def _reader(plan: EncodingPlan, device: Device) -> Callable[[Array], Array]:
    """Return the function that reads the compared layers of tokens (`read_tokens`)."""
    return partial(
        read_tokens,
        layers=len(plan.bundle.manifest.layers),
        wanted=plan.layers,
        unit=plan.standardisation.scale == "length",
        device=device,
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


def _no_features(plan: EncodingPlan, sides: Sides, beside: Joined, device: Device) -> FeaturePair:
    """Return features without channels, with room for those of all planes and those `beside`."""
    stored = padded_channels(plan.channels + beside.channels)
    fixed, moving = (
        device.xp.zeros((*side.control.shape_zyx, stored), np.float16) for side in sides
    )
    return FeaturePair(fixed, moving, None, None, 0)


def _sampled(
    features: FeaturePair,
    tokens: Sequence[PatchTokens],
    projected: Iterator[ProjectedTokens],
    factor: float,
    sides: Sides,
    device: Device,
) -> FeaturePair:
    """Add the features of one plane, sampled on both control grids, as further channels."""
    weights, channels = [], features.channels
    known = (features.fixed_weight, features.moving_weight)
    for of_image, side, out, weight in zip(
        tokens, sides, (features.fixed, features.moving), known, strict=True
    ):
        stack, grid, values = of_image.stack, side.control, next(projected)
        channels = features.channels + values.components
        sample_features(
            values,
            stack,
            grid,
            side.affine,
            out,
            device,
            factor=factor,
            first_channel=features.channels,
        )
        del values  # before those of the other image are made
        found = tissue_weight(stack, grid, side.affine, device)
        weights.append(found if weight is None else device.xp.maximum(weight, found))
    return FeaturePair(features.fixed, features.moving, weights[0], weights[1], channels)


def _summary(
    plane: PlaneStacks,
    basis: FeatureBasis,
    scale: float,
    cached: Sequence[bool],
) -> EncodedPlaneSummary:
    fixed, moving = (stack.tokens for stack in plane.stacks)
    return EncodedPlaneSummary(
        plane=plane.plane,
        weight=plane.weight,
        token_grid=fixed.shape_zyx[1:],
        moving_token_grid=moving.shape_zyx[1:],
        token_mm=(fixed.spacing_mm[1::-1], moving.spacing_mm[1::-1]),
        slices=(len(plane.stacks[0].encoded), len(plane.stacks[1].encoded)),
        from_cache=(cached[0], cached[1]),
        feature_scale=scale,
        explained_variance=tuple(basis.explained.tolist()),
    )


def _encoding_summary(plan: EncodingPlan, planes: Sequence[EncodedPlaneSummary]) -> EncodingSummary:
    manifest = plan.bundle.manifest
    return EncodingSummary(
        model=manifest.model,
        precision=manifest.precision,
        bundle_sha256=manifest.hash(),
        random_weights=manifest.source.random_weights,
        engine=plan.engine,
        planes=tuple(planes),
    )
