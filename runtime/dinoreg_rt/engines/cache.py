"""Find the cached TensorRT engine for a bundle, library, GPU and driver.

An engine that differs in anything the key names is refused, with the command that rebuilds it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast, get_args

from ..bundle.manifest import Graph
from ..bundle.opened import Bundle
from ..errors import DeviceError, DinoregError
from .trt.folder import engine_file, engines_folder, read_engine, read_records
from .trt.identity import identify_gpu
from .trt.library import Flavour, Library, open_library
from .trt.record import EIGHT_BITS, EngineKey, EngineRecord, build_command

#: Order in which matching engines are preferred, after those in 8 bits, which are only built on
#: purpose, and those in the bundle's own precision.
_PREFERENCE = ("fp16", "bf16", "fp32")


def load_engine(
    bundle: Bundle, graph: Graph, flavour: Flavour, device: int
) -> tuple[Library, EngineRecord, bytes]:
    """Return TensorRT, and the record and bytes of the engine that may run here.

    Args:
        bundle: an opened bundle, so that its files are those of its manifest.
        graph: the input size.
        flavour: flavour of TensorRT.
        device: index of the CUDA device.

    Raises:
        DeviceError: see `engine_record`.
        InputError: the engine's file is missing or has changed.
    """
    library, record = engine_record(bundle, graph, flavour, device)
    return library, record, read_engine(engines_folder(), record, _how_to_build(bundle, record))


def engine_problem(bundle: Bundle, graph: Graph, flavour: Flavour, device: int) -> str | None:
    """Return why no engine may run here, or None if one may; its bytes are not read.

    The arguments are those of `load_engine`.
    """
    try:
        _, record = engine_record(bundle, graph, flavour, device)
        engine_file(engines_folder(), record, _how_to_build(bundle, record))
    except DinoregError as error:
        return str(error)
    return None


def engine_record(
    bundle: Bundle, graph: Graph, flavour: Flavour, device: int
) -> tuple[Library, EngineRecord]:
    """Return TensorRT and the record of the engine that may run here, without reading the engine.

    The arguments are those of `load_engine`.

    Raises:
        DeviceError: there is no GPU, TensorRT or engine, or the engine was built for another GPU,
            driver, library or bundle.
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


def built_records(
    bundle: Bundle, graphs: Sequence[Graph], engine: str, device: int
) -> tuple[EngineRecord, ...]:
    """Return the records of a built engine for each input size; none for other engines.

    Raises:
        DeviceError: see `engine_record`.
    """
    if engine not in get_args(Flavour):
        return ()
    flavour = cast("Flavour", engine)
    return tuple(engine_record(bundle, g, flavour, device)[1] for g in dict.fromkeys(graphs))


def find_record(
    records: list[EngineRecord], wanted: EngineKey, bundle: Bundle, folder: Path
) -> EngineRecord:
    """Find the record that matches a key, whatever its batches, precision and calibration.

    Raises:
        DeviceError: no record matches; the message names the nearest one and the differences.
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
            f"build one with: {command}"
        )
    nearest = min(near, key=lambda r: (len(_differences(r.key, wanted)), r.file))
    raise DeviceError(
        f"{folder / nearest.file} cannot be used here ("
        f"{'; '.join(_differences(nearest.key, wanted))}); rebuild it with: {command}"
    )


def _how_to_build(bundle: Bundle, record: EngineRecord) -> str:
    key = record.key
    command = build_command(bundle.folder, key.flavour, key.precision, key.batches)
    return f"build it with: {command}"


def _rank(record: EngineRecord, order: list[str]) -> tuple[int, int, float, str]:
    """Return the key that sorts the best record first; better verified calibrations come first."""
    agreement = -record.verification.first_percentile_cosine
    return order.index(record.key.precision), -max(record.key.batches), agreement, record.file


def _differences(have: EngineKey, wanted: EngineKey) -> list[str]:
    chosen = {name: getattr(wanted, name) for name in ("batches", "precision", "calibration")}
    return have.model_copy(update=chosen).differences(wanted)


def _same_input(have: EngineKey, wanted: EngineKey) -> bool:
    names = ("flavour", "height", "width")
    return all(getattr(have, name) == getattr(wanted, name) for name in names)
