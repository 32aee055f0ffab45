"""The table of encoders that can be exported, and the recognition of weights.

The sizes of DINOv3 (arXiv 2508.10104) and DINOv2 (arXiv 2304.07193) are those of their published
code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dinoreg_rt.bundle.manifest import FINAL_ONLY
from dinoreg_rt.errors import ConfigError, InputError

from .architecture import Architecture, ConvNextArchitecture, Shape, VitArchitecture
from .chosen_layers import blocks_needed


def _v3(name: str, dim: int, depth: int, heads: int, hidden: int, **more: Any) -> VitArchitecture:
    return VitArchitecture(f"dinov3-{name}", 3, 16, dim, depth, heads, hidden, **more)


def _v2(
    name: str, dim: int, depth: int, heads: int, hidden: int, *, gated: bool = False
) -> tuple[VitArchitecture, VitArchitecture]:
    plain = VitArchitecture(
        f"dinov2-{name}",
        2,
        14,
        dim,
        depth,
        heads,
        hidden,
        gated=gated,
        register_tokens=0,
        biased="qkv",
        epsilon=1e-6,
    )
    return plain, replace(plain, name=f"dinov2-{name}-reg4", register_tokens=4)


#: Architectures of all encoders that are recognised.
ARCHITECTURES: dict[str, Architecture] = {
    a.name: a
    for a in (
        _v3("vits16", 384, 12, 6, 1536),
        _v3("vits16plus", 384, 12, 6, 1536, gated=True),
        _v3("vitb16", 768, 12, 12, 3072),
        _v3("vitl16", 1024, 24, 16, 4096),
        _v3("vitl16plus", 1024, 24, 16, 4096, gated=True),
        _v3("vith16plus", 1280, 32, 20, 5120, gated=True),
        _v3("vit7b16", 4096, 40, 32, 8192, gated=True, biased=""),
        ConvNextArchitecture("dinov3-convnext-tiny", (3, 3, 9, 3), (96, 192, 384, 768)),
        ConvNextArchitecture("dinov3-convnext-small", (3, 3, 27, 3), (96, 192, 384, 768)),
        ConvNextArchitecture("dinov3-convnext-base", (3, 3, 27, 3), (128, 256, 512, 1024)),
        ConvNextArchitecture("dinov3-convnext-large", (3, 3, 27, 3), (192, 384, 768, 1536)),
        *_v2("vits14", 384, 12, 6, 1536),
        *_v2("vitb14", 768, 12, 12, 3072),
        *_v2("vitl14", 1024, 24, 16, 4096),
        *_v2("vitg14", 1536, 40, 24, 4096, gated=True),
    )
}

#: Most blocks or stages; their numbers come from the names in a file, which may be damaged.
_MOST_PARTS = 64


_SUPPORTED = ", ".join(ARCHITECTURES)


def named(model: str) -> Architecture:
    """Return the architecture of a model.

    Raises:
        ConfigError: no model has that name; the message lists them.
    """
    if model not in ARCHITECTURES:
        raise ConfigError(f"'{model}' is not a known model; choose one of {_SUPPORTED}")
    return ARCHITECTURES[model]


def recognise(shapes: Mapping[str, Shape]) -> Architecture:
    """Return the architecture whose tensors have these canonical names and shapes.

    Raises:
        InputError: the table has none; the message says what was found.
    """
    if len(shapes.get("patch.weight", ())) == 4:
        found = _vit_sizes(shapes)
    elif len(shapes.get("stages.0.reduce.weight", ())) == 4:
        found = _convnext_sizes(shapes)
    else:
        raise InputError(
            "the checkpoint holds no patch embedding of a vision transformer and no first "
            f"convolution of a ConvNeXt; supported models are {_SUPPORTED}"
        )
    for architecture in ARCHITECTURES.values():
        if all(getattr(architecture, key, None) == value for key, value in found.items()):
            return architecture
    text = ", ".join(f"{key} {value}" for key, value in found.items())
    raise InputError(
        f"the checkpoint has no known architecture ({text}); supported models are {_SUPPORTED}"
    )


def _vit_sizes(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    patch = shapes["patch.weight"]
    return {
        "generation": 2 if "position" in shapes else 3,
        "patch": patch[-1],
        "dim": patch[0],
        "depth": _count(shapes, "blocks."),
        "hidden": _axis(shapes, "blocks.0.up.weight", 0),
        "gated": "blocks.0.gate.weight" in shapes,
        "register_tokens": _axis(shapes, "register_tokens", 1),
    }


def _convnext_sizes(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    stages = range(_count(shapes, "stages."))
    return {
        "depths": tuple(_count(shapes, f"stages.{s}.blocks.") for s in stages),
        "dims": tuple(_axis(shapes, f"stages.{s}.reduce.bias", 0) for s in stages),
    }


def _axis(shapes: Mapping[str, Shape], name: str, axis: int) -> int:
    """Return the length of an axis, or 0 if the tensor or the axis is missing."""
    return next(iter(shapes.get(name, ())[axis:]), 0)


def _count(shapes: Mapping[str, Shape], prefix: str) -> int:
    """Return the number of parts that are numbered after `prefix`.

    Raises:
        InputError: there are more than any encoder has.
    """
    numbers = (n[len(prefix) :].split(".")[0] for n in shapes if n.startswith(prefix))
    count = 1 + max(map(int, numbers), default=-1)
    if count > _MOST_PARTS:
        raise InputError(
            f"the checkpoint holds '{prefix}{count - 1}', and no known encoder has more than "
            f"{_MOST_PARTS} of these: the file is damaged, or of another model"
        )
    return count


def slice_operations(
    model: str, rows: int, columns: int, layers: Sequence[str] = FINAL_ONLY
) -> float | None:
    """Return the multiplications and additions for one slice in a vision transformer.

    They are those of linear layers, attention and patch embedding. The result is None for a
    ConvNeXt and for models that are not listed.

    Args:
        model: name, such as ``dinov3-vitl16``.
        rows: rows of tokens.
        columns: columns of tokens.
        layers: layers that give tokens, named as in a manifest; deeper blocks cost nothing.
    """
    a = ARCHITECTURES.get(model)
    if not isinstance(a, VitArchitecture):
        return None
    tokens = rows * columns + a.prefix_tokens
    wide = (3 if a.gated else 2) * a.dim * a.hidden
    block = 2 * (4 * a.dim**2 + wide) + 4 * tokens * a.dim
    return float(tokens * (blocks_needed(a, layers) * block + 2 * 3 * a.patch**2 * a.dim))
