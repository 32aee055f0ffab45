"""Small cohorts of phantoms, and running the command on them."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from phantoms import make_grid, make_phantom

#: Options that make a registration of these phantoms take a tenth of a second.
FAST = ("--iterations", "3", "--working-megavoxels", "0.05", "--no-qc", "--accept-untrusted")
GRID = make_grid((20, 20, 20), (5.0, 5.0, 5.0))


def write_image(path: Path, array: np.ndarray) -> None:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(GRID.spacing_mm)
    image.SetOrigin(GRID.origin_mm)
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(image, str(path))


def write_pair(folder: Path, number: int) -> None:
    """Write m<number>.nii.gz, f<number>.nii.gz and their labels."""
    pair = make_phantom(GRID, GRID, peak_mm=9.0 + number)
    for role, volume in (("f", pair.fixed), ("m", pair.moving)):
        write_image(folder / f"{role}{number}.nii.gz", volume.array)
        labels = np.digitize(volume.array, [200, 500]).astype(np.uint8)
        write_image(folder / f"{role}{number}_l.nii.gz", labels)


def write_table(file: Path, columns: str, *rows: str) -> Path:
    file.write_text("\n".join([columns, *rows]) + "\n", encoding="utf-8")
    return file


def start(*words: object, **more: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dinoreg_rt", *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **pipes | more)


def reports(output: Path) -> dict[str, Any]:
    found = sorted(output.glob("*/report.json"))
    return {file.parent.name: json.loads(file.read_text("utf-8")) for file in found}


def hashes(report: dict[str, Any]) -> dict[str, str]:
    """Return the hash of each file but the page, which shows the times of its run."""
    listed = report["outputs"].items()
    return {name: record["sha256"] for name, record in listed if name != "report.html"}


def command_on_path(folder: Path) -> dict[str, str]:
    """Return an environment in which `dinoreg-rt` is the code under test."""
    folder.mkdir()
    program = folder / "dinoreg-rt"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m dinoreg_rt "$@"\n')
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    paths = os.pathsep.join([str(folder), os.environ["PATH"]])
    return os.environ | {"PATH": paths, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
