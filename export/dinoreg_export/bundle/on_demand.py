"""Bundles of checkpoints that are given to a registration: exported once, into the cache."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from dinoreg_rt.bundle.manifest import Precision, read_manifest
from dinoreg_rt.errors import InputError, OutputError

from ..checkpoint.read import open_checkpoint
from ..graph.builder import need_onnx
from .preset_choice import layers_at, preset_choice, sizes_both_ways
from .write import export_bundle, exporter_version, normalisation_of

#: Runs on every device. For GPUs, half precision is worth an explicit export.
_PRECISION: Precision = "fp32"


def export_once(
    path: Path,
    folder: Path,
    token_grid: tuple[int, int] | None,
    depth: float | None,
    *,
    anew: bool = False,
) -> Path:
    """Return the bundle of a checkpoint, exporting it first if it does not exist.

    Args:
        path: checkpoint, as for `open_checkpoint`.
        folder: folder that holds such bundles.
        token_grid: rows and columns of tokens; None means those of the default encoder preset.
        depth: relative depth of the block that gives the tokens; None means the final layer.
        anew: replace an existing bundle, because its files have changed.

    Returns:
        The bundle's folder, named after the model and a hash of all that determines the contents.

    Raises:
        DeviceError: a package that exports need is not installed.
        InputError: the checkpoint cannot be exported.
        OutputError: the bundle cannot be written.
    """
    need_onnx(f"{path}: is a checkpoint, not a bundle, and exporting it")
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
        try:
            export_bundle(
                checkpoint, checkpoint.source, sizes, target,
                layers=layers, precision=_PRECISION, normalisation=normalisation, force=anew,
            )  # fmt: skip
        except OutputError:
            if anew or not _is_bundle(target):  # otherwise another process was faster
                raise
    return target


def _is_bundle(folder: Path) -> bool:
    try:
        read_manifest(folder)
    except InputError:
        return False
    return True
