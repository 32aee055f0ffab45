"""What the presets of registrations want of an encoder: the grid of its tokens, and the layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dinoreg_rt.config.files import preset_names, read_preset
from dinoreg_rt.errors import ConfigError

from ..checkpoint.architecture import Architecture, VitArchitecture

#: The first of these that there is stands for a size that nobody gave.
_DEFAULTS = ("best-encoder", "balanced")


@dataclass(frozen=True)
class PresetChoice:
    """An encoder as a preset wants it.

    Attributes:
        preset: its name.
        token_grid: rows and columns of tokens.
        depth: of the block whose tokens are used, 1 for the last; None: the final layer.
    """

    preset: str
    token_grid: tuple[int, int]
    depth: float | None

    def size(self, a: Architecture) -> tuple[int, int]:
        """Height and width in pixels for an encoder."""
        return self.token_grid[0] * a.patch, self.token_grid[1] * a.patch

    def layers(self, a: Architecture) -> tuple[str, ...]:
        """The layer of an encoder."""
        return layers_at(a, self.depth)


def encoder_presets() -> list[str]:
    """The presets that name an encoder and the grid of its tokens."""
    needed = {"encoder", "token_grid"}
    return [name for name in preset_names() if needed <= read_preset(name).keys()]


def preset_choice(name: str | None) -> PresetChoice:
    """What a preset wants; None: that of the default one.

    Raises:
        ConfigError: no preset of that name, or one without an encoder.
    """
    there = encoder_presets()
    if name is None:
        name = next(preset for preset in _DEFAULTS if preset in there)
    if name not in there:
        raise ConfigError(
            f"--preset {name}: no preset with an encoder; there are: {', '.join(there)}"
        )
    values = read_preset(name)
    rows, columns = values["token_grid"]
    return PresetChoice(name, (rows, columns), values.get("encoder_depth"))


def layers_at(a: Architecture, depth: float | None) -> tuple[str, ...]:
    """The layer at a relative depth.

    Raises:
        ConfigError: an intermediate one of a ConvNeXt.
    """
    from dinoreg_rt.bundle.manifest import layer_at  # takes a while; the presets' names do not

    if isinstance(a, VitArchitecture):
        return (layer_at(depth, a.depth),)
    if depth is not None and depth < 1:
        raise ConfigError(
            f"{a.name}, a ConvNeXt, has no tokens at the depth {depth:g} that the preset wants; "
            "--layer final takes those of its end"
        )
    return (layer_at(None, 1),)


def sizes_both_ways(grid: Sequence[int], patch: int) -> list[tuple[int, int]]:
    """A grid of tokens in pixels, for slices that are higher than wide and the other way round."""
    size = (grid[0] * patch, grid[1] * patch)
    return sorted({size, size[::-1]})
