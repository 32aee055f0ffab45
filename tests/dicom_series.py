"""A small DICOM series, written by SimpleITK."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import SimpleITK as sitk

UID = "1.2.826.0.1.3680043.2.1125.1"
STEP_MM = 2.5
COUNT = 5


def voxels() -> np.ndarray:
    return np.random.default_rng(3).integers(-1000, 1000, (COUNT, 6, 7)).astype(np.int16)


def write_series(
    folder: Path,
    *,
    uid: str = f"{UID}.1",
    description: str = "portal venous",
    positions: list[tuple[float, float, float]] | None = None,
    rows: str = "1\\0\\0\\0\\1\\0",
) -> None:
    """Slices of `voxels`, stored with an intercept of -1024 in files named in reverse order."""
    folder.mkdir(exist_ok=True)
    positions = positions or [(10.0, -20.0, 100 + STEP_MM * i) for i in range(COUNT)]
    writer = sitk.ImageFileWriter()
    writer.KeepOriginalImageUIDOn()
    for i, position in enumerate(positions):
        image = sitk.GetImageFromArray((voxels()[i % COUNT] + 1024)[None].astype(np.uint16))
        image.SetSpacing((0.5, 0.75, STEP_MM))
        tags = {
            "0008|0060": "CT",
            "0008|0018": f"{uid}.{i + 1}",
            "0008|103e": description,
            "0020|000d": UID,
            "0020|000e": uid,
            "0020|0013": str(i),
            "0020|0032": "\\".join(f"{v:g}" for v in position),
            "0020|0037": rows,
            "0028|1052": "-1024",
            "0028|1053": "1",
        }
        for key, value in tags.items():
            image.SetMetaData(key, value)
        writer.SetFileName(str(folder / f"{uid[-1]}_{len(positions) - i:03d}.dcm"))
        writer.Execute(image)
