"""Tables of points: their columns and numbers."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

import numpy as np

from ..errors import InputError
from ..types import FloatArray

AXES = ("x", "y", "z")


def check_columns(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], name: str) -> None:
    """Require that every field belongs to one column; without a header, x, y and z are the columns.

    Raises:
        InputError: a column is named twice, or a row has fields beyond its columns; the message
            says what would be read.
    """
    lower = [c.lower() for c in columns if c]
    if twice := sorted({c for c in lower if lower.count(c) > 1}):
        raise InputError(
            f"{name}: its header names more than once: {', '.join(twice)}; only the first of each "
            "would be read: rename or remove the others"
        )
    for i, row in enumerate(rows):
        if not any(row[len(columns) or 3 :]):
            continue
        if columns:
            raise InputError(
                f"{name}: point {i + 1} has {len(row)} fields, but the header names {len(columns)} "
                f"columns: {', '.join(row)}"
            )
        raise InputError(
            f"{name}: has {len(row)} columns and no header, so that {', '.join(row[:3])} would be "
            "read as x, y, z: name the columns in the first line, such as x,y,z,label"
        )


def coordinate_columns(columns: Sequence[str], name: str) -> list[int]:
    """Return the places of x, y and z among the columns; the first three if they have no names."""
    if not columns:
        return [0, 1, 2]
    lower = [c.lower() for c in columns]
    if not all(axis in lower for axis in AXES):
        raise InputError(
            f"{name}: its header names the columns {', '.join(columns)}; x, y and z are needed"
        )
    return [lower.index(axis) for axis in AXES]


def read_coordinates(rows: Sequence[Sequence[str]], at: Sequence[int], name: str) -> FloatArray:
    """Return the coordinates (N, 3) in the columns `at`."""
    points = np.empty((len(rows), 3))
    for i, row in enumerate(rows):
        try:
            points[i] = [number(row[j]) for j in at]
        except (ValueError, IndexError) as error:
            raise InputError(
                f"{name}: point {i + 1} needs three numbers x, y, z but has: {', '.join(row)}"
            ) from error
    return points


def number(cell: str) -> float:
    """Return the number in a field; ValueError if it is none, as 1_000, which Python takes."""
    if "_" in cell:
        raise ValueError(cell)
    return float(cell)


def is_number(cell: str) -> bool:
    """Return whether a field looks like a number rather than the name of a column."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def write_table(
    columns: Sequence[str], rows: list[list[str]], xyz: FloatArray, at: Sequence[int] | None = None
) -> str:
    """Return a table as CSV, with the coordinates `xyz` in the columns `at` of its rows."""
    at = at or coordinate_columns(columns, "points")
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    if columns:
        writer.writerow(columns)
    for row, point in zip(rows, xyz, strict=True):
        for j, value in zip(at, point, strict=True):
            row[j] = f"{value:.6f}"
        writer.writerow(row)
    return buffer.getvalue()
