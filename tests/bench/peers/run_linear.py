"""Rigid registrations by peers and by dinoreg-rt, each in a process of its own.

Prints one line for each pair and program, and appends it to OUTPUT/linear.jsonl: mean and largest
distance in mm to the truth over the fixed image's tissue, CPU seconds (user and system) of the
whole process, and wall seconds. The truth is the turn of the header, after the position that
REFERENCE found without a turn where the images are two scans.

Usage: python run_linear.py --pairs PAIRS --output OUTPUT [--programs ants,elastix,greedy,ours]
           [--dinoreg PATH/dinoreg-rt] [--reference ants] [--only NAME ...]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk

_PEER = Path(__file__).with_name("linear_peer.py")


def command(program: str, folder: Path, result: Path, dinoreg: str) -> list[str]:
    """Return the command of one registration."""
    fixed, moving = str(folder / "fixed.nii.gz"), str(folder / "moving.nii.gz")
    if program == "ours":
        given = ["run", "-f", fixed, "-m", moving, "-o", str(result), "--transform", "rigid"]
        return [dinoreg, *given, "--no-qc", "--threads", "2", "-q"]
    return [sys.executable, str(_PEER), program, fixed, moving, str(result / "transform.tfm")]


def read_matrix(result: Path) -> np.ndarray:
    """Return the map from fixed to moving points, LPS mm, as a 4 x 4 matrix."""
    if (result / "transform.ras.txt").exists():
        flip = np.diag([-1.0, -1.0, 1.0, 1.0])
        return flip @ np.loadtxt(result / "transform.ras.txt") @ flip
    name = next(n for n in ("transform.tfm", "transform.mat") if (result / n).exists())
    return matrix_of(sitk.ReadTransform(str(result / name)))


def matrix_of(transform: sitk.Transform) -> np.ndarray:
    """Return a linear transform as a 4 x 4 matrix."""
    origin, *ends = (
        np.array(transform.TransformPoint(p)) for p in [[0.0] * 3, *np.eye(3).tolist()]
    )
    matrix = np.eye(4)
    matrix[:3, :3] = np.column_stack([end - origin for end in ends])
    matrix[:3, 3] = origin
    return matrix


def tissue_points(fixed: Path) -> np.ndarray:
    """Return about 5000 points, (N, 3) LPS mm, where the fixed image is not air."""
    image = sitk.ReadImage(str(fixed), sitk.sitkFloat32)
    values = sitk.GetArrayViewFromImage(image)
    low, high = np.percentile(values, [1, 98])
    index = np.argwhere(values > low + 0.2 * (high - low))
    index = index[:: max(1, len(index) // 5000), ::-1].astype(float)
    return np.array([image.TransformContinuousIndexToPhysicalPoint(i) for i in index.tolist()])


def truth(folder: Path, reference: Path) -> np.ndarray | None:
    """Return the true map, or None if it is not known."""
    scans = {"brain": np.eye(4), "ct": np.eye(4)}
    kind = folder.name.split("_")[0]
    if kind not in scans:
        unturned = reference / f"{kind}_0"
        if not unturned.exists():
            return None
        scans[kind] = read_matrix(unturned)
    turn = folder / "turn.tfm"
    turned = matrix_of(sitk.ReadTransform(str(turn))) if turn.exists() else np.eye(4)
    return turned @ scans[kind]


def landmark_error(folder: Path, matrix: np.ndarray) -> float | None:
    """Return the mean distance of landmarks in mm, if the pair has any."""
    files = [folder / f"{role}_landmarks.csv" for role in ("fixed", "moving")]
    if not all(file.exists() for file in files):
        return None
    fixed, moving = (np.loadtxt(f, delimiter=",", skiprows=1)[:, 1:] for f in files)
    mapped = fixed @ matrix[:3, :3].T + matrix[:3, 3]
    return float(np.linalg.norm(mapped - moving, axis=1).mean())


def measure(program: str, folder: Path, options: argparse.Namespace) -> dict[str, object]:
    """Run one registration and measure it."""
    result = options.output / program / folder.name
    result.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "2"}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    ran = subprocess.run(
        command(program, folder, result, options.dinoreg),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    line: dict[str, object] = {"pair": folder.name, "program": program, "code": ran.returncode}
    line |= {"cpu_s": round(cpu, 2), "wall_s": round(wall, 2)}
    try:
        matrix = read_matrix(result)
    except StopIteration:
        return line | {"error": ran.stderr[-500:]}
    right = truth(folder, options.output / options.reference)
    if right is not None:
        points = tissue_points(folder / "fixed.nii.gz")
        change = points @ (matrix - right)[:3, :3].T + (matrix - right)[:3, 3]
        distance = np.linalg.norm(change, axis=1)
        line |= {
            "mean_mm": round(float(distance.mean()), 3),
            "max_mm": round(float(distance.max()), 3),
        }
    landmarks = landmark_error(folder, matrix)
    return line if landmarks is None else line | {"landmarks_mm": round(landmarks, 3)}


def main() -> None:
    """Measure all programs on all pairs, in turns."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--programs", default="ants,elastix,greedy,ours")
    parser.add_argument("--reference", default="ants")
    parser.add_argument("--dinoreg", default="dinoreg-rt")
    parser.add_argument("--only", nargs="*")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for folder in sorted(options.pairs.iterdir()):
        if options.only and folder.name not in options.only:
            continue
        for program in options.programs.split(","):
            line = json.dumps(measure(program, folder, options))
            print(line, flush=True)
            with (options.output / "linear.jsonl").open("a") as stream:
                stream.write(line + "\n")


if __name__ == "__main__":
    main()
