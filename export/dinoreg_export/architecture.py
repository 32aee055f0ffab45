"""The encoders that can be exported: their sizes, in one table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class VitArchitecture:
    """A vision transformer of the DINOv2 or DINOv3 family.

    Attributes:
        name: such as ``dinov3-vitl16``.
        generation: 2: learned positions, 3: rotary ones.
        register_tokens: between the class token and the patches.
        hidden: width of the feed-forward layer.
        gated: SwiGLU instead of GELU.
        qkv_bias: which of the three projections have a bias.
        epsilon: of every layer norm.
        packed_gate: DINOv2's SwiGLU: one matrix holds gate and value.
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
    qkv_bias: tuple[bool, bool, bool] = (True, False, True)
    epsilon: float = 1e-5
    packed_gate: bool = False
    rope_base: float = 100.0

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.dim // self.heads


@dataclass(frozen=True)
class ConvNextArchitecture:
    """A ConvNeXt of the DINOv3 family; its last stage's positions are the tokens."""

    name: str
    depths: tuple[int, int, int, int]
    widths: tuple[int, int, int, int]
    patch: int = 32
    epsilon: float = 1e-6


Architecture = VitArchitecture | ConvNextArchitecture
