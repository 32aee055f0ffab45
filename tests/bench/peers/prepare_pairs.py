"""Put both images of every labelled pair on one grid, for peers that work in voxels.

`--data` names a folder with `pairs.csv` (pair, kind, fixed, fixed_label, moving, moving_label) and
`init/<pair>.tfm`, affine starts that map fixed to moving points (LPS, mm). Grids:

* abdomen: 2 mm isotropic on the box of the fixed image; 192 x 160 x 192 (x, y, z) about its
  centre for `tune_*`;
* cine and brain: the grid of the fixed image.

A pair of brains without a start file gets a Mattes MI affine, from every voxel on one thread,
so that it is the same each time. Without any start: identity.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

import numpy as np
import SimpleITK as sitk

ABDOMEN_SPACING_MM = 2.0
TUNE_SIZE_XYZ = (192, 160, 192)
CT_AIR_HU = -1000.0
KINDS = {
    "MR-CT": ("mrct", "MR", "CT"),
    "CT-CT": ("ctct", "CT", "CT"),
    "MR-MR": ("mrmr", "MR", "MR"),
    "cine": ("cine", "MR", "MR"),
    "T1-T1": ("brain", "MR", "MR"),
}


def centred_grid(fixed: sitk.Image, size_xyz: tuple[int, ...], spacing_mm: float) -> sitk.Image:
    """Return an empty isotropic image with the centre and the direction of `fixed`."""
    middle = [(n - 1) / 2.0 for n in fixed.GetSize()]
    centre = np.array(fixed.TransformContinuousIndexToPhysicalPoint(middle))
    direction = np.array(fixed.GetDirection()).reshape(3, 3)
    half_mm = spacing_mm * (np.array(size_xyz) - 1) / 2.0
    grid = sitk.Image([int(n) for n in size_xyz], sitk.sitkUInt8)
    grid.SetSpacing([spacing_mm] * 3)
    grid.SetDirection(fixed.GetDirection())
    grid.SetOrigin((centre - direction @ half_mm).tolist())
    return grid


def working_grid(pair: str, kind: str, fixed: sitk.Image) -> sitk.Image:
    """Return the grid on which both images of the pair are written."""
    if kind in ("cine", "brain"):
        return fixed
    if pair.startswith("tune_"):
        return centred_grid(fixed, TUNE_SIZE_XYZ, ABDOMEN_SPACING_MM)
    box_mm = np.array(fixed.GetSize()) * np.array(fixed.GetSpacing())
    size = tuple(int(n) for n in np.rint(box_mm / ABDOMEN_SPACING_MM))
    return centred_grid(fixed, size, ABDOMEN_SPACING_MM)


def fit_affine(fixed: sitk.Image, moving: sitk.Image) -> sitk.AffineTransform:
    """Return a Mattes MI affine (fixed to moving) after alignment of the moments."""
    fixed = sitk.Cast(fixed, sitk.sitkFloat32)
    moving = sitk.Cast(moving, sitk.sitkFloat32)
    threads = sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # the order of sums decides the result
    start = sitk.CenteredTransformInitializer(
        fixed, moving, sitk.AffineTransform(3), sitk.CenteredTransformInitializerFilter.MOMENTS
    )
    method = sitk.ImageRegistrationMethod()
    method.SetMetricAsMattesMutualInformation(48)
    method.SetMetricSamplingStrategy(method.NONE)
    method.SetInterpolator(sitk.sitkLinear)
    method.SetOptimizerAsRegularStepGradientDescent(
        learningRate=1.0, minStep=1e-4, numberOfIterations=200, gradientMagnitudeTolerance=1e-6
    )
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([4, 2])
    method.SetSmoothingSigmasPerLevel([2.0, 1.0])
    method.SetInitialTransform(start, inPlace=True)
    method.Execute(fixed, moving)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    return sitk.AffineTransform(start)


def start_transform(
    data: Path, pair: str, kind: str, fixed: sitk.Image, moving: sitk.Image
) -> sitk.Transform:
    """Return the start of a pair: its file, a fitted affine for brains, else identity."""
    path = data / "init" / f"{pair}.tfm"
    if path.exists():
        return sitk.ReadTransform(str(path))
    return fit_affine(fixed, moving) if kind == "brain" else sitk.AffineTransform(3)


def resample_image(
    image: sitk.Image, grid: sitk.Image, transform: sitk.Transform, modality: str
) -> sitk.Image:
    """Resample linearly; outside: air for CT (or the minimum if higher), 0 for MR."""
    array = sitk.GetArrayViewFromImage(image)
    outside = max(CT_AIR_HU, float(array.min())) if modality == "CT" else 0.0
    image = sitk.Cast(image, sitk.sitkFloat32)
    result = sitk.Resample(image, grid, transform, sitk.sitkLinear, outside, sitk.sitkFloat32)
    return sitk.Cast(sitk.Round(result), sitk.sitkInt16)


def resample_labels(labels: sitk.Image, grid: sitk.Image, transform: sitk.Transform) -> sitk.Image:
    """Resample a label map to its nearest neighbours; outside: 0."""
    return sitk.Resample(labels, grid, transform, sitk.sitkNearestNeighbor, 0, sitk.sitkUInt8)


def prepare_pair(data: Path, row: dict[str, str], output: Path) -> None:
    """Write the four volumes, the start and `pair.json` of one row of `pairs.csv`."""
    pair = row["pair"]
    kind, fixed_modality, moving_modality = KINDS[row["kind"].split()[0]]
    fixed = sitk.ReadImage(str(data / row["fixed"]))
    moving = sitk.ReadImage(str(data / row["moving"]))
    grid = working_grid(pair, kind, fixed)
    start = start_transform(data, pair, kind, fixed, moving)
    identity = sitk.Transform(3, sitk.sitkIdentity)
    folder = output / pair
    folder.mkdir(parents=True, exist_ok=True)
    sitk.WriteTransform(start, str(folder / "start.tfm"))
    volumes = {
        "fixed": resample_image(fixed, grid, identity, fixed_modality),
        "moving": resample_image(moving, grid, start, moving_modality),
        "fixed_labels": resample_labels(
            sitk.ReadImage(str(data / row["fixed_label"])), grid, identity
        ),
        "moving_labels": resample_labels(
            sitk.ReadImage(str(data / row["moving_label"])), grid, start
        ),
    }
    for name, volume in volumes.items():
        sitk.WriteImage(volume, str(folder / f"{name}.nii.gz"))
    facts = {
        "pair": pair,
        "kind": kind,
        "fixed_modality": fixed_modality,
        "moving_modality": moving_modality,
    }
    (folder / "pair.json").write_text(json.dumps(facts, indent=2) + "\n")
    print(pair, kind, "x".join(map(str, grid.GetSize())), flush=True)


def main() -> None:
    """Prepare every labelled pair."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with pairs.csv and init/")
    parser.add_argument("--output", type=Path, required=True, help="one folder per pair goes here")
    parser.add_argument("--only", help="prepare this pair alone")
    args = parser.parse_args()
    with (args.data / "pairs.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["fixed_label"] and args.only in (None, row["pair"]):
                prepare_pair(args.data, row, args.output)


if __name__ == "__main__":
    main()
