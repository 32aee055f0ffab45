"""The voxels of a stack of DICOM slices."""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from .convert import quiet_itk
from .dicom_headers import Slice, last_line
from .hidden import scratch_folder

if TYPE_CHECKING:
    import SimpleITK as sitk

#: Modalities whose values after rescaling are physical, however they are displayed.
_PHYSICAL = ("CT", "PT", "NM")
#: SpacingBetweenSlices, (0018,0088), with its value: little endian with and without the type, and
#: big endian.
_SPACING_ELEMENT = re.compile(
    rb"(?:\x18\x00\x88\x00(?:DS(..)|(..)\x00\x00)|\x00\x18\x00\x88DS(..))([ 0-9.eE+-]*)", re.DOTALL
)
#: PixelData, (7FE0,0010), in little and in big endian.
_PIXEL_DATA = re.compile(rb"\xe0\x7f\x10\x00|\x7f\xe0\x00\x10")


def read_pixels(slices: Sequence[Slice], name: str) -> sitk.Image:
    """Read slices in the given order, each with its own rescale slope and intercept.

    Returns:
        A float32 image, whose geometry is to be set.

    Raises:
        InputError: a file is damaged, or of a kind that GDCM cannot read.
    """
    import SimpleITK as sitk

    for one in slices:
        _check_length(one)
    reader = sitk.ImageSeriesReader()
    # Slopes may differ between slices (PET); integers of the first slice's type would clip them.
    reader.SetOutputPixelType(sitk.sitkFloat32)
    with _readable(slices) as files:
        reader.SetFileNames(files)
        try:
            with quiet_itk():
                return reader.Execute()
        except RuntimeError as error:
            raise InputError(f"{name}: the series cannot be read: {last_line(error)}") from error


def _check_length(one: Slice) -> None:
    """Require that a slice has all its pixels: GDCM takes what is missing from arbitrary memory."""
    wanted = int(one.tags["Rows"]) * int(one.tags["Columns"])
    wanted = wanted * int(one.number("BitsAllocated", 16)) // 8
    with open(one.file, "rb") as stream:
        even = wanted + wanted % 2
        stream.seek(-min(even + 12, stream.seek(0, os.SEEK_END)), os.SEEK_END)
        head = stream.read(12)
        if _PIXEL_DATA.search(head) and head.endswith(even.to_bytes(4, "little")):
            return  # the pixels are whole and end the file
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as raw:
            lengths = [_element_length(raw, m.start()) for m in _PIXEL_DATA.finditer(raw)]
    # Compressed pixels have an undefined length, and in a deflated file nothing is found.
    if lengths and max(lengths) < wanted:
        raise InputError(
            f"{one.file}: has {max(lengths)} bytes of pixels, but its header announces {wanted}: "
            "copy it again, or move it out of the folder"
        )


def _element_length(raw: mmap.mmap, start: int) -> int:
    order: Literal["little", "big"] = "little" if raw[start] == 0xE0 else "big"
    explicit = raw[start + 4 : start + 6] in (b"OW", b"OB")
    at = start + (8 if explicit else 4)
    return int.from_bytes(raw[at : at + 4], order)


def pixel_type_of(slices: Sequence[Slice]) -> str:
    """Return the NumPy name of the smallest pixel type that holds the values of all slices."""
    return np.result_type(*{s.pixel_type for s in slices}).name


def correct_values(voxels: NDArray[np.float32], slices: Sequence[Slice]) -> tuple[str, ...]:
    """Undo GDCM's inversion of MONOCHROME1 where it is wrong, and replace padding.

    Args:
        voxels: (D, H, W) as GDCM read them, in the order of `slices`; they are changed in place.
        slices: the headers.

    Returns:
        Notes about what was changed.
    """
    white_is_low = slices[0].tags.get("PhotometricInterpretation") == "MONOCHROME1"
    inverted = white_is_low and slices[0].tags.get("Modality") not in _PHYSICAL
    notes = []
    if white_is_low:
        _store(voxels, slices)
    if any("PixelPaddingValue" in one.tags for one in slices):
        notes += _replace_padding(voxels, slices, inverted=inverted)
    if inverted:
        np.subtract(voxels.min() + voxels.max(), voxels, out=voxels)
        notes.append("its values were inverted, because its smallest one is shown white")
    return tuple(notes)


def _store(voxels: NDArray[np.float32], slices: Sequence[Slice]) -> None:
    """Restore the rescaled values of MONOCHROME1, which GDCM inverts before it rescales them."""
    for plane, one in zip(voxels, slices, strict=True):
        signed = one.number("PixelRepresentation", 0) == 1
        # GDCM makes highest - v of a stored value v.
        highest = -1.0 if signed else 2 ** one.number("BitsStored", 16) - 1
        slope, intercept = _rescale(one)
        plane[...] = (slope * highest + 2 * intercept) - plane.astype(np.float64)


def _replace_padding(
    voxels: NDArray[np.float32], slices: Sequence[Slice], *, inverted: bool
) -> list[str]:
    """Give padding the lowest of the other values (or the highest, which is `inverted` later)."""
    masks, found = [], []
    lowest, highest = np.inf, -np.inf
    for plane, one in zip(voxels, slices, strict=True):
        low, high = _padding_range(one)
        half = abs(_rescale(one)[0]) / 2
        mask = (plane >= low - half) & (plane <= high + half)
        masks.append(mask)
        if mask.any():
            found += [low, high]
        lowest = min(lowest, float(np.where(mask, np.inf, plane).min()))
        highest = max(highest, float(np.where(mask, -np.inf, plane).max()))
    # Zeros below everything else are an ordinary background.
    if not found or lowest > highest or (not any(found) and lowest > 0):
        return []
    low, high = min(found), max(found)
    which = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    if lowest <= high and low <= highest:
        return [f"its PixelPaddingValue ({which}) lies among the other values and was not replaced"]
    background = highest if inverted else lowest
    for plane, mask in zip(voxels, masks, strict=True):
        np.copyto(plane, np.float32(background), where=mask)
    count = sum(map(np.count_nonzero, masks))
    return [
        f"{count} voxels are padding ({which}, PixelPaddingValue); they were given the "
        f"{'highest' if inverted else 'lowest'} other value, {background:g}"
    ]


def _padding_range(one: Slice) -> tuple[float, float]:
    """Return the lowest and highest rescaled value of padding; NaN if the slice has none."""
    stored = one.number("PixelPaddingValue", np.nan)
    slope, intercept = _rescale(one)
    signed = one.number("PixelRepresentation", 0) == 1
    limits = []
    for value in (stored, one.number("PixelPaddingRangeLimit", stored)):
        if signed and value > 32767:  # written as unsigned, although the pixels are signed
            value -= 65536
        elif not signed and value < 0:
            value += 65536
        limits.append(slope * value + intercept)
    return min(limits), max(limits)


def _rescale(one: Slice) -> tuple[float, float]:
    # GDCM takes a slope of 0 as 1.
    return one.number("RescaleSlope", 1.0) or 1.0, one.number("RescaleIntercept", 0.0)


@contextmanager
def _readable(slices: Sequence[Slice]) -> Iterator[list[str]]:
    """Give the files to read: copies of those whose SpacingBetweenSlices is 0, which ITK refuses.

    The spacing follows from the positions of the slices, so the value 1 in the copies is not used.
    """
    if all(s.number("SpacingBetweenSlices", 1.0) for s in slices):
        yield [s.file for s in slices]
        return
    with scratch_folder() as folder:
        files = []
        for i, one in enumerate(slices):
            files.append(one.file)
            if not one.number("SpacingBetweenSlices", 1.0):
                files[-1] = str(folder / f"{i}.dcm")
                _copy_with_spacing(Path(one.file), Path(files[-1]))
        yield files


def _copy_with_spacing(file: Path, copy: Path) -> None:
    raw = bytearray(file.read_bytes())
    found = _SPACING_ELEMENT.search(raw)
    if found is None:  # in a deflated file
        raise InputError(f"{file}: its SpacingBetweenSlices (0018,0088) is 0: correct it")
    start, little = found.start(4), raw[found.start()] == 0x18
    length = found[1] or found[2] or found[3]
    size = int.from_bytes(length, "little" if little else "big")
    raw[start : start + size] = b"1".ljust(size)
    copy.write_bytes(raw)
