"""A probe of an encoder: how often its tokens find the same organ in the other image.

For each token of a labelled organ of the fixed image, the most similar tokens of the moving image
are looked up around its position, and those that lie in the same organ are counted. Without a
registration, this compares layers and standardisations in a minute instead of hours. Without
labels, it still reports the share of tokens that are matched consistently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, TypeVar, get_args

import numpy as np

from ..config.feature_parameters import TokenCentre, TokenScale
from ..config.parameters import RegistrationConfig
from ..device.choice import Device, StageTimer, library_errors, stage_timer
from ..device.streams import working_stream
from ..encoder.encoding import EncodingPlan
from ..encoder.features import moments_of_pair, project_pair, tokens_inside
from ..encoder.moments import PairMoments
from ..encoder.open_encoders import EncoderPool
from ..encoder.pair_tokens import PairTokens, tokens_of_pair
from ..encoder.slice_stack import SliceStack
from ..errors import ConfigError, InputError
from ..features.mind import MindFeatures
from ..geometry import index_to_lps, invert_affine, lps_to_index, transform_points
from ..images.pair import Sides
from ..images.resample import resample_volume
from ..registration.features import working_images
from ..registration.planning import plan
from ..types import AffineTransform, Array, FloatArray, LabelMap, Volume
from .retrieval import REACH_MM, Places, chance, consistent, findable, retrieved

if TYPE_CHECKING:
    from ..registration.plan import Plan


_T = TypeVar("_T")
#: A match is consistent if the way back ends within this many tokens of where it began.
_CONSISTENT_TOKENS = 1.5
#: Name of the row whose features are not an encoder's.
MIND_ROW = "MIND-SSC"


@dataclass(frozen=True)
class ProbeRow:
    """The scores of one kind of features.

    Attributes:
        features: a layer of the encoder, several joined by ``+``, or `MIND_ROW`.
        centre: `Standardisation.centre`; empty for MIND-SSC.
        scale: `Standardisation.scale`; empty for MIND-SSC.
        found: for each label, the share (0 to 1) of its tokens' neighbours that carry it.
        consistent: share (0 to 1) of the fixed tokens that are matched consistently.
    """

    features: str
    centre: str
    scale: str
    found: dict[int, float]
    consistent: float

    @property
    def mean(self) -> float | None:
        """The mean of `found` over the labels; None without labels."""
        return float(np.mean(list(self.found.values()))) if self.found else None


@dataclass(frozen=True)
class ProbeResult:
    """The result of a probe.

    Attributes:
        rows: MIND-SSC first, then each layer with each standardisation.
        chance: for each label, its share among the tokens within reach.
        tokens: number of tokens that count in the fixed and in the moving image.
        warnings: what the images leave open, with the option that settles it.
    """

    rows: tuple[ProbeRow, ...]
    chance: dict[int, float]
    tokens: tuple[int, int]
    warnings: tuple[str, ...] = ()


def probe(
    plan: Plan,
    sides: Sides,
    labels: tuple[LabelMap, LabelMap] | None,
    timer: StageTimer,
    report: Callable[[str, float], None],
    encoders: EncoderPool,
) -> ProbeResult:
    """Probe every layer of a plan's encoder with every standardisation, in its first plane.

    The images are on the plan's device. The stages are ``encode`` and ``probe``.

    Raises:
        ConfigError: the plan has no encoder.
        InputError: no label of the fixed image lies within reach of the same label of the moving
            image in the encoded slices.
    """
    encoding, device = plan.encoding, plan.device
    if encoding is None:
        raise ConfigError("the configuration has no encoder to probe; name one with --encoder")
    plane = encoding.planes[0]
    inside = tokens_inside(plane, sides, device.host)
    with timer.stage("encode"):
        made = tokens_of_pair(encoding, plane, sides, plan.config, device, report, encoders)
    with timer.stage("probe"):
        to_fixed = (AffineTransform.identity(), invert_affine(plan.initial))
        places = _both(
            _places(stack, chosen, affine, None if labels is None else labels[i])
            for i, (stack, chosen, affine) in enumerate(
                zip(plane.stacks, inside, to_fixed, strict=True)
            )
        )
        tokens = findable(*places)
        if labels is not None and not tokens:
            raise InputError(
                f"no label of the fixed image lies within {REACH_MM:g} mm of the same label of the "
                "moving image in the encoded slices; check both label maps and --initial"
            )
        tolerance_mm = _CONSISTENT_TOKENS * max(plane.stacks[0].tokens.spacing_mm[:2])
        kinds = _kinds(plan, encoding, sides, made, inside)
        rows = []
        for i, (row, features) in enumerate(kinds):
            inner = _both(f[p.chosen] for f, p in zip(features(), places, strict=True))
            share = consistent(inner, *places, tolerance_mm)
            rows.append(replace(row, found=retrieved(inner, tokens, *places), consistent=share))
            report("probe", (i + 1) / len(kinds))
    counts = (len(places[0].labels), len(places[1].labels))
    return ProbeResult(tuple(rows), chance(tokens, *places), counts, plan.warnings)


_Features = Callable[[], tuple[FloatArray, FloatArray]]


def _kinds(
    plan: Plan, encoding: EncodingPlan, sides: Sides, made: PairTokens, inside: list[Array | None]
) -> list[tuple[ProbeRow, _Features]]:
    """Return a row to be filled in, and the function that makes its features, for each kind."""
    kinds: list[tuple[ProbeRow, _Features]] = [
        (ProbeRow(MIND_ROW, "", "", {}, 0.0), partial(_mind, plan, sides, made))
    ]
    names = encoding.bundle.manifest.layers
    known: dict[tuple[tuple[int, ...], bool], list[PairMoments]] = {}
    choices: list[tuple[int, ...]] = [(layer,) for layer in encoding.layers]
    choices += [encoding.layers] if len(choices) > 1 else []
    for layers, centre, scale in product(choices, get_args(TokenCentre), get_args(TokenScale)):
        row = ProbeRow("+".join(names[layer] for layer in layers), centre, scale, {}, 0.0)
        kind = replace(encoding.standardisation, centre=centre, scale=scale)
        tried = replace(encoding, layers=layers, standardisation=kind)
        # Moments take most of the time. They depend only on the layers and on the tokens' length.
        moments = known.setdefault((layers, scale == "length"), [])
        kinds.append((row, partial(_encoded, tried, made, inside, moments, plan.device)))
    return kinds


def _encoded(
    encoding: EncodingPlan,
    made: PairTokens,
    inside: list[Array | None],
    moments: list[PairMoments],
    device: Device,
) -> tuple[FloatArray, FloatArray]:
    """Project all tokens of both images, (n, rows, columns, K); fills in `moments` if empty."""
    if not moments:
        moments.append(moments_of_pair(encoding, made, inside, device))
    _, projected = project_pair(encoding, made, moments[0], device)
    return _both(
        tokens.features(device).reshape(*of_image.tokens.shape[:-1], -1)
        for of_image, tokens in zip(made.tokens, projected, strict=True)
    )


def _mind(plan: Plan, sides: Sides, made: PairTokens) -> tuple[FloatArray, FloatArray]:
    """Average MIND-SSC of both images over their tokens, (n, rows, columns, K)."""
    device = plan.device
    images = working_images(sides, plan.grids.pool_zyx, device)
    pair = MindFeatures.of(plan.config).compute(*images, device)
    volumes = (pair.fixed, pair.moving)
    # Both volumes lie in the fixed image's space; the moving tokens do not.
    affines = (AffineTransform.identity(), invert_affine(plan.initial))
    found = []
    for side, volume, tokens, affine in zip(sides, volumes, made.tokens, affines, strict=True):
        channels = []
        for channel in range(pair.channels):
            values = device.xp.ascontiguousarray(volume[..., channel]).astype(np.float32)
            on_tokens = resample_volume(
                Volume(values, side.control), tokens.stack.tokens, affine, device
            )
            channels.append(device.download(on_tokens)[list(tokens.stack.encoded)])
        found.append(np.stack(channels, axis=-1))
    return _both(found)


def _places(
    stack: SliceStack, inside: Array | None, to_fixed: AffineTransform, labels: LabelMap | None
) -> Places:
    """Find the tokens of one image that count, their positions and their labels."""
    n, (rows, columns) = len(stack.encoded), stack.tokens.shape_zyx[1:]
    chosen = np.ones((n, rows, columns), bool)
    if inside is not None:
        chosen = np.asarray(inside).reshape(chosen.shape)
    z, y, x = np.nonzero(chosen)
    index_xyz = np.column_stack([x, y, np.asarray(stack.encoded)[z]]).astype(float)
    points_mm = transform_points(index_to_lps(stack.tokens), index_xyz)
    carried = np.zeros(len(points_mm), int) if labels is None else _labels_at(labels, points_mm)
    return Places(chosen, transform_points(to_fixed, points_mm), carried)


def _labels_at(labels: LabelMap, points_mm: FloatArray) -> Array:
    """Return the nearest voxel's label at each point; 0 outside."""
    index = np.rint(transform_points(lps_to_index(labels.geometry), points_mm)).astype(int)
    inside = ((index >= 0) & (index < labels.geometry.shape_xyz)).all(axis=1)
    x, y, z = index[inside].T
    found = np.zeros(len(points_mm), int)
    found[inside] = labels.array[z, y, x]
    return found


def _both(items: Iterable[_T]) -> tuple[_T, _T]:
    first, second = items
    return first, second


def probe_images(
    fixed: Volume,
    moving: Volume,
    labels: tuple[LabelMap, LabelMap] | None,
    config: RegistrationConfig,
    report: Callable[[str, float], None],
) -> ProbeResult:
    """Probe the encoder that a configuration names on two images.

    Each of the configuration's `layers` is tried alone, and all of them joined, with every
    `token_centre` and `token_scale`.

    Raises:
        DinoregError: as for `register`, or the labels have nothing in common within reach.
    """
    encoders = EncoderPool()
    plan_ = plan(fixed, moving, config, encoders=encoders)
    device, timer = plan_.device, stage_timer(plan_.device)
    with device.active(), working_stream(device), library_errors(device):
        sides = plan_.sides(*plan_.images)
        return probe(plan_, sides, labels, timer, report, encoders)
