"""One DICOM series from a folder, its slices in order and evenly spaced."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..errors import InputError
from ..types import Modality
from .arrays import float32_at
from .convert import quiet_itk, set_geometry, sitk_view
from .dicom_elements import damage, elements, has_element, value_text
from .dicom_grid import stack
from .dicom_headers import header_reader, last_line, read_slices, read_tags
from .dicom_pixels import correct_values, pixel_type_of, read_pixels
from .dicom_slices import SERIES, check_alike, select
from .paths import check_name

if TYPE_CHECKING:
    import SimpleITK as sitk

#: SOP classes of slices and volumes. Reports, contours, treatment plans and the like are not images
#: and are ignored, as GDCM does.
_IMAGE_CLASS = re.compile(
    r"1\.2\.840\.10008\.5\.1\.4\.1\.1\.(1|2|3|4|6|7|12|13|14|20|77|128|130)\b"
)
_MODALITIES: dict[str, Modality] = {"CT": "ct", "MR": "mr"}
_SPECTROSCOPY = "1.2.840.10008.5.1.4.1.1.4.2"


class Series(NamedTuple):
    """A series as it was read.

    Attributes:
        image: float32 voxels in LPS geometry.
        pixel_type: NumPy name of the pixel type after rescaling.
        modality: the modality that its header names; None if that is neither CT nor MR.
        notes: what was corrected or evened out.
    """

    image: sitk.Image
    pixel_type: str
    modality: Modality | None
    notes: tuple[str, ...]


def split_series(path: str | os.PathLike[str]) -> tuple[Path, str | None]:
    """Split ``FOLDER?series=UID`` into folder and selection; any other path has the selection None.

    The selection is the UID, and attributes as in `read_series`.
    """
    text = os.fspath(path)
    if SERIES in text and not Path(text).exists():
        folder, _, selection = text.rpartition(SERIES)
        return Path(folder), selection
    return Path(text), None


def series_files(folder: Path, uid: str | None = None) -> list[str]:
    """List the files of a series; `uid` is required if the folder holds several.

    Raises:
        InputError: the folder holds no series, or several (which are listed), or DICOM files that
            cannot be read or whose names are not valid text.
    """
    import SimpleITK as sitk

    reader = sitk.ImageSeriesReader
    files_here = sorted(path for path in folder.iterdir() if path.is_file())
    _refuse_damaged({path: reason for path in files_here if (reason := damage(path))})
    if uid is None:
        with _listing(files_here):
            first = list(reader.GetGDCMSeriesFileNames(str(folder)))
        for file in first:
            check_name(file)
        # One series and nothing else: the folder need not be read again.
        if first and len(first) == len(files_here):
            return first
    with _listing(files_here):
        found = list(reader.GetGDCMSeriesIDs(str(folder)))
        files = {u: list(reader.GetGDCMSeriesFileNames(str(folder), u)) for u in found}
    for file in (name for names in files.values() for name in names):
        check_name(file)
    _check_unread(folder, {Path(file).name for names in files.values() for file in names})
    if not found:
        raise InputError(
            f"{folder}: holds no DICOM series; give an image file, or the folder that directly "
            "contains the DICOM files"
        )
    if uid is None and len(found) == 1:
        return files[found[0]]
    if uid in files:
        return files[uid]
    listing = "".join(f"\n  {u}  {_description(f[0])}  ({len(f)} files)" for u, f in files.items())
    problem = f"no series {uid}" if uid else f"{len(found)} DICOM series"
    raise InputError(
        f"{folder}: holds {problem}; choose one as '{folder}{SERIES}UID' from these:{listing}"
    )


def input_files(path: str | os.PathLike[str]) -> list[Path]:
    """List the files that a path as of `split_series` stands for, in name order.

    Raises:
        InputError: the folder does not hold the series.
    """
    folder, selection = split_series(path)
    if selection is not None:
        uid, _ = _parse_selection(selection)
        return sorted(Path(file) for file in series_files(folder, uid))
    if folder.is_dir():
        return sorted(p for p in folder.iterdir() if p.is_file())
    return [folder]


def read_series(folder: Path, selection: str | None = None) -> Series:
    """Read the DICOM series of a folder, with each slice's rescale slope and intercept applied.

    Args:
        folder: the folder of the files; it is not searched recursively.
        selection: Series Instance UID, required if the folder holds several series. For volumes
            mixed in one series it is followed by ``&ATTRIBUTE=VALUE``, such as ``&EchoTime=4.92``.

    Raises:
        InputError: as `series_files`, or the slices do not form one evenly spaced volume.
    """
    uid, wanted = _parse_selection(selection)
    name = str(folder) if selection is None else f"{folder}{SERIES}{selection}"
    slices = select(read_slices(series_files(folder, uid)), wanted, name)
    check_alike(slices, name)
    _refuse_table(Path(slices[0].file))
    slices, geometry, notes = stack(slices, name)
    image = read_pixels(slices, name)
    view = sitk_view(image)  # a read-only view of memory that nothing else uses yet
    more = correct_values(float32_at(view.ctypes.data, view.shape, image), slices)
    set_geometry(image, geometry)
    header = slices[0].tags.get("Modality", "").strip().upper()
    modality = _MODALITIES.get(header)
    if header and modality is None:
        more = (*more, f"the DICOM header says {header}, which is neither CT nor MR")
    return Series(image, pixel_type_of(slices), modality, (*notes, *more))


def _refuse_table(file: Path) -> None:
    """Refuse values that are indices of a table, which GDCM leaves as they are."""
    if has_element(file, (0x0028, 0x3000)):
        raise InputError(
            f"{file}: its values go through a table (Modality LUT Sequence, (0028,3000)), which is "
            "not supported: convert the series to NIfTI or NRRD"
        )


def _parse_selection(selection: str | None) -> tuple[str | None, dict[str, str]]:
    uid, *conditions = (selection or "").split("&")
    wanted = dict(part.partition("=")[::2] for part in conditions)
    return uid or None, wanted


@contextmanager
def _listing(files: list[Path]) -> Iterator[None]:
    """Name the file for which GDCM cannot list the series of its folder."""
    try:
        with quiet_itk():
            yield
    except RuntimeError as error:
        reasons = {file: _refusal(file) for file in files}
        _refuse_damaged({f: why for f, why in reasons.items() if why == last_line(error)})
        raise InputError(f"{files[0].parent}: cannot be listed: {last_line(error)}") from error


def _refusal(file: Path) -> str:
    """Return why GDCM does not read the header of a file; nothing if it does."""
    try:
        with quiet_itk():
            read_tags(header_reader(), str(file))
    except RuntimeError as error:
        return last_line(error)
    return ""


def _check_unread(folder: Path, read: set[str]) -> None:
    """Require that no slice is damaged: GDCM silently leaves damaged files out of a series."""
    suffixes = {Path(name).suffix.lower() for name in read} - {""}
    others = sorted(p for p in folder.iterdir() if p.name not in read and p.is_file())
    _refuse_damaged(dict.fromkeys((file for file in others if _is_damaged(file, suffixes)), ""))


def _refuse_damaged(files: dict[Path, str]) -> None:
    """Refuse damaged files, with the reason of each where it is known.

    Raises:
        InputError: there are some; the message says how many, and names the first.
    """
    if files:
        first, reason = next(iter(files.items()))
        raise InputError(
            f"{first.parent}: {len(files)} DICOM file{'s' * (len(files) > 1)} cannot be read "
            f"(first: {first.name}{': ' * bool(reason)}{reason}), damaged? copy them again, or "
            "move them out of the folder"
        )


def _is_damaged(file: Path, suffixes: set[str]) -> bool:
    """Return whether a file that GDCM does not read is an image or has one of the suffixes."""
    if file.name.startswith("."):  # metadata of other operating systems
        return False
    with file.open("rb") as stream:
        raw = stream.read(1024)
    if raw[128:132] != b"DICM":
        return file.suffix.lower() in suffixes
    sop_class = _sop_class(raw)
    if sop_class is None:  # the file ends within its header
        return True
    return sop_class != _SPECTROSCOPY and _IMAGE_CLASS.match(sop_class) is not None


def _sop_class(raw: bytes) -> str | None:
    """Return the media storage SOP class from the beginning of a file; None if it is missing."""
    found = (value_text(raw, each) for each in elements(raw) if each.tag == (2, 2))
    return next(found, None)


def _description(file: str) -> str:
    try:
        with quiet_itk():
            text = read_tags(header_reader(), file).get("SeriesDescription", "")
    except RuntimeError:  # the message with the list goes first
        return "(not readable)"
    return f"'{text}'" if text else "(no description)"
