"""A checkpoint where a bundle is wanted: the export half turns it into one, once, in the cache."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from ..device.limits import cache_folder
from ..errors import DeviceError
from .manifest import MANIFEST_NAME
from .opened import bundle_around, find_bundle

#: Entry points that export a checkpoint: (path, folder of such bundles, token grid, depth, anew) ->
#: folder of the bundle.
_EXPORTERS = "dinoreg_rt.encoder_export"
_FILES = (".safetensors", ".onnx", ".pth")
#: What lies in a folder of weights, of a snapshot or of a repository in Hugging Face's cache.
_IN_FOLDER = ("config.json", "model.safetensors", "model.safetensors.index.json", "refs/main")


@dataclass(frozen=True)
class Wanted:
    """What a registration wants of an encoder that is still to be exported.

    Attributes:
        token_grid: rows and columns of tokens; None: the exporter's choice.
        depth: of the block whose tokens are wanted, relative; None: the final layer.
    """

    token_grid: tuple[int, int] | None = None
    depth: float | None = None


NOTHING_SPECIAL = Wanted()


def is_checkpoint(encoder: str) -> bool:
    """Whether the path is a file of weights or a folder of them, and neither a bundle nor a file
    in one."""
    if os.path.isfile(encoder):
        return encoder.endswith(_FILES) and bundle_around(Path(encoder)) is None
    if os.path.exists(os.path.join(encoder, MANIFEST_NAME)):
        return False
    return any(os.path.exists(os.path.join(encoder, name)) for name in _IN_FOLDER)


def bundle_folder(encoder: str, wanted: Wanted, *, anew: bool = False) -> Path:
    """The folder of the bundle that a user means; a checkpoint is exported where that was not done.

    Args:
        encoder: a bundle, by path or name, or a checkpoint.
        wanted: of a bundle that is made.
        anew: of a checkpoint: make the bundle again, in place of one that was changed.

    Raises:
        InputError: none of these.
        DeviceError: a checkpoint, and the packages of the export are not installed.
        OutputError: its bundle cannot be written.
    """
    if not is_checkpoint(encoder):
        return find_bundle(encoder)
    found = list(entry_points(group=_EXPORTERS))
    if not found:
        raise DeviceError(
            f"{encoder}: is a checkpoint, no bundle, and this installation has no exporter; "
            "install dinoreg-rt whole, or give the folder of a bundle"
        )
    export: Any = found[0].load()
    path: Path = export(
        Path(encoder), cache_folder() / "encoders", wanted.token_grid, wanted.depth, anew=anew
    )
    return path
