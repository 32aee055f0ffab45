"""Checkpoints of a few hundred bytes that announce gigabytes."""

from __future__ import annotations

import json
import struct
import zipfile
from pathlib import Path

import pytest

from dinoreg_export.checkpoint.safetensors_file import SafetensorsFile
from dinoreg_export.checkpoint.torch_file import TorchFile
from dinoreg_rt.errors import InputError


def write(path: Path, content: bytes, storage: bytes = b"") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("a/data.pkl", content)
        file.writestr(zipfile.ZipInfo("a/data/0"), storage)
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # The memo, a list, grew to the number of the place: 4 GB for 285 bytes.
        (b"\x80\x02}r" + struct.pack("<I", 0x1FFFFFFF) + b".", "place 536870911 of its memo"),
        (b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"a.", "is damaged"),
        (b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"a.", "is damaged"),
        (b"\x80\x04\x96" + struct.pack("<Q", 1 << 40) + b"a.", "is damaged"),
        (b"\x80\x02" + b"}" * 2_000_000 + b".", "more than 1000000 opcodes"),
        (b"\x80\x02" + b"}" * 9_000_000 + b".", "larger than any list of tensors"),
    ],
)
def test_pickles(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TorchFile(write(tmp_path / "a.pth", content))


def pickled(shape: tuple[int, ...]) -> bytes:
    """A state dict with one tensor, as torch writes it."""
    # Written by hand: a module named torch._utils need not be there.
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n"
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\n"
    storage += b"X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ"
    numbers = b"(" + b"".join(b"\x8a\x08" + struct.pack("<q", n) for n in shape) + b"t"
    stride = b"(" + b"K\x01" * len(shape) + b"t"
    tensor = rebuild + b"(" + storage + b"K\x00" + numbers + stride + b"tR"
    return b"\x80\x02}X\x01\x00\x00\x00w" + tensor + b"s."


def test_a_tensor_of_thousands_of_axes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pth", pickled((1,) * 5000), bytes(4))
    with pytest.raises(InputError, match="'w' has 5000 axes"):
        TorchFile(path)


def test_a_directory_that_announces_more_than_the_file_has(tmp_path: Path) -> None:
    path = write(tmp_path / "a.pth", pickled((1 << 30,)), bytes(4))
    raw = bytearray(path.read_bytes())
    entry = raw.rindex(b"PK\x01\x02")
    struct.pack_into("<2I", raw, entry + 20, (1 << 32) - 2, (1 << 32) - 2)
    path.write_bytes(raw)
    with pytest.raises(
        InputError, match=r"'w' needs 4294967296 bytes and has \d\d?\d? ?|truncated"
    ):
        TorchFile(path)


def test_safetensors_of_thousands_of_axes(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [1] * 5000, "data_offsets": [0, 4]}
    header = json.dumps({"w": entry}).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(InputError, match="the header's entry for 'w' is damaged"):
        SafetensorsFile(path)
