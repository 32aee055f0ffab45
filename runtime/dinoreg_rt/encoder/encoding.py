"""How both images become tokens, and how much memory that takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..bundle.manifest import Graph, Normalisation
from ..bundle.opened import Bundle
from ..engines.open import GPU_ENGINES
from ..images.pair import Role
from .slice_stack import PlaneStacks
from .standardise import Standardisation

#: Most bytes of attention scores that exist at one time, per slice; the exported graphs ensure it.
_SCORE_BYTES = 512 << 20
_HEADS = 16


@dataclass(frozen=True, eq=False)
class EncodingPlan:
    """How both images become tokens.

    Attributes:
        bundle: the encoder's bundle.
        engine: name of the engine that runs the encoder.
        planes: slices of both images, in one plane or in all three.
        batch: number of slices in one run of the encoder.
        normalisation: mean and standard deviation of the pixels.
        components: number of components of the joint PCA, for each plane.
        layers: indices, among the bundle's layers, of those whose tokens are compared.
        standardisation: what is done to the tokens of each image before the PCA.
        tokens_on_device: whether tokens stay on the CUDA device instead of going to the host batch
            by batch.
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
        """Number of channels of the features of all planes together."""
        return self.components * len(self.planes)

    def token_shape(self, plane: PlaneStacks, image: int) -> tuple[int, int, int, int]:
        """Shape (n, rows, columns, C) of the tokens kept of image 0 (fixed) or 1 (moving)."""
        stack = plane.stacks[image]
        rows, columns = stack.tokens.shape_zyx[1:]
        return len(stack.encoded), rows, columns, self.bundle.manifest.channels

    def stage(self, plane: PlaneStacks, role: Role) -> str:
        """Name under which the progress of encoding an image is reported."""
        return f"encode {role}" + (f", {plane.plane}" if len(self.planes) > 1 else "")

    @property
    def on_gpu(self) -> bool:
        """Whether a GPU runs the encoder and gets its tokens."""
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
