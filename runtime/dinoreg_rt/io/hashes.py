"""What a result was made from and with: content hashes of images, versions of packages."""

from __future__ import annotations

import hashlib
from importlib import metadata

import numpy as np

import dinoreg_kernels

from ..types import Volume
from .arrays import as_numpy


def content_hash(volume: Volume) -> str:
    """sha256 of voxels and header: the same image in another file format has the same hash."""
    digest = hashlib.sha256()
    geometry = volume.geometry
    header = [*geometry.spacing_mm, *geometry.origin_mm, *geometry.direction.ravel()]
    digest.update(np.asarray(geometry.shape_zyx, np.int64).tobytes())
    digest.update(np.asarray(header, np.float64).tobytes())
    digest.update(np.ascontiguousarray(as_numpy(volume.array)).data.cast("B"))
    return digest.hexdigest()


def versions(*more: str) -> dict[str, str]:
    """Of everything that takes part in a registration; `more` names further distributions."""
    info = dinoreg_kernels.build_info()
    found = {}
    for name in ("dinoreg-rt", "numpy", "SimpleITK", *more):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found | {"libdinoreg": info.version, "instruction set": info.isa}
