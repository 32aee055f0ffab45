"""An encoder gives the same tensors in every layout of names and every file format."""

import json

import numpy as np
import pytest
from checkpoints import (
    TINY,
    assert_same,
    canonical,
    huggingface,
    original,
    read,
    write_pth,
    write_safetensors,
)

from dinoreg_export.checkpoint.architecture import ConvNextArchitecture
from dinoreg_export.checkpoint.models import ARCHITECTURES, recognise
from dinoreg_export.checkpoint.random_weights import RandomWeights
from dinoreg_rt.errors import InputError

ALL = pytest.mark.parametrize("name", TINY)


def assert_read(path, a, tensors, layout=None):
    checkpoint, found = read(path, a)
    assert layout in (None, checkpoint.layout)
    assert_same(found, tensors)


@ALL
@pytest.mark.parametrize("block", ["layer.", "model.layer."])
def test_huggingface_with_old_and_new_prefix(name, block, tmp_path):
    a, tensors = TINY[name], canonical(TINY[name])
    stored = huggingface(a, tensors, block)
    if isinstance(a, ConvNextArchitecture) and block.startswith("model."):
        stored = {f"model.{n}" if n.startswith("stages") else n: v for n, v in stored.items()}
    path = write_safetensors(tmp_path / "model.safetensors", stored)
    assert_read(path, a, tensors, "huggingface")


@ALL
@pytest.mark.parametrize("wrapper", [None, "teacher"])
def test_original_pth(name, wrapper, tmp_path):
    a, tensors = TINY[name], canonical(TINY[name])
    stored = original(a, tensors)
    if wrapper:
        stored = {f"backbone.{n}": v for n, v in stored.items()}
    assert_read(write_pth(tmp_path / "x.pth", stored, wrapper), a, tensors, "original")


@pytest.mark.parametrize("name", ["tiny-v3", "tiny-v3-gated", "tiny-convnext"])
def test_timm(name, tmp_path):
    a, tensors = TINY[name], canonical(TINY[name])
    stored = original(a, tensors, timm=True)
    assert_read(write_safetensors(tmp_path / "x.safetensors", stored), a, tensors, "timm")


def test_timm_without_the_biases_that_are_zero(tmp_path):
    a, tensors = TINY["tiny-v3"], canonical(TINY["tiny-v3"])
    tensors = {n: v for n, v in tensors.items() if n.split(".")[-2:] not in (
        ["q", "bias"], ["v", "bias"])}  # fmt: skip
    stored = original(a, tensors, timm=True)
    assert_read(write_safetensors(tmp_path / "x.safetensors", stored), a, tensors)


def test_timm_dinov2_with_registers_keeps_the_class_position_in_the_token(tmp_path):
    a, tensors = TINY["tiny-v2-reg4"], canonical(TINY["tiny-v2-reg4"])
    stored = original(a, tensors)
    stored["reg_token"] = stored.pop("storage_tokens")
    stored["cls_token"] = stored["cls_token"] + stored["pos_embed"][:, :1]
    stored["pos_embed"] = stored["pos_embed"][:, 1:]
    zero = np.zeros_like(tensors["position"][:, :1])
    tensors["cls_token"] = stored["cls_token"]
    tensors["position"] = np.concatenate([zero, stored["pos_embed"]], 1)
    assert_read(write_safetensors(tmp_path / "x.safetensors", stored), a, tensors)


def test_timm_dinov2_packs_gate_and_up(tmp_path):
    a, tensors = TINY["tiny-v2-gated"], canonical(TINY["tiny-v2-gated"])
    stored = original(a, tensors)
    for n in range(a.depth):
        for leaf in ("weight", "bias"):
            parts = [stored.pop(f"blocks.{n}.mlp.{w}.{leaf}") for w in ("w1", "w2")]
            stored[f"blocks.{n}.mlp.fc1.{leaf}"] = np.concatenate(parts)
            stored[f"blocks.{n}.mlp.fc2.{leaf}"] = stored.pop(f"blocks.{n}.mlp.w3.{leaf}")
    assert_read(write_safetensors(tmp_path / "x.safetensors", stored), a, tensors)


def test_tensors_of_the_training_are_left_alone(tmp_path):
    a, tensors = TINY["tiny-v3"], canonical(TINY["tiny-v3"])
    stored = original(a, tensors) | {
        f"local_cls_norm.{leaf}": np.ones(a.dim, np.float32) for leaf in ("weight", "bias")
    }
    assert_read(write_pth(tmp_path / "x.pth", stored), a, tensors)


def test_convnext_keeps_its_last_norm_twice(tmp_path):
    a, tensors = TINY["tiny-convnext"], canonical(TINY["tiny-convnext"])
    stored = original(a, tensors)
    stored |= {f"norms.3.{leaf}": stored[f"norm.{leaf}"] for leaf in ("weight", "bias")}
    assert_read(write_pth(tmp_path / "x.pth", stored), a, tensors)


def test_sharded(tmp_path):
    a, tensors = TINY["tiny-v3"], canonical(TINY["tiny-v3"])
    stored = list(huggingface(a, tensors).items())
    halves = {"model-1.safetensors": dict(stored[::2]), "model-2.safetensors": dict(stored[1::2])}
    for file, part in halves.items():
        write_safetensors(tmp_path / file, part)
    index = {"weight_map": {n: file for file, part in halves.items() for n in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_read(tmp_path, a, tensors)


@pytest.mark.parametrize(("dtype", "relative"), [("F16", 2**-11), ("BF16", 2**-7)])
def test_half_precision_files(dtype, relative, tmp_path):
    a, tensors = TINY["tiny-v3"], canonical(TINY["tiny-v3"])
    path = write_safetensors(tmp_path / "x.safetensors", huggingface(a, tensors), dtype)
    for name, values in read(path, a)[1].items():
        np.testing.assert_allclose(values, tensors[name], rtol=relative, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_model_is_recognised_by_its_shapes(name):
    weights = RandomWeights(ARCHITECTURES[name], 0)
    assert recognise(weights._shapes).name == name


def test_an_unknown_size_lists_what_was_found():
    shapes = dict(RandomWeights(TINY["tiny-convnext"], 0)._shapes)
    with pytest.raises(InputError, match=r"depths \(1, 2, 2, 1\), dims \(16, 24, 32, 40\).*vitl16"):
        recognise(shapes)
