"""Run the published convexAdam on two arrays and print its cost as JSON.

    PYTHON convexadam_child.py FIXED.npy MOVING.npy [--displacement FILE.npy] \
        [--features FIXED.npy MOVING.npy --pool 2 2 2] [--runs 1] [--threads 1] [--device cpu]

PYTHON belongs to an environment with convexAdam and its torch; nothing of dinoreg-rt is needed
there. convexAdam runs with its defaults: first with its own MIND-SSC, whose displacement (voxels,
z, y, x) can be saved, then with the given features: (d, h, w, C) in half precision, each averaged
over `--pool` voxels of the images. On a GPU an uncounted warm-up run comes first.
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
    """Run convexAdam and print the report."""
    options = _options()

    import torch  # type: ignore[import-not-found]
    from convexAdam import convex_adam_MIND as peer  # type: ignore[import-not-found]

    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    gpu = device.type == "cuda"
    kind = torch.float16 if gpu else torch.float32  # its default needs a GPU
    images = [np.load(path) for path in (options.fixed, options.moving)]

    displacement = None

    def register() -> None:
        nonlocal displacement
        with contextlib.redirect_stdout(sys.stderr):
            displacement = peer.convex_adam_pt(*images, dtype=kind, device=device)
        if gpu:
            torch.cuda.synchronize()

    report = {"version": metadata.version("convexAdam"), "torch": torch.__version__}
    report |= timed(register, options.runs, warm_up=gpu)
    if options.displacement is not None:
        np.save(options.displacement, np.asarray(displacement, np.float32))
    if options.features is not None:
        arrays = [full_size(np.load(p), options.pool, images[0].shape) for p in options.features]
        given = tuple(torch.from_numpy(array).to(device, kind) for array in arrays)
        # The function that the package calls for its features; from here on they exist already.
        peer.extract_features = lambda *_, **__: given
        report["same_features"] = timed(register, options.runs, warm_up=gpu)
    report["peak_gpu_mb"] = torch.cuda.max_memory_allocated() / 2**20 if gpu else None
    report["peak_memory_mb"] = _peak_memory_mb()
    print(json.dumps(report))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("fixed", type=Path)
    parser.add_argument("moving", type=Path)
    parser.add_argument("--displacement", type=Path)
    parser.add_argument("--features", type=Path, nargs=2)
    parser.add_argument("--pool", type=int, nargs=3)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def timed(call: Callable[[], None], runs: int, *, warm_up: bool) -> dict[str, list[float]]:
    """Return wall-clock and CPU seconds of each of `runs` calls."""
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
    """Repeat features (d, h, w, C) to (1, C, D, H, W), so that averaging over `pool` undoes it."""
    for axis, (factor, length) in enumerate(zip(pool, shape, strict=True)):
        features = np.repeat(features, factor, axis).take(range(length), axis)
    return np.ascontiguousarray(np.moveaxis(features, -1, 0)[None])


def _peak_memory_mb() -> float | None:
    """Return the peak memory of this process; `ru_maxrss` starts from its parent's size."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text("ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return None


if __name__ == "__main__":
    main()
