"""Mutations of files that know their structure: bytes, words of text, JSON, HDF5, zip and gzip."""

from __future__ import annotations

import copy
import gzip
import io
import json
import re
import struct
import zipfile
from collections.abc import Callable

import h5py
import numpy as np

Rng = np.random.Generator
Mutation = Callable[[bytes, Rng], bytes]

NUMBERS = ["nan", "inf", "-inf", "-1", "0", "1e400", "1e15", "1e-320", "2147483648", "-0", "1,5"]
NUMBERS += [
    "1000000",
    "9" * 20,
    "9" * 5000,
    "0x10",
    "true",
    '""',
    "1e",
    "\u0661",
    "9223372036854775807",
]
WORDS = [*NUMBERS, "", " ", "\n", "\0", "=", ":", ",", '"', "[", "]", "{", "}", "#", "a" * 200_000]
WORDS += ["[" * 3000, "\u2028", "\ud7ff", "\r"]
VALUES = [
    None,
    True,
    [],
    {},
    "",
    "a",
    -1,
    0,
    1e15,
    10**30,
    [[1, 2, 3]],
    [1, 2, 3, 4, 5, 6],
    {"a": 1},
]
VALUES += [float("nan"), float("inf"), "../../x", "\0", "\ud800", 10**400, "a" * 200_000, [None]]
INTEGERS = [0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, 1 << 62]


def pick(rng: Rng, things: list) -> object:
    return things[int(rng.integers(len(things)))]


def of_bytes(data: bytes, rng: Rng) -> bytes:
    """A few changes of single bytes, numbers and stretches."""
    raw = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        if not raw:
            return bytes(rng.integers(0, 256, 8, np.uint8))
        # Headers come first, so half of the changes do.
        last = len(raw) if rng.random() < 0.5 else min(len(raw), 400)
        at, length = int(rng.integers(last)), int(rng.integers(1, 64))
        kind = int(rng.integers(6))
        if kind == 0:
            raw[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            raw[at] = int(rng.integers(256))
        elif kind == 2:
            del raw[at : at + length]
        elif kind == 3:
            raw[at:at] = raw[at : at + length]
        elif kind == 4:
            del raw[at:]
        else:
            form = str(pick(rng, ["<H", ">H", "<I", ">I", "<Q", ">Q"]))
            value = int(pick(rng, INTEGERS)) & ((1 << 8 * struct.calcsize(form)) - 1)
            raw[at : at + struct.calcsize(form)] = struct.pack(form, value)
    return bytes(raw)


def of_text(data: bytes, rng: Rng) -> bytes:
    """Words, numbers and lines replaced, removed, repeated and exchanged."""
    parts = re.findall(r"\n|[^\S\n]+|[\w.+-]+|[^\w\s]", data.decode("utf-8"))
    lines = data.decode("utf-8").splitlines(keepends=True)
    if rng.random() < 0.3 and len(lines) > 1:
        i, j = rng.integers(len(lines), size=2)
        kind = int(rng.integers(3))
        if kind == 0:
            del lines[i]
        elif kind == 1:
            lines.insert(i, lines[j])
        else:
            lines[i], lines[j] = lines[j], lines[i]
        return "".join(lines).encode()
    for _ in range(int(rng.integers(1, 4))):
        if not parts:
            break
        at = int(rng.integers(len(parts)))
        numbers = [
            i for i, part in enumerate(parts) if re.fullmatch(r"[-+.\deE]*\d[-+.\deE]*", part)
        ]
        if numbers and rng.random() < 0.6:
            parts[int(pick(rng, numbers))] = str(pick(rng, NUMBERS))
        elif rng.random() < 0.5:
            parts[at] = str(pick(rng, WORDS))
        else:
            del parts[at : at + int(rng.integers(1, 6))]
    return "".join(parts).encode("utf-8", "replace")


def of_json(data: bytes, rng: Rng) -> bytes:
    """Values of a document replaced, removed and repeated."""
    document = json.loads(data)
    for _ in range(int(rng.integers(1, 3))):
        places = list(_places(document))
        if not places:
            break
        parent, key = places[int(rng.integers(len(places)))]
        kind = int(rng.integers(4))
        if kind == 0:
            del parent[key]
        elif kind == 1 and isinstance(parent, list):
            parent.insert(key, copy.deepcopy(parent[key]))
        else:
            parent[key] = copy.deepcopy(pick(rng, VALUES))
    text = json.dumps(document).replace("Infinity", str(pick(rng, ["Infinity", "1e400"])))
    if rng.random() < 0.05:
        text = text.replace("[", "[" * 3000, 1)
    return text.encode()


def _places(node: object):
    inner = node.items() if isinstance(node, dict) else ()
    inner = enumerate(node) if isinstance(node, list) else inner
    for key, value in inner:
        yield node, key
        yield from _places(value)


def of_json_lines(data: bytes, rng: Rng) -> bytes:
    lines = data.splitlines()
    at = int(rng.integers(len(lines)))
    lines[at] = of_json(lines[at], rng)
    return b"\n".join(lines)


def of_hdf5(data: bytes, rng: Rng) -> bytes:
    """Members removed, replaced by others, and numbers changed."""
    stream = io.BytesIO(data)
    with h5py.File(stream, "r+") as file:
        names: list[str] = []
        file.visit(names.append)
        for _ in range(int(rng.integers(1, 3))):
            name = names[int(rng.integers(len(names)))]
            if name in file:  # the first change may have taken it away
                _change_member(file, name, rng)
    return stream.getvalue()


def _change_member(file: h5py.File, name: str, rng: Rng) -> None:
    old, kind = file[name], int(rng.integers(9))
    numbers = isinstance(old, h5py.Dataset) and old.dtype.kind == "f"
    if kind == 0 and numbers and old.shape is not None and len(old.shape) == 1 and old.size:
        old[int(rng.integers(min(old.size, 100)))] = float(str(pick(rng, NUMBERS[:9])))
        return
    del file[name]
    if kind == 1:
        file.create_group(name)
    elif kind == 2:
        file[name] = float(rng.normal())
    elif kind == 3:
        file.create_dataset(name, (0,), "f8")
    elif kind == 4:
        file.create_dataset(name, data=h5py.Empty("f8"))
    elif kind == 5:
        file.create_dataset(name, (10**15,), "f8", chunks=(1024,))
    elif kind == 6:
        file[name] = pick(rng, [h5py.SoftLink("/"), h5py.ExternalLink("x", "/")])
    elif kind == 7:
        types = [b"x", b"CompositeTransform_double_3_3", b"Euler3DTransform_double_3_3"]
        file[name] = [pick(rng, types)]
    elif kind == 8:
        file[name] = rng.normal(size=(int(rng.integers(20)), int(rng.integers(1, 3))))


def of_pickle(data: bytes, rng: Rng) -> bytes:
    """The list of tensors in a .pth file."""
    return _rezip(data, rng, lambda name: name.endswith("data.pkl"))


def _rezip(data: bytes, rng: Rng, chosen: Callable[[str], bool]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            content = old.read(info)
            new.writestr(
                info.filename, of_bytes(content, rng) if chosen(info.filename) else content
            )
    return out.getvalue()


def of_gzip(data: bytes, rng: Rng) -> bytes:
    """The bytes within a gzip file."""
    return gzip.compress(of_bytes(gzip.decompress(data), rng), 1)


def of_header(data: bytes, rng: Rng) -> bytes:
    """The JSON header of a safetensors file."""
    length = struct.unpack_from("<Q", data)[0]
    header = of_json(data[8 : 8 + length], rng)
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def of_meta(data: bytes, rng: Rng) -> bytes:
    """The text of a MetaImage header."""
    end = data.index(b"\n", data.index(b"ElementDataFile")) + 1
    return of_text(data[:end], rng) + data[end:]


def of_nrrd(data: bytes, rng: Rng) -> bytes:
    """The text of an NRRD header."""
    end = data.index(b"\n\n") + 1
    return of_text(data[:end], rng) + data[end:]


def of_dicom(data: bytes, rng: Rng) -> bytes:
    """Values of the elements of a slice, explicit little endian."""
    for _ in range(int(rng.integers(1, 3))):
        found = list(re.finditer(rb"(?:DS|IS|CS|UI|US)(..)", data[128:], re.DOTALL))
        at = 128 + found[int(rng.integers(len(found)))].start()
        old = struct.unpack_from("<H", data, at + 2)[0]
        if data[at : at + 2] == b"US":
            value = struct.pack("<H", int(pick(rng, INTEGERS)) & 0xFFFF)
        else:
            words = data[at + 4 : at + 4 + old].split(b"\\")
            words[int(rng.integers(len(words)))] = str(pick(rng, WORDS)).encode()[:60_000]
            value = b"\\".join(words)[:60_000]
        value += b" " * (len(value) % 2)
        data = data[: at + 2] + struct.pack("<H", len(value)) + value + data[at + 4 + old :]
    return data
