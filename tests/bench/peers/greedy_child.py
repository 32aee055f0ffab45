"""Run greedy on one prepared pair in this process, so that the caller can measure all of it.

    python greedy_child.py FIXED.nii MOVING.nii --output FOLDER --radius 2 --threads 2

Write greedy's own warp (mm, LPS) as `warp.nii`, and the CPU seconds of the registration call and
the peak memory as `child.json`. Called by `run_peer.py`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import SimpleITK as sitk
from picsl_greedy import Greedy3D

OPTIONS = "-d 3 -n 100x50x10 -s 2.0vox 0.5vox -sv -wp 0"


def peak_memory_mb() -> float:
    """Return the peak resident memory of this process image.

    Not `ru_maxrss`: on Linux it starts from the size of the process that spawned this one.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024.0
    return float("nan")


def main() -> None:
    """Register the pair named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("fixed", type=Path)
    parser.add_argument("moving", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--radius", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    images = {role: sitk.ReadImage(str(getattr(args, role))) for role in ("fixed", "moving")}
    metric = "-m NCC " + "x".join([str(args.radius)] * 3)
    warp = args.output / "warp.nii"
    start = time.process_time()
    Greedy3D().execute(
        f"-i fixed moving -o {warp} {metric} {OPTIONS} -threads {args.threads}", **images
    )
    report = {"cpu_s": [time.process_time() - start], "peak_memory_mb": peak_memory_mb()}
    (args.output / "child.json").write_text(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
