"""Planning of an encoding: planes, sizes, slices and batch, before the encoder is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from ..bundle.checkpoints import Wanted
from ..bundle.manifest import Graph, Normalisation
from ..bundle.opened import Bundle
from ..config.parameters import RegistrationConfig
from ..device.choice import Device
from ..device.limits import memory_bytes
from ..engines.cache import built_records
from ..engines.open import GPU_ENGINES
from ..engines.selection import choose_engine
from ..engines.trt import DEFAULT_BATCHES
from ..errors import RegistrationError
from ..images.moving_grids import Region
from ..images.pair import Pair
from ..types import Geometry
from .encoding import EncodingPlan, activation_bytes, common_batches
from .framing import frames_of, picture_extent, shown_boxes
from .open_encoders import EncoderPool
from .planes import PLANES, Plane, choose_plane, in_plane_spacing_mm, upright
from .slice_stack import PlaneStacks, plan_slices
from .standardise import Standardisation

#: Tokens in one run of the encoder above which larger batches gain nothing on a CPU.
_FULL_BATCH_TOKENS = 2048
_MOST_SLICES = 16
#: Slices in one run on a GPU if its memory allows: the batch size that engines are built for.
_GPU_BATCH = max(DEFAULT_BATCHES)
_NO_NORMALISATION = Normalisation(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def plan_encoding(
    pair: Pair,
    regions: tuple[Region, Region],
    config: RegistrationConfig,
    device: Device,
    encoders: EncoderPool,
) -> tuple[EncodingPlan, dict[str, str]]:
    """Open the encoder's bundle and decide which slices the encoder will see, and how.

    Slices outside `regions`, the parts of both images that can be compared, are not encoded.

    Returns:
        The plan, and a line about each choice with its reason.

    Raises:
        InputError: the bundle does not exist, or was changed.
        ConfigError: the bundle has no graph for the requested tokens.
        RegistrationError: an image has nothing to encode.
    """
    bundle = encoders.bundle(config.encoder or "", Wanted(config.token_grid, config.encoder_depth))
    layers = bundle.layers(config.layers)
    bundle.check_components(config.components, layers)
    planes, plane_reason = _planes(pair, regions, bundle, config)
    graphs = [plane.graph for plane in planes]
    engine, engine_reason = encoders.engine(
        (config.engine, device, bundle.folder, tuple(graphs)),
        partial(choose_engine, config.engine, device, bundle, graphs),
    )
    built = built_records(bundle, graphs, engine, device.index)
    batch = _GPU_BATCH if engine in GPU_ENGINES else _cpu_batch(bundle, graphs)
    own = config.encoder_normalisation == "bundle"
    plan = EncodingPlan(
        bundle=bundle,
        engine=engine,
        planes=planes,
        batch=common_batches(built, batch)[0] if built else batch,
        normalisation=bundle.manifest.normalisation if own else _NO_NORMALISATION,
        components=config.components,
        layers=layers,
        standardisation=Standardisation.of(config),
        built=built,
        keeps=encoders.keeps,
        masked=any(image.mask is not None or image.body is not None for image in pair),
    )
    choices = {
        "engine": engine_reason,
        "slices": plane_reason + _describe_left_out(planes),
        "tokens": _describe_tokens(planes, config),
    }
    if bundle.exported_from is not None:
        choices["encoder"] = f"exported from {bundle.exported_from} to {bundle.folder}"
    if doubt := bundle.doubt_about_layer(config.encoder_depth):
        choices["layer"] = doubt
    return plan, choices


def shown_window(
    water: float | None, window: tuple[float, float], config: RegistrationConfig
) -> tuple[float, float]:
    """Return the intensities that the encoder sees as 0 and 1.

    Args:
        water: intensity of water in a CT in Hounsfield units, whose window is the encoder's own;
            None for other images.
        window: the window of other images.
        config: the encoder's window.
    """
    if water is None:
        return window
    low, high = config.encoder_ct_window_hu
    return low + water, high + water


def _planes(
    pair: Pair, regions: tuple[Region, Region], bundle: Bundle, config: RegistrationConfig
) -> tuple[tuple[PlaneStacks, ...], str]:
    """Choose the planes, plan their slices, and say why these planes were chosen."""
    geometries = [image.volume.geometry for image in pair]
    names: tuple[Plane, ...]
    if config.axis == "all":
        names, reason = PLANES, "axial, coronal and sagittal, as asked"
    elif config.axis == "auto":
        plane, reason = choose_plane(geometries)
        names = (plane,)
    else:
        names, reason = (config.axis,), f"{config.axis}, as asked"
    # Large pixels carry less information: planes are weighted by the images' in-plane resolution.
    fineness = {
        name: float(np.prod([1 / in_plane_spacing_mm(g, name) for g in geometries]))
        for name in names
    }
    total = sum(fineness.values())
    planes = tuple(
        _plane_stacks(name, pair, regions, bundle, config, fineness[name] / total) for name in names
    )
    return planes, reason


def _plane_stacks(
    plane: Plane,
    pair: Pair,
    regions: tuple[Region, Region],
    bundle: Bundle,
    config: RegistrationConfig,
    weight: float,
) -> PlaneStacks:
    """Plan the slices of both images in one plane."""
    scale, padding = config.slice_scale, config.slice_padding
    shown = shown_boxes(pair, plane, scale)
    picture = picture_extent([extent for _, extent in shown], scale)
    graph, _ = bundle.graph_for(config.token_grid, picture[0] / picture[1], padding)
    frames = frames_of(shown, picture, bundle.token_grid(graph), padding, scale)
    stacks = []
    for image, region, frame in zip(pair, regions, frames, strict=True):
        window = shown_window(image.water, image.window, config)
        stack = plan_slices(
            image.volume,
            window,
            plane,
            (graph.height, graph.width),
            bundle.manifest.patch,
            slice_stride(config, upright(image.volume.geometry, plane)),
            region,
            frame,
        )
        if not stack.encoded:
            raise RegistrationError(
                f"no {plane} slice of the {image.role} image holds a value above "
                f"{window[0]:g}, the dark end of its intensity window, so there is nothing to "
                f"encode; check --{image.role}-modality and --encoder-ct-window-hu"
            )
        stacks.append(stack)
    return PlaneStacks(plane, graph, (stacks[0], stacks[1]), weight)


def slice_stride(config: RegistrationConfig, stack: Geometry) -> int:
    """Return the distance between encoded slices, as a number of slices of an upright stack."""
    if config.slice_spacing_mm is None:
        return config.slice_stride
    # Slices of 2.01 mm count as slices of 2 mm.
    return max(1, int(config.slice_spacing_mm / stack.spacing_mm[2] + 0.05))


def _cpu_batch(bundle: Bundle, graphs: Sequence[Graph]) -> int:
    """Return the slices per run on a CPU: fast, with activations within an eighth of the memory.

    The installed memory counts, not the free memory, so a machine always gives the same bits.
    """
    tokens = max(int(np.prod(bundle.token_grid(graph))) for graph in graphs)
    largest = max(activation_bytes(bundle, graph) for graph in graphs)
    most = memory_bytes()[0] // 8 // largest
    return int(max(1, min(_MOST_SLICES, _FULL_BATCH_TOKENS // tokens, most)))


def _describe_tokens(planes: Sequence[PlaneStacks], config: RegistrationConfig) -> str:
    """Describe the number of tokens per slice, and how slices are cropped and padded."""
    parts = []
    for plane in planes:
        grids = [stack.tokens.shape_zyx[1:] for stack in plane.stacks]
        sizes = [f"{rows} x {columns}" for rows, columns in dict.fromkeys(grids)]
        slices = " + ".join(str(len(stack.encoded)) for stack in plane.stacks)
        part = f"{' + '.join(sizes)} tokens in {slices} {plane.plane} slices"
        if config.slice_scale != "fit":
            # Each side was rounded to whole tokens.
            sides_mm = [side for stack in plane.stacks for side in stack.tokens.spacing_mm[:2]]
            part += f", a token is {float(np.mean(sides_mm)):.1f} mm in both images"
        parts.append(part)
    if config.slice_scale == "body":
        parts.append("slices are cropped to the bodies")
    if config.slice_padding:
        parts.append(f"{config.slice_padding} more at each edge are discarded")
    return "; ".join(parts)


def _describe_left_out(planes: Sequence[PlaneStacks]) -> str:
    """Describe how many slices can meet the other image, if not all can."""
    text = ""
    for plane in planes:
        for role, other, stack in zip(
            ("fixed", "moving"), ("moving", "fixed"), plane.stacks, strict=True
        ):
            count, needed = stack.tokens.shape_zyx[0], stack.needed[1] - stack.needed[0] + 1
            if needed < count:
                name = f"{plane.plane} {role}" if len(planes) > 1 else role
                text += f"; {needed} of {count} {name} slices can meet the {other} image"
    return text
