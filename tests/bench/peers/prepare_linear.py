"""Make pairs for linear registration: scans of one patient, and known rotations of scans.

A known rotation is written into the header of the moving image, about the centre of its box, so no
voxel is interpolated for it. Where both images come from one scan, the moving one is first sampled
on another grid (turned by 7 degrees, voxels 1.1 times as long) and changed in contrast and noise.

Usage: python prepare_linear.py --data DATA --output PAIRS
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
import SimpleITK as sitk

#: name: fixed image, moving image (None: the fixed one, sampled anew).
_SCANS: dict[str, tuple[str, str | None]] = {
    "t1t2": ("brain_t1t2/tcga_fg6692_t2.nii.gz", "brain_t1t2/tcga_fg6692_t1.nii.gz"),
    "brain": ("brain/b1_t1.nii.gz", None),
    "ct": ("abdomen/ts_ct.nii.gz", None),
}
_TUMOUR = ("brain_tumour_nc/pre_t1ce.nii.gz", "brain_tumour_nc/post_t1ce.nii.gz")
_DEGREES = (15, 30, 45)


def rotation(axis: np.ndarray, degrees: float) -> np.ndarray:
    """Return the matrix of a rotation about an axis (Rodrigues' formula)."""
    x, y, z = axis / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    angle = np.deg2rad(degrees)
    return np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross


def centre(image: sitk.Image) -> np.ndarray:
    """Return the centre of the image's box, LPS mm."""
    index = [(n - 1) / 2 for n in image.GetSize()]
    return np.array(image.TransformContinuousIndexToPhysicalPoint(index))


def sampled_anew(image: sitk.Image) -> sitk.Image:
    """Sample an image on a turned grid of longer voxels; change its contrast and add noise."""
    turn = rotation(np.array([1.0, 1.0, 1.0]), 7)
    spacing = np.array(image.GetSpacing()) * 1.1
    size = np.ceil(1.15 * np.multiply(image.GetSize(), image.GetSpacing()) / spacing).astype(int)
    grid = sitk.ResampleImageFilter()
    direction = turn @ np.reshape(image.GetDirection(), (3, 3))
    grid.SetOutputSpacing(spacing.tolist())
    grid.SetSize(size.tolist())
    grid.SetOutputDirection(direction.ravel().tolist())
    grid.SetOutputOrigin((centre(image) - direction @ (spacing * (size - 1) / 2)).tolist())
    low = float(sitk.GetArrayViewFromImage(image).min())
    grid.SetDefaultPixelValue(low)
    grid.SetInterpolator(sitk.sitkBSpline)
    result = grid.Execute(sitk.Cast(image, sitk.sitkFloat32))
    values = sitk.GetArrayFromImage(result)
    if low >= 0:  # MR
        top = float(np.percentile(values, 99.5))
        values = top * np.clip(values / top, 0, None) ** 0.8
        noise = 0.02 * top
    else:
        noise = 15.0
    values += noise * np.random.default_rng(0).standard_normal(values.shape)
    changed = sitk.GetImageFromArray(np.maximum(values, low).astype(np.float32))
    changed.CopyInformation(result)
    return changed


def turned(image: sitk.Image, matrix: np.ndarray) -> tuple[sitk.Image, sitk.AffineTransform]:
    """Turn the header of an image about its centre; also return the map of its old points."""
    middle = centre(image)
    result = sitk.Image(image)
    direction = matrix @ np.reshape(image.GetDirection(), (3, 3))
    result.SetDirection(direction.ravel().tolist())
    result.SetOrigin((matrix @ (np.array(image.GetOrigin()) - middle) + middle).tolist())
    there = sitk.AffineTransform(3)
    there.SetMatrix(matrix.ravel().tolist())
    there.SetTranslation((middle - matrix @ middle).tolist())
    return result, there


def main() -> None:
    """Write a folder for each pair: fixed, moving, and, where it is known, the truth."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()

    def write(name: str, fixed: sitk.Image, moving: sitk.Image) -> Path:
        folder = options.output / name
        folder.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(fixed, str(folder / "fixed.nii.gz"))
        sitk.WriteImage(moving, str(folder / "moving.nii.gz"))
        return folder

    for name, (one, other) in _SCANS.items():
        fixed = sitk.ReadImage(str(options.data / one))
        moving = sampled_anew(fixed) if other is None else sitk.ReadImage(str(options.data / other))
        write(f"{name}_0", fixed, moving)
        for letter, axis in zip("xyz", np.eye(3), strict=True):
            for degrees in _DEGREES:
                image, map_ = turned(moving, rotation(axis, degrees))
                folder = write(f"{name}_{letter}{degrees}", fixed, image)
                sitk.WriteTransform(map_, str(folder / "turn.tfm"))
    images = [sitk.ReadImage(str(options.data / name)) for name in _TUMOUR]
    folder = write("tumour", images[0], images[1])
    for role, name in zip(("fixed", "moving"), _TUMOUR, strict=True):
        landmarks = options.data / name.replace("t1ce.nii.gz", "landmarks.csv")
        shutil.copy(landmarks, folder / f"{role}_landmarks.csv")


if __name__ == "__main__":
    main()
