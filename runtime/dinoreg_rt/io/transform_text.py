"""ITK's transforms in text (.tfm, .txt) and in MATLAB's level 4 format (.mat), as ANTs writes."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from ..types import FloatArray
from .guard import reader_errors
from .transform_parts import Part

_KEYS = ("Transform", "Parameters", "FixedParameters")
#: Longest name of a variable in a .mat file.
_LONGEST_NAME = 256
_MAT_HEADER = struct.Struct("5i")


class _Variable(NamedTuple):
    name: str
    values: FloatArray


def read_parts(file: Path) -> list[Part]:
    """Read the transforms of a .tfm, .txt or .mat file in the order of the file.

    Raises:
        InputError: the file cannot be read or is of another program; the message says of which.
    """
    with reader_errors(str(file), "a transform"):
        raw = file.read_bytes()
        foreign = _foreign(raw[:65536], file.name)
        if foreign:
            raise InputError(f"{file}: {foreign}")
        if file.suffix.lower() == ".mat":
            return list(_parts_of_mat(raw))
        return _parts_of_text(raw.decode("utf-8-sig", "replace"))


def _parts_of_text(text: str) -> list[Part]:
    """Parse lines ``key: values``; a transform lasts from its ``Transform:`` to the next."""
    blocks: list[dict[str, str]] = []
    for line in text.splitlines():
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        key, colon, value = stripped.partition(":")
        if not colon or key not in _KEYS:
            raise ValueError(f"unknown line '{stripped[:40]}'")
        if key == "Transform":
            blocks.append({key: value.strip()})
        elif not blocks or key in blocks[-1]:
            raise ValueError(f"'{key}' stands before a transform, or twice in one")
        else:
            blocks[-1][key] = value
    if not blocks:
        raise ValueError("it has no line 'Transform:'")
    return [_part(b["Transform"], _floats(b, "Parameters"), _floats(b, _KEYS[2])) for b in blocks]


def _floats(block: dict[str, str], key: str) -> FloatArray:
    return np.array(block.get(key, "").split(), np.float64)


def _part(kind: str, parameters: FloatArray, fixed: FloatArray) -> Part:
    return Part(kind, parameters.size, lambda dtype: parameters.astype(dtype), fixed)


def _parts_of_mat(raw: bytes) -> Iterator[Part]:
    """Pair the variables: one named after the kind, then one named ``fixed``."""
    variables = list(_variables(raw))
    if not variables or len(variables) % 2:
        raise ValueError(f"{len(variables)} variables, where each transform has two")
    for one, fixed in zip(variables[::2], variables[1::2], strict=True):
        if fixed.name != "fixed":
            raise ValueError(f"variable '{fixed.name[:40]}' where 'fixed' should be")
        yield _part(one.name, one.values, fixed.values)


def _variables(raw: bytes) -> Iterator[_Variable]:
    position = 0
    while position < len(raw):
        if len(raw) - position < _MAT_HEADER.size:
            raise ValueError("it ends within a header")
        order = "<" if struct.unpack_from("<i", raw, position)[0] in range(1000) else ">"
        code, rows, columns, imaginary, length = struct.unpack_from(f"{order}5i", raw, position)
        position += _MAT_HEADER.size
        # The digits of the code: byte order, storage order (either for vectors), type, 0.
        precision = {0: "f8", 1: "f4"}.get(code // 10 % 10)
        known = code // 1000 == (order == ">") and code % 10 == 0 and code // 100 % 10 < 2
        if not known or precision is None or imaginary or not 0 < length <= _LONGEST_NAME:
            raise ValueError("its header is not of MATLAB's level 4 format")
        size = rows * columns
        end = position + length + size * int(precision[1])
        if min(rows, columns) < 0 or (size and 1 not in (rows, columns)) or end > len(raw):
            raise ValueError(f"{rows} x {columns} numbers are announced; the file is too short")
        name = raw[position : position + length].split(b"\0")[0].decode("ascii")
        values = np.frombuffer(raw, order + precision, size, position + length)
        yield _Variable(name, values.astype(np.float64))
        position = end


def _foreign(head: bytes, name: str) -> str:
    """Say what a transform of another program is and how to convert it; empty for none."""
    text = head.decode("utf-8", "replace")
    lines = [line.split() for line in text.splitlines() if line.strip()]
    if re.search(r"^\s*\((Transform|Initial|HowToCombine|FixedImageDimension)", text, re.MULTILINE):
        return (
            "is a parameter file of elastix, not a transform of ITK; run elastix (5.1 or later) "
            'with (ITKTransformOutputFileNameExtension "tfm") and give the .tfm file that it '
            "writes; for 'apply', transformix -def all -tp FILE -out FOLDER also makes a "
            "displacement field"
        )
    if len(lines) == 4 and all(len(line) == 4 for line in lines) and _all_numbers(lines):
        return (
            "is a 4 x 4 matrix in text, as FSL's FLIRT and Greedy write, which ITK cannot read; "
            f"convert FLIRT's with: c3d_affine_tool -ref FIXED -src MOVING {name} -fsl2ras -oitk "
            f"out.tfm; Greedy's with: c3d_affine_tool {name} -oitk out.tfm"
        )
    return ""


def _all_numbers(lines: list[list[str]]) -> bool:
    try:
        return all(np.isfinite(float(word)) for line in lines for word in line)
    except ValueError:
        return False
