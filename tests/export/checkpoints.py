"""Tiny encoders, their checkpoints in every layout, written without torch, and their bundles."""

from __future__ import annotations

import io
import json
import pickle
import re
import struct
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from dinoreg_export.bundle.write import export_bundle
from dinoreg_export.checkpoint.architecture import (
    Architecture,
    ConvNextArchitecture,
    VitArchitecture,
    Weights,
)
from dinoreg_export.checkpoint.random_weights import RandomWeights
from dinoreg_export.checkpoint.read import Checkpoint, open_checkpoint
from dinoreg_rt.bundle.manifest import Manifest, Source

_V3 = VitArchitecture("tiny-v3", 3, 16, 64, 2, 2, 96)
_V2 = VitArchitecture(
    "tiny-v2", 2, 14, 64, 2, 2, 128, register_tokens=0, biased="qkv", epsilon=1e-6
)
#: One of each kind of encoder, two blocks deep.
TINY: dict[str, Architecture] = {
    a.name: a
    for a in (
        _V3,
        replace(_V3, name="tiny-v3-gated", gated=True),
        _V2,
        replace(_V2, name="tiny-v2-reg4", register_tokens=4),
        replace(_V2, name="tiny-v2-gated", gated=True, hidden=176),
        ConvNextArchitecture("tiny-convnext", (1, 2, 2, 1), (16, 24, 32, 40)),
    )
}
VITS = {name: a for name, a in TINY.items() if isinstance(a, VitArchitecture)}
Tensors = dict[str, np.ndarray]
SOURCE = Source(checkpoint="random", sha256="0" * 64, layout="none", random_weights=True)


def make_bundle(
    folder: Path,
    weights: Weights | None = None,
    sizes: Sequence[tuple[int, int]] = ((32, 32),),
    **options: object,
) -> Manifest:
    """Export a bundle, by default of the first tiny encoder."""
    return export_bundle(weights or RandomWeights(_V3, 0), SOURCE, sizes, folder, **options)


def canonical(a: Architecture, seed: int = 0) -> Tensors:
    """Return every tensor by its canonical name."""
    weights = RandomWeights(a, seed)
    return {name: weights.read(name) for name in weights.names()}


def read(path: Path, a: Architecture) -> tuple[Checkpoint, Tensors]:
    """Read every tensor of a checkpoint; the checkpoint is returned closed."""
    with open_checkpoint(path, architecture=a) as checkpoint:
        return checkpoint, {name: checkpoint.read(name) for name in checkpoint.names()}


def assert_same(found: Tensors, expected: Tensors) -> None:
    """Compare two sets of tensors for equality."""
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def huggingface(a: Architecture, tensors: Tensors, block: str = "layer.") -> Tensors:
    """Name tensors as transformers does; `block` precedes the number of a block."""
    v3 = getattr(a, "generation", 3) == 3
    pairs = _CONVNEXT_HF if isinstance(a, ConvNextArchitecture) else _V3_HF if v3 else _V2_HF
    stored = {}
    for name, values in tensors.items():
        if not v3 and (packed := re.fullmatch(r"(blocks\.\d+\.)up\.(.+)", name)) and a.gated:
            gate = tensors[f"{packed[1]}gate.{packed[2]}"]
            name = f"{packed[1]}mlp.weights_in.{packed[2]}"
            values = np.concatenate([gate, values])
        elif not v3 and "gate." in name:
            continue
        stored[_rename(name, pairs, gated=getattr(a, "gated", False), block=block)] = values
    if not isinstance(a, ConvNextArchitecture):
        stored["embeddings.mask_token"] = np.zeros((1, a.dim), np.float32)
    return stored


def original(a: Architecture, tensors: Tensors, *, timm: bool = False) -> Tensors:
    """Name tensors as the training code does, or timm."""
    if isinstance(a, ConvNextArchitecture):
        pairs = _CONVNEXT_TIMM if timm else _CONVNEXT_ORIGINAL
        return {_rename(name, pairs, gated=False, block=""): v for name, v in tensors.items()}
    stored = {}
    for name, values in tensors.items():
        match = re.fullmatch(r"(blocks\.\d+\.)([qkv])\.(weight|bias)", name)
        if match and (timm and match[3] == "bias" and a.generation == 3):
            stored[f"{match[1]}attn.{match[2]}_bias"] = values
        elif match:
            if match[2] == "q":
                stored |= _packed_qkv(match[1], match[3], tensors, values)
        else:
            stored[_rename(name, _TIMM if timm else _ORIGINAL, gated=a.gated, block="")] = values
    if a.generation == 3 and not timm:
        stored["rope_embed.periods"] = np.ones(a.head_dim // 4, np.float32)
        stored["mask_token"] = np.zeros((1, a.dim), np.float32)
    return stored


def _packed_qkv(block: str, leaf: str, tensors: Tensors, q: np.ndarray) -> Tensors:
    """Pack q, k and v as the original files do, with a bias for k that a mask removes."""
    k = tensors.get(f"{block}k.{leaf}", np.full_like(q, 7))
    name = f"{block}attn.qkv.{leaf}"
    packed = {name: np.concatenate([q, k, tensors[f"{block}v.{leaf}"]])}
    if f"{block}k.{leaf}" not in tensors:
        one, zero = np.ones_like(q), np.zeros_like(q)
        packed[f"{name}_mask"] = np.concatenate([one, zero, one])
    return packed


def _rename(name: str, pairs: list[tuple[str, str]], *, gated: bool, block: str) -> str:
    if gated:
        name = name.replace(".up.", ".GATED_UP.").replace(".down.", ".GATED_DOWN.")
    for pattern, replacement in pairs:
        name = re.sub(pattern, replacement, name)
    return re.sub(r"^blocks\.", block or "blocks.", name)


_V3_HF = [
    (r"^(cls_token|register_tokens)$", r"embeddings.\1"),
    (r"^patch\.", "embeddings.patch_embeddings."),
    (r"\.([qkvo])\.", r".attention.\1_proj."),
    (r"\.scale([12])$", r".layer_scale\1.lambda1"),
    (r"\.(?:GATED_UP|up)\.", ".mlp.up_proj."),
    (r"\.(?:GATED_DOWN|down)\.", ".mlp.down_proj."),
    (r"\.gate\.", ".mlp.gate_proj."),
]
_V2_HF = [
    (r"^(cls_token|register_tokens)$", r"embeddings.\1"),
    (r"^position$", "embeddings.position_embeddings"),
    (r"^patch\.", "embeddings.patch_embeddings.projection."),
    (r"^norm\.", "layernorm."),
    (r"\.q\.", ".attention.attention.query."),
    (r"\.k\.", ".attention.attention.key."),
    (r"\.v\.", ".attention.attention.value."),
    (r"\.o\.", ".attention.output.dense."),
    (r"\.scale([12])$", r".layer_scale\1.lambda1"),
    (r"\.GATED_DOWN\.", ".mlp.weights_out."),
    (r"\.up\.", ".mlp.fc1."),
    (r"\.down\.", ".mlp.fc2."),
    (r"^blocks\.", "encoder.blocks."),
    (r"^encoder\.blocks\.", "encoder.layer."),
]
_ORIGINAL = [
    (r"^register_tokens$", "storage_tokens"),
    (r"^position$", "pos_embed"),
    (r"^patch\.", "patch_embed.proj."),
    (r"\.o\.", ".attn.proj."),
    (r"\.scale([12])$", r".ls\1.gamma"),
    (r"\.gate\.", ".mlp.w1."),
    (r"\.GATED_UP\.", ".mlp.w2."),
    (r"\.GATED_DOWN\.", ".mlp.w3."),
    (r"\.up\.", ".mlp.fc1."),
    (r"\.down\.", ".mlp.fc2."),
]
_TIMM = [
    (r"^register_tokens$", "reg_token"),
    (r"\.scale([12])$", r".gamma_\1"),
    (r"\.gate\.", ".mlp.fc1_g."),
    (r"\.GATED_UP\.", ".mlp.fc1_x."),
    (r"\.GATED_DOWN\.", ".mlp.fc2."),
    *_ORIGINAL,
]
_CONVNEXT_HF = [
    (r"\.blocks\.", ".layers."),
    (r"^stages\.0\.reduce\.", "stages.0.downsample_layers.0."),
    (r"^stages\.0\.reduce_norm\.", "stages.0.downsample_layers.1."),
    (r"\.reduce\.", ".downsample_layers.1."),
    (r"\.reduce_norm\.", ".downsample_layers.0."),
    (r"\.depthwise\.", ".depthwise_conv."),
    (r"(layers\.\d+|^)\.?norm\.", r"\1.layer_norm."),
    (r"^\.", ""),
    (r"\.up\.", ".pointwise_conv1."),
    (r"\.down\.", ".pointwise_conv2."),
    (r"\.scale$", ".gamma"),
]
_CONVNEXT_ORIGINAL = [
    (r"^stages\.(\d)\.blocks\.", r"stages.\1."),
    (r"^stages\.0\.reduce\.", "downsample_layers.0.0."),
    (r"^stages\.0\.reduce_norm\.", "downsample_layers.0.1."),
    (r"^stages\.(\d)\.reduce\.", r"downsample_layers.\1.1."),
    (r"^stages\.(\d)\.reduce_norm\.", r"downsample_layers.\1.0."),
    (r"\.depthwise\.", ".dwconv."),
    (r"\.up\.", ".pwconv1."),
    (r"\.down\.", ".pwconv2."),
    (r"\.scale$", ".gamma"),
]
_CONVNEXT_TIMM = [
    (r"^norm\.", "head.norm."),
    (r"^stages\.0\.reduce\.", "stem.0."),
    (r"^stages\.0\.reduce_norm\.", "stem.1."),
    (r"\.reduce\.", ".downsample.1."),
    (r"\.reduce_norm\.", ".downsample.0."),
    (r"\.depthwise\.", ".conv_dw."),
    (r"\.up\.", ".mlp.fc1."),
    (r"\.down\.", ".mlp.fc2."),
    (r"\.scale$", ".gamma"),
]


def write_safetensors(path: Path, tensors: Tensors, dtype: str = "F32") -> Path:
    """Write one file as https://huggingface.co/docs/safetensors describes it."""
    header, blobs, at = {}, [], 0
    for name, values in tensors.items():
        blob = _stored_as(values, dtype)
        header[name] = {
            "dtype": dtype,
            "shape": list(values.shape),
            "data_offsets": [at, at + len(blob)],
        }
        blobs.append(blob)
        at += len(blob)
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))
    return path


def _stored_as(values: np.ndarray, dtype: str) -> bytes:
    if dtype == "BF16":
        return (np.ascontiguousarray(values, "<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return np.ascontiguousarray(values, {"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()


def write_pth(path: Path, tensors: Tensors, wrapper: str | None = None) -> Path:
    """Write a .pth file as torch.save does: a pickle of torch's functions, and raw numbers."""
    torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
    torch.FloatStorage = type("FloatStorage", (), {"__module__": "torch"})
    exec("def _rebuild_tensor_v2(*args): ...", utils.__dict__)
    utils._rebuild_tensor_v2.__module__ = "torch._utils"

    class Tensor:
        def __init__(self, key: str, values: np.ndarray) -> None:
            self.key, self.values = key, values

        def __reduce__(self) -> tuple:
            strides = tuple(n // self.values.itemsize for n in self.values.strides)
            storage = _Storage(self.key, self.values.size)
            return utils._rebuild_tensor_v2, (
                storage, 0, self.values.shape, strides, False, OrderedDict(),
            )  # fmt: skip

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj: object) -> object:
            if isinstance(obj, _Storage):
                return ("storage", torch.FloatStorage, obj.key, "cpu", obj.count)
            return None

    content: dict = OrderedDict((n, Tensor(str(i), v)) for i, (n, v) in enumerate(tensors.items()))
    saved = {k: sys.modules.get(k) for k in ("torch", "torch._utils")}
    sys.modules |= {"torch": torch, "torch._utils": utils}
    try:
        stream = io.BytesIO()
        Pickler(stream, protocol=2).dump({wrapper: content} if wrapper else content)
    finally:
        for name, module in saved.items():
            sys.modules.pop(name)
            if module is not None:
                sys.modules[name] = module
    return zip_pth(path, stream.getvalue(), tensors.values())


class _Storage:
    def __init__(self, key: str, count: int) -> None:
        self.key, self.count = key, count


def zip_pth(path: Path, pickled: bytes, values: object = ()) -> Path:
    """Write the archive around a pickle and its numbers."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/byteorder", b"little")
        for i, numbers in enumerate(values):
            archive.writestr(f"archive/data/{i}", np.ascontiguousarray(numbers).tobytes())
    return path
