"""Translation of the names in checkpoints of every layout to canonical names.

| canonical | Hugging Face (DINOv3; DINOv2) | original .pth | timm |
|---|---|---|---|
| `cls_token`, `register_tokens` | `embeddings.*` | `cls_token`, `storage_tokens` or `register_tokens` | `cls_token`, `reg_token` |
| `position` | `embeddings.position_embeddings` | `pos_embed` | `pos_embed` |
| `patch.*` | `embeddings.patch_embeddings[.projection].*` | `patch_embed.proj.*` | as original |
| `blocks.N.q.*` (k, v) | `attention.q_proj.*`; `attention.attention.query.*` | a third of `attn.qkv.*` | as original, or `attn.q_bias` |
| `blocks.N.o.*` | `attention.o_proj.*`; `attention.output.dense.*` | `attn.proj.*` | as original |
| `blocks.N.scale1` | `layer_scale1.lambda1` | `ls1.gamma` | `gamma_1` |
| `blocks.N.gate.*`, `up.*`, `down.*` | `mlp.gate_proj`, `up_proj`, `down_proj`; `fc1`, `fc2` or `weights_in`, `weights_out` | `w1`, `w2`, `w3`; `fc1`, `fc2` or `w12`, `w3` | `fc1_g`, `fc1_x`, `fc2` |
| `norm.*` | `norm.*`; `layernorm.*` | `norm.*` | `norm.*` |

ConvNeXt:

| canonical | Hugging Face | original .pth | timm |
|---|---|---|---|
| `stages.S.reduce.*`, `reduce_norm.*` | `stages.S.downsample_layers.{0,1}` | `downsample_layers.S.{0,1}` | `stem.{0,1}`, `stages.S.downsample.{0,1}` |
| `stages.S.blocks.B.depthwise.*` | `stages.S.layers.B.depthwise_conv` | `stages.S.B.dwconv` | `stages.S.blocks.B.conv_dw` |
| `stages.S.blocks.B.norm.*` | `layer_norm` | `norm` | `norm` |
| `stages.S.blocks.B.up.*`, `down.*` | `pointwise_conv1`, `pointwise_conv2` | `pwconv1`, `pwconv2` | `mlp.fc1`, `mlp.fc2` |
| `stages.S.blocks.B.scale` | `gamma` | `gamma` | `gamma` |
| `norm.*` | `layer_norm.*` | `norm.*` (stored again as `norms.3.*`) | `head.norm.*` |

SwiGLU is `down(silu(gate(x)) * up(x))`. A packed tensor joins its parts along the first axis: q, k, v
or gate, up.
"""  # noqa: E501 - a table

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from dinoreg_rt.errors import InputError

from .checks import shortened

Layout = Literal["huggingface", "original", "timm"]


@dataclass(frozen=True)
class Piece:
    """The source of a canonical tensor: a stored tensor, or one of its equal parts.

    Attributes:
        stored: name of the stored tensor.
        part: number of the part.
        parts: number of equal parts along the first axis.
    """

    stored: str
    part: int = 0
    parts: int = 1


#: Prefixes that wrappers put before the names of the encoder's tensors.
_PREFIX = re.compile(
    r"^(?:module\.|model\.|backbone\.|teacher\.|student\.|encoder\.|dinov[23]\w*\.)+"
)
_BLOCK = re.compile(r"^(?:layer|blocks)\.(\d{1,9})\.(.+)$")
#: Tensors that the forward pass does not need: they belong to the training, or are stored twice.
_IGNORED = re.compile(
    r"^(embeddings\.)?mask_token$|^rope_embed\.periods$|attn\.qkv\.bias_mask$"
    r"|^local_cls_norm\.(weight|bias)$|^norms\.3\.(weight|bias)$"
)

_TOP = {
    r"(?:embeddings\.)?cls_token": "cls_token",
    r"(?:embeddings\.)?(?:register_tokens|storage_tokens|reg_token)": "register_tokens",
    r"embeddings\.position_embeddings|pos_embed": "position",
    r"(?:embeddings\.patch_embeddings|embeddings\.patch_embeddings\.projection|patch_embed\.proj)"
    r"\.(weight|bias)": r"patch.\1",
    r"(?:norm|layernorm|layer_norm|head\.norm)\.(weight|bias)": r"norm.\1",
}
_IN_BLOCK = {
    r"norm([12])\.(weight|bias)": r"norm\1.\2",
    r"attention\.([qkvo])_proj\.(weight|bias)": r"\1.\2",
    r"attention\.attention\.(q|k|v)(?:uery|ey|alue)\.(weight|bias)": r"\1.\2",
    r"(?:attention\.output\.dense|attn\.proj)\.(weight|bias)": r"o.\1",
    r"attn\.([qkv])_bias": r"\1.bias",
    r"(?:layer_scale|ls|gamma_)([12])(?:\.lambda1|\.gamma)?": r"scale\1",
    r"mlp\.(up|down|gate)_proj\.(weight|bias)": r"\1.\2",
    r"mlp\.(?:fc1_g|w1)\.(weight|bias)": r"gate.\1",
    r"mlp\.(?:fc1|fc1_x|w2)\.(weight|bias)": r"up.\1",
    r"mlp\.(?:fc2|w3|weights_out)\.(weight|bias)": r"down.\1",
}
_PACKED = {
    r"attn\.qkv\.(weight|bias)": ("q", "k", "v"),
    r"mlp\.(?:w12|weights_in)\.(weight|bias)": ("gate", "up"),
}
_STAGE = re.compile(r"^stages\.(\d{1,9})\.(?:blocks\.|layers\.)?(\d{1,9})\.(.+)$")
_IN_STAGE = {
    r"(?:depthwise_conv|dwconv|conv_dw)\.(weight|bias)": r"depthwise.\1",
    r"(?:layer_norm|norm)\.(weight|bias)": r"norm.\1",
    r"(?:pointwise_conv1|pwconv1|mlp\.fc1)\.(weight|bias)": r"up.\1",
    r"(?:pointwise_conv2|pwconv2|mlp\.fc2)\.(weight|bias)": r"down.\1",
    r"gamma": "scale",
}
#: Groups: the stage (two spellings), the position in the pair of convolution and norm, the tensor.
_REDUCE = re.compile(
    r"^(?:stages\.(\d{1,9})\.downsample(?:_layers)?|downsample_layers\.(\d{1,9})|stem)"
    r"\.([01])\.(weight|bias)$"
)


def canonical(stored_names: Iterable[str]) -> tuple[dict[str, Piece], Layout]:
    """Return the sources of a checkpoint's tensors by their canonical names, and its layout.

    Raises:
        InputError: no layout has one of the tensors, or two of them have the same canonical name.
    """
    pieces: dict[str, Piece] = {}
    unknown = []
    for stored in stored_names:
        name = _PREFIX.sub("", stored)
        if _IGNORED.search(name):
            continue
        found = _translate(name, stored)
        if not found:
            unknown.append(stored)
        for key, piece in found.items():
            if key in pieces:
                raise InputError(
                    f"the checkpoint holds '{key}' twice, as {pieces[key].stored} and "
                    f"{piece.stored}; remove one of them"
                )
            pieces[key] = piece
    if unknown:
        raise InputError(
            f"the checkpoint holds tensors of no known encoder: {shortened(unknown)}; save only "
            "the backbone of a DINOv2 or DINOv3 (with Hugging Face, original or timm names)"
        )
    return pieces, _layout(pieces)


def is_known(stored: str) -> bool:
    """Return whether a layout has a tensor of this name that the forward pass needs."""
    return bool(_translate(_PREFIX.sub("", stored), stored))


def _translate(name: str, stored: str) -> dict[str, Piece]:
    reduce = _REDUCE.match(name)
    if reduce:
        stage = int(reduce[1] or reduce[2] or 0)
        # The norm follows the convolution in the first stage and precedes it in the others.
        part = "reduce" if (reduce[3] == "0") == (stage == 0) else "reduce_norm"
        return {f"stages.{stage}.{part}.{reduce[4]}": Piece(stored)}
    if in_stage := _STAGE.match(name):
        prefix = f"stages.{in_stage[1]}.blocks.{in_stage[2]}."
        return _first_match(_IN_STAGE, in_stage[3], prefix, stored)
    block = _BLOCK.match(name)
    if not block:
        return _first_match(_TOP, name, "", stored)
    prefix = f"blocks.{block[1]}."
    for pattern, parts in _PACKED.items():
        match = re.fullmatch(pattern, block[2])
        if match:
            return {
                f"{prefix}{part}.{match[1]}": Piece(stored, i, len(parts))
                for i, part in enumerate(parts)
            }
    return _first_match(_IN_BLOCK, block[2], prefix, stored)


def _first_match(patterns: dict[str, str], name: str, prefix: str, stored: str) -> dict[str, Piece]:
    for pattern, replacement in patterns.items():
        match = re.fullmatch(pattern, name)
        if match:
            return {prefix + match.expand(replacement): Piece(stored)}
    return {}


def _layout(pieces: dict[str, Piece]) -> Layout:
    stored = [piece.stored for piece in pieces.values()]
    if any("embeddings." in name or "depthwise_conv" in name for name in stored):
        return "huggingface"
    timm = re.compile(r"reg_token$|gamma_[12]$|fc1_[gx]\.|attn\.[qv]_bias$|\.conv_dw\.")
    return "timm" if any(timm.search(name) for name in stored) else "original"
