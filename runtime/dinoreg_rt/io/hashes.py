"""The provenance of a result: content hashes of images and versions of packages."""

from __future__ import annotations

import hashlib
from importlib import metadata

import numpy as np

import dinoreg_kernels

from ..types import Volume
from .arrays import as_numpy


def content_hash(volume: Volume) -> str:
    """Return the sha256 of voxels and header, which is the same in every file format."""
    digest = hashlib.sha256()
    geometry = volume.geometry
    header = [*geometry.spacing_mm, *geometry.origin_mm, *geometry.direction.ravel()]
    digest.update(np.asarray(geometry.shape_zyx, np.int64).tobytes())
    digest.update(np.asarray(header, np.float64).tobytes())
    digest.update(np.ascontiguousarray(as_numpy(volume.array)).data.cast("B"))
    return digest.hexdigest()


def versions(*more: str) -> dict[str, str]:
    """Return the versions of what a registration uses; `more` names further distributions."""
    info = dinoreg_kernels.build_info()
    found = {}
    for name in ("dinoreg-rt", "numpy", "SimpleITK", *more):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found | {"libdinoreg": info.version, "instruction set": info.isa}
