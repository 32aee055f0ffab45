"""The two families of encoders that can be exported, with their sizes and tensors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Shape = tuple[int, ...]

DINOV3_LICENCE = (
    "DINOv3 License (https://ai.meta.com/resources/models-and-libraries/dinov3-license)"
)
DINOV2_LICENCE = "Apache-2.0 (https://www.apache.org/licenses/LICENSE-2.0)"


@dataclass(frozen=True)
class VitArchitecture:
    """A vision transformer of the DINOv2 or DINOv3 family.

    Attributes:
        name: name, such as ``dinov3-vitl16``.
        generation: 2 for DINOv2 (learned positions), 3 for DINOv3 (rotary positions).
        patch: pixels per token along each axis.
        dim: channels of a token.
        depth: number of blocks.
        heads: number of attention heads.
        hidden: width of the feed-forward layer.
        gated: whether the feed-forward layer is SwiGLU instead of GELU.
        register_tokens: number of tokens between the class token and the patches.
        biased: those of q, k and v that have a bias in the released weights.
        epsilon: constant of every layer norm.
        rope_base: longest period of the rotary positions, as a multiple of the shortest.
    """

    name: str
    generation: Literal[2, 3]
    patch: int
    dim: int
    depth: int
    heads: int
    hidden: int
    gated: bool = False
    register_tokens: int = 4
    biased: str = "qv"
    epsilon: float = 1e-5
    rope_base: float = 100.0

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.dim // self.heads

    @property
    def prefix_tokens(self) -> int:
        """Number of tokens before the patches: the class token and the registers."""
        return 1 + self.register_tokens

    @property
    def learned_positions(self) -> bool:
        """Whether there is a tensor ``position`` (1, 1 + n * n, dim), with any n."""
        return self.generation == 2

    @property
    def licence(self) -> str:
        """Name and URL of the licence of the released weights."""
        return DINOV3_LICENCE if self.generation == 3 else DINOV2_LICENCE

    def parameters(self) -> dict[str, Shape]:
        """Return canonical names and shapes; linear layers are (out, in)."""
        c, h = self.dim, self.hidden
        shapes: dict[str, Shape] = {"cls_token": (1, 1, c)}
        if self.register_tokens:
            shapes["register_tokens"] = (1, self.register_tokens, c)
        shapes |= {"patch.weight": (c, 3, self.patch, self.patch), "patch.bias": (c,)}
        block: dict[str, Shape] = {f"norm{i}.{p}": (c,) for i in (1, 2) for p in ("weight", "bias")}
        block |= {"scale1": (c,), "scale2": (c,), "o.weight": (c, c), "o.bias": (c,)}
        block |= {f"{p}.weight": (c, c) for p in "qkv"}
        block |= {"up.weight": (h, c), "up.bias": (h,), "down.weight": (c, h), "down.bias": (c,)}
        if self.gated:
            block |= {"gate.weight": (h, c), "gate.bias": (h,)}
        for n in range(self.depth):
            shapes |= {f"blocks.{n}.{name}": shape for name, shape in block.items()}
        return shapes | {"norm.weight": (c,), "norm.bias": (c,)}

    def optional_parameters(self) -> dict[str, Shape]:
        """Return the biases of q, k and v; timm's files omit them if the released ones are zero."""
        return {f"blocks.{n}.{p}.bias": (self.dim,) for n in range(self.depth) for p in "qkv"}


@dataclass(frozen=True)
class ConvNextArchitecture:
    """A ConvNeXt of the DINOv3 family: four stages, each of which halves the grid of the last.

    Attributes:
        name: name, such as ``dinov3-convnext-tiny``.
        depths: number of blocks in each stage.
        dims: number of channels in each stage.
        epsilon: constant of every layer norm.
        steps: reduction of the grid before each stage, the first one from pixels.
        window: side of the depthwise convolutions.
    """

    name: str
    depths: tuple[int, int, int, int]
    dims: tuple[int, int, int, int]
    epsilon: float = 1e-6

    steps = (4, 2, 2, 2)
    window = 7
    learned_positions = False
    licence = DINOV3_LICENCE

    @property
    def patch(self) -> int:
        """Pixels per token along each axis."""
        return 32

    @property
    def dim(self) -> int:
        """Channels of a token, which are those of the last stage."""
        return self.dims[-1]

    def parameters(self) -> dict[str, Shape]:
        """Return canonical names and shapes; linear layers are (out, in)."""
        shapes: dict[str, Shape] = {}
        before = 3
        for s, (depth, c) in enumerate(zip(self.depths, self.dims, strict=True)):
            normed, step = c if s == 0 else before, self.steps[s]
            stage: dict[str, Shape] = {
                "reduce.weight": (c, before, step, step),
                "reduce.bias": (c,),
                "reduce_norm.weight": (normed,),
                "reduce_norm.bias": (normed,),
            }
            for n in range(depth):
                block: dict[str, Shape] = {
                    "depthwise.weight": (c, 1, self.window, self.window),
                    "depthwise.bias": (c,),
                    "norm.weight": (c,),
                    "norm.bias": (c,),
                    "up.weight": (4 * c, c),
                    "up.bias": (4 * c,),
                    "down.weight": (c, 4 * c),
                    "down.bias": (c,),
                    "scale": (c,),
                }
                stage |= {f"blocks.{n}.{name}": shape for name, shape in block.items()}
            shapes |= {f"stages.{s}.{name}": shape for name, shape in stage.items()}
            before = c
        return shapes | {"norm.weight": (self.dim,), "norm.bias": (self.dim,)}

    def optional_parameters(self) -> dict[str, Shape]:
        """Return no tensors, for symmetry with `VitArchitecture`."""
        return {}


Architecture: TypeAlias = VitArchitecture | ConvNextArchitecture


class Weights(Protocol):
    """The canonical tensors of an encoder, from a checkpoint or random."""

    @property
    def architecture(self) -> Architecture:
        """Architecture of the encoder."""

    @property
    def files(self) -> tuple[Path, ...]:
        """Files of the checkpoint, none for random weights."""

    def names(self) -> list[str]:
        """Return the canonical names."""

    def read(self, name: str) -> NDArray[np.float32]:
        """Read one tensor as float32."""
