"""Checks of a checkpoint's tensors against its architecture."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from dinoreg_rt.errors import InputError

from .architecture import Architecture, Shape


def check_shapes(path: Path, shapes: Mapping[str, Shape], architecture: Architecture) -> None:
    """Compare canonical names and shapes with those of the architecture.

    Raises:
        InputError: tensors are missing or superfluous, or have another shape.
    """
    wanted = architecture.parameters()
    optional = architecture.optional_parameters()
    position = {"position"} if architecture.learned_positions else set()
    missing = (wanted.keys() | position) - shapes.keys()
    missing |= _missing_biases(shapes, optional)
    extra = shapes.keys() - wanted.keys() - optional.keys() - position
    for what, names in (("lacks", missing), ("also has", extra)):
        if names:
            raise InputError(
                f"{path}: does not fit {architecture.name}: it {what} {shortened(sorted(names))}; "
                "the file is damaged, or of another model"
            )
    for name, expected in (wanted | optional).items():
        shape = shapes.get(name, expected)
        if not _same_but_for_ones(shape, expected):
            raise InputError(
                f"{path}: '{name}' has shape {shape}; in {architecture.name} it has {expected}"
            )
    if position:
        _check_position(path, shapes["position"], architecture.dim)


def _missing_biases(shapes: Mapping[str, Shape], optional: Mapping[str, Shape]) -> set[str]:
    """Return the biases that some blocks have and others lack."""
    leaves = {name.split(".", 2)[2] for name in optional if name in shapes}
    return {n for n in optional if n.split(".", 2)[2] in leaves and n not in shapes}


def _check_position(path: Path, shape: Shape, dim: int) -> None:
    side = math.isqrt(shape[1] - 1) if len(shape) == 3 and shape[1] > 1 else 0
    if shape != (1, 1 + side * side, dim):
        raise InputError(f"{path}: 'position' has shape {shape}; expected (1, 1 + n * n, {dim})")


def shortened(names: list[str]) -> str:
    """Return the first five names and the number of the others, for messages."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def _same_but_for_ones(shape: Shape, expected: Shape) -> bool:
    return [n for n in shape if n != 1] == [n for n in expected if n != 1]
