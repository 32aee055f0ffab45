"""Landmark files read and written, with points in LPS millimetres.

A CSV does not state its frame: it is taken as LPS unless the caller says ``ras``. 3D Slicer's
files state theirs. Points are written in the frame of the file they were read from.
"""

from __future__ import annotations

import copy
import csv
import io
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import numpy as np

from ..errors import InputError, OutputError
from ..types import FloatArray
from .guard import reader_errors
from .markups import parse_markups
from .paths import check_input, output_errors
from .point_tables import (
    AXES,
    check_columns,
    coordinate_columns,
    is_number,
    read_coordinates,
    write_table,
)
from .staging import staged_file
from .validate import check_positions

Frame: TypeAlias = Literal["lps", "ras"]

_SUFFIXES = (".csv", ".mrk.json", ".fcsv")
_FCSV_COLUMNS = (
    *("id", "x", "y", "z", "ow", "ox", "oy", "oz"),
    *("vis", "sel", "lock", "label", "desc", "associatedNodeID"),
)
#: Files of 3D Slicer 4.10 and older hold the numbers.
_FCSV_FRAMES: dict[str, Frame] = {"LPS": "lps", "RAS": "ras", "1": "lps", "0": "ras"}


@dataclass(frozen=True, eq=False)
class PointSet:
    """Landmarks, with everything needed to write them back as they were read.

    Attributes:
        points_lps_mm: positions, (N, 3) float64.
        labels: one name per point.
        frame: the frame of the file, in which the points are written again.
        columns: column names of a CSV or .fcsv; empty if it has no header.
        rows: the table's fields, one tuple per point; the coordinates are replaced on writing.
        document: the whole content of a .mrk.json; None for other formats.
    """

    points_lps_mm: FloatArray
    labels: tuple[str, ...]
    frame: Frame = "lps"
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    document: dict[str, Any] | None = None

    def with_points(self, points_lps_mm: FloatArray) -> PointSet:
        """Return the same landmarks at other positions, (N, 3) in LPS mm."""
        points = np.asarray(points_lps_mm, dtype=np.float64)
        if points.shape != self.points_lps_mm.shape:
            raise ValueError(f"got points {points.shape}; wanted {self.points_lps_mm.shape}")
        return replace(self, points_lps_mm=points)


def read_points(path: str | os.PathLike[str], frame: Frame = "lps") -> PointSet:
    """Read landmarks.

    Args:
        path: ``.csv`` (columns x, y, z; a header is optional), ``.mrk.json`` or ``.fcsv``.
        frame: frame of a CSV; the other formats state theirs.

    Raises:
        InputError: the file is missing, of an unknown format or without points, a coordinate is not
            a finite number or beyond 1e6 mm, or the frame is unknown.
    """
    check_input(path)
    file = Path(path)
    try:
        text = file.read_text("utf-8-sig")
    except FileNotFoundError as error:
        raise InputError(f"{file}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read as text: {error}") from error
    suffix = _suffix(file)
    if suffix not in _SUFFIXES:
        raise InputError(
            f"{file}: unknown format of points '{suffix}'; give {', '.join(_SUFFIXES)}"
        )
    with reader_errors(str(file), "points"):
        if suffix == ".csv":
            points = _read_csv(text, str(file), frame)
        elif suffix == ".fcsv":
            points = _read_fcsv(text, str(file))
        else:
            points = _read_markups(text, str(file))
    _check_coordinates(points.points_lps_mm, str(file))
    # A label from JSON may hold half a character, which no file can.
    labels = tuple(label.encode("utf-8", "replace").decode() for label in points.labels)
    return replace(points, labels=labels)


def write_points(path: str | os.PathLike[str], points: PointSet) -> None:
    """Write landmarks in their own frame; the suffix of `path` chooses the format.

    A point without a position has the coordinates NaN, or is marked as missing in JSON.

    Raises:
        OutputError: the file cannot be written, or has another suffix.
    """
    file = Path(path)
    writers = {".csv": _csv_text, ".fcsv": _fcsv_text, ".mrk.json": _markups_text}
    suffix = _suffix(file)
    if suffix not in writers:
        raise OutputError(
            f"{file}: points cannot be written as '{suffix}'; use {', '.join(_SUFFIXES)}"
        )
    text = writers[suffix](points)
    with staged_file(file) as staged, output_errors(file):
        staged.write_text(text, "utf-8")


def _check_coordinates(points_mm: FloatArray, name: str) -> None:
    if not len(points_mm):
        raise InputError(f"{name}: holds no points")
    if not np.isfinite(points_mm).all():
        raise InputError(f"{name}: a coordinate is NaN or Inf")
    check_positions(points_mm, name, "list of points")


def _suffix(file: Path) -> str:
    name = file.name.lower()
    return next((s for s in _SUFFIXES if name.endswith(s)), file.suffix)


def _flip(points: FloatArray, frame: Frame) -> FloatArray:
    """Convert from LPS to `frame`, or back, which is the same operation."""
    return points * (np.array([-1.0, -1.0, 1.0]) if frame == "ras" else 1.0)


def _read_csv(text: str, name: str, frame: Frame) -> PointSet:
    first = text.lstrip().partition("\n")[0]
    delimiter = max(",;\t", key=first.count)
    rows = [tuple(c.strip() for c in r) for r in csv.reader(io.StringIO(text), delimiter=delimiter)]
    rows = [r for r in rows if any(r) and not r[0].startswith("#")]
    columns: tuple[str, ...] = ()
    if rows and not is_number(rows[0][0]):
        columns, *rows = rows
    check_columns(columns, rows, name)
    at = coordinate_columns(columns, name)
    points = read_coordinates(rows, at, name)
    lower = [c.lower() for c in columns]
    label_at = next((lower.index(c) for c in ("label", "name") if c in lower), None)
    labels = tuple(
        row[label_at] if label_at is not None and label_at < len(row) else str(i + 1)
        for i, row in enumerate(rows)
    )
    return PointSet(_flip(points, frame), labels, frame, columns, tuple(rows))


def _read_fcsv(text: str, name: str) -> PointSet:
    header = {}
    for line in text.splitlines():
        if line.startswith("#") and "=" in line:
            key, _, value = line[1:].partition("=")
            header[key.strip()] = value.strip()
    stated = header.get("CoordinateSystem", "(none)")
    if stated.upper() not in _FCSV_FRAMES:
        raise InputError(
            f"{name}: states the coordinate system {stated[:40]}; LPS or RAS is needed in a line "
            "'# CoordinateSystem = LPS'"
        )
    frame = _FCSV_FRAMES[stated.upper()]
    columns = tuple(c.strip() for c in header.get("columns", ",".join(_FCSV_COLUMNS)).split(","))
    rows = [tuple(r) for r in csv.reader(io.StringIO(text)) if r and not r[0].startswith("#")]
    points = read_coordinates(rows, coordinate_columns(columns, name), name)
    at = columns.index("label") if "label" in columns else 0
    labels = tuple(row[at] if at < len(row) else str(i + 1) for i, row in enumerate(rows))
    return PointSet(_flip(points, frame), labels, frame, columns, tuple(rows))


def _read_markups(text: str, name: str) -> PointSet:
    found = parse_markups(text, name)
    frame = cast(Frame, found.frame.lower())
    points = _flip(found.points, frame)
    return PointSet(points, found.labels, frame, document=found.document)


def _csv_text(points: PointSet) -> str:
    xyz = _flip(points.points_lps_mm, points.frame)
    columns, rows = points.columns, [list(row) for row in points.rows]
    if not rows or "associatedNodeID" in columns:  # from another format
        columns, rows = (*AXES, "label"), [["", "", "", label] for label in points.labels]
    return write_table(columns, rows, xyz)


def _fcsv_text(points: PointSet) -> str:
    xyz = _flip(points.points_lps_mm, points.frame)
    columns, rows = points.columns, [list(row) for row in points.rows]
    if "associatedNodeID" not in columns:
        columns = _FCSV_COLUMNS
        rows = [
            [f"vtkMRMLMarkupsFiducialNode_{i}", "", "", "", *"0001110", label, "", ""]
            for i, label in enumerate(points.labels)
        ]
    head = "# Markups fiducial file version = 4.11\n"
    head += f"# CoordinateSystem = {points.frame.upper()}\n# columns = {','.join(columns)}\n"
    return head + write_table((), rows, xyz, coordinate_columns(columns, "points"))


def _markups_text(points: PointSet) -> str:
    xyz = _flip(points.points_lps_mm, points.frame).tolist()
    if points.document is not None:
        document = copy.deepcopy(points.document)
        for control, position in zip(document["markups"][0]["controlPoints"], xyz, strict=True):
            control["position"] = position
    else:
        controls = [
            {"id": str(i + 1), "label": label, "position": position}
            for i, (label, position) in enumerate(zip(points.labels, xyz, strict=True))
        ]
        node = {
            "type": "Fiducial",
            "coordinateSystem": points.frame.upper(),
            "coordinateUnits": "mm",
            "controlPoints": controls,
        }
        document = {"markups": [node]}
    for control in document["markups"][0]["controlPoints"]:
        if not np.isfinite(control["position"]).all():
            control |= {"position": "", "positionStatus": "missing"}  # as Slicer writes it
    return json.dumps(document, indent=2) + "\n"
