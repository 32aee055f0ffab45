"""The plan for encoding both images, and the memory that it needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..bundle.manifest import Graph, Normalisation
from ..bundle.opened import Bundle
from ..config.parameters import RegistrationConfig
from ..device.pinned import PART_BYTES
from ..engines.open import GPU_ENGINES
from ..engines.trt.executor import pieces
from ..engines.trt.record import EngineRecord
from ..images.pair import Role
from .slice_stack import PlaneStacks
from .standardise import Standardisation

#: Limit on the bytes of attention scores per slice at any time, which the exported graphs observe.
_SCORE_BYTES = 512 << 20
_HEADS = 16


@dataclass(frozen=True, eq=False)
class EncodingPlan:
    """The plan for encoding both images.

    Attributes:
        bundle: the encoder's bundle.
        engine: name of the engine that runs the encoder.
        planes: slices of both images, in one plane or in all three.
        batch: number of slices in one run of the encoder.
        normalisation: mean and standard deviation of the pixels.
        components: number of components of the joint PCA, for each plane.
        layers: indices, among the bundle's layers, of those whose tokens are compared.
        standardisation: standardisation of each image's tokens before the PCA.
        tokens_on_device: whether tokens stay on the CUDA device instead of going to the host batch
            by batch.
        built: records of the engine's files for each input size, if it has any.
        keeps: whether tokens of the fixed image stay on the GPU between registrations.
        masked: whether a mask or a body leaves out tokens of either image.
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
    built: tuple[EngineRecord, ...] = ()
    keeps: bool = False
    masked: bool = False

    @property
    def channels(self) -> int:
        """Number of channels of the features of all planes together."""
        return self.components * len(self.planes)

    def token_shape(self, plane: PlaneStacks, image: int) -> tuple[int, int, int, int]:
        """Return the shape (n, rows, columns, C) of the tokens of image 0 (fixed) or 1 (moving)."""
        stack = plane.stacks[image]
        rows, columns = stack.tokens.shape_zyx[1:]
        return len(stack.encoded), rows, columns, self.bundle.manifest.channels

    def stage(self, plane: PlaneStacks, role: Role) -> str:
        """Return the name under which the progress of encoding an image is reported."""
        return f"encode {role}" + (f", {plane.plane}" if len(self.planes) > 1 else "")

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU runs the encoder and gets its tokens."""
        return self.engine in GPU_ENGINES

    @property
    def batches(self) -> tuple[int, ...]:
        """Numbers of slices that may be encoded at once, falling from `batch`.

        A built engine pads other numbers, which saves no memory.
        """
        if not self.on_gpu:
            return (self.batch,)
        if self.built:
            return common_batches(self.built, self.batch)
        return tuple(self.batch >> i for i in range(self.batch.bit_length()))

    def engine_bytes(self) -> int:
        """Return the bytes that the engine takes where it runs, for as long as it is open.

        A built engine states the memory of a context, and each batch size has one. Weights of other
        engines count twice: as every engine reads them, and as it lays them out for its kernels. On
        a GPU each batch size has buffers of its own.
        """
        buffers = 0
        if self.on_gpu:
            slices = sum({1, self.batch})
            buffers = 4 * slices * sum(self.pixels(p) + self.slice_tokens(p) for p in self.planes)
        if self._states_memory:
            contexts = sum(len(self._sizes_run(r)) * (r.memory_bytes or 0) for r in self.built)
            return self.shared_bytes() + contexts + buffers
        activations = max(
            activation_bytes(
                self.bundle,
                plane.graph,
                fused=self.engine == "ort-cuda" and plane.graph.fused is not None,
            )
            for plane in self.planes
        )
        return 2 * self.weight_bytes + self.batch * activations + buffers

    def shared_bytes(self) -> int:
        """Return the part of `engine_bytes` that registrations at the same time have in common.

        Each has contexts of its own in a built engine; other engines serve one after the other.
        """
        if self._states_memory:
            return sum(record.size_bytes for record in self.built)
        return self.engine_bytes()

    def _sizes_run(self, record: EngineRecord) -> set[int]:
        """Return the batch sizes of a built engine that this registration runs.

        They are those of whole batches, of each image's last slices and of the constant picture.
        """
        key = record.key
        counts = {1} if self.standardisation.position_components else set()
        for plane in self.planes:
            if (plane.graph.height, plane.graph.width) == (key.height, key.width):
                for stack in plane.stacks:
                    whole, rest = divmod(len(stack.encoded), self.batch)
                    counts |= ({self.batch} if whole else set()) | ({rest} if rest else set())
        return {size for count in counts for size, _ in pieces(count, key.batches)}

    @property
    def _states_memory(self) -> bool:
        """Whether the engine was built and states the memory of its contexts."""
        return bool(self.built) and all(r.memory_bytes is not None for r in self.built)

    def batch_bytes(self, plane: PlaneStacks, *, on_gpu: bool) -> int:
        """Return the bytes of the slices that are being encoded.

        On a GPU: pixels and tokens of one batch, its tokens in half precision (and those of the
        previous batch, on their way to the host) and in single precision. On the host: pixels and
        tokens of two batches, and one batch of tokens in half and in single precision.
        """
        pixels, tokens = 4 * self.pixels(plane), self.slice_tokens(plane)
        return self.batch * (pixels + 12 * tokens if on_gpu else 2 * pixels + 14 * tokens)

    def token_bytes(self, plane: PlaneStacks) -> int:
        """Return the bytes of both images' tokens on the GPU; 0 if they go to the host."""
        return sum(self._token_sizes(plane)) if self.tokens_on_device else 0

    def host_token_bytes(self, plane: PlaneStacks, config: RegistrationConfig) -> int:
        """Return the bytes of both images' tokens on the host; larger ones go to a file.

        Tokens that stay on the GPU go to the cache through two page-locked buffers.
        """
        sizes = self._token_sizes(plane)
        if self.tokens_on_device:
            return config.cache * min(2 * PART_BYTES, sum(sizes))
        budget = int(config.token_memory_gb * 2**30)
        return sum(size for size in sizes if size <= budget // 2)

    def lingering_bytes(self, config: RegistrationConfig, *, on_gpu: bool) -> int:
        """Return the bytes of tokens that may outlive the features, where the registration runs.

        They are on their way to the cache, see `TokenWriter.write` for the limit, or those of the
        fixed image, for the next registration.
        """
        if on_gpu != self.tokens_on_device:
            return 0
        if not config.cache:
            return (on_gpu and self.keeps) * sum(self._token_sizes(p)[0] for p in self.planes)
        sizes = [size for plane in self.planes for size in self._token_sizes(plane)]
        budget = int(config.token_memory_gb * 2**30)
        if not on_gpu:
            sizes = [size for size in sizes if size <= budget // 2] or [0]
        return min(sum(sizes), max(budget, *sizes))

    def pixels(self, plane: PlaneStacks) -> int:
        """Return the number of values that the encoder takes per slice, in three channels."""
        return 3 * plane.graph.height * plane.graph.width

    def slice_tokens(self, plane: PlaneStacks) -> int:
        """Return the number of values that the encoder returns for one slice, padding included."""
        return math.prod(self.bundle.token_grid(plane.graph)) * self.bundle.manifest.channels

    def kept_tokens(self, plane: PlaneStacks) -> int:
        """Return the number of kept tokens of both images, one for each patch."""
        return sum(math.prod(self.token_shape(plane, i)[:3]) for i in (0, 1))

    @property
    def weight_bytes(self) -> int:
        """Bytes of the bundle's files."""
        return sum(f.size_bytes for f in self.bundle.manifest.files)

    def _token_sizes(self, plane: PlaneStacks) -> list[int]:
        return [2 * math.prod(self.token_shape(plane, i)) for i in (0, 1)]


def common_batches(built: Sequence[EngineRecord], most: int) -> tuple[int, ...]:
    """Return the batch sizes that all engines have, falling, up to `most` if any is as small."""
    common = sorted(set.intersection(*(set(r.key.batches) for r in built)), reverse=True)
    return tuple(b for b in common if b <= most) or (common[-1] if common else most,)


def activation_bytes(bundle: Bundle, graph: Graph, *, fused: bool = False) -> int:
    """Return the bytes of one slice inside a vision transformer: widest layers and attention.

    With `fused` attention no scores are stored.

    Measured on ONNX Runtime's CPU with ViT-S/16 at 512 x 512 and ViT-L/16 at 1792 x 1536 pixels:
    31 floats for each channel of a token in both cases, plus twice the scores. Layers to be joined
    are kept until the last one is computed, and then copied side by side.
    """
    rows, columns = bundle.token_grid(graph)
    tokens = rows * columns + 5
    scores = 0 if fused else min(_SCORE_BYTES, 4 * _HEADS * tokens**2)
    manifest = bundle.manifest
    joined = 2 * manifest.channels if len(manifest.layers) > 1 else 0
    return 4 * tokens * (32 * manifest.layer_channels + joined) + 2 * scores
