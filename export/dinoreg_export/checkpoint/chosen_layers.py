"""Which blocks' tokens a bundle gives, and how far into the encoder they reach."""

from __future__ import annotations

from collections.abc import Sequence

from dinoreg_rt.bundle.manifest import FINAL_LAYER, FINAL_ONLY
from dinoreg_rt.errors import ConfigError

from .architecture import Architecture, VitArchitecture


def canonical_layers(a: Architecture, wanted: Sequence[str]) -> tuple[str, ...]:
    """The layers as a manifest has them, in the given order.

    Args:
        a: the encoder.
        wanted: each ``final`` (the last block after the final norm) or the number of a block, whose
            output is taken before any norm; negative numbers count from the end, -1 is the last
            block. None at all stands for ``final``.

    Raises:
        ConfigError: no such layer, one that is given twice, or a ConvNeXt's other than ``final``.
    """
    layers = tuple(_canonical(a, layer) for layer in wanted) or FINAL_ONLY
    twice = sorted({layer for layer in layers if layers.count(layer) > 1})
    if twice:
        given = ", ".join(wanted)
        raise ConfigError(
            f"--layer {given}: layer {twice[0]} is there twice; wanted different ones"
        )
    return layers


def blocks_needed(a: VitArchitecture, layers: Sequence[str]) -> int:
    """How many blocks, from the first on, the deepest of the layers needs."""
    return a.depth if FINAL_LAYER in layers else 1 + max(map(int, layers))


def _canonical(a: Architecture, layer: str) -> str:
    if layer == FINAL_LAYER:
        return layer
    if not isinstance(a, VitArchitecture):
        raise ConfigError(
            f"--layer {layer}: of {a.name}, a ConvNeXt, only the layer '{FINAL_LAYER}' can be had"
        )
    digits = layer.removeprefix("-")
    number = int(layer) if digits.isdecimal() and digits.isascii() and len(digits) < 10 else None
    if number is None or not -a.depth <= number < a.depth:
        raise ConfigError(
            f"--layer {layer}: {a.name} has the blocks 0 to {a.depth - 1} (or {-a.depth} to -1, "
            f"counted from the end); wanted one of these, or '{FINAL_LAYER}'"
        )
    return str(number % a.depth)
