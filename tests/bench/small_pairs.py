"""Many small pairs from a few real images, for measurements of cohorts.

    python tests/bench/small_pairs.py --data DATA -o FOLDER --pairs 50

DATA holds a pairs.csv as `dinoreg-rt evaluate --pairs` reads it. Every pair of it is resampled to
voxels of 5 mm, several times with other crops, and the table of the small pairs is written beside
them. With --one-fixed, one fixed image is shared by all.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import SimpleITK as sitk


def small(image: sitk.Image, crop: int, spacing_mm: float) -> sitk.Image:
    """Return the image with larger voxels, `crop` of them cut off at the ends of x and y."""
    sizes = zip(image.GetSize(), image.GetSpacing(), strict=True)
    extent = [count * mm for count, mm in sizes]
    size = [max(8, round(mm / spacing_mm)) for mm in extent]
    spacing = [mm / count for mm, count in zip(extent, size, strict=True)]
    resampled = sitk.Resample(
        sitk.Cast(image, sitk.sitkFloat32),
        size,
        sitk.Transform(),
        sitk.sitkLinear,
        image.GetOrigin(),
        spacing,
        image.GetDirection(),
        float(sitk.GetArrayViewFromImage(image).min()),
        sitk.sitkFloat32,
    )
    x, y, _ = (slice(crop, size[axis] - crop) for axis in range(3))
    return sitk.Cast(resampled[x, y, :], sitk.sitkInt16)


def images_of(data: Path) -> list[tuple[Path, Path]]:
    """Return fixed and moving image of every pair that is there."""
    with (data / "pairs.csv").open(encoding="utf-8") as file:
        rows = [(data / row["fixed"], data / row["moving"]) for row in csv.DictReader(file)]
    return [row for row in rows if all(path.exists() for path in row)]


def make(data: Path, folder: Path, count: int, spacing_mm: float, *, one_fixed: bool) -> Path:
    """Write `count` small pairs and return their table."""
    folder.mkdir(parents=True, exist_ok=True)
    given = images_of(data)
    if one_fixed:
        moving = list(dict.fromkeys(path for pair in given for path in pair))
        given = [(given[0][0], path) for path in moving if path != given[0][0]]
    lines = ["pair,fixed,moving"]
    for number in range(count):
        pair, crop = given[number % len(given)], number // len(given)
        names = []
        for role, path in zip(("fixed", "moving"), pair, strict=True):
            own = 0 if one_fixed and role == "fixed" else crop
            names.append(f"{path.name.split('.')[0]}_{own}.nii.gz")
            if not (folder / names[-1]).exists():
                image = small(sitk.ReadImage(str(path)), own, spacing_mm)
                assert np.ptp(sitk.GetArrayViewFromImage(image)) > 0
                sitk.WriteImage(image, str(folder / names[-1]))
        lines.append(f"p{number:02d},{','.join(names)}")
    table = folder / "pairs.csv"
    table.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--spacing-mm", type=float, default=5.0)
    parser.add_argument("--one-fixed", action="store_true")
    given = parser.parse_args()
    print(make(given.data, given.output, given.pairs, given.spacing_mm, one_fixed=given.one_fixed))


if __name__ == "__main__":
    main()
