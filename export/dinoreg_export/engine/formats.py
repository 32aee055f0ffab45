"""From a bundle to verified TensorRT engines in the cache: one for each input size, or none.

An engine that does not reproduce the tokens of float32 is not stored; there is no way round it.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib import metadata
from pathlib import Path

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
        bundle: its folder.
        flavour: TensorRT or TensorRT-RTX.
        precision: of the matrix products, of the linear layers alone in 8 bits; None takes the
            bundle's.
        images: that the scales of 8 bits are set by.
        batches: slices that are encoded at once; each gets a profile.
        workspace_bytes: scratch memory of one layer at most.
        device: CUDA device that will run them.
        progress: called with a stage's name and its finished fraction.

    Returns:
        Every engine's file with its record.

    Raises:
        DeviceError: no GPU, no TensorRT, or an engine that does not hold; none is stored then.
        InputError: the bundle is damaged or cannot be read by TensorRT, or an image cannot be read.
        ConfigError: an impossible batch or precision.
        OutputError: the folder of engines cannot be written.
    """
    sizes = check_batches(batches)
    manifest, wanted = chosen_precision(bundle, precision, images)
    gpu = identify_gpu(device)  # before gigabytes are hashed
    library = open_library(flavour)
    check_capability(wanted, gpu.compute_capability)
    check_files(manifest, bundle)
    options = BuildOptions(sizes, workspace_bytes, _timing_cache(library, gpu))
    built = []
    started = _job(bundle, manifest, library, options, progress, images, gpu.compute_capability)
    with started as job, _active(device):
        for graph in manifest.graphs:
            plan, agreement = _build_verified(job, graph, wanted)
            built.append((plan, _record(job, graph, gpu, wanted, plan, agreement)))
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
    """Whether TensorRT-RTX compiles every graph for a GPU that is not here.

    The engines are thrown away: without that GPU they cannot be verified, and an engine that was
    not verified is never run. In 8 bits the graph before TensorRT is verified here as well.

    Returns:
        Bytes of the engine of each graph's file.

    Raises:
        DeviceError: TensorRT-RTX is missing or builds no engine, or 8 bits do not hold.
        InputError: the bundle is damaged or cannot be read by TensorRT-RTX, or an image cannot.
        ConfigError: an impossible batch, precision or compute capability.
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
    """A job with a folder that goes when it is done."""
    with tempfile.TemporaryDirectory(prefix="dinoreg-engine-") as work:
        yield Job(
            bundle, manifest, library, options, progress or _silent, Path(work), images, capability
        )


def verify_plan(library: Library, plan: bytes, pixels: np.ndarray, tokens: np.ndarray) -> Agreement:
    """The worst agreement among the runs of every batch size, each with kernels of its own.

    Args:
        library: that built it.
        plan: the engine.
        pixels: probe (n, 3, height, width).
        tokens: what they should give (n, rows, columns, channels).
    """
    import cupy

    executor = EngineExecutor(library, plan)
    found = []
    for batch in executor.batches:
        for start in range(0, len(pixels), batch):
            order = (start + np.arange(batch)) % len(pixels)
            result = cupy.asnumpy(executor.run(cupy.asarray(pixels[order])))
            found.append(compare_tokens(result, tokens[order]))
    return min(found, key=lambda a: (-a.not_finite, a.first_percentile_cosine, a.mean_cosine))


def check_batches(batches: Sequence[int]) -> tuple[int, ...]:
    """Batch sizes in ascending order.

    Raises:
        ConfigError: none, or one below 1.
    """
    if not batches or min(batches) < 1:
        raise ConfigError(f"batches {list(batches)}; wanted at least one, each of 1 slice or more")
    return tuple(sorted(set(batches)))


def _build_verified(job: Job, graph: Graph, precision: EnginePrecision) -> tuple[bytes, Agreement]:
    plan = job.plan(graph, precision)
    job.progress("verification", 0.0)
    pixels = job.probe(graph, precision)
    tokens = job.reference(graph, pixels)
    found = verify_plan(job.library, plan, pixels, tokens)
    job.progress("verification", 1.0)
    if found.holds:
        return plan, found
    raise DeviceError(
        f"the engine of {graph.file} in {precision} is refused: {found.describe()}; "
        f"{_advice(job, graph, precision, pixels, tokens)}"
    )


def _advice(
    job: Job, graph: Graph, refused: EnginePrecision, pixels: np.ndarray, tokens: np.ndarray
) -> str:
    """The fastest precision that passes, found by building it."""
    others = [p for p in FLOATS if p != refused]
    for other in others:
        try:
            if verify_plan(job.library, job.plan(graph, other), pixels, tokens).holds:
                return f"--precision {other} passes"
        except DinoregError:
            continue  # what cannot be built or run does not pass
    return (
        f"none of {', '.join(others)} passes either: {job.library.flavour} {job.library.version} "
        "compiles this model wrongly here; try another version of it, or run with "
        "--engine ort-cuda"
    )


def _timing_cache(library: Library, gpu: Gpu) -> Path:
    """File of measured kernels, which hold for one version on one kind of GPU."""
    folder = engines_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:  # said before minutes of building
        raise OutputError(
            f"{folder}: cannot be made: {error.strerror}; DINOREG_ENGINES names another folder"
        ) from error
    kind = "".join(c if c.isalnum() else "-" for c in gpu.gpu)
    return folder / f"timing_{library.flavour}_{library.version}_{kind}.cache"


def _record(
    job: Job, graph: Graph, gpu: Gpu, precision: EnginePrecision, plan: bytes, agreement: Agreement
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
        verification=agreement,
        calibration=calibration,
        builder=f"dinoreg-rt {metadata.version('dinoreg-rt')}",
    )


def _active(device: int) -> AbstractContextManager[object]:
    """Context in which CUDA device `device` is the current one."""
    try:
        import cupy
    except ImportError as error:
        raise DeviceError(
            "engines are verified on memory that CuPy owns, and CuPy is not installed; "
            "pip install 'dinoreg-rt[gpu]'"
        ) from error
    context: AbstractContextManager[object] = cupy.cuda.Device(device)
    return context


def _silent(stage: str, fraction: float) -> None:
    pass
