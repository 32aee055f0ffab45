"""Run a peer on prepared pairs and record its accuracy, regularity and cost.

Both peers read the same windowed images: CT clipped to [-125, 225] HU, MR to [minimum, 98th
percentile], both scaled to [0, 1]. An axis of fewer than 18 voxels is padded to 18 by repeating its
ends, and the field is cropped again: neither peer runs on a cine stack otherwise. Each run is a
process of its own; its CPU seconds (user and system) come from `wait4`, so reading the images and
imports are included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import metrics
import numpy as np
import SimpleITK as sitk
from numpy.typing import NDArray

CT_WINDOW_HU = (-125.0, 225.0)
MR_UPPER_PERCENTILE = 98.0
#: The driver that `dinoreg-rt bench` uses as well; it needs nothing of the project.
CONVEXADAM = Path(__file__).parents[3] / "runtime/dinoreg_rt/bench/convexadam_child.py"
MIN_AXIS_VOX = (
    18  # three coarse grid steps of convexAdam; four voxels after greedy's shrink factor of 4
)
FIELDS = ("displacement.npy", "warp.nii")
COLUMNS = {
    "pair": "{}",
    "peer": "{}",
    "dice_start": "{:.3f}",
    "dice_after": "{:.3f}",
    "hd95_start_mm": "{:.2f}",
    "hd95_mm": "{:.2f}",
    "folded_percent": "{:.3f}",
    "sdlogj": "{:.3f}",
    "cpu_s": "{:.1f}",
    "cpu_s_call": "{:.1f}",
    "wall_s": "{:.1f}",
    "peak_mb": "{:.0f}",
}


def padding(size: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return the voxels to add before and after each axis."""
    missing = [max(0, MIN_AXIS_VOX - n) for n in size]
    return [(n // 2, n - n // 2) for n in missing]


def write_windowed(source: Path, modality: str, target: Path) -> None:
    """Clip one image, scale it to [0, 1], pad it, and write it uncompressed."""
    image = sitk.ReadImage(str(source), sitk.sitkFloat32)
    array = sitk.GetArrayFromImage(image)
    if modality == "CT":
        low, high = CT_WINDOW_HU
    else:
        low, high = float(array.min()), float(np.percentile(array, MR_UPPER_PERCENTILE))
    scaled = sitk.GetImageFromArray((np.clip(array, low, high) - low) / (high - low))
    scaled.CopyInformation(image)
    lower, upper = zip(*padding(image.GetSize()), strict=True)
    sitk.WriteImage(sitk.ZeroFluxNeumannPad(scaled, lower, upper), str(target))


def child_command(peer: str, work: Path) -> list[str]:
    """Return the program for a peer and its arguments; both write or print `child.json`."""
    images = [work / "fixed.nii", work / "moving.nii"]
    if peer != "convexadam":
        radius = "4" if peer == "greedy4" else "2"
        script = Path(__file__).with_name("greedy_child.py")
        return [str(script), *map(str, images), "--output", str(work), "--radius", radius]
    arrays = [image.with_suffix(".npy") for image in images]
    for image, array in zip(images, arrays, strict=True):
        np.save(array, sitk.GetArrayFromImage(sitk.ReadImage(str(image))))
    return [str(CONVEXADAM), *map(str, arrays), "--displacement", str(work / "displacement.npy")]


def run_child(peer: str, work: Path, threads: int) -> dict[str, float]:
    """Run the peer in a child process and return what it cost."""
    command = [sys.executable, *child_command(peer, work), "--threads", str(threads)]
    environment = dict(os.environ, OMP_NUM_THREADS=str(threads), MKL_NUM_THREADS=str(threads))
    environment["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(threads)
    start = time.perf_counter()
    with (work / "log.txt").open("w") as log, (work / "child.json").open("w") as printed:
        out = printed if peer == "convexadam" else log
        child = subprocess.Popen(command, stdout=out, stderr=log, env=environment)
        _, status, usage = os.wait4(child.pid, 0)
    wall_s = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode != 0:
        raise RuntimeError(f"{peer} ended with status {child.returncode}; see {work / 'log.txt'}")
    # The report is the last line; convexAdam may print others.
    report = json.loads((work / "child.json").read_text().splitlines()[-1])
    return {
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "wall_s": wall_s,
        "cpu_s_call": report["cpu_s"][0],
        "peak_mb": report["peak_memory_mb"],
    }


def read_displacement(work: Path) -> NDArray[np.float32]:
    """Return the child's field as voxel displacement in (z, y, x) order."""
    if (work / "displacement.npy").exists():
        return np.load(work / "displacement.npy")
    field = sitk.ReadImage(str(work / "warp.nii"))
    direction = np.array(field.GetDirection()).reshape(3, 3)
    mm_to_vox = np.linalg.inv(direction @ np.diag(field.GetSpacing()))
    vectors_mm = sitk.GetArrayFromImage(field)
    return np.ascontiguousarray((vectors_mm @ mm_to_vox.T)[..., ::-1], dtype=np.float32)


def evaluate(pair_folder: Path, work: Path) -> dict[str, Any]:
    """Warp the labels, write them, and return every measure of the result."""
    reference = sitk.ReadImage(str(pair_folder / "fixed_labels.nii.gz"))
    fixed = sitk.GetArrayFromImage(reference)
    moving = sitk.GetArrayFromImage(sitk.ReadImage(str(pair_folder / "moving_labels.nii.gz")))
    spacing = tuple(reference.GetSpacing()[::-1])
    labels = metrics.shared_labels(fixed, moving)
    margins = padding(fixed.shape)
    inside = tuple(slice(lo, lo + n) for (lo, _), n in zip(margins, fixed.shape, strict=True))
    displacement = read_displacement(work)[inside]
    warped = metrics.warp_labels(moving, displacement)
    image = sitk.GetImageFromArray(warped)
    image.CopyInformation(reference)
    sitk.WriteImage(image, str(work / "warped_labels.nii.gz"))
    jacobian = metrics.jacobian_determinant(displacement)
    return {
        "padded": any(sum(margin) for margin in margins),
        "labels": len(labels),
        "labels_lost": sum(not (warped == label).any() for label in labels),
        "dice_start": metrics.mean_dice(fixed, moving, labels),
        "dice_after": metrics.mean_dice(fixed, warped, labels),
        "hd95_start_mm": metrics.mean_hd95_mm(fixed, moving, labels, spacing),
        "hd95_mm": metrics.mean_hd95_mm(fixed, warped, labels, spacing),
        "folded_percent": metrics.folded_share_percent(jacobian),
        "sdlogj": metrics.sdlogj_official(jacobian),
        "dice_by_label": {str(v): metrics.dice(fixed, warped, v) for v in labels},
    }


def run_pair(peer: str, pair_folder: Path, output: Path, threads: int) -> dict[str, Any]:
    """Run one peer on one pair; return its line of results."""
    facts = json.loads((pair_folder / "pair.json").read_text())
    work = output / peer / facts["pair"]
    work.mkdir(parents=True, exist_ok=True)
    for role in ("fixed", "moving"):
        source = pair_folder / f"{role}.nii.gz"
        write_windowed(source, facts[f"{role}_modality"], work / f"{role}.nii")
    line = {"peer": peer, "pair": facts["pair"], "kind": facts["kind"], "threads": threads}
    try:
        cost = run_child(peer, work, threads)
    except RuntimeError as error:
        return {**line, "error": str(error)}
    return {**line, **evaluate(pair_folder, work), **cost}


def store(line: dict[str, Any], output: Path) -> None:
    """Put one line into `results.jsonl`, in place of an older one, and rewrite `table.md`."""
    path = output / "results.jsonl"
    old = [json.loads(text) for text in path.read_text().splitlines()] if path.exists() else []
    key = (line["pair"], line["peer"])
    lines = [item for item in old if (item["pair"], item["peer"]) != key] + [line]
    lines.sort(key=lambda item: (item["pair"], item["peer"]))
    path.write_text("".join(json.dumps(item) + "\n" for item in lines))
    table = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for item in lines:
        cells = (form.format(item[name]) if name in item else "-" for name, form in COLUMNS.items())
        table.append("| " + " | ".join(cells) + " |")
    (output / "table.md").write_text("\n".join(table) + "\n")


def main() -> None:
    """Run the peer named on the command line on the prepared pairs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", choices=("convexadam", "greedy", "greedy4"), required=True)
    parser.add_argument("--pairs", type=Path, required=True, help="output of prepare_pairs.py")
    parser.add_argument(
        "--output", type=Path, required=True, help="results.jsonl, table.md, fields"
    )
    parser.add_argument("--only", help="run this pair alone")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep-fields", action="store_true", help="keep images and displacements")
    args = parser.parse_args()
    for facts in sorted(args.pairs.glob("*/pair.json")):
        if args.only not in (None, facts.parent.name):
            continue
        line = run_pair(args.peer, facts.parent, args.output, args.threads)
        store(line, args.output)
        print(json.dumps(line), flush=True)
        if not args.keep_fields:
            for name in ("fixed.nii", "moving.nii", "fixed.npy", "moving.npy", *FIELDS):
                (args.output / args.peer / facts.parent.name / name).unlink(missing_ok=True)


if __name__ == "__main__":
    main()
