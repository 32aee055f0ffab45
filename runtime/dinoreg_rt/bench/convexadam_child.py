"""Run the published convexAdam on two arrays and say what it took, as JSON on stdout.

    PYTHON convexadam_child.py FIXED.npy MOVING.npy --features FIXED.npy MOVING.npy --pool 2 2 2 \
        --runs 1 --threads 1 --device cpu

PYTHON is of an environment with convexAdam (and its torch); nothing of dinoreg-rt is needed there.
Its defaults, first with its own MIND-SSC, then with the features given: (d, h, w, C) in half
precision, of cells of `--pool` voxels of the images. On a GPU one more run comes first and is not
counted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("fixed", type=Path)
    parser.add_argument("moving", type=Path)
    parser.add_argument("--features", type=Path, nargs=2, required=True)
    parser.add_argument("--pool", type=int, nargs=3, required=True)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()

    import torch  # type: ignore[import-not-found]
    from convexAdam import convex_adam_MIND as peer  # type: ignore[import-not-found]

    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    gpu = device.type == "cuda"
    kind = torch.float16 if gpu else torch.float32  # its default needs a GPU
    images = [np.load(path) for path in (options.fixed, options.moving)]

    def register() -> None:
        with contextlib.redirect_stdout(sys.stderr):
            peer.convex_adam_pt(*images, dtype=kind, device=device)
        if gpu:
            torch.cuda.synchronize()

    published = timed(register, options.runs, warm_up=gpu)
    given = [
        torch.from_numpy(full_size(np.load(path), options.pool, images[0].shape)).to(device, kind)
        for path in options.features
    ]
    # What the package calls for its features: from here on they are there already.
    peer.extract_features = lambda *_, **__: tuple(given)
    report = {
        "version": metadata.version("convexAdam"),
        "torch": torch.__version__,
        **published,
        "same_features": timed(register, options.runs, warm_up=gpu),
        "peak_gpu_mb": torch.cuda.max_memory_allocated() / 2**20 if gpu else None,
        "peak_memory_mb": _peak_memory_mb(),
    }
    print(json.dumps(report))


def timed(call: Callable[[], None], runs: int, *, warm_up: bool) -> dict[str, list[float]]:
    """Seconds of each of so many calls."""
    wall_s, cpu_s = [], []
    if warm_up:
        call()
    for _ in range(runs):
        began, cpu_began = time.perf_counter(), time.process_time()
        call()
        wall_s.append(time.perf_counter() - began)
        cpu_s.append(time.process_time() - cpu_began)
    return {"wall_s": wall_s, "cpu_s": cpu_s}


def full_size(features: np.ndarray, pool: list[int], shape: tuple[int, ...]) -> np.ndarray:
    """(1, C, D, H, W) of cells (d, h, w, C): averaged over its cells it is the same again."""
    for axis, (factor, length) in enumerate(zip(pool, shape, strict=True)):
        features = np.repeat(features, factor, axis).take(range(length), axis)
    return np.ascontiguousarray(np.moveaxis(features, -1, 0)[None])


def _peak_memory_mb() -> float | None:
    """Of this process alone: `ru_maxrss` would start from the process that spawned it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text("ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return None


if __name__ == "__main__":
    main()
