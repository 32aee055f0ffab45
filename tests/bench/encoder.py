"""Encoder: milliseconds per slice of each engine beside its floor and `transformers` on torch.

    python tests/bench/encoder.py --bundle BUNDLE [--threads 2] [--rounds 5]

BUNDLE is of a DINOv3 vision transformer; random weights do (`dinoreg-rt export onnx --random-seed 1
--model dinov3-vits16 --size 512x512 -o BUNDLE`). All candidates take turns in every round, so that
a machine that slows down slows all of them; the table shows medians. Engines and torch are measured
where they are installed.

Floor: multiplications and additions of one slice over the rate of a float32 matrix product of the
widest layer's shape, measured in the same rounds with NumPy's BLAS: the best of all rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dinoreg_export.models import ARCHITECTURES
from dinoreg_export.work import slice_operations
from dinoreg_rt.encoder.bundle import Bundle, open_bundle
from dinoreg_rt.encoder.engines import ENGINES, open_encoder
from dinoreg_rt.errors import DeviceError
from dinoreg_rt.manifest import Graph


def matrix_rate(model: str, tokens: int) -> Callable[[], float]:
    """A function that measures operations per second of ``tokens x dim x hidden`` in float32."""
    a = ARCHITECTURES[model]
    rng = np.random.default_rng(0)
    left = rng.standard_normal((tokens, a.dim), np.float32)
    right = rng.standard_normal((a.dim, a.hidden), np.float32)

    def measure() -> float:
        repeats = 12
        began = time.perf_counter()
        for _ in range(repeats):
            left @ right
        return repeats * 2 * left.size * a.hidden / (time.perf_counter() - began)

    return measure


def torch_candidates(model: str, graph: Graph, threads: int) -> dict[str, Callable[[], object]]:
    """`transformers` with scaled dot product attention, float32 and bfloat16."""
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
    candidates: dict[str, Callable[[], object]] = {}
    for name, kind in (("torch fp32", torch.float32), ("torch bf16", torch.bfloat16)):
        module = DINOv3ViTModel(config).to(kind).eval()
        pixels = torch.randn(1, 3, graph.height, graph.width, dtype=kind)

        def run(module: torch.nn.Module = module, pixels: torch.Tensor = pixels) -> object:
            with torch.inference_mode():
                return module(pixels)

        candidates[name] = run
    return candidates


def engine_candidates(
    bundle: Bundle, graph: Graph, threads: int
) -> dict[str, Callable[[], object]]:
    """Each engine of the runtime that is installed here and runs on the CPU."""
    pixels = np.random.default_rng(0).standard_normal((1, 3, graph.height, graph.width), np.float32)
    candidates: dict[str, Callable[[], object]] = {}
    for engine, entry in ENGINES.items():
        if entry.on_gpu:
            continue
        with contextlib.suppress(DeviceError):
            encoder = open_encoder(bundle, graph, engine, threads)
            candidates[engine] = lambda encoder=encoder: encoder.encode(pixels)
    return candidates


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    bundle = open_bundle(options.bundle)
    model, graph = bundle.manifest.model, bundle.manifest.graphs[0]
    tokens = int(np.prod(bundle.token_grid(graph))) + ARCHITECTURES[model].prefix_tokens
    candidates = engine_candidates(bundle, graph, options.threads)
    try:
        candidates |= torch_candidates(model, graph, options.threads)
    except ImportError as error:
        print(f"without transformers: {error}")
    rate, rates = matrix_rate(model, tokens), []
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for turn in range(options.rounds + 1):
        rates.append(rate())
        for name, run in candidates.items():
            began = time.perf_counter()
            run()
            if turn:  # the first one warms up
                times[name].append(time.perf_counter() - began)
    work, peak = slice_operations(model, *bundle.token_grid(graph)), max(rates)
    floor = work / peak
    print(
        f"{model} ({bundle.manifest.precision}) at {graph.height} x {graph.width}: "
        f"{work / 1e9:.1f} G operations a slice; float32 matrix product {peak / 1e9:.0f} G/s on "
        f"{options.threads} threads: floor {1e3 * floor:.0f} ms"
    )
    print("| | ms per slice | share of the float32 peak |\n|---|---|---|")
    for name, taken in times.items():
        median = statistics.median(taken)
        print(f"| {name} | {1e3 * median:.0f} | {floor / median:.0%} |")


if __name__ == "__main__":
    main()
