"""Run one peer on one prepared pair in this process, so that the caller can measure all of it.

Reads two scalar images on one grid; writes a displacement field and a small JSON file with the
CPU seconds of the registration call alone and the peak memory. Called by `run_peer.py`.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import SimpleITK as sitk

GREEDY_OPTIONS = "-d 3 -n 100x50x10 -s 2.0vox 0.5vox -sv -wp 0"


def run_convexadam(fixed: Path, moving: Path, output: Path, threads: int) -> float:
    """Write the voxel displacement as `displacement.npy`; return the CPU seconds of the call."""
    import numpy as np
    import torch
    from convexAdam.convex_adam_MIND import convex_adam_pt

    torch.set_num_threads(threads)
    images = [sitk.GetArrayFromImage(sitk.ReadImage(str(path))) for path in (fixed, moving)]
    start = time.process_time()
    displacement = convex_adam_pt(*images, dtype=torch.float32, device=torch.device("cpu"))
    seconds = time.process_time() - start
    np.save(output / "displacement.npy", displacement.astype(np.float32))
    return seconds


def run_greedy(fixed: Path, moving: Path, output: Path, threads: int, radius: int) -> float:
    """Write greedy's own warp (mm, LPS) as `warp.nii`; return the CPU seconds of the call."""
    from picsl_greedy import Greedy3D

    images = {"fixed": sitk.ReadImage(str(fixed)), "moving": sitk.ReadImage(str(moving))}
    metric = f"-m NCC {radius}x{radius}x{radius}"
    start = time.process_time()
    Greedy3D().execute(
        f"-i fixed moving -o {output / 'warp.nii'} {metric} {GREEDY_OPTIONS} -threads {threads}",
        **images,
    )
    return time.process_time() - start


def peak_memory_mb() -> float:
    """Return the peak resident memory of this process image.

    Not `ru_maxrss`: on Linux that one starts from the size of the process that spawned this one.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024.0
    return float("nan")


def main() -> None:
    """Run the peer named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer", choices=("convexadam", "greedy", "greedy4"), required=True)
    parser.add_argument("--fixed", type=Path, required=True)
    parser.add_argument("--moving", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    if args.peer == "convexadam":
        seconds = run_convexadam(args.fixed, args.moving, args.output, args.threads)
    else:
        radius = 4 if args.peer == "greedy4" else 2
        seconds = run_greedy(args.fixed, args.moving, args.output, args.threads, radius)
    report = {"cpu_s_call": seconds, "peak_mb": peak_memory_mb()}
    (args.output / "child.json").write_text(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
