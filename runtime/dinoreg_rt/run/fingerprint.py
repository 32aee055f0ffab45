"""The fingerprint of a run: whether another run would write the same files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from ..bundle.checkpoints import Wanted, bundle_folder
from ..bundle.manifest import read_manifest
from ..config.parameters import RegistrationConfig
from ..errors import InputError
from ..io.hashes import versions
from .report import hash_input

#: Parameters of the machine, which change no more than the rounding of the results.
MACHINE = ("device", "threads", "gpu_memory_gb", "search_memory_mb", "token_memory_gb")

#: Parameters of caches, which do not change the results.
CACHES = ("cache", "cache_gb")


def fingerprint(config: RegistrationConfig, files: Sequence[str], inputs: Mapping[str, str]) -> str:
    """Return the sha256 of all that the files of a run depend on.

    Args:
        config: the requested parameters.
        files: names of the files that the run writes, and their kinds.
        inputs: sha256 of each input file by its role, as `RunReport.inputs` names them.

    Raises:
        InputError: a file cannot be read, or the encoder does not exist.
    """
    found = versions()
    start = Path(config.initial)
    left_out = {"initial", "encoder", *MACHINE, *CACHES}
    parts = {
        "inputs": dict(inputs),
        "initial": file_hash(start) if start.is_file() else config.initial,
        "configuration": config.model_dump(mode="json", exclude=left_out),
        "encoder": encoder_hash(config.encoder, config.token_grid, config.encoder_depth),
        "files": sorted(files),
        "versions": [found["dinoreg-rt"], found["libdinoreg"]],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@cache
def encoder_hash(encoder: str | None, grid: tuple[int, int] | None, depth: float | None) -> str:
    """Hash the contents of an encoder, which may change under the same name."""
    if encoder is None:
        return ""
    return read_manifest(bundle_folder(encoder, Wanted(grid, depth))).hash()


def file_hash(file: Path) -> str:
    """Return the sha256 of an input, see `hash_input`.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        return hash_input(file).sha256
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from error
