"""The two families of encoders that can be exported: their sizes and their tensors."""

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
        name: such as ``dinov3-vitl16``.
        generation: 2: learned positions, 3: rotary ones.
        patch: pixels per token and axis.
        dim: channels of a token.
        depth: blocks.
        heads: of the attention.
        hidden: width of the feed-forward layer.
        gated: SwiGLU instead of GELU.
        register_tokens: between the class token and the patches.
        biased: which of q, k and v have a bias in the released weights.
        epsilon: of every layer norm.
        rope_base: longest period of the rotary positions, in units of their shortest.
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
        """Tokens before the patches: class token and registers."""
        return 1 + self.register_tokens

    @property
    def learned_positions(self) -> bool:
        """Whether a tensor ``position`` (1, 1 + n * n, dim) belongs to it, for any n."""
        return self.generation == 2

    @property
    def licence(self) -> str:
        """Name and address of the licence of the released weights."""
        return DINOV3_LICENCE if self.generation == 3 else DINOV2_LICENCE

    def parameters(self) -> dict[str, Shape]:
        """Canonical names and shapes; linear layers are (out, in). Biases of q, k, v: see below."""
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
        """Biases of q, k and v; timm's files leave them out where the released ones are zero."""
        return {f"blocks.{n}.{p}.bias": (self.dim,) for n in range(self.depth) for p in "qkv"}


@dataclass(frozen=True)
class ConvNextArchitecture:
    """A ConvNeXt of the DINOv3 family: four stages, each halving the grid of the one before.

    Attributes:
        name: such as ``dinov3-convnext-tiny``.
        depths: blocks of each stage.
        dims: channels of each stage.
        epsilon: of every layer norm.
    """

    name: str
    depths: tuple[int, int, int, int]
    dims: tuple[int, int, int, int]
    epsilon: float = 1e-6

    #: Pixels that the convolution before the first stage joins, and those before the others.
    steps = (4, 2, 2, 2)
    #: Side of the depthwise convolutions.
    window = 7
    learned_positions = False
    licence = DINOV3_LICENCE

    @property
    def patch(self) -> int:
        """Pixels per token and axis."""
        return 32

    @property
    def dim(self) -> int:
        """Channels of a token: of the last stage."""
        return self.dims[-1]

    def parameters(self) -> dict[str, Shape]:
        """Canonical names and shapes; linear layers are (out, in)."""
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
        """None."""
        return {}


Architecture: TypeAlias = VitArchitecture | ConvNextArchitecture


class Weights(Protocol):
    """Canonical tensors of an encoder: a checkpoint's, or random ones."""

    @property
    def architecture(self) -> Architecture:
        """What they belong to."""

    @property
    def files(self) -> tuple[Path, ...]:
        """That they are read from, none if they are not."""

    def names(self) -> list[str]:
        """Canonical names."""

    def read(self, name: str) -> NDArray[np.float32]:
        """One tensor as float32."""
