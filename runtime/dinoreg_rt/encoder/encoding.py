"""What an encoder will be shown, decided before it is loaded: planes, sizes, slices, batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..bundle.checkpoints import Wanted
from ..bundle.manifest import Graph, Normalisation
from ..bundle.opened import Bundle
from ..config.parameters import RegistrationConfig
from ..device.choice import Device
from ..device.limits import memory_bytes
from ..engines.open import GPU_ENGINES
from ..engines.selection import choose_engine
from ..engines.trt import DEFAULT_BATCHES
from ..errors import RegistrationError
from ..images.moving_grids import Region
from ..images.pair import Pair, Role
from ..types import Geometry
from .framing import frames_of, picture_extent, shown_boxes
from .open_encoders import EncoderPool
from .plan_text import describe_left_out, describe_tokens
from .planes import PLANES, Plane, choose_plane, in_plane_spacing_mm, upright
from .slice_stack import PlaneStacks, plan_slices
from .standardise import Standardisation

#: Tokens in one run of the encoder from which on more slices at a time gain nothing on a CPU.
_FULL_BATCH_TOKENS = 2048
_MOST_SLICES = 16
#: Slices at a time on a GPU, where its memory allows (`device_memory`): what engines are built for.
_GPU_BATCH = max(DEFAULT_BATCHES)
#: Scores of attention that exist at one time, per slice; the exported graphs see to it.
_SCORE_BYTES = 512 << 20
_HEADS = 16
_NO_NORMALISATION = Normalisation(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


@dataclass(frozen=True, eq=False)
class EncodingPlan:
    """How both images become tokens.

    Attributes:
        bundle: the encoder.
        engine: that runs it.
        planes: one, or all three.
        batch: slices in one run.
        normalisation: of the pixels.
        components: of the joint PCA, for each plane.
        layers: which of the bundle's layers are compared, by their place among them.
        standardisation: of the tokens of each image before that.
        tokens_on_device: on a CUDA device: whether they stay there, or go to the host as they come.
    """

    bundle: Bundle
    engine: str
    planes: tuple[PlaneStacks, ...]
    batch: int
    normalisation: Normalisation
    components: int
    layers: tuple[int, ...]
    standardisation: Standardisation
    tokens_on_device: bool = False

    @property
    def channels(self) -> int:
        """Of the features of all planes together."""
        return self.components * len(self.planes)

    def token_shape(self, plane: PlaneStacks, image: int) -> tuple[int, int, int, int]:
        """(n, rows, columns, C) of one image's tokens that are kept: 0 is fixed, 1 moving."""
        stack = plane.stacks[image]
        rows, columns = stack.tokens.shape_zyx[1:]
        return len(stack.encoded), rows, columns, self.bundle.manifest.channels

    def stage(self, plane: PlaneStacks, role: Role) -> str:
        """Name under which progress in encoding an image is told."""
        return f"encode {role}" + (f", {plane.plane}" if len(self.planes) > 1 else "")

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU runs the encoder, which then leaves tokens there."""
        return self.engine in GPU_ENGINES

    def memory_bytes(self, token_budget: int, *, cached: bool) -> int:
        """Predicted peak on the host while encoding: the engine, tokens within their budget.

        Tokens that stay on the device come to the host for the cache. ONNX Runtime keeps the
        weights as read and once more packed for its matrix products.
        """
        engine = 0
        if not self.on_gpu:
            under_way = max(self._under_way(plane) for plane in self.planes)
            engine = self._weights() + self._activations() + under_way
        if self.tokens_on_device:
            return engine + cached * max(sum(self._token_sizes(plane)) for plane in self.planes)
        tokens = 0
        for plane in self.planes:
            sizes = self._token_sizes(plane)
            tokens = max(tokens, sum(s for s in sizes if s <= token_budget // 2))
        return engine + tokens

    def engine_bytes(self) -> int:
        """On the device, for as long as the engine is open: weights, activations, buffers.

        Weights count twice: as TensorRT and the CUDA provider read them, and as they lay them out
        for their kernels. Each size of batch has its own buffers.
        """
        if not self.on_gpu:
            return 0
        buffers = 0
        for plane in self.planes:
            slice_floats = 3 * plane.graph.height * plane.graph.width + self.slice_tokens(plane)
            buffers += 4 * slice_floats * sum({1, self.batch})
        return self._weights() + self._activations() + buffers

    def token_bytes(self, plane: PlaneStacks) -> int:
        """Of both images' tokens, where they stay on the device."""
        return sum(self._token_sizes(plane)) if self.tokens_on_device else 0

    def _under_way(self, plane: PlaneStacks) -> int:
        """Pixels of two batches, one in the engine and the next; tokens of two as they come, one of
        them in half and in single precision."""
        pixels, tokens = 3 * plane.graph.height * plane.graph.width, self.slice_tokens(plane)
        return self.batch * (2 * 4 * pixels + (2 * 4 + 2 + 4) * tokens)

    def slice_tokens(self, plane: PlaneStacks) -> int:
        """Numbers that the encoder gives for one slice, those of the padding among them."""
        return int(np.prod(self.bundle.token_grid(plane.graph))) * self.bundle.manifest.channels

    def _token_sizes(self, plane: PlaneStacks) -> list[int]:
        return [2 * int(np.prod(self.token_shape(plane, i), dtype=np.int64)) for i in (0, 1)]

    def _weights(self) -> int:
        return 2 * sum(f.size_bytes for f in self.bundle.manifest.files)

    def _activations(self) -> int:
        return self.batch * max(activation_bytes(self.bundle, p.graph) for p in self.planes)


def plan_encoding(
    pair: Pair,
    regions: tuple[Region, Region],
    config: RegistrationConfig,
    device: Device,
    encoders: EncoderPool,
) -> tuple[EncodingPlan, dict[str, str]]:
    """Open the encoder's bundle and decide what it will be shown; also what was chosen and why.

    Args:
        pair: fixed and moving image.
        regions: of both that can be compared; slices elsewhere are not encoded.
        config: names the encoder.
        device: that the registration runs on.
        encoders: keeps bundles that were opened before.

    Raises:
        InputError: no such bundle, or one that was changed.
        ConfigError: the bundle has no graph for the wanted tokens.
        RegistrationError: an image without anything to encode.
    """
    bundle = encoders.bundle(config.encoder or "", Wanted(config.token_grid, config.encoder_depth))
    layers = bundle.layers(config.layers)
    bundle.check_components(config.components, layers)
    planes, plane_reason = _planes(pair, regions, bundle, config)
    graphs = [plane.graph for plane in planes]
    engine, engine_reason = choose_engine(config.engine, device, bundle, graphs)
    own = config.encoder_normalisation == "bundle"
    plan = EncodingPlan(
        bundle=bundle,
        engine=engine,
        planes=planes,
        batch=_GPU_BATCH if engine in GPU_ENGINES else _batch(bundle, graphs),
        normalisation=bundle.manifest.normalisation if own else _NO_NORMALISATION,
        components=config.components,
        layers=layers,
        standardisation=Standardisation.of(config),
    )
    said = {
        "engine": engine_reason,
        "slices": plane_reason + describe_left_out(planes),
        "tokens": describe_tokens(planes, config),
    }
    if bundle.exported_from is not None:
        said["encoder"] = f"exported from {bundle.exported_from} to {bundle.folder}"
    if doubt := bundle.doubt_about_layer(config.encoder_depth):
        said["layer"] = doubt
    return plan, said


def activation_bytes(bundle: Bundle, graph: Graph) -> int:
    """What one slice takes inside a vision transformer: its widest layers and its attention.

    Measured on ONNX Runtime's CPU with ViT-S/16 at 512 x 512 and ViT-L/16 at 1792 x 1536 pixels:
    31 floats for each channel of a token in both, beside twice the scores. Layers that are joined
    are kept until the last is there, and then lie side by side once more.
    """
    rows, columns = bundle.token_grid(graph)
    tokens = rows * columns + 5
    scores = min(_SCORE_BYTES, 4 * _HEADS * tokens**2)
    manifest = bundle.manifest
    joined = 2 * manifest.channels if len(manifest.layers) > 1 else 0
    return 4 * tokens * (32 * manifest.layer_channels + joined) + 2 * scores


def shown_window(
    water: float | None, window: tuple[float, float], config: RegistrationConfig
) -> tuple[float, float]:
    """Return the intensities that an encoder sees as 0 and 1.

    Args:
        water: intensity of water in a CT in Hounsfield units, whose window is the encoder's own;
            None for other images.
        window: intensities that are 0 and 1 elsewhere.
        config: the encoder's window.
    """
    if water is None:
        return window
    low, high = config.encoder_ct_window_hu
    return low + water, high + water


def _planes(
    pair: Pair, regions: tuple[Region, Region], bundle: Bundle, config: RegistrationConfig
) -> tuple[tuple[PlaneStacks, ...], str]:
    geometries = [image.volume.geometry for image in pair]
    names: tuple[Plane, ...]
    if config.axis == "all":
        names, reason = PLANES, "axial, coronal and sagittal, as asked"
    elif config.axis == "auto":
        plane, reason = choose_plane(geometries)
        names = (plane,)
    else:
        names, reason = (config.axis,), f"{config.axis}, as asked"
    # A plane in which the pixels are large says less: weights go with the fineness of both images.
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
                f"{window[0]:g}, the dark end of its intensity window: there is nothing to encode; "
                f"check --{image.role}-modality and --encoder-ct-window-hu"
            )
        stacks.append(stack)
    return PlaneStacks(plane, graph, (stacks[0], stacks[1]), weight)


def slice_stride(config: RegistrationConfig, stack: Geometry) -> int:
    """Distance of encoded slices, in slices."""
    if config.slice_spacing_mm is None:
        return config.slice_stride
    # A little more is the same distance: slices of 2.01 mm are as good as those of 2 mm.
    return max(1, int(config.slice_spacing_mm / stack.spacing_mm[2] + 0.05))


def _batch(bundle: Bundle, graphs: Sequence[Graph]) -> int:
    """Slices in one run: enough tokens to be fast, activations within an eighth of the memory.

    Of the memory that exists, not of what is free now: the same machine gives the same bits.
    """
    tokens = max(int(np.prod(bundle.token_grid(graph))) for graph in graphs)
    largest = max(activation_bytes(bundle, graph) for graph in graphs)
    most = memory_bytes()[0] // 8 // largest
    return int(max(1, min(_MOST_SLICES, _FULL_BATCH_TOKENS // tokens, most)))
