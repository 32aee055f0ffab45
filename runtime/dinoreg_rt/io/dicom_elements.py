"""Read the elements of DICOM files without GDCM, to find images and damaged files."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

Buffer = bytes | mmap.mmap

#: Types of values, by the length of the field that holds a value's length.
_SHORT = set(b"AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US".split())
_LONG = set(b"OB OD OF OL OV OW SQ SV UC UN UR UT UV".split())
_UNDEFINED = 0xFFFFFFFF
_IMPLICIT, _BIG_ENDIAN, _DEFLATED = (f"1.2.840.10008.1.2{suffix}" for suffix in ("", ".2", ".1.99"))


class Element(NamedTuple):
    """An element of a file.

    Attributes:
        tag: group and element number.
        start: where its value begins.
        length: the announced length of the value in bytes; 0 if it is undefined.
        known: whether its type is one of DICOM's.
    """

    tag: tuple[int, int]
    start: int
    length: int
    known: bool = True


def elements(raw: Buffer) -> Iterator[Element]:
    """Yield the elements of a file with the prefix ``DICM``, and the items of its sequences.

    A sequence is entered only if its length is undefined. The walk ends where the file does, at
    deflated content, and at a value of unknown type and length.
    """
    at, order, explicit, syntax = 132, "<", True, ""
    while at + 8 <= len(raw):
        group, number = struct.unpack_from(f"{order}HH", raw, at)
        if group != 2 and syntax:
            if syntax == _DEFLATED:
                return
            order, explicit = ">" if syntax == _BIG_ENDIAN else "<", syntax != _IMPLICIT
            group, number = struct.unpack_from(f"{order}HH", raw, at)
            syntax = ""
        kind = raw[at + 4 : at + 6]
        implicit = group == 0xFFFE or not explicit or not kind.isalpha()
        if implicit:
            start, length = at + 8, struct.unpack_from(f"{order}I", raw, at + 4)[0]
        elif kind not in _LONG:  # or of unknown type
            start, length = at + 8, struct.unpack_from(f"{order}H", raw, at + 6)[0]
        elif at + 12 <= len(raw):
            start, length = at + 12, struct.unpack_from(f"{order}I", raw, at + 8)[0]
        else:
            return
        if length == _UNDEFINED:
            if kind == b"UN":
                return
            length = 0
        known = implicit or kind in _SHORT or kind in _LONG
        yield Element((group, number), start, length, known)
        at = start + length
        if (group, number) == (2, 16):
            syntax = value_text(raw, Element((2, 16), start, length))


def value_text(raw: Buffer, element: Element) -> str:
    """Return the value of an element as text, without padding."""
    value = raw[element.start : element.start + element.length]
    return value.rstrip(b"\0 ").decode("ascii", "replace")


def has_element(file: Path, tag: tuple[int, int]) -> bool:
    """Return whether a file has an element, outside sequences of known length."""
    with (
        file.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as raw,
    ):
        return raw[128:132] == b"DICM" and any(element.tag == tag for element in elements(raw))


def damage(file: Path) -> str:
    """Return what is wrong with the elements of a file; nothing if each is whole and of known type.

    GDCM takes memory for the announced length of a value before it reads it, up to all that there
    is, and guesses how to go on behind an unknown type.
    """
    with file.open("rb") as stream:
        if stream.read(132)[128:] != b"DICM":
            return ""
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as raw:
            for (group, number), start, length, known in elements(raw):
                if not known:
                    return f"its element ({group:04X},{number:04X}) has no known type"
                if length > len(raw) - start:
                    return (
                        f"its element ({group:04X},{number:04X}) announces {length} bytes, but "
                        f"{len(raw) - start} follow"
                    )
    return ""
