"""Checkpoints given to a registration: exported once into the cache, found there the next time."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from dinoreg_rt.bundle.manifest import Precision, Source, read_manifest
from dinoreg_rt.errors import DeviceError, InputError, OutputError

from ..checkpoint.read import open_checkpoint
from .preset_choice import layers_at, preset_choice, sizes_both_ways
from .write import export_bundle, exporter_version, normalisation_of

#: Runs on every device; for GPUs half precision is worth an export by hand.
_PRECISION: Precision = "fp32"


def export_once(
    path: Path,
    folder: Path,
    token_grid: tuple[int, int] | None,
    depth: float | None,
    *,
    anew: bool = False,
) -> Path:
    """The bundle of a checkpoint, made if it is not there.

    Args:
        path: a checkpoint, as `open_checkpoint` takes it.
        folder: that holds such bundles.
        token_grid: rows and columns of tokens; None: those of the default preset with an encoder.
        depth: of the block whose tokens are wanted, relative; None: the final layer.
        anew: replace one that is there, because it was changed.

    Returns:
        Its folder: named by the model, and by all that decides about its contents.

    Raises:
        DeviceError: the packages of the export are not installed.
        InputError: no checkpoint that can be exported.
        OutputError: it cannot be written.
    """
    _need_packages(path)
    grid = token_grid or preset_choice(None).token_grid
    with open_checkpoint(path) as checkpoint:
        a = checkpoint.architecture
        sizes, layers = sizes_both_ways(grid, a.patch), layers_at(a, depth)
        normalisation = normalisation_of(checkpoint.files)
        parts = [checkpoint.sha256, sizes, layers, _PRECISION, normalisation, exporter_version()]
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
        target = folder / f"{a.name}-{key}"
        if _is_bundle(target) and not anew:
            return target
        source = Source(
            checkpoint=checkpoint.name, sha256=checkpoint.sha256, layout=checkpoint.layout
        )
        try:
            export_bundle(
                checkpoint, source, sizes, target,
                layers=layers, precision=_PRECISION, normalisation=normalisation, force=anew,
            )  # fmt: skip
        except OutputError:
            if anew or not _is_bundle(target):  # else another process was quicker
                raise
    return target


def _is_bundle(folder: Path) -> bool:
    try:
        read_manifest(folder)
    except InputError:
        return False
    return True


def _need_packages(path: Path) -> None:
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise DeviceError(
            f"{path}: is a checkpoint, no bundle, and turning it into one needs the onnx package; "
            "pip install 'dinoreg-rt[export,cpu]' (or [export,gpu]), or export it elsewhere with "
            "'dinoreg-rt export onnx' and give that folder"
        ) from error
