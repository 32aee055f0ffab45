"""Checkpoints given instead of a bundle, which the export package converts once into the cache."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from ..device.limits import cache_folder
from ..errors import DeviceError, InputError
from .manifest import MANIFEST_NAME
from .opened import bundle_around, find_bundle

#: Group of entry points that export a checkpoint: (path, folder of such bundles, token grid, depth,
#: anew) -> folder of the bundle.
_EXPORTERS = "dinoreg_rt.encoder_export"
_FILES = (".safetensors", ".onnx", ".pth")
#: Files that mark a folder of weights, a snapshot or a repository in Hugging Face's cache.
_IN_FOLDER = ("config.json", "model.safetensors", "model.safetensors.index.json", "refs/main")


@dataclass(frozen=True)
class Wanted:
    """The tokens that a registration needs from an encoder that is not exported yet.

    Attributes:
        token_grid: rows and columns of tokens; None leaves the choice to the exporter.
        depth: relative depth of the block that gives the tokens; None means the final layer.
    """

    token_grid: tuple[int, int] | None = None
    depth: float | None = None


NOTHING_SPECIAL = Wanted()


def is_checkpoint(encoder: str) -> bool:
    """Return whether a path is a file or folder of weights, and neither a bundle nor in one."""
    if os.path.isfile(encoder):
        return encoder.endswith(_FILES) and bundle_around(Path(encoder)) is None
    if os.path.exists(os.path.join(encoder, MANIFEST_NAME)):
        return False
    return any(os.path.exists(os.path.join(encoder, name)) for name in _IN_FOLDER)


def check_weights(checkpoint: str) -> None:
    """Require that a checkpoint's folder has weights; the export examines them.

    Raises:
        InputError: it has none, as after a download that was broken off.
    """
    folder = Path(checkpoint)
    if folder.is_dir() and not any(f.suffix in _FILES and f.is_file() for f in folder.rglob("*")):
        raise InputError(
            f"{checkpoint}: is the folder of a checkpoint, but has no file of weights "
            f"({', '.join(_FILES)}); download it again, or give the file itself"
        )


def bundle_folder(encoder: str, wanted: Wanted, *, anew: bool = False) -> Path:
    """Return the folder of a user's bundle, exporting a checkpoint if it is not in the cache.

    Args:
        encoder: path or name of a bundle, or a checkpoint.
        wanted: tokens that an exported bundle is to give.
        anew: export a checkpoint again, replacing a bundle whose files have changed.

    Raises:
        InputError: `encoder` is neither a bundle nor a checkpoint.
        DeviceError: `encoder` is a checkpoint, and a package that exports need is not installed.
        OutputError: the exported bundle cannot be written.
    """
    if not is_checkpoint(encoder):
        return find_bundle(encoder)
    found = list(entry_points(group=_EXPORTERS))
    if not found:
        raise DeviceError(
            f"{encoder}: is a checkpoint, not a bundle, and this installation has no exporter; "
            "install the complete dinoreg-rt, or give the folder of a bundle"
        )
    export: Any = found[0].load()
    path: Path = export(
        Path(encoder), cache_folder() / "encoders", wanted.token_grid, wanted.depth, anew=anew
    )
    return path
