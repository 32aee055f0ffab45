"""Folders in the layout of Hugging Face's cache, with their weights and config.json.

A repository is a folder ``models--ORGANISATION--NAME``. Its file ``refs/main`` names a folder in
``snapshots``, which contains links to the files in ``blobs``.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from dinoreg_rt.errors import InputError

from .architecture import Architecture, VitArchitecture

INDEX = "model.safetensors.index.json"
CONFIG = "config.json"
#: Names of the file of weights in a folder; the first one that exists is used.
_WEIGHTS = ("model.safetensors", INDEX, "model.onnx", "onnx/model.onnx")
_LARGEST_JSON = 32 << 20
_LARGEST_REF = 1024


def weights_file(path: Path) -> Path:
    """Return the file of weights, or the index of such files, that a path denotes.

    Args:
        path: that file, a folder that contains it, or a repository in the cache.

    Raises:
        InputError: there is no such file.
    """
    folder = _snapshot(path) if path.is_dir() else None
    if folder is not None:
        path = next((folder / n for n in _WEIGHTS if (folder / n).exists()), folder / _WEIGHTS[0])
    if not path.is_file():
        raise InputError(
            f"{path}: is not a checkpoint; give a .safetensors, .pth or .onnx file, or a folder "
            f"with {' or '.join(_WEIGHTS)}, such as a snapshot in Hugging Face's cache"
        )
    return path


def name_of(path: Path) -> str:
    """Return the name of a checkpoint: ``ORGANISATION/NAME`` of a repository, else of the path."""
    for part in reversed(path.absolute().parts[-3:]):
        if part.startswith("models--") and path.is_dir():
            return "/".join(part.split("--")[1:])
    return path.name


def config_of(path: Path) -> Path | None:
    """Return the config.json of a checkpoint's folder, if it has one."""
    config = _snapshot(path) / CONFIG if path.is_dir() else None
    return config if config is not None and config.exists() else None


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read a JSON file of at most 32 MiB.

    Args:
        path: file to read.
        what: noun phrase for the file, used in errors.

    Raises:
        InputError: the file is larger, not JSON or not an object, or cannot be read.
    """
    if path.exists() and not path.is_file():  # opening a FIFO would wait for a writer
        raise InputError(f"{path}: cannot be read: it is not a regular file")
    try:
        with path.open("rb") as stream:
            content = stream.read(_LARGEST_JSON + 1)
        if len(content) > _LARGEST_JSON:
            raise ValueError(f"it is larger than {_LARGEST_JSON >> 20} MiB")
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not {what}: {error}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: is not {what}: it is not a JSON object")
    return values


def check_config(path: Path, architecture: Architecture) -> None:
    """Compare the values in a config.json with the architecture of the tensors.

    Raises:
        InputError: a value belongs to another network.
    """
    config = read_json(path, "a configuration of a network")
    wanted: dict[str, Any] = {"num_channels": 3, "layer_norm_eps": architecture.epsilon}
    if isinstance(architecture, VitArchitecture):
        wanted = _vit(architecture) | wanted
    else:
        dims, depths = list(architecture.dims), list(architecture.depths)
        wanted |= {"model_type": "dinov3_convnext", "hidden_sizes": dims, "depths": depths}
    for key, value in wanted.items():
        found = config.get(key, value)
        if found != value:
            raise InputError(
                f"{path}: says {key} {str(found)[:80]!r}, but the tensors beside it are those of "
                f"{architecture.name} with {value!r}: the files belong to different networks; "
                "download the folder again, or give the file of weights itself to ignore the "
                "configuration"
            )


def _vit(a: VitArchitecture) -> dict[str, Any]:
    """Return the expected values in Hugging Face's configuration of a vision transformer."""
    wanted = {
        "model_type": "dinov3_vit",
        "hidden_size": a.dim,
        "num_hidden_layers": a.depth,
        "num_attention_heads": a.heads,
        "patch_size": a.patch,
    }
    if a.generation == 3:
        return wanted | {
            "intermediate_size": a.hidden,
            "num_register_tokens": a.register_tokens,
            "use_gated_mlp": a.gated,
            "hidden_act": "silu" if a.gated else "gelu",
            "rope_theta": a.rope_base,
        }
    wanted["model_type"] = "dinov2_with_registers" if a.register_tokens else "dinov2"
    if a.register_tokens:
        wanted["num_register_tokens"] = a.register_tokens
    if not a.gated:
        wanted |= {"mlp_ratio": a.hidden / a.dim, "hidden_act": "gelu"}
    return wanted | {"use_swiglu_ffn": a.gated}


def _snapshot(folder: Path) -> Path:
    """Return the snapshot that refs/main names if the folder is a repository, else the folder."""
    ref = folder / "refs" / "main"
    if not (folder / "snapshots").is_dir() or any((folder / n).exists() for n in _WEIGHTS):
        return folder
    try:
        with ref.open("rb") as stream:
            name = stream.read(_LARGEST_REF).decode("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{ref}: cannot be read, so the snapshot to use is unknown; give a folder in "
            f"{folder / 'snapshots'}"
        ) from error
    plain = name not in ("", ".", "..") and not any(c in name for c in "/\\\0")
    if not plain or not os.path.isdir(folder / "snapshots" / name):
        raise InputError(
            f"{ref}: names the snapshot {name[:80]!r}, which is not in {folder / 'snapshots'}; "
            "download it again, or give a folder in there"
        )
    return folder / "snapshots" / name
