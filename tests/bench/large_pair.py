"""Measure memory, time and error of `run` on a 512 x 512 x 300 CT pair with a known deformation.

The fixed image is a real slab of 20 slices, repeated and mirrored along z until it is 600 mm tall;
the scale changes slowly from slab to slab, so that no two of them are alike. The moving image is
the same volume deformed by smooth waves.

    python large_pair.py --slab DATA/abdomen/ts3_ct_slab.nii.gz --folder OUT [-- RUN OPTIONS]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk

SLICES = 300
PEAK_MM = 12.0


def tall_volume(slab: sitk.Image) -> sitk.Image:
    """Stack the slab and its mirror image in turn, each slightly wider or narrower."""
    spacing = slab.GetSpacing()
    parts, z = [], 0
    while z < SLICES:
        grow = 1 + 0.08 * np.sin(0.7 * len(parts))
        centre = slab.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in slab.GetSize()])
        wider = sitk.AffineTransform(3)
        wider.SetCenter(centre)
        wider.Scale([1 / grow, 1 / grow, 1.0])
        part = sitk.GetArrayFromImage(sitk.Resample(slab, slab, wider, sitk.sitkLinear, -1024.0))
        parts.append(part[:: 1 if len(parts) % 2 == 0 else -1])
        z += part.shape[0]
    image = sitk.GetImageFromArray(np.concatenate(parts)[:SLICES].astype(np.int16))
    image.SetSpacing(spacing)
    return image


def waves(grid: sitk.Image) -> sitk.DisplacementFieldTransform:
    """Return smooth displacements of at most `PEAK_MM` along each axis, on a grid of 16 mm."""
    extent = np.array(grid.GetSize()) * np.array(grid.GetSpacing())
    shape = np.ceil(extent / 16).astype(int) + 1
    z, y, x = np.meshgrid(*[np.arange(n) * 16.0 for n in shape[::-1]], indexing="ij")
    field = np.stack(
        [
            np.sin(y / 60 + 0.3) * np.cos(z / 90),
            np.cos(x / 70) * np.sin(z / 80 + 1.0),
            0.6 * np.sin(x / 80) * np.cos(y / 75),
        ],
        axis=-1,
    )
    image = sitk.GetImageFromArray(PEAK_MM * field, isVector=True)
    image.SetSpacing([16.0] * 3)
    return sitk.DisplacementFieldTransform(sitk.Cast(image, sitk.sitkVectorFloat64))


def make_pair(slab: Path, folder: Path) -> sitk.DisplacementFieldTransform:
    """Write fixed.nii.gz and moving.nii.gz; return the map for moving(q) = fixed(map(q))."""
    fixed = tall_volume(sitk.ReadImage(str(slab)))
    mapping = waves(fixed)
    if not (folder / "moving.nii.gz").exists():
        moving = sitk.Resample(fixed, fixed, mapping, sitk.sitkLinear, -1024.0)
        sitk.WriteImage(fixed, str(folder / "fixed.nii.gz"), True)
        sitk.WriteImage(sitk.Cast(moving, sitk.sitkInt16), str(folder / "moving.nii.gz"), True)
    return mapping


def errors_mm(folder: Path, mapping: sitk.Transform, count: int = 20_000) -> np.ndarray:
    """Return |map(p + u(p)) - p| at random body voxels of the fixed image."""
    fixed = sitk.ReadImage(str(folder / "fixed.nii.gz"))
    field = sitk.ReadImage(str(folder / "out" / "displacement.nii.gz"))
    body = sitk.GetArrayViewFromImage(fixed) > -200
    inner = tuple(slice(n // 8, -n // 8) for n in body.shape)
    index = np.argwhere(body[inner]) + [s.start for s in inner]
    index = index[np.random.default_rng(0).choice(len(index), count, replace=False)]
    errors = []
    for z, y, x in index.tolist():
        p = np.array(fixed.TransformIndexToPhysicalPoint((x, y, z)))
        errors.append(np.linalg.norm(mapping.TransformPoint(p + field[x, y, z]) - p))
    return np.array(errors)


def main() -> None:
    """Make the pair, run the program in a process of its own, and print the measurements."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slab", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("options", nargs="*", help="further options of `dinoreg-rt run`")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    mapping = make_pair(args.slab, args.folder)
    command = [sys.executable, "-m", "dinoreg_rt", "run", "-f", args.folder / "fixed.nii.gz"]
    command += ["-m", args.folder / "moving.nii.gz", "-o", args.folder / "out", *args.options]
    command += ["--save", "displacement"]
    began = time.perf_counter()
    subprocess.run([str(c) for c in command], check=True)
    wall = time.perf_counter() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    before = np.linalg.norm(  # the deformation at random points, without registration
        [
            np.subtract(mapping.TransformPoint(p), p)
            for p in np.random.default_rng(0).uniform(0, 400, (2000, 3))
        ],
        axis=1,
    )
    errors = errors_mm(args.folder, mapping)
    report = json.loads((args.folder / "out" / "report.json").read_text())
    print(
        f"peak memory {used.ru_maxrss / 2**10:.0f} MiB, wall {wall:.1f} s, "
        f"CPU {used.ru_utime + used.ru_stime:.1f} s"
    )
    print(
        f"displacement before {before.mean():.2f} mm; error after: mean {errors.mean():.2f} mm, "
        f"95th percentile {np.percentile(errors, 95):.2f} mm"
    )
    print(json.dumps(report.get("timings_ms", {})))


if __name__ == "__main__":
    main()
