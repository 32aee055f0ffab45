"""What a machine can do at most: memory bandwidth and rate of multiply-adds, measured.

On a CPU this runs in its own process (``python -m dinoreg_rt.device.ceilings THREADS``), because
BLAS fixes its number of threads when it is loaded.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from ..errors import DinoregError
from .choice import Device

#: Variables that set the number of threads of any BLAS.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_STREAM_FLOATS, _MATRIX, _REPEATS = 32_000_000, 1536, 12
_GPU_STREAM_FLOATS, _GPU_MATRIX = 128_000_000, 8192


@dataclass(frozen=True)
class Ceilings:
    """The best of several rounds of measurement.

    Attributes:
        bytes_per_s: bytes streamed through memory per second.
        vector_per_s: float32 multiply-adds per second, from a matrix product.
        scalar_per_s: operations per second of code that jumps around in memory.
        matrix_per_s: multiply-adds per second that an encoder is compared with.
        matrix_type: number format of these multiply-adds. On a GPU always float16: bfloat16 is as
            fast there, 8 bits are up to twice as fast, float32 is slower.
        how: description of the measurement.
    """

    bytes_per_s: float
    vector_per_s: float
    scalar_per_s: float
    matrix_per_s: float
    matrix_type: str
    how: str


def measure_ceilings(device: Device) -> Ceilings:
    """Measure the ceilings of a device, in a few seconds.

    Raises:
        DinoregError: the measurement fails.
    """
    return _of_gpu(device) if device.kind == "cuda" else _of_cpu(device.threads)


def best_seconds(
    run: Callable[[], object], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> float:
    """Return the duration of the fastest of several calls."""
    times = []
    for _ in range(repeats):
        began = clock()
        run()
        times.append(clock() - began)
    return min(times)


def _of_cpu(threads: int) -> Ceilings:
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, str(threads))
    command = [sys.executable, "-m", __spec__.name, str(threads)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DinoregError(f"the machine's ceilings cannot be measured: {done.stderr.strip()}")
    return Ceilings(**json.loads(done.stdout))


def _measure_here(threads: int) -> Ceilings:
    import dinoreg_kernels

    # Equal on an idle machine; on a busy one CPU time is disturbed less.
    clock = time.process_time if threads == 1 else time.perf_counter
    lanes = {"x86-64-v4": 16, "x86-64-v3": 8}.get(dinoreg_kernels.build_info().isa, 4)
    a, b, c = (np.ones(_STREAM_FLOATS, np.float32) for _ in range(3))
    parts = [slice(i * a.size // threads, (i + 1) * a.size // threads) for i in range(threads)]
    with ThreadPoolExecutor(threads) as pool:

        def stream() -> None:
            for done in [pool.submit(np.add, a[p], b[p], c[p]) for p in parts]:
                done.result()

        # A write reads its cache lines first, so four arrays move.
        bytes_per_s = 4 * a.nbytes / best_seconds(stream, _REPEATS, clock)
    m = np.random.default_rng(0).random((_MATRIX, _MATRIX), np.float32)
    vector = _MATRIX**3 / best_seconds(lambda: m @ m, _REPEATS, clock)
    return Ceilings(
        bytes_per_s,
        vector,
        # Scalar code issues four instructions where a matrix product starts two vectors.
        vector / lanes * 2,
        vector,
        "float32",
        f"NumPy on {threads} thread(s): c = a + b over {3 * a.nbytes >> 20} MiB, "
        f"float32 matrix product of {_MATRIX}^3",
    )


def _of_gpu(device: Device) -> Ceilings:
    xp = device.xp

    def seconds(run: Callable[[], object]) -> float:
        began, ended = xp.cuda.Event(), xp.cuda.Event()
        times = []
        for _ in range(_REPEATS):
            began.record()
            run()
            ended.record()
            ended.synchronize()
            times.append(float(xp.cuda.get_elapsed_time(began, ended)) / 1e3)
        return min(times)

    with device.active():
        a = xp.ones(_GPU_STREAM_FLOATS, np.float32)
        b = xp.empty_like(a)
        bytes_per_s = 2 * a.nbytes / seconds(lambda: xp.copyto(b, a))
        rates: dict[Any, float] = {}
        for kind in (np.float32, np.float16):
            m = xp.ones((_GPU_MATRIX, _GPU_MATRIX), kind)
            rates[kind] = _GPU_MATRIX**3 / seconds(partial(xp.matmul, m, m))
    return Ceilings(
        bytes_per_s,
        rates[np.float32],
        rates[np.float32],  # each thread of a GPU is a lane
        rates[np.float16],
        "float16",
        f"CuPy: copy of {a.nbytes >> 20} MiB, float32 and float16 matrix product of "
        f"{_GPU_MATRIX}^3",
    )


if __name__ == "__main__":
    print(json.dumps(asdict(_measure_here(int(sys.argv[1])))))
