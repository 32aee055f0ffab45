"""The numbers of MetaImage headers, checked before ITK reads them.

ITK believes a header: a negative number of axes keeps it busy for minutes, and it takes memory for
as many voxels as are announced.
"""

from __future__ import annotations

import math
import re
from pathlib import Path

from ..errors import InputError
from .metaimage import BYTES, MetaHeader

#: ITK and SimpleITK read images of two to five axes.
_AXES = range(2, 6)
_LONGEST_AXIS = 1 << 20
_MOST_CHANNELS = 1 << 16
#: Most bytes that deflate packs into one.
_MOST_PACKED = 1032


def check_meta_header(header: MetaHeader) -> None:
    """Require a MetaImage header whose numbers are plausible and whose voxels the file can hold.

    Raises:
        InputError: anything else.
    """
    file, fields = header.file, header.fields
    axes = _whole(fields.get("NDims", ""))
    if axes is None or axes not in _AXES:
        raise _damaged(file, f"it has NDims = {fields.get('NDims', '(none)')[:40]}; 3 is needed")
    sizes = [_whole(word) for word in fields.get("DimSize", "").split()]
    if len(sizes) != axes or any(n is None or not 1 <= n <= _LONGEST_AXIS for n in sizes):
        raise _damaged(
            file,
            f"it has DimSize = {fields.get('DimSize', '(none)')[:60]}; {axes} whole numbers from 1 "
            f"to {_LONGEST_AXIS} are needed",
        )
    channels = _whole(fields.get("ElementNumberOfChannels", "1"))
    if channels is None or not 1 <= channels <= _MOST_CHANNELS:
        raise _damaged(file, "its ElementNumberOfChannels is no number from 1 to 65536")
    _check_numbers(file, fields, axes)
    kind = fields.get("ElementType", "").removeprefix("MET_").removesuffix("_ARRAY")
    if kind not in BYTES:
        raise _damaged(file, f"its ElementType is {fields.get('ElementType', '(none)')[:40]}")
    voxels = math.prod(n for n in sizes if n is not None)
    _check_bytes(file, fields, voxels * channels * BYTES[kind])


def _check_numbers(file: Path, fields: dict[str, str], axes: int) -> None:
    """Require finite numbers, as many as the axes need, where ITK reads a fixed number."""
    counts = dict.fromkeys(("ElementSpacing", "ElementSize"), axes)
    counts |= dict.fromkeys(("Offset", "Origin", "Position", "CenterOfRotation"), axes)
    counts |= dict.fromkeys(("TransformMatrix", "Rotation", "Orientation"), axes * axes)
    for key in counts.keys() & fields.keys():
        try:
            numbers = [float(word) for word in fields[key].split()]
        except ValueError:
            numbers = []
        if len(numbers) != counts[key] or not all(map(math.isfinite, numbers)):
            raise _damaged(file, f"its {key} needs {counts[key]} numbers: {fields[key][:60]}")


def _check_bytes(file: Path, fields: dict[str, str], announced: int) -> None:
    name = fields["ElementDataFile"]
    data = file if name.upper() == "LOCAL" else file.parent / name
    if not data.is_file():
        return  # reported by the caller
    held = data.stat().st_size
    packed = fields.get("CompressedData", "False").lower() == "true"
    size = _whole(fields.get("CompressedDataSize", "0"))
    if packed and (size is None or size < 0):
        raise _damaged(file, f"its CompressedDataSize is {fields['CompressedDataSize'][:40]}")
    if packed and size is not None and size > held:
        raise _truncated(file, held, f"{size} bytes of compressed voxels")
    if announced > held * (_MOST_PACKED if packed else 1):
        raise _truncated(file, held, f"voxels of {announced} bytes")


def _truncated(file: Path, held: int, announced: str) -> InputError:
    return InputError(
        f"{file}: truncated file: {held} bytes, but its header announces {announced}; copy or "
        "download it again"
    )


def _whole(text: str) -> int | None:
    return int(text) if re.fullmatch(r"-?[0-9]{1,18}", text) else None


def _damaged(file: Path, reason: str) -> InputError:
    return InputError(
        f"{file}: cannot be read as an image: its MetaImage header is damaged: {reason}; correct "
        "the header"
    )
