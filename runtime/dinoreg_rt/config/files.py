"""Parameters in TOML: the user's files, and the presets that come with the package."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from ..errors import ConfigError


def preset_names() -> list[str]:
    """Return the names of the presets."""
    folder = resources.files(__package__) / "presets"
    return sorted(p.name[:-5] for p in folder.iterdir() if p.name.endswith(".toml"))


def read_preset(name: str) -> dict[str, Any]:
    """Return the values of a preset.

    Raises:
        ConfigError: there is no such preset.
    """
    if name not in preset_names():
        raise ConfigError(f"no preset '{name}'; choose one of {', '.join(preset_names())}")
    text = (resources.files(__package__) / "presets" / f"{name}.toml").read_text("utf-8")
    return tomllib.loads(text)


def read_toml(file: Path) -> dict[str, Any]:
    """Return the content of a TOML file.

    Raises:
        ConfigError: the file cannot be read, or is not TOML.
    """
    if file.exists() and not file.is_file() and not file.is_dir():  # a FIFO would be waited for
        raise ConfigError(f"{file}: is a FIFO, a socket or a device; give a regular file")
    try:
        return tomllib.loads(file.read_text("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # an integer of 5,000 digits is a ValueError
        raise ConfigError(f"{file}: not a TOML file: {str(error)[:200]}") from error
