"""The token grid and the layer that each registration preset needs from an encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dinoreg_rt.config.files import preset_names, read_preset
from dinoreg_rt.errors import ConfigError

from ..checkpoint.architecture import Architecture, VitArchitecture

#: Presets for exports without a size: the first of these that exists.
_DEFAULTS = ("best-encoder", "balanced")


@dataclass(frozen=True)
class PresetChoice:
    """The encoder settings of a preset.

    Attributes:
        token_grid: rows and columns of tokens.
        depth: relative depth of the block that gives the tokens, 1 for the last one; None means
            the final layer.
    """

    preset: str
    token_grid: tuple[int, int]
    depth: float | None

    def size(self, a: Architecture) -> tuple[int, int]:
        """Return the height and width in pixels for an encoder."""
        return self.token_grid[0] * a.patch, self.token_grid[1] * a.patch

    def layers(self, a: Architecture) -> tuple[str, ...]:
        """Return the layer of an encoder."""
        return layers_at(a, self.depth)


def encoder_presets() -> list[str]:
    """Return the presets that name an encoder and its grid of tokens."""
    needed = {"encoder", "token_grid"}
    return [name for name in preset_names() if needed <= read_preset(name).keys()]


def preset_choice(name: str | None) -> PresetChoice:
    """Return the encoder settings of a preset; None means the default preset.

    Raises:
        ConfigError: no preset has that name, or it has no encoder.
    """
    known = encoder_presets()
    if name is None:
        name = next(preset for preset in _DEFAULTS if preset in known)
    if name not in known:
        raise ConfigError(
            f"--preset {name}: is not a preset with an encoder; choose one of {', '.join(known)}"
        )
    values = read_preset(name)
    rows, columns = values["token_grid"]
    return PresetChoice(name, (rows, columns), values.get("encoder_depth"))


def layers_at(a: Architecture, depth: float | None) -> tuple[str, ...]:
    """Return the layer at a relative depth.

    Raises:
        ConfigError: the depth is that of an intermediate layer of a ConvNeXt.
    """
    from dinoreg_rt.bundle.manifest import layer_at  # slow, and not needed to list the presets

    if isinstance(a, VitArchitecture):
        return (layer_at(depth, a.depth),)
    if depth is not None and depth < 1:
        raise ConfigError(
            f"{a.name} is a ConvNeXt and has no tokens at the depth {depth:g} that the preset "
            "wants; --layer final takes those of its last layer"
        )
    return (layer_at(None, 1),)


def sizes_both_ways(grid: Sequence[int], patch: int) -> list[tuple[int, int]]:
    """Return the input sizes of a grid of tokens and of its transpose, for tall and wide slices."""
    size = (grid[0] * patch, grid[1] * patch)
    return sorted({size, size[::-1]})
