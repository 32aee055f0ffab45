"""NRRD headers: what they leave in doubt, which ITK does not report.

Missing voxels and contradictory sizes need no check: ITK's reader counts them in every encoding.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from ..errors import InputError
from .doubts import HeaderDoubts
from .guard import reader_errors

#: Spaces with the axes of a patient, which ITK converts to LPS.
_PATIENT = {"left-posterior-superior", "right-anterior-superior", "left-anterior-superior"}
_PATIENT |= {"lps", "ras", "las"}
_UNITS = {"": 1.0, "mm": 1.0, "cm": 10.0, "m": 1e3, "um": 1e-3, "\u00b5m": 1e-3, "\u03bcm": 1e-3}
_LONGEST_HEADER = 1 << 20
#: ITK writes messages about a line into a buffer of 1025 bytes, which longer lines overrun.
_LONGEST_LINE = 800
#: Voxels that take so little memory that ITK may find out by itself that they are missing.
_HARMLESS_VOXELS = 1 << 25
#: Most bytes that a byte of each encoding unpacks to; of deflate by its definition.
_MOST_UNPACKED = {"gz": 1032, "gzip": 1032, "raw": 1, "txt": 1, "text": 1, "ascii": 1, "hex": 1}


def check_header(file: Path) -> None:
    """Require a header that ITK can read without crashing or taking memory in vain.

    Raises:
        InputError: a field is implausibly long, or the file is far too small for its voxels.
    """
    for number, line in enumerate(_header_lines(file), 1):
        free = line.startswith(("#", "content:")) or ":=" in line
        if len(line.encode()) > _LONGEST_LINE and not free:
            raise InputError(
                f"{file}: cannot be read as an image: line {number} of its header has {len(line)} "
                f"characters, and a field has at most {_LONGEST_LINE}; copy the file again, or "
                "correct the header"
            )
    fields = _fields(file)
    sizes = [int(size) for size in fields.get("sizes", "").split() if size.isdecimal()]
    unpacked = _MOST_UNPACKED.get(fields.get("encoding", "").lower())
    if unpacked is None or math.prod(sizes) <= _HARMLESS_VOXELS:
        return
    with reader_errors(str(file), "an image"):  # its list of files may be damaged as well
        stored = sum(part.stat().st_size for part in data_files(file) or [file] if part.is_file())
    if math.prod(sizes) > unpacked * stored:
        raise InputError(
            f"{file}: cannot be read as an image: its header announces {math.prod(sizes)} voxels, "
            f"but there are only {stored} bytes; it is truncated or damaged: copy it again"
        )


def header_doubts(file: Path, *, vectors: bool = False) -> tuple[float, HeaderDoubts]:
    """Examine the header of a ``.nrrd`` or ``.nhdr`` file.

    Args:
        file: the file with the header.
        vectors: whether the values are vectors in mm, LPS.

    Returns:
        The factor from the header's unit to mm, and what the header leaves in doubt.

    Raises:
        InputError: the unit is unknown, a spacing is not positive, or an axis is time.
    """
    fields, name, notes = _fields(file), str(file), []
    scale, unit = _unit(fields, name)
    if scale != 1:
        notes.append(f"{name}: states its lengths in {unit}; they were converted to mm")
    space = fields.get("space", "").lower().removesuffix("-time")
    nameless = space not in _PATIENT
    if nameless:
        which = (
            f"its space '{space}' does not name the patient's sides" if space else "has no space"
        )
        notes.append(
            f"{name}: {which}; its axes were taken as left, posterior and superior, so left and "
            "right may be exchanged"
        )
    spacings = fields.get("spacings", "").lower().replace("nan", "").split()
    if any(float(value) <= 0 for value in spacings if _is_number(value)):
        raise InputError(
            f"{name}: has a voxel spacing of {fields['spacings']}; each must be positive: correct "
            "the header"
        )
    kinds, sizes = fields.get("kinds", "").lower().split(), fields.get("sizes", "").split()
    if any(kind == "time" and size != "1" for kind, size in zip(kinds, sizes, strict=False)):
        raise InputError(
            f"{name}: is a time series (kinds: {fields['kinds']}); a 3D volume is needed: extract "
            "one time point"
        )
    if vectors and "measurement frame" in fields:
        notes.append(
            f"{name}: has a measurement frame, {fields['measurement frame']}; its vectors were "
            "taken as they are, in mm and LPS, as ITK does"
        )
    if "(" not in fields.get("space directions", "") and not spacings:
        notes.append(f"{name}: states no voxel spacing; 1 mm was taken")
    if space and "space origin" not in fields:
        notes.append(f"{name}: has no space origin; its first voxel was placed at 0")
    return scale, HeaderDoubts(tuple(notes), sides=nameless)


def data_files(file: Path) -> list[Path]:
    """List the files that hold the voxels; none if they follow the header."""
    fields = _fields(file)
    data = fields.get("data file", fields.get("datafile", ""))
    words = data.split()
    if data.upper().startswith("LIST"):
        lines = _header_lines(file)
        at = next(i for i, line in enumerate(lines) if re.match(r"(?i)data ?file:", line))
        names = [line.strip() for line in lines[at + 1 :]]
    elif "%" in data and len(words) >= 4:
        names = [words[0] % i for i in range(int(words[1]), int(words[2]) + 1, int(words[3]))]
    else:
        names = [data]
    return [file.parent / name for name in names if name]


def _header_lines(file: Path) -> list[str]:
    with file.open("rb") as stream:
        text = stream.read(_LONGEST_HEADER).split(b"\n\n")[0].split(b"\r\n\r\n")[0]
    return text.decode("utf-8", "replace").splitlines()


def _fields(file: Path) -> dict[str, str]:
    lines = _header_lines(file)
    found = [re.fullmatch(r"([^:#]+):\s+(.*)|([^:#]+):(?!=)(.*)", line) for line in lines]
    pairs = [(m[1] or m[3], m[2] or m[4] or "") for m in found if m is not None]
    return {key.strip().lower(): value.strip() for key, value in pairs}


def _unit(fields: dict[str, str], name: str) -> tuple[float, str]:
    text = fields.get("space units", fields.get("units", ""))
    units = {unit.strip().lower() for unit in re.findall(r'"([^"]*)"', text)} - {""}
    factors = {_UNITS.get(unit) for unit in units}
    if None in factors or len(factors) > 1:
        raise InputError(f"{name}: states its lengths in {text}; convert it to mm")
    return next(iter(factors), None) or 1.0, " ".join(units)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
