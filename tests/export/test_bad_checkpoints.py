"""Damaged, mislabelled and hostile checkpoints: each a clear error, none runs anything."""

import json
import os
import pickle
import struct

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

from dinoreg_export.checkpoint import open_checkpoint
from dinoreg_export.files import GraphFile, write_files
from dinoreg_rt.errors import InputError

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
        ({Q: None}, "tiny-v3 lacks blocks.1.q.weight"),
        ({"layer.1.attention.q_proj.bias": None}, "lacks blocks.1.q.bias"),
        ({"layer.2.norm1.weight": np.zeros(64, np.float32)}, "has besides blocks.2.norm1.weight"),
        ({"head.weight": np.zeros(4, np.float32)}, "no known encoder: head.weight.*backbone alone"),
        ({"embeddings.position_embeddings": np.zeros((1, 17, 64), np.float32)}, "besides position"),
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
    refuse(path, "dinov3-vitl16 lacks blocks.10", architecture=None, model="dinov3-vitl16")
    refuse(path, "no model 'vitx'; there are: dinov3-vits16", architecture=None, model="vitx")
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
    refuse(path, "cut off|not a safetensors")


@pytest.mark.parametrize(
    ("header", "match"),
    [
        (b"{", "not JSON"),
        (b"[1]", "no list of tensors"),
        (b"[" * 200000, "not JSON"),
        (b'{"a": {"dtype": "F32"}}', "'a' is damaged"),
        (b'{"a": 3}', "'a' is damaged"),
        (b'{"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}', "'a' is damaged"),
        (b'{"a": {"dtype": "I8", "shape": [1], "data_offsets": [0, 1]}}', "stored as I8"),
        (b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', "8 bytes at 0..4"),
        (b'{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}', "cut off or damaged"),
        (b'{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 36]}}', "cut off or damaged"),
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
    refuse(tmp_path / "none.pth", "no checkpoint there")
    refuse(tmp_path, "no checkpoint there")
    (tmp_path / "x.onnx").write_bytes(b"")
    refuse(tmp_path / "x.onnx", "wanted .safetensors or")


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
        b"cdinoreg_export.torch_file\nzipfile\n.",
        b"\x80\x02]q\x00.",
        b"",
        b"\x80\x02}q\x00.",
    ],
    ids=["marks a stand-in", "eval", "our own module", "a list", "empty", "no tensors"],
)
def test_other_pickles(pickled, tmp_path):
    refuse(zip_pth(tmp_path / "x.pth", pickled), "damaged|refused|wanted a dictionary|no tensors")


def test_cut_off_pth(tmp_path):
    path = write_pth(tmp_path / "x.pth", original(A, canonical(A)))
    path.write_bytes(path.read_bytes()[:-200])
    refuse(path, "not a .pth of torch 1.6 or later, or cut off")


def test_pth_without_its_numbers(tmp_path):
    path = write_pth(tmp_path / "x.pth", original(A, canonical(A)))
    import zipfile

    with zipfile.ZipFile(path) as archive:
        pickled = archive.read("archive/data.pkl")
    refuse(zip_pth(tmp_path / "y.pth", pickled), "numbers of 'cls_token' are missing")
    refuse(zip_pth(tmp_path / "z.pth", pickled, [np.zeros(3, np.float32)]), "cut off or damaged")
