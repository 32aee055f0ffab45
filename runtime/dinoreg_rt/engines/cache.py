"""TensorRT engines in the cache: the one for this bundle, library, GPU and driver, or the reason.

What differs in anything that the key names is refused, with the command that builds it anew.
"""

from __future__ import annotations

from pathlib import Path

from ..bundle.manifest import Graph
from ..bundle.opened import Bundle
from ..errors import DeviceError
from .trt.folder import engines_folder, read_engine, read_records
from .trt.identity import identify_gpu
from .trt.library import Flavour, Library, open_library
from .trt.record import EIGHT_BITS, EngineKey, EngineRecord, build_command

#: Where several engines fit: those in 8 bits, which nobody builds without wanting them, then the
#: bundle's own precision, then the others.
_PREFERENCE = ("fp16", "bf16", "fp32")


def load_engine(
    bundle: Bundle, graph: Graph, flavour: Flavour, device: int
) -> tuple[Library, EngineRecord, bytes]:
    """TensorRT, the record and the bytes of the engine that may run here.

    Arguments and errors as of `engine_record`.

    Raises:
        InputError: the engine's file is missing or was changed.
    """
    library, record = engine_record(bundle, graph, flavour, device)
    key = record.key
    command = f"build it with: {build_command(bundle.folder, flavour, key.precision, key.batches)}"
    return library, record, read_engine(engines_folder(), record, command)


def engine_record(
    bundle: Bundle, graph: Graph, flavour: Flavour, device: int
) -> tuple[Library, EngineRecord]:
    """TensorRT and the record of the engine that may run here; the engine itself is not read.

    Args:
        bundle: opened, so its files are those of its manifest.
        graph: input size.
        flavour: of TensorRT.
        device: CUDA device.

    Raises:
        DeviceError: no GPU, no TensorRT, no engine, or one that was built for something else.
    """
    gpu = identify_gpu(device)
    library = open_library(flavour)
    folder = engines_folder()
    wanted = EngineKey(
        model_sha256=bundle.manifest.hash(),
        flavour=flavour,
        library_version=library.version,
        height=graph.height,
        width=graph.width,
        batches=(1,),
        precision=bundle.manifest.precision,
        **gpu.model_dump(),
    )
    return library, find_record(read_records(folder), wanted, bundle, folder)


def find_record(
    records: list[EngineRecord], wanted: EngineKey, bundle: Bundle, folder: Path
) -> EngineRecord:
    """The record whose key is `wanted`, but for what users choose: batches, precision, calibration.

    Raises:
        DeviceError: none; says what is nearest and in what it differs.
    """
    matching = [r for r in records if not _differences(r.key, wanted)]
    order: list[str] = [
        *EIGHT_BITS,
        wanted.precision,
        *(p for p in _PREFERENCE if p != wanted.precision),
    ]
    known = [r for r in matching if r.key.precision in order]
    if known:
        return min(known, key=lambda r: _rank(r, order))
    size = f"{wanted.height}x{wanted.width}"
    command = build_command(bundle.folder, wanted.flavour)
    near = [r for r in records if r.model == bundle.manifest.model and _same_input(r.key, wanted)]
    if not near:
        raise DeviceError(
            f"{folder}: holds no {wanted.flavour} engine of {bundle.manifest.model} at {size}; "
            f"build it with: {command}"
        )
    nearest = min(near, key=lambda r: (len(_differences(r.key, wanted)), r.file))
    raise DeviceError(
        f"{folder / nearest.file} cannot be used here ("
        f"{'; '.join(_differences(nearest.key, wanted))}); build it anew with: {command}"
    )


def _rank(record: EngineRecord, order: list[str]) -> tuple[int, int, float, str]:
    """Smallest first; of two calibrations the one that was verified better."""
    agreement = -record.verification.first_percentile_cosine
    return order.index(record.key.precision), -max(record.key.batches), agreement, record.file


def _differences(have: EngineKey, wanted: EngineKey) -> list[str]:
    chosen = {name: getattr(wanted, name) for name in ("batches", "precision", "calibration")}
    return have.model_copy(update=chosen).differences(wanted)


def _same_input(have: EngineKey, wanted: EngineKey) -> bool:
    names = ("flavour", "height", "width")
    return all(getattr(have, name) == getattr(wanted, name) for name in names)
