"""The layers whose tokens a bundle gives, and the blocks that they need."""

from __future__ import annotations

from collections.abc import Sequence

from dinoreg_rt.bundle.manifest import FINAL_LAYER, FINAL_ONLY
from dinoreg_rt.errors import ConfigError

from .architecture import Architecture, VitArchitecture


def canonical_layers(a: Architecture, wanted: Sequence[str]) -> tuple[str, ...]:
    """Return layers as a manifest names them, in the given order.

    Args:
        a: the encoder.
        wanted: layers, each ``final`` (the last block after the final norm) or the number of a
            block, whose output is taken before any norm. Negative numbers count from the end; -1
            is the last block. An empty sequence means ``final``.

    Raises:
        ConfigError: a layer does not exist or is given twice, or a ConvNeXt's is not ``final``.
    """
    layers = tuple(_canonical(a, layer) for layer in wanted) or FINAL_ONLY
    twice = sorted({layer for layer in layers if layers.count(layer) > 1})
    if twice:
        raise ConfigError(
            f"--layer {', '.join(wanted)}: layer {twice[0]} is given twice; give it once"
        )
    return layers


def blocks_needed(a: VitArchitecture, layers: Sequence[str]) -> int:
    """Return the number of blocks, from the first on, that the deepest of the layers needs."""
    return a.depth if FINAL_LAYER in layers else 1 + max(map(int, layers))


def _canonical(a: Architecture, layer: str) -> str:
    if layer == FINAL_LAYER:
        return layer
    if not isinstance(a, VitArchitecture):
        raise ConfigError(
            f"--layer {layer}: {a.name} is a ConvNeXt, which gives only the layer '{FINAL_LAYER}'"
        )
    digits = layer.removeprefix("-")
    number = int(layer) if digits.isdecimal() and digits.isascii() and len(digits) < 10 else None
    if number is None or not -a.depth <= number < a.depth:
        raise ConfigError(
            f"--layer {layer}: {a.name} has the blocks 0 to {a.depth - 1} (or {-a.depth} to -1, "
            f"counted from the end); give one of these, or '{FINAL_LAYER}'"
        )
    return str(number % a.depth)
