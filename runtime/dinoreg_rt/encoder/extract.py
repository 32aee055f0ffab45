"""Features of an encoder for an image pair on the solver's grids: encode, joint PCA, sample."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path

import numpy as np

from ..config import RegistrationConfig
from ..device import Device, StageTimer
from ..errors import RegistrationError
from ..features import FeaturePair, padded_channels
from ..preprocess import weight_on
from ..provenance import content_hash
from ..types import (
    AffineTransform,
    Array,
    EncodedPlaneSummary,
    EncodingSummary,
    Geometry,
    Volume,
)
from .cache import TokenCache, cache_folder, cache_key
from .encoding import EncodingPlan, PlaneStacks
from .engines import Encoder, open_encoder
from .pca import FeatureBasis, TokenMoments, fit_basis, project
from .pool import EncoderPool
from .sampling import sample_features
from .slice_stack import SliceStack
from .tokens import PatchTokens, encode, token_array

_IDENTITY = AffineTransform.identity()
_ROLES = ("fixed", "moving")


@dataclass(frozen=True, eq=False)
class SolverSide:
    """Where the features of one image are wanted.

    Attributes:
        mask: (D, H, W) of the image, or None: which tokens count for the joint basis.
        body: the same on a grid of its own, or None.
        grid: the control lattice.
        affine: points of the lattice's space to the image's points.
    """

    mask: Array | None
    body: Volume | None
    grid: Geometry
    affine: AffineTransform


def encoder_features(
    plan: EncodingPlan,
    sides: tuple[SolverSide, SolverSide],
    config: RegistrationConfig,
    device: Device,
    timer: StageTimer,
    report: Callable[[str, float], None],
    encoders: EncoderPool,
) -> tuple[list[FeaturePair], list[float], EncodingSummary]:
    """Feature sets of each plane, their weights, and what is said about them.

    The tokens of one plane exist at a time; `encoders` lends what encodes them.

    Raises:
        DinoregError: engine or memory that cannot be had, masks without tokens.
    """
    pairs, summaries = [], []
    for plane in plan.planes:
        with timer.stage("encode"):
            tokens, cached = _tokens_of_pair(plan, plane, config, device, report, encoders)
        with timer.stage("features"):
            report("features", 0.0)
            basis = fit_basis(_moments(tokens, sides, device), plan.components)
            scale = basis.scale(config.feature_scale)
            pairs.append(_sampled(tokens, basis, scale, sides, device))
            summaries.append(_summary(plan, plane, basis, scale, cached))
        del tokens
    weights = [plane.weight for plane in plan.planes]
    manifest = plan.bundle.manifest
    summary = EncodingSummary(
        model=manifest.model,
        precision=manifest.precision,
        bundle_sha256=manifest.hash(),
        random_weights=manifest.source.random_weights,
        engine=plan.engine,
        planes=tuple(summaries),
    )
    return pairs, weights, summary


def _tokens_of_pair(
    plan: EncodingPlan,
    plane: PlaneStacks,
    config: RegistrationConfig,
    device: Device,
    report: Callable[[str, float], None],
    encoders: EncoderPool,
) -> tuple[list[PatchTokens], list[bool]]:
    """Tokens of both images, from the cache where they are there."""
    budget = int(config.token_memory_gb * 2**30) // 2
    cache = TokenCache(cache_folder(), int(config.cache_gb * 2**30)) if config.cache else None
    result, cached = [], []
    for image, (role, stack) in enumerate(zip(_ROLES, plane.stacks, strict=True)):
        shape = plan.token_shape(plane, image)
        key = _key(plan, plane, stack) if cache is not None else ""
        stored = cache.load(key, shape) if cache is not None else None
        cached.append(stored is not None)
        progress = partial(report, f"encode {role}")
        if stored is not None:
            progress(1.0)
            result.append(PatchTokens(stack, *stored))
            continue
        # Borrowed only when something is left to encode.
        with _lent(plan, plane, device, encoders, partial(progress, 0.0)) as encoder:
            tokens = encode(
                stack,
                encoder,
                plan.normalisation,
                token_array(shape, budget, Path(tempfile.gettempdir())),
                batch=plan.batch,
                device=device,
                progress=progress,
            )
        result.append(tokens)
        if cache is not None:
            cache.store(key, tokens.tokens, tokens.moments)
    return result, cached


def _lent(
    plan: EncodingPlan,
    plane: PlaneStacks,
    device: Device,
    encoders: EncoderPool,
    waiting: Callable[[], None],
) -> AbstractContextManager[Encoder]:
    key = (plan.bundle.folder, plane.graph.file, plan.engine, device.name, device.threads)
    make = partial(
        open_encoder, plan.bundle, plane.graph, plan.engine, device.threads, device=device
    )
    return encoders.lent(key, make, waiting)


def _key(plan: EncodingPlan, plane: PlaneStacks, stack: SliceStack) -> str:
    return cache_key(
        image=content_hash(stack.volume),
        bundle=plan.bundle.manifest.hash(),
        graph=plane.graph.file,
        engine=plan.engine,
        normalisation=plan.normalisation.model_dump(),
        window=list(stack.window),
        plane=plane.plane,
        encoded=list(stack.encoded),
    )


def _moments(
    tokens: Sequence[PatchTokens], sides: Sequence[SolverSide], device: Device
) -> list[TokenMoments]:
    """Of the tokens that count: all, or those that a mask covers."""
    found = []
    for role, of_image, side in zip(_ROLES, tokens, sides, strict=True):
        if side.mask is None and side.body is None:
            found.append(of_image.moments)
            continue
        inside = _inside(of_image.stack, side, device)
        parts = (
            TokenMoments.of(slice_[kept])
            for slice_, kept in zip(of_image.tokens, inside, strict=True)
        )
        none = TokenMoments.none(of_image.tokens.shape[-1])
        moments = reduce(TokenMoments.merged, parts, none)
        if not moments.count:
            raise RegistrationError(
                f"the {role} mask (or the body in it) covers no token of an encoded slice; a "
                "smaller --slice-stride or a larger mask is needed"
            )
        found.append(moments)
    return found


def _inside(stack: SliceStack, side: SolverSide, device: Device) -> Array:
    """Whether each token of the encoded slices touches mask and body, (n, rows, columns)."""
    inside = np.ones(stack.tokens.shape_zyx, bool)
    for image, mask in (
        (stack.volume, side.mask),
        (side.body, None if side.body is None else side.body.array),
    ):
        if image is not None and mask is not None:
            cover = weight_on(stack.tokens, image, mask, _IDENTITY, device)
            inside &= device.download(cover) > 0
    return inside[list(stack.encoded)]


def _sampled(
    tokens: Sequence[PatchTokens],
    basis: FeatureBasis,
    scale: float,
    sides: Sequence[SolverSide],
    device: Device,
) -> FeaturePair:
    arrays, weights = [], []
    channels = len(basis.variance)
    for of_image, side in zip(tokens, sides, strict=True):
        planes = project(of_image.tokens, basis, scale)
        out = device.xp.zeros((*side.grid.shape_zyx, padded_channels(channels)), np.float16)
        sample_features(planes, of_image.stack, side.grid, side.affine, out[..., :channels], device)
        arrays.append(out)
        weights.append(_tissue_weight(of_image.stack, side, device))
    return FeaturePair(arrays[0], arrays[1], weights[0], weights[1], channels)


def _tissue_weight(stack: SliceStack, side: SolverSide, device: Device) -> Array:
    """1 where a control voxel holds anything above the window's dark end, else 0: as with MIND-SSC
    flat places, which look alike everywhere, say nothing about a match."""
    tissue = device.upload(stack.volume.array, np.float32) > np.float32(stack.window[0])
    cover = weight_on(side.grid, stack.volume, tissue, side.affine, device)
    return (cover > 0).astype(np.float32)


def _summary(
    plan: EncodingPlan,
    plane: PlaneStacks,
    basis: FeatureBasis,
    scale: float,
    cached: Sequence[bool],
) -> EncodedPlaneSummary:
    rows, columns = plan.bundle.token_grid(plane.graph)
    return EncodedPlaneSummary(
        plane=plane.plane,
        weight=plane.weight,
        token_grid=(rows, columns),
        slices=(len(plane.stacks[0].encoded), len(plane.stacks[1].encoded)),
        from_cache=(cached[0], cached[1]),
        feature_scale=scale,
        explained_variance=tuple(float(v) for v in basis.explained),
    )
