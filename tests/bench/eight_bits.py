"""How near fp8 and int8 come to float32: the table of docs/benchmarks.md, on the CPU.

    PYTHONPATH=tests/export python tests/bench/eight_bits.py

Random ViT-S/16 at 224 x 224, calibrated on the abdomen of tests/data; token cosine of held-out
slices and pictures from a formula, mean and first percentile.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from calm import write

from dinoreg_export.checkpoint.models import ARCHITECTURES
from dinoreg_export.engine.calibrate import measure_ranges
from dinoreg_export.engine.eight_bits import FORMATS
from dinoreg_export.engine.qdq import write_quantised
from dinoreg_export.engine.retype import write_retyped
from dinoreg_export.verify.compare import tokens_of
from dinoreg_rt.bundle.manifest import read_manifest
from dinoreg_rt.encoder.examples import read_examples
from dinoreg_rt.engines.trt.agreement import Agreement, compare_tokens, probe
from dinoreg_rt.engines.trt.record import EightBits

DATA = Path(__file__).parents[1] / "data" / "abdomen"
IMAGES = (DATA / "ct.nii.gz", DATA / "mr.nii.gz")
SIZE = (224, 224)
#: Blocks, layer scales times, one channel of every norm times.
ENCODERS = ((2, 1.0, 1.0), (2, 1.0, 10.0), (2, 1.0, 50.0), (12, 1.0, 1.0), (12, 0.1, 1.0))
ENCODERS += ((12, 1.0, 10.0),)


def agreements(depth: int, share: float, outlier: float, work: Path) -> dict[EightBits, Agreement]:
    """Of both types for one random encoder, in float32 on ONNX Runtime's CPU."""
    architecture = replace(ARCHITECTURES["dinov3-vits16"], depth=depth)
    bundle = write(work / "bundle", architecture, [SIZE], share=share, outlier=outlier)
    manifest = read_manifest(bundle)
    graph = bundle / manifest.graphs[0].file
    examples = read_examples(IMAGES, manifest, manifest.graphs[0], per_image=8)
    pixels = np.concatenate([examples.held_out, probe(*SIZE, 2)])
    tokens = tokens_of(graph, pixels)
    half = work / "fp16.onnx"
    write_retyped(graph, half, "fp16")
    found = {}
    for name, kind in FORMATS.items():
        target = work / f"{name}.onnx"
        write_quantised(half, target, measure_ranges(graph, examples.measured, kind), kind)
        found[name] = compare_tokens(tokens_of(target, pixels), tokens)
    return found


def main() -> None:
    print("| blocks | layer scale | one channel of every norm | fp8 | int8 |")
    print("|---|---|---|---|---|")
    for depth, share, outlier in ENCODERS:
        with tempfile.TemporaryDirectory() as folder:
            found = agreements(depth, share, outlier, Path(folder))
        cells = [
            f"{a.mean_cosine:.5f}, {a.first_percentile_cosine:.5f}" + (": refused" * (not a.holds))
            for a in found.values()
        ]
        print(f"| {depth} | x {share:g} | x {outlier:g} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
