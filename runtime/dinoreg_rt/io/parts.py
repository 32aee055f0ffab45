"""The files that an image consists of: header and voxels may lie apart."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import InputError
from . import metaimage, nrrd
from .dicom import input_files
from .images import image_suffix


def image_parts(path: str | os.PathLike[str]) -> list[Path]:
    """List the files of an image, the named one first; those of a DICOM folder in name order.

    Files that are missing, or that a damaged header does not name, are left out.

    Raises:
        InputError: a folder does not hold the DICOM series.
    """
    files, suffix = input_files(path), image_suffix(path).lower()
    if len(files) != 1:
        return files
    (file,), more = files, []
    try:
        if suffix in (".hdr", ".img"):
            more = [file.with_suffix(s) for s in (".hdr", ".img", ".HDR", ".IMG")]
        elif suffix in (".mhd", ".mha"):
            more = metaimage.data_files(metaimage.read_header(file))
        elif suffix in (".nhdr", ".nrrd"):
            more = nrrd.data_files(file)
    except (InputError, LookupError, ValueError):
        return files
    return [file, *(part for part in dict.fromkeys(more) if part != file and part.is_file())]
