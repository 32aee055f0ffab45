"""Encoder: milliseconds per slice of each engine beside its floor and `transformers` on torch.

    python tests/bench/encoder.py --bundle BUNDLE [--threads 2] [--rounds 5]
    python tests/bench/encoder.py --bundle BUNDLE --device cuda [--batch 8] [--rounds 20]

BUNDLE is of a DINOv3 vision transformer; random weights do (`dinoreg-rt export onnx --random-seed 1
--model dinov3-vits16 --size 512x512 -o BUNDLE`). All candidates take turns in every round, so that
a machine that slows down slows all of them; the table shows medians. Engines and torch are measured
where they are installed.

Floor: multiplications and additions of one slice over the rate of a float32 matrix product of the
widest layer's shape, measured in the same rounds with NumPy's BLAS: the best of all rounds.

On a GPU: the engines that run there, `transformers` in bfloat16 on the same one, and for the floor
a float16 matrix product (cuBLAS through CuPy), of the widest layer's shape or of 8192 squared,
whichever is faster. Everything is timed by CUDA events; pixels and tokens stay on the device.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from dinoreg_export.checkpoint.models import ARCHITECTURES, slice_operations
from dinoreg_rt.bundle.manifest import Graph
from dinoreg_rt.bundle.opened import Bundle, open_bundle
from dinoreg_rt.device.choice import Device
from dinoreg_rt.engines.open import ENGINES, GPU_ENGINES, open_encoder
from dinoreg_rt.errors import DeviceError, DinoregError

_GPU_MATRIX, _PRODUCTS = 8192, 12


def host_seconds(run: Callable[[], object]) -> float:
    """Return the seconds of one call."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def cupy_seconds(run: Callable[[], object]) -> float:
    """Return the seconds of the work that one call queues on CuPy's current stream."""
    from cupy import cuda

    began, ended = cuda.Event(), cuda.Event()
    began.record()
    run()
    ended.record()
    ended.synchronize()
    return float(cuda.get_elapsed_time(began, ended)) / 1e3


def torch_seconds(run: Callable[[], object]) -> float:
    """Return the seconds of the work that one call queues on PyTorch's current stream."""
    from torch import cuda

    began, ended = (cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    run()
    ended.record()
    ended.synchronize()
    return float(began.elapsed_time(ended)) / 1e3


@dataclass(frozen=True)
class Candidate:
    """What encodes one batch, and how it is timed."""

    run: Callable[[], object]
    seconds: Callable[[Callable[[], object]], float] = host_seconds


def gpu_matrix_rate(model: str, tokens: int) -> Callable[[], float]:
    """Return the same for float16 on the GPU, or that of a large square product if it is faster."""
    import cupy

    a = ARCHITECTURES[model]
    shapes = [(tokens, a.dim, a.hidden), (_GPU_MATRIX,) * 3]
    random = cupy.random.default_rng(0)
    pairs = [
        tuple(random.standard_normal(s, np.float32).astype(np.float16) for s in ((m, k), (k, n)))
        for m, k, n in shapes
    ]

    def multiply(left: Any, right: Any) -> None:
        for _ in range(_PRODUCTS):
            left @ right

    def measure() -> float:
        rates = []
        for (m, k, n), pair in zip(shapes, pairs, strict=True):
            taken = cupy_seconds(partial(multiply, *pair))
            rates.append(_PRODUCTS * 2 * m * k * n / taken)
        return max(rates)

    return measure


def gpu_candidates(bundle: Bundle, graph: Graph, batch: int) -> dict[str, Candidate]:
    """Each engine of the runtime that runs on a GPU, where it can be opened."""
    import cupy

    rng = np.random.default_rng(0)
    shape = (batch, 3, graph.height, graph.width)
    pixels = cupy.asarray(rng.standard_normal(shape, np.float32))
    candidates = {}
    for engine in (name for name in ENGINES if name in GPU_ENGINES):
        try:
            encoder = open_encoder(bundle, graph, engine, 1, device=Device("cuda"), batch=batch)
        except DinoregError as error:
            print(f"without {engine}: {error}")
            continue
        encode = lambda encoder=encoder: encoder.encode(pixels)  # noqa: E731
        candidates[engine] = Candidate(encode, cupy_seconds)
    return candidates


def matrix_rate(model: str, tokens: int) -> Callable[[], float]:
    """Return a function that measures the float32 rate of a product ``tokens x dim x hidden``."""
    a = ARCHITECTURES[model]
    rng = np.random.default_rng(0)
    left = rng.standard_normal((tokens, a.dim), np.float32)
    right = rng.standard_normal((a.dim, a.hidden), np.float32)

    def measure() -> float:
        began = time.perf_counter()
        for _ in range(_PRODUCTS):
            left @ right
        return _PRODUCTS * 2 * left.size * a.hidden / (time.perf_counter() - began)

    return measure


def torch_candidates(
    model: str, graph: Graph, threads: int, device: str, batch: int
) -> dict[str, Candidate]:
    """`transformers` with scaled dot product attention, bfloat16 and on a CPU also float32."""
    import torch
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    a = ARCHITECTURES[model]
    torch.set_num_threads(threads)
    config = DINOv3ViTConfig(
        hidden_size=a.dim,
        num_hidden_layers=a.depth,
        num_attention_heads=a.heads,
        intermediate_size=a.hidden,
        use_gated_mlp=a.gated,
        hidden_act="silu" if a.gated else "gelu",
        num_register_tokens=a.register_tokens,
        patch_size=a.patch,
        attn_implementation="sdpa",
    )
    kinds = {"torch fp32": torch.float32} if device == "cpu" else {}
    kinds |= {"torch bf16": torch.bfloat16}
    candidates = {}
    for name, kind in kinds.items():
        module = DINOv3ViTModel(config).to(device, kind).eval()
        shape = (batch, 3, graph.height, graph.width)
        pixels = torch.randn(shape, dtype=kind, device=device)

        def run(module: torch.nn.Module = module, pixels: torch.Tensor = pixels) -> object:
            with torch.inference_mode():
                return module(pixels)

        candidates[name] = Candidate(run, host_seconds if device == "cpu" else torch_seconds)
    return candidates


def engine_candidates(
    bundle: Bundle, graph: Graph, threads: int, batch: int
) -> dict[str, Candidate]:
    """Return each engine of the runtime that is installed here and runs on the CPU."""
    shape = (batch, 3, graph.height, graph.width)
    pixels = np.random.default_rng(0).standard_normal(shape, np.float32)
    candidates = {}
    for engine in (name for name in ENGINES if name not in GPU_ENGINES):
        with contextlib.suppress(DeviceError):
            encoder = open_encoder(bundle, graph, engine, threads)
            candidates[engine] = Candidate(lambda encoder=encoder: encoder.encode(pixels))
    return candidates


@contextlib.contextmanager
def working_on(device: str) -> Iterator[None]:
    """A stream of its own on a GPU: the default one waits for those of others."""
    if device == "cpu":
        yield
        return
    import cupy

    with cupy.cuda.Stream(non_blocking=True):
        yield


def measure(options: argparse.Namespace) -> None:
    """Measure all candidates in turn and print a Markdown table."""
    bundle = open_bundle(options.bundle)
    model, graph = bundle.manifest.model, bundle.manifest.graphs[0]
    on_gpu, batch = options.device != "cpu", options.batch
    tokens = int(np.prod(bundle.token_grid(graph))) + ARCHITECTURES[model].prefix_tokens
    if on_gpu:
        candidates = gpu_candidates(bundle, graph, batch)
    else:
        candidates = engine_candidates(bundle, graph, options.threads, batch)
    try:
        candidates |= torch_candidates(model, graph, options.threads, options.device, batch)
    except ImportError as error:
        print(f"without transformers: {error}")
    rate = gpu_matrix_rate(model, batch * tokens) if on_gpu else matrix_rate(model, tokens)
    rates: list[float] = []
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(options.rounds + 1):
        rates.append(rate())
        for name, candidate in candidates.items():
            taken = candidate.seconds(candidate.run) / batch
            if turn:  # the first one warms up
                times[name].append(taken)
    work, peak = (
        slice_operations(model, *bundle.token_grid(graph), bundle.manifest.layers),
        max(rates),
    )
    floor, kind = work / peak, "float16" if on_gpu else "float32"
    print(
        f"{model} ({bundle.manifest.precision}) at {graph.height} x {graph.width}: "
        f"{work / 1e9:.1f} G operations a slice; {kind} matrix product {peak / 1e9:.0f} G/s on "
        f"{_where(options)}: floor {1e3 * floor:.{2 if on_gpu else 0}f} ms"
    )
    print(f"| | ms per slice | share of the {kind} peak |\n|---|---|---|")
    for name, taken in times.items():
        median = statistics.median(taken)
        print(f"| {name} | {1e3 * median:.{2 if on_gpu else 0}f} | {floor / median:.0%} |")


def _where(options: argparse.Namespace) -> str:
    if options.device == "cpu":
        return f"{options.threads} threads"
    import cupy

    name: Any = cupy.cuda.runtime.getDeviceProperties(0)["name"]
    return f"{name.decode()}, {options.batch} slices at once"


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--batch", type=int, help="slices at once; default: 1, on a GPU 8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    options.batch = options.batch or (1 if options.device == "cpu" else 8)
    with working_on(options.device):
        measure(options)


if __name__ == "__main__":
    main()
