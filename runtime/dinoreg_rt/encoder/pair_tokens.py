"""Tokens of both images of a pair, from the cache or from an encoder."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from ..config.parameters import RegistrationConfig
from ..device.choice import Device
from ..engines.cache import engine_record
from ..engines.open import GPU_ENGINES, Encoder, open_encoder
from ..images.pair import Sides
from ..io.arrays import device_of
from ..io.hashes import content_hash
from ..types import Array
from .cache import cache_key
from .encoding import EncodingPlan
from .open_encoders import EncoderPool
from .slice_stack import PlaneStacks, SliceStack
from .token_stores import TokenStores, token_cache
from .tokens import PatchTokens, check_finite, encode, encode_constant, token_array

if TYPE_CHECKING:
    from ..engines.trt.library import Flavour


@dataclass(frozen=True, eq=False)
class PairTokens:
    """The tokens of both images.

    Attributes:
        tokens: tokens of the fixed and of the moving image.
        constant: tokens (rows, columns, C) of a constant picture; None where they are not needed.
        cached: for each image, whether its tokens came from the cache.
    """

    tokens: list[PatchTokens]
    constant: Array | None
    cached: list[bool]


def tokens_of_pair(
    plan: EncodingPlan,
    plane: PlaneStacks,
    sides: Sides,
    config: RegistrationConfig,
    device: Device,
    report: Callable[[str, float], None],
    encoders: EncoderPool,
    stores: TokenStores | None = None,
) -> PairTokens:
    """Return the tokens of both images, from the cache if it holds them.

    On a GPU both images are queued before the first one is waited for. New tokens are kept in
    `stores`, whose cache is not waited for; without stores they are only read from the cache.
    """
    cache = token_cache(config) if stores is None else None
    encode_stack = partial(encode, batch=plan.batch, device=device, queued=plan.on_gpu)
    result: list[PatchTokens] = []
    cached: list[bool] = []
    sums: list[tuple[SliceStack, Callable[[], list[Any]]]] = []
    new: list[Callable[[], None]] = []
    for index, (side, stack) in enumerate(zip(sides, plane.stacks, strict=True)):
        shape, key, stored = plan.token_shape(plane, index), "", None
        fixed = index == 0 and device_of(stack.volume.array) == "cpu"
        if stores is not None and stores.wants_key(fixed=fixed):
            key = token_key(plan, plane, stack, device)
            stored = stores.find(key, shape, keep=fixed and plan.tokens_on_device)
        elif cache is not None:
            stored = cache.load(token_key(plan, plane, stack, device), shape)
        cached.append(stored is not None)
        stack = replace(stack, volume=side.image.volume)  # the plan's is on the host
        progress = partial(report, plan.stage(plane, side.image.role))
        if stored is not None:
            progress(1.0)
            result.append(PatchTokens(stack, stored))
            continue
        progress(0.0)  # opening the encoder may take a while
        with _borrowed(plan, plane, config, device, encoders, partial(progress, 0.0)) as encoder:
            progress(0.0)
            out = _room(plan, shape, config, device, stores)
            tokens = encode_stack(stack, encoder, plan.normalisation, out, progress=progress)
        result.append(tokens)
        if plan.on_gpu:  # other encoders check each batch
            sums.append((stack, device.downloading(tokens.total)))
        if stores is not None:
            stores.write(key, tokens)
            if fixed:
                new.append(partial(stores.keep, key, tokens.tokens))
    for stack, values in sums:
        check_finite(values()[0], stack)
    for keep in new:
        keep()
    return PairTokens(result, _constant(plan, plane, config, device, encoders), cached)


def _constant(
    plan: EncodingPlan,
    plane: PlaneStacks,
    config: RegistrationConfig,
    device: Device,
    encoders: EncoderPool,
) -> Array | None:
    """Encode a constant picture if the plan needs it, cropped to the part that slices may cover."""
    if not plan.standardisation.position_components:
        return None
    with _borrowed(plan, plane, config, device, encoders, lambda: None) as encoder:
        tokens = encode_constant(encoder, plane.graph, device, queued=plan.on_gpu)
    margins = np.min([stack.frame.margins for stack in plane.stacks], axis=0)
    top, bottom, left, right = (int(margin) for margin in margins)
    rows, columns = tokens.shape[:2]
    return tokens[top : rows - bottom, left : columns - right]


def _room(
    plan: EncodingPlan,
    shape: tuple[int, int, int, int],
    config: RegistrationConfig,
    device: Device,
    stores: TokenStores | None,
) -> Array:
    """Return an array for one image's tokens, which may take half of the token memory."""
    if plan.tokens_on_device:
        return device.xp.empty(shape, np.float16) if stores is None else stores.room(shape)
    return token_array(shape, int(config.token_memory_gb * 2**30) // 2)


def _borrowed(
    plan: EncodingPlan,
    plane: PlaneStacks,
    config: RegistrationConfig,
    device: Device,
    encoders: EncoderPool,
    waiting: Callable[[], None],
) -> AbstractContextManager[Encoder]:
    """Borrow the encoder of a plane from the pool."""
    key = (
        plan.bundle.folder,
        plane.graph.file,
        plan.engine,
        plan.batch if plan.engine in GPU_ENGINES else 0,  # buffers are made for one batch size
        device.name,
        device.threads,
    )
    make = partial(
        open_encoder,
        plan.bundle,
        plane.graph,
        plan.engine,
        device.threads,
        device=device,
        batch=plan.batch,
        memory_bytes=int(config.gpu_memory_gb * 2**30) if config.gpu_memory_gb else None,
    )
    return encoders.borrowed(key, make, waiting)


def token_key(plan: EncodingPlan, plane: PlaneStacks, stack: SliceStack, device: Device) -> str:
    """Return the name of a stack's tokens in the cache."""
    built: dict[str, Any] = {}
    if plan.engine in ("tensorrt", "tensorrt-rtx"):
        # Each engine built for a bundle rounds in its own way.
        flavour = cast("Flavour", plan.engine)
        _, record = engine_record(plan.bundle, plane.graph, flavour, device.index)
        built["engine_sha256"] = record.sha256
    # Without margins and boxes, names stay as they were before these options existed.
    margins, box = stack.frame.margins, stack.frame.box
    if any(margins):
        built["padding"] = margins[0] if len(set(margins)) == 1 else list(margins)
    if box is not None:
        built["box"] = list(box)
    return cache_key(
        **built,
        image=content_hash(stack.volume),
        bundle=plan.bundle.manifest.hash(),
        graph=plane.graph.file,
        engine=plan.engine,
        normalisation=plan.normalisation.model_dump(),
        window=list(stack.window),
        plane=plane.plane,
        encoded=list(stack.encoded),
    )
