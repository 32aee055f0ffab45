"""What a plan of encoding says about the slices and the tokens of both images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..config.parameters import RegistrationConfig
from .slice_stack import PlaneStacks


def describe_tokens(planes: Sequence[PlaneStacks], config: RegistrationConfig) -> str:
    """How many tokens each slice gives, and what of the encoder's picture is no slice."""
    parts = []
    for plane in planes:
        grids = [stack.tokens.shape_zyx[1:] for stack in plane.stacks]
        sizes = [f"{rows} x {columns}" for rows, columns in dict.fromkeys(grids)]
        slices = " + ".join(str(len(stack.encoded)) for stack in plane.stacks)
        part = f"{' + '.join(sizes)} tokens in {slices} {plane.plane} slices"
        if config.slice_scale != "fit":
            part += f", a token is {_token_mm(plane):.1f} mm in both images"
        parts.append(part)
    if config.slice_scale == "body":
        parts.append("slices are cropped to the bodies")
    if config.slice_padding:
        parts.append(f"{config.slice_padding} more at each edge are thrown away")
    return "; ".join(parts)


def _token_mm(plane: PlaneStacks) -> float:
    """Side of a token where both images are shown at one scale: the mean of what was rounded."""
    sides = [side for stack in plane.stacks for side in stack.tokens.spacing_mm[:2]]
    return float(np.mean(sides))


def describe_left_out(planes: Sequence[PlaneStacks]) -> str:
    """How many slices are left aside because they cannot meet the other image."""
    text = ""
    for plane in planes:
        for role, other, stack in zip(
            ("fixed", "moving"), ("moving", "fixed"), plane.stacks, strict=True
        ):
            count, needed = stack.tokens.shape_zyx[0], stack.needed[1] - stack.needed[0] + 1
            if needed < count:
                name = f"{plane.plane} {role}" if len(planes) > 1 else role
                text += f"; {needed} of {count} {name} slices can meet the {other} image"
    return text
