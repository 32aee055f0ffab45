"""The encoders that can be exported: their sizes, in one table, and how weights are recognised.

Sizes of DINOv3 (arXiv 2508.10104) and DINOv2 (arXiv 2304.07193) as their model cards give them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from dinoreg_rt.errors import InputError

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
        for n in range(self.depth):
            block: dict[str, Shape] = {
                "norm1.weight": (c,),
                "norm1.bias": (c,),
                "scale1": (c,),
                "scale2": (c,),
            }
            block |= {"norm2.weight": (c,), "norm2.bias": (c,), "o.weight": (c, c), "o.bias": (c,)}
            block |= {f"{p}.weight": (c, c) for p in "qkv"}
            block |= {"up.weight": (h, c), "up.bias": (h,), "down.weight": (c, h)}
            block |= {"down.bias": (c,)}
            if self.gated:
                block |= {"gate.weight": (h, c), "gate.bias": (h,)}
            shapes |= {f"blocks.{n}.{name}": shape for name, shape in block.items()}
        return shapes | {"norm.weight": (c,), "norm.bias": (c,)}

    def optional_parameters(self) -> dict[str, Shape]:
        """What a checkpoint may leave out: biases of q, k, v (none in ViT-7B, no k in the rest)."""
        shapes: dict[str, Shape] = {
            f"blocks.{n}.{p}.bias": (self.dim,) for n in range(self.depth) for p in "qkv"
        }
        return shapes


def _v3(name: str, dim: int, depth: int, heads: int, hidden: int, **more: bool) -> VitArchitecture:
    return VitArchitecture(f"dinov3-{name}", 3, 16, dim, depth, heads, hidden, **more)


def _v2(name: str, dim: int, depth: int, heads: int, hidden: int, **more: bool) -> VitArchitecture:
    return VitArchitecture(
        f"dinov2-{name}", 2, 14, dim, depth, heads, hidden, register_tokens=0, epsilon=1e-6, **more
    )


#: Every encoder that is recognised; DINOv2 comes with four registers as ``...-reg4`` too.
ARCHITECTURES: dict[str, VitArchitecture] = {
    a.name: a
    for a in (
        _v3("vits16", 384, 12, 6, 1536),
        _v3("vits16plus", 384, 12, 6, 1536, gated=True),
        _v3("vitb16", 768, 12, 12, 3072),
        _v3("vitl16", 1024, 24, 16, 4096),
        _v3("vith16plus", 1280, 32, 20, 5120, gated=True),
        _v3("vit7b16", 4096, 40, 32, 8192, gated=True),
        _v2("vits14", 384, 12, 6, 1536),
        _v2("vitb14", 768, 12, 12, 3072),
        _v2("vitl14", 1024, 24, 16, 4096),
        _v2("vitg14", 1536, 40, 24, 4096, gated=True),
    )
}
ARCHITECTURES |= {
    f"{name}-reg4": replace(a, name=f"{name}-reg4", register_tokens=4)
    for name, a in list(ARCHITECTURES.items())
    if a.generation == 2
}


def named(model: str) -> VitArchitecture:
    """The architecture of that name.

    Raises:
        InputError: there is none; the message lists them.
    """
    if model not in ARCHITECTURES:
        raise InputError(f"no model '{model}'; there are: {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[model]


def recognise(shapes: Mapping[str, Shape]) -> VitArchitecture:
    """The architecture whose tensors have these canonical names and shapes.

    Raises:
        InputError: none of the table; the message says what was found.
    """
    patch = shapes.get("patch.weight")
    if patch is None or len(patch) != 4:
        raise InputError(
            "the checkpoint holds no patch embedding of a vision transformer; supported are "
            f"{', '.join(ARCHITECTURES)}"
        )
    depth = 1 + max((int(n.split(".")[1]) for n in shapes if n.startswith("blocks.")), default=-1)
    found = {
        "generation": 2 if "position" in shapes else 3,
        "patch": patch[-1],
        "dim": patch[0],
        "depth": depth,
        "hidden": shapes.get("blocks.0.up.weight", (0,))[0],
        "gated": "blocks.0.gate.weight" in shapes,
        "register_tokens": shapes.get("register_tokens", (1, 0))[1],
    }
    for architecture in ARCHITECTURES.values():
        if all(getattr(architecture, key) == value for key, value in found.items()):
            return architecture
    text = ", ".join(f"{key} {value}" for key, value in found.items())
    raise InputError(
        f"the checkpoint is of no known architecture ({text}); supported are "
        f"{', '.join(ARCHITECTURES)}"
    )
