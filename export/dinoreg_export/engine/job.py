"""What the engines of one command have in common: graphs in each precision, probes, references."""

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

#: Of all precisions, 8 bits apart: fastest first, what is tried when one does not hold.
FLOATS: tuple[EnginePrecision, ...] = ("fp16", "bf16", "fp32")
PRECISIONS: tuple[EnginePrecision, ...] = (*EIGHT_BITS, *FLOATS)
#: Pictures from a formula: in 8 bits, and beside the phantom's slices in all other precisions.
_PICTURES, _PICTURES_BESIDE = 2, 1


@dataclass(frozen=True)
class CalibrationImages:
    """Images of the user to set the scales of 8 bits by.

    Attributes:
        paths: none where no 8 bits are wanted.
        slices: of each image that are measured.
    """

    paths: tuple[Path, ...] = ()
    slices: int = 8


NO_IMAGES = CalibrationImages()


@dataclass(frozen=True)
class Quantised:
    """A graph with rounding to 8 bits written into it.

    Attributes:
        file: the graph, its weights beside it.
        calibration: how its scales were found, and how near its tokens come to float32.
    """

    file: Path
    calibration: Calibration


@dataclass(frozen=True)
class Job:
    """One command's bundle, library and settings, and a folder for what is written on the way.

    Attributes:
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
        """The engine of a graph, not verified."""
        return build_plan(self.library, self.typed(graph, precision), self.options, self.progress)

    def probe(self, graph: Graph, precision: EnginePrecision) -> NDArray[np.float32]:
        """What an engine is verified with: slices that look real, and pictures from a formula.

        The slices are the user's own in 8 bits, which were calibrated on others of them, and else a
        phantom's. The pictures are unlike either: coloured, with noise, without a background.
        """
        if precision in EIGHT_BITS:
            slices, count = self.examples(graph).held_out, _PICTURES
        else:
            slices, count = phantom_slices(self.manifest, graph), _PICTURES_BESIDE
        return np.concatenate([slices, probe(graph.height, graph.width, count)])

    def reference(self, graph: Graph, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Tokens of ONNX Runtime on the CPU, every operation in float32."""
        return tokens_of(self.typed(graph, "fp32"), pixels)

    def examples(self, graph: Graph) -> ExampleSlices:
        """Slices of the user's images in the size of a graph."""
        if graph.file not in self._examples:
            self._examples[graph.file] = read_examples(
                self.images.paths, self.manifest, graph, self.images.slices
            )
        return self._examples[graph.file]

    def typed(self, graph: Graph, precision: EnginePrecision) -> Path:
        """The graph in a precision: the bundle's own, or one written anew.

        Raises:
            DeviceError: 8 bits that do not hold even before TensorRT.
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
        """What the record of an engine in 8 bits says about it."""
        if precision == "fp8" or precision == "int8":
            return self.quantised(graph, precision).calibration
        return None

    def quantised(self, graph: Graph, precision: EightBits) -> Quantised:
        """The graph in 8 bits, which holds on the CPU."""
        key = (graph.file, precision)
        if key not in self._quantised:
            self._quantised[key] = quantise(self, graph, precision)
        return self._quantised[key]


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


def chosen_precision(
    bundle: Path, precision: EnginePrecision | None, images: CalibrationImages
) -> tuple[Manifest, EnginePrecision]:
    """A bundle's manifest and the precision of its engines, by default its own.

    Takes no time and no GPU: the files of the bundle are not looked at.

    Raises:
        InputError: no bundle.
        ConfigError: as `check_precision`.
    """
    manifest = read_manifest(bundle)
    wanted = precision or manifest.precision
    check_precision(wanted, manifest, images)
    return manifest, wanted


def check_precision(precision: str, manifest: Manifest, images: CalibrationImages) -> None:
    """Stop at a precision that engines are not built in, from this bundle, with these images.

    Raises:
        ConfigError: says which there are, or what is missing.
    """
    if manifest.precision == "int8":
        raise ConfigError(
            f"the bundle of {manifest.model} is in int8 for CPUs, and no engine is built from it; "
            "start from a bundle of 'dinoreg-rt export onnx --precision fp32'"
        )
    if precision not in PRECISIONS:
        raise ConfigError(
            f"engines of {precision} are not built; give --precision {', '.join(PRECISIONS)}"
        )
    if precision in EIGHT_BITS and not images.paths:
        raise ConfigError(
            f"--precision {precision} needs --calibration IMAGE, once or more: images such as will "
            "be registered, by which the scales of 8 bits are set"
        )
    if precision not in EIGHT_BITS and images.paths:
        raise ConfigError(
            f"--calibration goes with --precision {' or '.join(EIGHT_BITS)}, not with {precision}"
        )
    if images.slices < 1:
        raise ConfigError(f"{images.slices} slices of each image; wanted at least 1")


def check_capability(precision: str, capability: str) -> None:
    """Stop at a precision that GPUs of this compute capability lack.

    Raises:
        ConfigError: says which have it.
    """
    if precision == "fp8" and not multiplies_fp8(capability):
        raise ConfigError(
            f"--precision fp8 needs compute capability 8.9 or newer (Ada, Hopper, Blackwell), and "
            f"this is {capability}; --precision int8 or fp16 need less"
        )
