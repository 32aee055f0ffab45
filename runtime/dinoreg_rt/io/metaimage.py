"""MetaImage files: missing bytes and contradictions in the header, which ITK ignores.

Measured with SimpleITK 2.5: where the voxels are compressed and too few, or a list names too few
files, the rest of the image is whatever was in memory.
"""

from __future__ import annotations

import math
import re
import zlib
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from ..errors import InputError
from ..types import Geometry
from .doubts import HeaderDoubts
from .nifti_header import check_length

_CHUNK = 1 << 22
#: A header may hold the tags of a DICOM series.
_MOST_LINES, _LONGEST_LINE = 10_000, 1 << 16
#: Fields on which the memory depends that ITK takes; others may be repeated.
_ONCE = {"NDims", "DimSize", "ElementType", "ElementNumberOfChannels", "ElementDataFile"}
_ONCE |= {"CompressedData", "CompressedDataSize"}
#: Bytes per value of each type, without the prefix MET_; the smaller size of types that differ
#: between platforms.
BYTES = {"CHAR": 1, "UCHAR": 1, "SHORT": 2, "USHORT": 2, "INT": 4, "UINT": 4, "FLOAT": 4}
BYTES |= {"LONG": 4, "ULONG": 4, "LONG_LONG": 8, "ULONG_LONG": 8, "DOUBLE": 8}
#: Factor to mm of each unit; ITK ignores the unit.
_UNITS = {"": 1.0, "?": 1.0, "mm": 1.0, "cm": 10.0, "m": 1e3, "um": 1e-3}
#: Names of one field; files should hold only one of them.
_ORIGIN, _DIRECTION = (
    ("Offset", "Position", "Origin"),
    ("TransformMatrix", "Rotation", "Orientation"),
)
_SPACING = ("ElementSpacing", "ElementSize")
#: Letters of AnatomicalOrientation: where an axis along +x, +y, +z comes from, and where it goes.
_FROM, _TO = "RAI", "LPS"


class MetaHeader(NamedTuple):
    """The header of a MetaImage.

    Attributes:
        file: the file that holds it.
        fields: the text of each field.
        start: position of the first byte after it.
        listed: the lines after ``ElementDataFile = LIST``.
    """

    file: Path
    fields: dict[str, str]
    start: int
    listed: list[str]


def read_header(file: Path) -> MetaHeader:
    """Read the header of a ``.mha`` or ``.mhd`` file: lines ``key = value``.

    Raises:
        InputError: it does not end with the name of a data file, or repeats a field that must be
            unique.
    """
    fields: dict[str, str] = {}
    with file.open("rb") as stream:
        for _ in range(_MOST_LINES):
            line = stream.readline(_LONGEST_LINE)
            parts = re.split(r"[=:]", line.decode("utf-8", "replace"), maxsplit=1)
            key = parts[0].strip()
            # ITK looks for the sign behind a key in the next lines, too.
            repeated = key in _ONCE and (key in fields or len(parts) < 2)
            if not line or len(line) == _LONGEST_LINE or repeated:
                break
            if len(parts) < 2:  # the second line of a value, such as that of a DICOM tag
                continue
            fields[key] = parts[1].strip()
            if key == "ElementDataFile":
                return MetaHeader(file, fields, stream.tell(), _listed(fields[key], stream))
    raise InputError(
        f"{file}: cannot be read as an image: its MetaImage header is damaged, or its data file is "
        "missing from it (no line ElementDataFile); copy or save it again"
    )


def _listed(data: str, stream: IO[bytes]) -> list[str]:
    """Return the lines after the header where they name the data files."""
    if not data.upper().startswith("LIST"):
        return []
    lines = stream.read().decode("utf-8", "replace").splitlines()
    return [line.strip() for line in lines if line.strip()]


def check_metaimage(header: MetaHeader) -> None:
    """Require that the files with the voxels are there and as long as the header says.

    Raises:
        InputError: a data file is missing, truncated or corrupt, or the header does not determine
            its length.
    """
    file, fields = header.file, header.fields
    if _is(fields, "BinaryData", "false"):  # ITK finds missing numbers
        return
    wanted, data = _wanted_bytes(header), data_files(header)
    for path in data:
        if not path.is_file():
            raise InputError(
                f"{file}: its data file {path.name} is missing; keep all its files together"
            )
    if _is(fields, "CompressedData", "true"):
        if _numbers(fields, "HeaderSize", "0") != (0,):
            raise InputError(f"{file}: has compressed pixels and a HeaderSize; remove HeaderSize")
        if len(data) > 1:
            raise InputError(f"{file}: lists compressed files, which cannot be read; unpack them")
        _check_compressed(header, data[0], wanted)
        return
    skipped = _skipped_bytes(header, local=data[0] == file)
    for path in data:
        name = str(file) if len(data) == 1 else f"{file}: {path.name}"
        check_length(path.stat().st_size, skipped + wanted // len(data), name)


def header_doubts(header: MetaHeader, geometry: Geometry) -> tuple[float, HeaderDoubts]:
    """Compare the fields of a header with each other.

    Args:
        header: the header.
        geometry: the geometry that ITK read from it.

    Returns:
        The factor from the header's unit to mm, and what the header leaves in doubt.

    Raises:
        InputError: the unit is unknown, or a spacing is not positive.
    """
    name, fields = str(header.file), header.fields
    unit = fields.get("DistanceUnits", "")
    if unit not in _UNITS:
        raise InputError(f"{name}: states its lengths in '{unit}'; convert it to mm")
    scale, notes = _UNITS[unit], []
    if scale != 1:
        notes.append(f"{name}: states its lengths in {unit}; they were converted to mm")
    for key in _SPACING:
        if key in fields and min(_numbers(fields, key)) <= 0:
            raise InputError(
                f"{name}: has a voxel spacing of {fields[key]} ({key}); each must be positive: "
                "correct the header"
            )
    taken = (geometry.spacing_mm, geometry.origin_mm, tuple(geometry.direction.T.ravel()))
    for keys, values in zip((_SPACING, _ORIGIN, _DIRECTION), taken, strict=True):
        notes += _disagreement(header, keys, values)
    if not set(_SPACING) & fields.keys():
        notes.append(f"{name}: states no voxel spacing (ElementSpacing); 1 mm was taken")
    nameless = not set(_DIRECTION) & fields.keys()
    if nameless:
        notes.append(
            f"{name}: does not say how its axes lie (TransformMatrix); they were taken to point to "
            "the left, the back and the top"
        )
    letters = _letters_disagree(header, geometry)
    doubtful = bool(nameless or letters or _disagreement(header, _DIRECTION, taken[2]))
    return scale, HeaderDoubts((*notes, *letters), sides=doubtful)


def _disagreement(header: MetaHeader, keys: tuple[str, ...], taken: tuple[float, ...]) -> list[str]:
    given = {key: _numbers(header.fields, key) for key in keys if key in header.fields}
    given = {key: values for key, values in given.items() if len(values) == len(taken)}
    others = [key for key, values in given.items() if not np.allclose(values, taken, atol=1e-4)]
    if not others or len(given) < 2:
        return []
    right = " and ".join(key for key in given if key not in others) or "another value"
    told = " and ".join(f"{key} = {header.fields[key]}" for key in others)
    return [f"{header.file}: {right} was taken; its header also says {told}"]


def _letters_disagree(header: MetaHeader, geometry: Geometry) -> list[str]:
    """Compare AnatomicalOrientation with the axes; programs write it in either of two senses."""
    letters = header.fields.get("AnatomicalOrientation", "").upper()
    largest = np.abs(geometry.direction).argmax(axis=0)
    signs = [geometry.direction[row, axis] > 0 for axis, row in enumerate(largest)]
    clear = np.abs(geometry.direction).max(axis=0).min() > 0.8
    if not clear or len(letters) != 3 or set(letters) - set(_FROM + _TO):
        return []
    axes = list(zip(largest, signs, strict=True))
    senses = [
        "".join((begin if positive else end)[row] for row, positive in axes)
        for begin, end in ((_FROM, _TO), (_TO, _FROM))
    ]
    if letters in senses:
        return []
    return [
        f"{header.file}: TransformMatrix was taken, by which its axes are {senses[0]} (from) or "
        f"{senses[1]} (to); AnatomicalOrientation says {letters}, so left and right, or other "
        "sides, may be exchanged"
    ]


def _skipped_bytes(header: MetaHeader, *, local: bool) -> int:
    """Return the number of bytes before the uncompressed voxels of each file.

    HeaderSize counts from the beginning of the file; -1 means that the voxels end with the file.
    """
    first, size = header.start if local else 0, int(_numbers(header.fields, "HeaderSize", "0")[0])
    if 0 < size < first:
        raise InputError(
            f"{header.file}: its header says that the voxels begin at byte {size} (HeaderSize), "
            f"within the header, which ends at byte {first}: remove HeaderSize"
        )
    return max(first, size)


def _is(fields: dict[str, str], key: str, value: str) -> bool:
    return fields.get(key, "").lower() == value


def _numbers(fields: dict[str, str], key: str, missing: str = "") -> tuple[float, ...]:
    try:
        return tuple(float(word) for word in fields.get(key, missing).split())
    except ValueError as error:
        raise InputError(
            f"the MetaImage field {key} = {fields[key]} is not a list of numbers; correct the "
            "header"
        ) from error


def _wanted_bytes(header: MetaHeader) -> int:
    """Return the size of the uncompressed voxels in bytes."""
    fields = header.fields
    kind = fields.get("ElementType", "").removeprefix("MET_").removesuffix("_ARRAY")
    try:
        size = math.prod(int(n) for n in fields["DimSize"].split())
        return size * int(fields.get("ElementNumberOfChannels", "1")) * BYTES[kind]
    except (KeyError, ValueError) as error:
        raise InputError(
            f"{header.file}: cannot be read as an image: its header lacks a usable DimSize, "
            "ElementType or ElementNumberOfChannels"
        ) from error


def data_files(header: MetaHeader) -> list[Path]:
    """Return the files that hold the voxels; ``LIST`` and patterns name one for each slice."""
    file, data = header.file, header.fields.get("ElementDataFile", "LOCAL")
    if data.upper() == "LOCAL":
        return [file]
    if not data.upper().startswith("LIST") and "%" not in data:
        return [file.parent / data]
    sizes = [int(n) for n in header.fields["DimSize"].split()]
    names, slices = header.listed, sizes[-1]
    if "%" in data:
        names = _pattern_names(header, data)
    elif words := data.split()[1:]:
        slices = math.prod(sizes[int(words[0].strip("dD")) :])
    if len(names) != slices:
        raise InputError(
            f"{file}: names {len(names)} data files, but its size asks for {slices}; correct the "
            "header"
        )
    return [file.parent / name for name in names]


def _pattern_names(header: MetaHeader, data: str) -> list[str]:
    try:
        pattern, first, last, step = data.split()
        return [pattern % i for i in range(int(first), int(last) + 1, int(step))]
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{header.file}: its ElementDataFile is '{data}'; a pattern needs the numbers of the "
            "first and the last file and the step, such as 'slice%03d.raw 1 20 1'"
        ) from error


def _check_compressed(header: MetaHeader, data: Path, wanted: int) -> None:
    limit = int(_numbers(header.fields, "CompressedDataSize", "0")[0])
    if data == header.file and limit <= 0:  # ITK would return whatever is in memory
        raise InputError(
            f"{header.file}: its header does not say how long its compressed pixels are; add "
            f"CompressedDataSize = {data.stat().st_size - header.start} before ElementDataFile"
        )
    with data.open("rb") as stream:
        stream.seek(header.start if data == header.file else 0)
        found = _unpacked_bytes(stream, limit if limit > 0 else data.stat().st_size, header.file)
    if found != wanted:
        raise InputError(
            f"{header.file}: its compressed pixels unpack to {found} bytes, but its header "
            f"announces {wanted}; copy or download it again, or correct the header"
        )


def _unpacked_bytes(stream: IO[bytes], limit: int, name: Path) -> int:
    """Return the size of the pixels that the first `limit` bytes of a stream unpack to."""
    unpacker, found = zlib.decompressobj(wbits=47), 0
    try:
        while not unpacker.eof:
            packed = stream.read(min(_CHUNK, limit))
            limit -= len(packed)
            if not packed:
                raise InputError(
                    f"{name}: truncated file: its compressed pixels end too early, after {found} "
                    "bytes; copy or download it again"
                )
            while packed and not unpacker.eof:
                found += len(unpacker.decompress(packed, _CHUNK))
                packed = unpacker.unconsumed_tail
    except zlib.error as error:
        raise InputError(
            f"{name}: corrupt file: its pixels do not unpack ({error}); copy or download it again"
        ) from error
    return found
