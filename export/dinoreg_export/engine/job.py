"""The shared work of one engine command: graphs in each precision, probes and references."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dinoreg_rt.bundle.manifest import Graph, Manifest, read_manifest
from dinoreg_rt.encoder.examples import ExampleSlices, phantom_slices, read_examples
from dinoreg_rt.engines.trt.agreement import compare_tokens, probe
from dinoreg_rt.engines.trt.library import Library
from dinoreg_rt.engines.trt.record import EIGHT_BITS, Calibration, EightBits, EnginePrecision
from dinoreg_rt.errors import ConfigError, DeviceError

from ..verify.compare import tokens_of
from .build import BuildOptions, Progress, build_plan
from .calibrate import measure_ranges
from .eight_bits import FORMATS, multiplies_fp8
from .qdq import write_quantised
from .retype import write_retyped
from .whole_attention import write_whole

#: Precisions other than 8 bits, fastest first: the order in which alternatives are tried.
FLOATS: tuple[EnginePrecision, ...] = ("fp16", "bf16", "fp32")
PRECISIONS: tuple[EnginePrecision, ...] = (*EIGHT_BITS, *FLOATS)
#: Numbers of synthetic pictures in a probe: beside the user's slices in 8 bits, and beside the
#: phantom's slices in other precisions.
_PICTURES, _PICTURES_BESIDE_PHANTOM = 2, 1


@dataclass(frozen=True)
class CalibrationImages:
    """Images of the user that determine the scales of 8-bit types.

    Attributes:
        paths: files or DICOM folders, none without 8 bits.
        slices: number of slices of each image that are measured.
    """

    paths: tuple[Path, ...] = ()
    slices: int = 8


NO_IMAGES = CalibrationImages()


@dataclass(frozen=True)
class Quantised:
    """A graph that rounds to 8 bits.

    Attributes:
        file: graph, with its weights beside it.
        calibration: record of the scales and of the agreement of the tokens with float32.
    """

    file: Path
    calibration: Calibration


@dataclass(frozen=True)
class Job:
    """The bundle, library and settings of one command, and the graphs that it writes.

    Attributes:
        work: temporary folder for the graphs.
        capability: compute capability of the GPU, such as ``8.9``.
    """

    bundle: Path
    manifest: Manifest
    library: Library
    options: BuildOptions
    progress: Progress
    work: Path
    images: CalibrationImages
    capability: str
    _examples: dict[str, ExampleSlices] = field(default_factory=dict)
    _quantised: dict[tuple[str, EightBits], Quantised] = field(default_factory=dict)

    def plan(self, graph: Graph, precision: EnginePrecision) -> bytes:
        """Build the engine of a graph, without verifying it."""
        return build_plan(self.library, self.whole(graph, precision), self.options, self.progress)

    def whole(self, graph: Graph, precision: EnginePrecision) -> Path:
        """Return the file of a graph for an engine, with the attention of all heads at once.

        In fp32 TensorRT would store the scores of all heads.
        """
        typed = self.typed(graph, precision)
        if precision == "fp32":
            return typed
        target = self.work / f"{typed.stem}_whole.onnx"
        if target.exists() or write_whole(typed, target):
            return target
        return typed

    def probe(self, graph: Graph, precision: EnginePrecision) -> NDArray[np.float32]:
        """Return the inputs (n, 3, height, width) that an engine is verified with.

        In 8 bits these are slices of the user's images that were not used for calibration, else
        slices of a phantom; and synthetic pictures, which are coloured and noisy and have no
        background.
        """
        if precision in EIGHT_BITS:
            slices, count = self.examples(graph).held_out, _PICTURES
        else:
            slices, count = phantom_slices(self.manifest, graph), _PICTURES_BESIDE_PHANTOM
        return np.concatenate([slices, probe(graph.height, graph.width, count)])

    def reference(self, graph: Graph, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the tokens of ONNX Runtime on the CPU with every operation in float32.

        Its attention is computed in parts, whose memory a CPU has.
        """
        return tokens_of(self.typed(graph, "fp32"), pixels)

    def examples(self, graph: Graph) -> ExampleSlices:
        """Return slices of the user's images in the input size of a graph."""
        if graph.file not in self._examples:
            self._examples[graph.file] = read_examples(
                self.images.paths, self.manifest, graph, self.images.slices
            )
        return self._examples[graph.file]

    def typed(self, graph: Graph, precision: EnginePrecision) -> Path:
        """Return the file of a graph in a precision: the bundle's own, or a new one.

        Raises:
            DeviceError: the graph in 8 bits fails its verification on the CPU.
        """
        own = self.bundle / graph.file
        if precision == "fp8" or precision == "int8":
            return self.quantised(graph, precision).file
        if precision == self.manifest.precision:
            return own
        target = self.work / f"{own.stem}_{precision}.onnx"
        if not target.exists():
            write_retyped(own, target, precision)
        return target

    def calibration(self, graph: Graph, precision: EnginePrecision) -> Calibration | None:
        """Return the calibration of an engine in 8 bits; None in other precisions."""
        if precision == "fp8" or precision == "int8":
            return self.quantised(graph, precision).calibration
        return None

    def quantised(self, graph: Graph, precision: EightBits) -> Quantised:
        """Return the graph in 8 bits, verified on the CPU."""
        key = (graph.file, precision)
        if key not in self._quantised:
            self._quantised[key] = quantise(self, graph, precision)
        return self._quantised[key]


def quantise(job: Job, graph: Graph, precision: EightBits) -> Quantised:
    """Calibrate, write and verify one graph on the CPU.

    Raises:
        DeviceError: the tokens differ too much; the message names a precision that passes.
        ConfigError: the graph has no linear layers, or values that the type cannot hold.
        InputError: an image cannot be read.
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
    """Calibrate, write and compare one graph, whether or not it agrees."""
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
    """Return advice on the fastest precision that passes on the CPU, found by running it."""
    for other in EIGHT_BITS:
        if other == refused or (other == "fp8" and not multiplies_fp8(job.capability)):
            continue
        try:
            passes = _write(job, graph, other, pixels, tokens).calibration.verification.holds
        except ConfigError:
            continue  # the type cannot hold a range
        if passes:
            return f"--precision {other} passes on the CPU"
    try:
        fp16 = compare_tokens(tokens_of(job.typed(graph, "fp16"), pixels), tokens)
        if fp16.holds:
            return "--precision fp16 passes on the CPU"
    except ConfigError:
        pass  # fp16 cannot hold a weight
    return "fp16 does not pass either; try --precision bf16, or use fp32, the reference"


def chosen_precision(
    bundle: Path, precision: EnginePrecision | None, images: CalibrationImages
) -> tuple[Manifest, EnginePrecision]:
    """Return a bundle's manifest and the precision of its engines, by default the bundle's own.

    This is fast and needs no GPU: only the manifest is read.

    Raises:
        InputError: the folder is not a bundle.
        ConfigError: as for `check_precision`.
    """
    manifest = read_manifest(bundle)
    wanted = precision or manifest.precision
    check_precision(wanted, manifest, images)
    return manifest, wanted


def check_precision(precision: str, manifest: Manifest, images: CalibrationImages) -> None:
    """Check that engines of a precision can be built from a bundle with these images.

    Raises:
        ConfigError: they cannot; the message says why and what to do.
    """
    if manifest.precision == "int8":
        raise ConfigError(
            f"the bundle of {manifest.model} is in int8 for CPUs, and engines cannot be built from "
            "it; export another one with 'dinoreg-rt export onnx --precision fp32'"
        )
    if precision not in PRECISIONS:
        raise ConfigError(
            f"'{precision}' is not a precision of engines; choose one of {', '.join(PRECISIONS)}"
        )
    if precision in EIGHT_BITS and not images.paths:
        raise ConfigError(
            f"--precision {precision} needs --calibration IMAGE, once or more: images like those "
            "to be registered, which determine the scales"
        )
    if precision not in EIGHT_BITS and images.paths:
        raise ConfigError(
            f"--calibration works only with --precision {' or '.join(EIGHT_BITS)}, not with "
            f"{precision}"
        )
    if images.slices < 1:
        raise ConfigError(f"--calibration-slices {images.slices}: give at least 1")


def check_capability(precision: str, capability: str) -> None:
    """Check that GPUs of a compute capability have a precision.

    Raises:
        ConfigError: they do not; the message says which have it.
    """
    if precision == "fp8" and not multiplies_fp8(capability):
        raise ConfigError(
            f"--precision fp8 needs compute capability 8.9 or newer (Ada, Hopper, Blackwell), and "
            f"this GPU has {capability}; use --precision int8 or fp16"
        )
