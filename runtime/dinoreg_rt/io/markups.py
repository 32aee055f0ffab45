"""Markups files of 3D Slicer (.mrk.json) as positions and labels."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError
from ..types import FloatArray
from .guard import parse_json

#: Statuses of control points whose position does not count.
_UNPLACED = ("undefined", "missing", "preview")


class Markups(NamedTuple):
    """The content of a markups file.

    Attributes:
        points: positions, (N, 3), in the frame of the file.
        labels: one name per point.
        frame: ``LPS`` or ``RAS``.
        document: the whole content.
    """

    points: FloatArray
    labels: tuple[str, ...]
    frame: str
    document: dict[str, Any]


def parse_markups(text: str, name: str) -> Markups:
    """Parse the one list of control points of a markups file.

    Args:
        text: content of the file.
        name: name of the file.

    Raises:
        InputError: another structure, several lists, a point that was not placed or does not have
            three coordinates, or an unknown frame or unit.
    """
    try:
        document = parse_json(text)
        (node,) = document["markups"]
        stated = str(node.get("coordinateSystem", "LPS")).upper()
        controls = node["controlPoints"]
        points = [_position(control, i + 1) for i, control in enumerate(controls)]
        labels = tuple(str(c.get("label", i + 1)) for i, c in enumerate(controls))
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(
            f"{name}: is not a 3D Slicer markups file with one list of placed control points "
            f"({type(error).__name__}: {str(error)[:200]})"
        ) from error
    units = node.get("coordinateUnits", "mm")
    if stated not in ("LPS", "RAS") or units not in ("mm", None):
        raise InputError(
            f"{name}: states the coordinate system {stated[:40]} in {str(units)[:40]}; LPS or RAS "
            "in mm is needed"
        )
    return Markups(np.array(points, np.float64).reshape(-1, 3), labels, stated, document)


def _position(control: dict[str, Any], number: int) -> list[float]:
    status, position = control.get("positionStatus", "defined"), control["position"]
    if status in _UNPLACED:
        raise ValueError(f"control point {number} has the status '{status}'; place or remove it")
    if not isinstance(position, list) or len(position) != 3:
        raise ValueError(f"control point {number} does not have three coordinates")
    if any(type(value) not in (int, float) for value in position):
        raise ValueError(f"control point {number} has a coordinate that is not a number")
    numbers = [float(value) for value in position]
    return numbers if all(map(math.isfinite, numbers)) else [math.nan] * 3
