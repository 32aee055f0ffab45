"""Run the published convexAdam on two arrays and say what it took, as JSON on stdout.

    PYTHON convexadam_child.py FIXED.npy MOVING.npy --runs 1 --threads 1 --device cpu

PYTHON is of an environment with convexAdam (and its torch); nothing of dinoreg-rt is needed there.
Its defaults, MIND-SSC included. On a GPU one more run comes first and is not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("fixed", type=Path)
    parser.add_argument("moving", type=Path)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()

    import torch  # type: ignore[import-not-found]
    from convexAdam.convex_adam_MIND import (  # type: ignore[import-not-found]
        convex_adam_pt,
    )

    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    gpu = device.type == "cuda"
    kind = torch.float16 if gpu else torch.float32  # its default needs a GPU
    images = [np.load(path) for path in (options.fixed, options.moving)]
    wall_s, cpu_s = [], []
    for run in range(options.runs + gpu):
        began, cpu_began = time.perf_counter(), time.process_time()
        with contextlib.redirect_stdout(sys.stderr):
            convex_adam_pt(*images, dtype=kind, device=device)
        if gpu:
            torch.cuda.synchronize()
        if run >= gpu:
            wall_s.append(time.perf_counter() - began)
            cpu_s.append(time.process_time() - cpu_began)
    report = {
        "version": metadata.version("convexAdam"),
        "torch": torch.__version__,
        "wall_s": wall_s,
        "cpu_s": cpu_s,
        "peak_gpu_mb": torch.cuda.max_memory_allocated() / 2**20 if gpu else None,
        "peak_memory_mb": _peak_memory_mb(),
    }
    print(json.dumps(report))


def _peak_memory_mb() -> float | None:
    """Of this process alone: `ru_maxrss` would start from the process that spawned it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text("ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return None


if __name__ == "__main__":
    main()
