"""Damaged, mislabelled and hostile checkpoints raise clear errors and run no code."""

import json
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
from checkpoints import (
    TINY,
    canonical,
    huggingface,
    original,
    write_pth,
    write_safetensors,
    zip_pth,
)

from dinoreg_export.bundle.files import GraphFile, write_files
from dinoreg_export.checkpoint.read import open_checkpoint
from dinoreg_rt.errors import ConfigError, InputError

A = TINY["tiny-v3"]


def stored(**changes):
    tensors = huggingface(A, canonical(A)) | changes
    return {name: values for name, values in tensors.items() if values is not None}


def refuse(path, match, **options):
    options.setdefault("architecture", A)
    with pytest.raises(InputError, match=match), open_checkpoint(path, **options):
        pass


Q = "layer.1.attention.q_proj.weight"


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({Q: np.zeros((64, 32), np.float32)}, r"1.q.weight' has shape \(64, 32\).*\(64, 64\)"),
        ({Q: None}, "does not fit tiny-v3: it lacks blocks.1.q.weight"),
        ({"layer.1.attention.q_proj.bias": None}, "lacks blocks.1.q.bias"),
        ({"layer.2.norm1.weight": np.zeros(64, np.float32)}, "also has blocks.2.norm1.weight"),
        ({"head.weight": np.zeros(4, np.float32)}, "no known encoder: head.weight.*the backbone"),
        ({"embeddings.position_embeddings": np.zeros((1, 17, 64), np.float32)}, "also has positio"),
        (
            {"embeddings.patch_embeddings.weight": np.zeros((64, 3, 14, 14), np.float32)},
            r"patch.weight' has shape \(64, 3, 14, 14\)",
        ),
        ({"layernorm.bias": np.zeros(64, np.float32)}, "holds 'norm.bias' twice"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit(changes, match, tmp_path):
    refuse(write_safetensors(tmp_path / "x.safetensors", stored(**changes)), match)


def test_another_model_than_named(tmp_path):
    path = write_safetensors(tmp_path / "x.safetensors", stored())
    refuse(path, "dinov3-vitl16: it lacks blocks.10", architecture=None, model="dinov3-vitl16")
    with (
        pytest.raises(ConfigError, match="'vitx' is not a known model; choose one of dinov3-vits"),
        open_checkpoint(path, "vitx"),
    ):
        pass
    refuse(path, "no known architecture.*dim 64, depth 2", architecture=None)


def test_not_an_encoder(tmp_path):
    path = write_safetensors(tmp_path / "x.safetensors", {"norm.weight": np.ones(4, np.float32)})
    refuse(path, "no patch embedding", architecture=None)


def test_a_number_that_is_not_finite(tmp_path):
    values = np.full((64, 64), np.nan, np.float32)
    path = write_safetensors(tmp_path / "x.safetensors", stored(**{Q: values}))
    with (
        open_checkpoint(path, architecture=A) as weights,
        pytest.raises(InputError, match="finite"),
    ):
        write_files(weights, [GraphFile("g.onnx", (32, 32))], tmp_path, "fp32")


@pytest.mark.parametrize("keep", [0, 4, 100, -1, 0.5])
def test_cut_off_safetensors(keep, tmp_path):
    path = write_safetensors(tmp_path / "x.safetensors", stored())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep) if isinstance(keep, float) else keep])
    refuse(path, "truncated|not a safetensors")


@pytest.mark.parametrize(
    ("header", "match"),
    [
        (b"{", "not JSON"),
        (b"[1]", "not a list of tensors"),
        (b"[" * 200000, "not JSON"),
        (b'{"a": {"dtype": "F32"}}', "'a' is damaged"),
        (b'{"a": 3}', "'a' is damaged"),
        (b'{"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}', "'a' is damaged"),
        (b'{"a": {"dtype": "I8", "shape": [1], "data_offsets": [0, 1]}}', "stored as I8"),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', "8 bytes at 0..4"),
        (b'{"a": {"dtype": "F32", "shape": [1.5], "data_offsets": [0, 4]}}', "'a' is damaged"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0.5, 4.5]}}', "'a' is damaged"),
        (b'{"a": {"dtype": "F32", "shape": [Infinity], "data_offsets": [0, 4]}}', "'a' is damaged"),
        (b'{"a": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}', "'a' is damaged"),
        (b'{"a": {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]}}', "'a' is damaged"),
        (b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}', "truncated or damaged"),
        (b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}', "truncated or damaged"),
    ],
)
def test_damaged_safetensors_header(header, match, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 8)
    refuse(path, match)


def test_an_index_cannot_leave_its_folder(tmp_path):
    write_safetensors(tmp_path / "x.safetensors", stored())
    folder = tmp_path / "model"
    folder.mkdir()
    for part, match in (
        ("../x.safetensors", "refused"),
        ("y.safetensors", "missing"),
        (3, "refused"),
    ):
        index = {"weight_map": {"a": part}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        refuse(folder, match)
    (folder / "model.safetensors.index.json").write_text("[]")
    refuse(folder, "not an index")


def test_no_such_file_and_wrong_kind(tmp_path):
    refuse(tmp_path / "none.pth", "is not a checkpoint")
    refuse(tmp_path, "is not a checkpoint")
    (tmp_path / "x.gguf").write_bytes(b"")
    refuse(tmp_path / "x.gguf", "use a file that ends in .safetensors")


class Evil:
    def __reduce__(self):
        return os.mkdir, (str(Evil.target),)


@pytest.mark.parametrize("inside", ["alone", "as a value", "beside tensors"])
def test_a_pickle_that_would_run_something(inside, tmp_path):
    Evil.target = tmp_path / "was_run"
    content = {"alone": Evil(), "as a value": {"model": Evil()}}.get(
        inside, {"a": 1, "b": [Evil()]}
    )
    refuse(zip_pth(tmp_path / "x.pth", pickle.dumps(content)), r"refused.*mkdir")
    assert not Evil.target.exists()


@pytest.mark.parametrize(
    "pickled",
    [
        b"ctorch._utils\n_rebuild_tensor_v2\n}X\x01\x00\x00\x00aK\x01sb.",
        b"cbuiltins\neval\n(X\x01\x00\x00\x001tR.",
        b"cdinoreg_export.checkpoint.torch_file\nzipfile\n.",
        b"\x80\x02]q\x00.",
        b"",
        b"\x80\x02}q\x00.",
    ],
    ids=["marks a stand-in", "eval", "our own module", "a list", "empty", "no tensors"],
)
def test_other_pickles(pickled, tmp_path):
    refuse(zip_pth(tmp_path / "x.pth", pickled), "damaged|refused|not a dictionary|no tensors")


def test_cut_off_pth(tmp_path):
    path = write_pth(tmp_path / "x.pth", original(A, canonical(A)))
    path.write_bytes(path.read_bytes()[:-200])
    refuse(path, "not a .pth file of torch 1.6 or later, or truncated")


def test_pth_without_its_numbers(tmp_path):
    path = write_pth(tmp_path / "x.pth", original(A, canonical(A)))
    with zipfile.ZipFile(path) as archive:
        pickled = archive.read("archive/data.pkl")
    refuse(zip_pth(tmp_path / "y.pth", pickled), "numbers of 'cls_token' are missing")
    refuse(zip_pth(tmp_path / "z.pth", pickled, [np.zeros(3, np.float32)]), "truncated or damaged")


def data_of(path, name):
    """Return the offsets of a member's header and its bytes in the file."""
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo(name).header_offset
    return start, start + 30 + len(name)


@pytest.mark.parametrize("where", ["numbers", "header", "encrypted", "compressed"])
def test_pth_with_a_flipped_bit(where, tmp_path):
    path = write_pth(tmp_path / "x.pth", original(A, canonical(A)))
    header, data = data_of(path, "archive/data/0")
    content = bytearray(path.read_bytes())
    listed = content.rindex(b"archive/data/0", data) - 46  # the member's entry in the directory
    at, bit = {
        "numbers": (data + 5, 4),
        "header": (header, 1),
        "encrypted": (listed + 8, 1),
        "compressed": (listed + 10, 64),
    }[where]
    content[at] ^= bit
    path.write_bytes(content)
    with (
        pytest.raises(InputError, match=r"damaged.*again|truncated or damaged"),
        open_checkpoint(path, architecture=A) as weights,
    ):
        weights.read("cls_token")


def test_pth_with_a_damaged_byte_order(tmp_path):
    path = write_pth(tmp_path / "x.pth", original(A, canonical(A)))
    _, data = data_of(path, "archive/byteorder")
    content = bytearray(path.read_bytes())
    content[data] ^= 1
    path.write_bytes(content)
    refuse(path, "byte order is damaged.*again")


@pytest.mark.parametrize("shape", [(), (1,), (7,)])
@pytest.mark.parametrize(
    "name",
    ["blocks.0.attn.qkv.weight", "blocks.0.attn.qkv.bias", "blocks.0.attn.qkv.bias_mask",
     "storage_tokens"],
)  # fmt: skip
def test_tensors_with_too_few_axes_for_their_names(name, shape, tmp_path):
    tensors = original(A, canonical(A))
    assert name in tensors
    tensors[name] = np.ones(shape, np.float32)
    path = write_safetensors(tmp_path / "x.safetensors", tensors)
    refuse(path, "shape|mask|register_tokens 0", architecture=None)
    refuse(path, "shape|mask")


@pytest.mark.parametrize("leaf", ["up_proj.weight", "up_proj.bias", "down_proj.weight"])
def test_a_feed_forward_layer_of_one_number(leaf, tmp_path):
    changes = {f"layer.0.mlp.{leaf}": np.float32(1)}
    path = write_safetensors(tmp_path / "x.safetensors", stored(**changes))
    refuse(path, "no known architecture", architecture=None)
    refuse(path, r"has shape \(\)")


def test_packed_gates_without_a_bias(tmp_path):
    a = TINY["tiny-v2-gated"]
    tensors = canonical(a)
    gate, up = (tensors.pop(f"blocks.0.{n}.weight") for n in ("gate", "up"))
    del tensors["blocks.0.gate.bias"], tensors["blocks.0.up.bias"]
    stored_ = original(a, tensors, timm=True) | {"blocks.0.mlp.fc1.weight": np.r_[gate, up]}
    path = write_safetensors(tmp_path / "x.safetensors", stored_)
    refuse(path, "lacks blocks.0.gate.bias", architecture=a)


@pytest.mark.parametrize("number", ["64", "100000000", "1" * 5000])
def test_numbers_in_names_are_not_counted_to(number, tmp_path):
    a = TINY["tiny-convnext"]
    for text in (f"stages.{number}.layers.0.gamma", f"stages.0.layers.{number}.gamma"):
        tensors = huggingface(a, canonical(a)) | {text: np.ones(16, np.float32)}
        path = write_safetensors(tmp_path / "x.safetensors", tensors)
        refuse(path, "more than 64 of these|tensors of no known encoder", architecture=None)


def test_a_shape_that_no_array_has(tmp_path):
    path = write_safetensors(tmp_path / "x.safetensors", stored())
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["norm.weight"]["shape"] = [64, *[1] * 80]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    refuse(path, "the header's entry for 'norm.weight' is damaged")
