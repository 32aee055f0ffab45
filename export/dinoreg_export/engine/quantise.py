"""A graph in 8 bits for TensorRT, calibrated and held against float32 before TensorRT sees it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dinoreg_rt.bundle.manifest import Graph
from dinoreg_rt.engines.trt.agreement import compare_tokens
from dinoreg_rt.engines.trt.record import EIGHT_BITS, Calibration, EightBits
from dinoreg_rt.errors import ConfigError, DeviceError

from ..verify.compare import tokens_of
from .calibrate import measure_ranges
from .eight_bits import FORMATS, multiplies_fp8
from .qdq import write_quantised

if TYPE_CHECKING:
    from .job import Job


@dataclass(frozen=True)
class Quantised:
    """A graph with rounding to 8 bits written into it.

    Attributes:
        file: the graph, its weights beside it.
        calibration: how its scales were found, and how near its tokens come to float32.
    """

    file: Path
    calibration: Calibration


def quantise(job: Job, graph: Graph, precision: EightBits) -> Quantised:
    """Calibrate, write and verify one graph; what differs too much is refused at once.

    Raises:
        DeviceError: its tokens differ; names a precision whose tokens do not.
        ConfigError: no linear layers, or values that the type cannot hold.
        InputError: an image that cannot be read.
    """
    pixels = job.probe(graph, precision)
    tokens = job.reference(graph, pixels)
    found = _write(job, graph, precision, pixels, tokens)
    if found.calibration.verification.holds:
        return found
    raise DeviceError(
        f"the engine of {graph.file} in {precision} is refused before it is built: on the CPU "
        f"{found.calibration.verification.describe()}; "
        f"{_advice(job, graph, precision, pixels, tokens)}"
    )


def _write(
    job: Job,
    graph: Graph,
    precision: EightBits,
    pixels: NDArray[np.float32],
    tokens: NDArray[np.float32],
) -> Quantised:
    examples, kind = job.examples(graph), FORMATS[precision]
    ranges = measure_ranges(
        job.typed(graph, "fp32"),
        examples.measured,
        kind,
        lambda done: job.progress("calibration", done),
    )
    target = job.work / f"{Path(graph.file).stem}_{precision}.onnx"
    scales = write_quantised(job.typed(graph, "fp16"), target, ranges, kind)
    job.progress("verification on the CPU", 0.0)
    agreement = compare_tokens(tokens_of(target, pixels), tokens)
    job.progress("verification on the CPU", 1.0)
    calibration = Calibration(
        scales_sha256=scales,
        images=len(job.images.paths),
        slices=len(examples.measured),
        verification=agreement,
    )
    return Quantised(target, calibration)


def _advice(
    job: Job,
    graph: Graph,
    refused: EightBits,
    pixels: NDArray[np.float32],
    tokens: NDArray[np.float32],
) -> str:
    """The fastest precision whose tokens pass there, found by running it."""
    for other in EIGHT_BITS:
        if other == refused or (other == "fp8" and not multiplies_fp8(job.capability)):
            continue
        try:
            passes = _write(job, graph, other, pixels, tokens).calibration.verification.holds
        except ConfigError:
            continue  # a range that this type cannot hold
        if passes:
            return f"--precision {other} passes there"
    try:
        fp16 = compare_tokens(tokens_of(job.typed(graph, "fp16"), pixels), tokens)
        if fp16.holds:
            return "--precision fp16 passes there"
    except ConfigError:
        pass  # weights beyond fp16
    return "fp16 does not pass there either; --precision bf16 may, fp32 is what it is held against"
