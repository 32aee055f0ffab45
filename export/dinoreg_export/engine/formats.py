"""Export of a bundle as verified TensorRT engines in the cache, one for each input size.

An engine that does not reproduce the tokens of float32 is never stored, and then none is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dinoreg_rt.bundle.manifest import Graph, Manifest, check_files
from dinoreg_rt.engines.trt import DEFAULT_BATCHES
from dinoreg_rt.engines.trt.agreement import Agreement, compare_tokens
from dinoreg_rt.engines.trt.executor import EngineExecutor
from dinoreg_rt.engines.trt.folder import engine_stem, engines_folder, store_engine
from dinoreg_rt.engines.trt.identity import identify_gpu
from dinoreg_rt.engines.trt.library import Flavour, Library, open_library
from dinoreg_rt.engines.trt.record import EngineKey, EnginePrecision, EngineRecord, Gpu
from dinoreg_rt.errors import ConfigError, DeviceError, DinoregError, OutputError
from dinoreg_rt.io.hidden import scratch_folder

from .build import BuildOptions, Progress
from .job import FLOATS, NO_IMAGES, CalibrationImages, Job, check_capability, chosen_precision


def export_engines(
    bundle: Path,
    flavour: Flavour,
    *,
    precision: EnginePrecision | None = None,
    images: CalibrationImages = NO_IMAGES,
    batches: Sequence[int] = DEFAULT_BATCHES,
    workspace_bytes: int = BuildOptions.workspace_bytes,
    device: int = 0,
    progress: Progress | None = None,
) -> list[tuple[Path, EngineRecord]]:
    """Build, verify and store the engine of every graph of a bundle.

    Args:
        bundle: folder of the bundle.
        flavour: TensorRT or TensorRT-RTX.
        precision: precision of the matrix products, with 8 bits only of the linear layers; None
            means the bundle's own.
        images: images that determine the scales of 8-bit types.
        batches: numbers of slices that are encoded at once; each gets a profile.
        workspace_bytes: most scratch memory that a layer may use.
        device: CUDA device that will run the engines.
        progress: called with the name of a stage and its completed fraction.

    Returns:
        The file and the record of every engine.

    Raises:
        DeviceError: no GPU or no TensorRT was found, or an engine fails its verification.
        InputError: the bundle is damaged, or TensorRT cannot read it, or an image cannot be read.
        ConfigError: a batch or the precision is not possible.
        OutputError: the folder of engines cannot be written.
    """
    sizes = check_batches(batches)
    manifest, wanted = chosen_precision(bundle, precision, images)
    gpu = identify_gpu(device)  # fails faster than the check of gigabytes of files
    library = open_library(flavour)
    check_capability(wanted, gpu.compute_capability)
    check_files(manifest, bundle)
    options = BuildOptions(sizes, workspace_bytes, _timing_cache(library, gpu))
    built = []
    started = _job(bundle, manifest, library, options, progress, images, gpu.compute_capability)
    with started as job, _active(device):
        for graph in manifest.graphs:
            plan, found = _build_verified(job, graph, wanted)
            built.append((plan, _record(job, graph, gpu, wanted, plan, found)))
    return [(store_engine(engines_folder(), plan, record), record) for plan, record in built]


def compile_only(
    bundle: Path,
    compute_capability: str,
    *,
    precision: EnginePrecision | None = None,
    images: CalibrationImages = NO_IMAGES,
    batches: Sequence[int] = DEFAULT_BATCHES,
    progress: Progress | None = None,
) -> dict[str, int]:
    """Compile every graph with TensorRT-RTX for a GPU that this machine may not have.

    The engines are discarded: without that GPU they cannot be verified, and engines that were not
    verified are never run. Graphs in 8 bits are verified on the CPU first.

    Returns:
        The size of the engine in bytes, by the name of the graph's file.

    Raises:
        DeviceError: TensorRT-RTX is missing or builds no engine, or a graph in 8 bits fails its
            verification.
        InputError: the bundle is damaged, or TensorRT-RTX cannot read it, or an image cannot be
            read.
        ConfigError: a batch, the precision or the compute capability is not possible.
    """
    options = BuildOptions(check_batches(batches), compute_capability=compute_capability)
    manifest, wanted = chosen_precision(bundle, precision, images)
    check_capability(wanted, compute_capability)
    library = open_library("tensorrt-rtx")
    check_files(manifest, bundle)
    started = _job(bundle, manifest, library, options, progress, images, compute_capability)
    with started as job:
        return {graph.file: len(job.plan(graph, wanted)) for graph in manifest.graphs}


@contextmanager
def _job(
    bundle: Path,
    manifest: Manifest,
    library: Library,
    options: BuildOptions,
    progress: Progress | None,
    images: CalibrationImages,
    capability: str,
) -> Iterator[Job]:
    """Open a job with a temporary folder."""
    with scratch_folder() as work:
        report = progress or (lambda stage, fraction: None)
        yield Job(bundle, manifest, library, options, report, work, images, capability)


class Verified(NamedTuple):
    """What running an engine shows: its agreement, and the memory of an execution context."""

    agreement: Agreement
    memory_bytes: int


def verify_plan(library: Library, plan: bytes, pixels: np.ndarray, tokens: np.ndarray) -> Verified:
    """Run all batch sizes, each of which has its own kernels, and return the worst agreement.

    Args:
        library: library that built the engine.
        plan: serialised engine.
        pixels: verification slices (n, 3, height, width).
        tokens: expected tokens (n, rows, columns, channels).
    """
    import cupy

    executor = EngineExecutor(library, plan)
    found = []
    for batch in executor.batches:
        for start in range(0, len(pixels), batch):
            order = (start + np.arange(batch)) % len(pixels)
            result = cupy.asnumpy(executor.run(cupy.asarray(pixels[order])))
            found.append(compare_tokens(result, tokens[order]))
    worst = min(found, key=lambda a: (-a.not_finite, a.first_percentile_cosine, a.mean_cosine))
    return Verified(worst, executor.context_bytes)


def check_batches(batches: Sequence[int]) -> tuple[int, ...]:
    """Return the batch sizes in ascending order.

    Raises:
        ConfigError: there are none, or one is below 1.
    """
    if not batches or min(batches) < 1:
        raise ConfigError(
            f"the batch sizes are {list(batches)}; give at least one, each of 1 slice or more"
        )
    return tuple(sorted(set(batches)))


def _build_verified(job: Job, graph: Graph, precision: EnginePrecision) -> tuple[bytes, Verified]:
    plan = job.plan(graph, precision)
    job.progress("verification", 0.0)
    pixels = job.probe(graph, precision)
    tokens = job.reference(graph, pixels)
    found = verify_plan(job.library, plan, pixels, tokens)
    job.progress("verification", 1.0)
    if found.agreement.holds:
        return plan, found
    raise DeviceError(
        f"the engine of {graph.file} in {precision} is refused: {found.agreement.describe()}; "
        f"{_advice(job, graph, precision, pixels, tokens)}"
    )


def _advice(
    job: Job, graph: Graph, refused: EnginePrecision, pixels: np.ndarray, tokens: np.ndarray
) -> str:
    """Return advice on the fastest precision that passes, found by building engines."""
    others = [p for p in FLOATS if p != refused]
    for other in others:
        try:
            if verify_plan(job.library, job.plan(graph, other), pixels, tokens).agreement.holds:
                return f"--precision {other} passes"
        except DinoregError:
            continue  # an engine that cannot be built or run does not pass
    return (
        f"none of {', '.join(others)} passes either: {job.library.flavour} {job.library.version} "
        "compiles this model wrongly on this GPU; try another version, or run with "
        "--engine ort-cuda"
    )


def _timing_cache(library: Library, gpu: Gpu) -> Path:
    """Return the file of kernel timings, which are valid for one version and type of GPU."""
    folder = engines_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # reported before minutes of building
        raise OutputError(
            f"{folder}: cannot be created: {error.strerror}; set DINOREG_ENGINES to another folder"
        ) from error
    kind = "".join(c if c.isalnum() else "-" for c in gpu.gpu)
    return folder / f"timing_{library.flavour}_{library.version}_{kind}.cache"


def _record(
    job: Job, graph: Graph, gpu: Gpu, precision: EnginePrecision, plan: bytes, found: Verified
) -> EngineRecord:
    calibration = job.calibration(graph, precision)
    key = EngineKey(
        model_sha256=job.manifest.hash(),
        flavour=job.library.flavour,
        library_version=job.library.version,
        height=graph.height,
        width=graph.width,
        batches=job.options.batches,
        precision=precision,
        calibration=calibration and calibration.scales_sha256,
        **gpu.model_dump(),
    )
    return EngineRecord(
        key=key,
        model=job.manifest.model,
        file=f"{engine_stem(job.manifest.model, key)}.engine",
        size_bytes=len(plan),
        sha256=hashlib.sha256(plan).hexdigest(),
        verification=found.agreement,
        memory_bytes=found.memory_bytes,
        calibration=calibration,
        builder=f"dinoreg-rt {metadata.version('dinoreg-rt')}",
    )


def _active(device: int) -> AbstractContextManager[object]:
    """Return a context in which CUDA device `device` is the current one."""
    try:
        import cupy
    except ImportError as error:
        raise DeviceError(
            "CuPy, which verifying engines needs, is not installed; pip install 'dinoreg-rt[gpu]'"
        ) from error
    context: AbstractContextManager[object] = cupy.cuda.Device(device)
    return context
