"""Evaluation of many pairs: from a table of pairs and a folder of results to mean scores."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import DinoregError, InputError
from ..io.guard import reader_errors
from ..io.paths import check_input
from ..quality import metrics as quality
from ..registration.result_files import DISPLACEMENT, LINEAR, TRANSFORM
from .pair import PairFiles, PairScores, evaluate_pair

#: File names of a pair's result, of which the first that exists is used. The first two hold the
#: same mapping if `dinoreg-rt run` writes both; the last is that of a linear transform.
RESULT_NAMES = (TRANSFORM, DISPLACEMENT, LINEAR)

_REQUIRED = ("pair", "fixed", "moving")
_OPTIONAL = ("kind", "fixed_label", "moving_label", "fixed_points", "moving_points", "mask")


@dataclass(frozen=True)
class MeanInterval:
    """Mean over `cases` pairs and its 95 % bootstrap interval, NaN for fewer than two pairs."""

    mean: float
    low: float
    high: float
    cases: int

    def __str__(self) -> str:
        limits = "" if math.isnan(self.low) else f" [{self.low:.3f}, {self.high:.3f}]"
        return f"{self.mean:.3f}{limits}"


@dataclass(frozen=True)
class GroupScores:
    """Means over the pairs of one kind, or over all pairs (kind ``all``)."""

    kind: str
    pairs: int
    scored: int
    metrics: dict[str, MeanInterval] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the scores for JSON."""
        metrics = {name: vars(value) for name, value in self.metrics.items()}
        return {"kind": self.kind, "pairs": self.pairs, "scored": self.scored, "metrics": metrics}


class Scored(Protocol):
    """The interface that `summarise` needs: `PairScores`, or a stored part of them."""

    @property
    def kind(self) -> str:
        """The group of the pair."""

    @property
    def status(self) -> str:
        """``ok`` if the pair was scored."""

    def means(self) -> dict[str, float]:
        """One number per metric; NaN if it was not scored."""


def evaluate_pairs(pairs: Sequence[PairFiles]) -> Iterator[PairScores]:
    """Score many pairs, one at a time; the failure of a pair is reported as its status.

    Args:
        pairs: from `read_pairs`; a pair without transforms has the status ``missing``.
    """
    for files in pairs:
        if not files.transforms:
            names = " or ".join(RESULT_NAMES)
            yield PairScores(files.name, files.kind, "missing", f"no {names} in its folder")
            continue
        try:
            yield evaluate_pair(files)
        except DinoregError as error:
            yield PairScores(files.name, files.kind, "failed", str(error))


def read_pairs(pairs_csv: Path, data: Path, results: Path) -> list[PairFiles]:
    """Read a table of pairs, whose results lie in ``results/<pair>/``.

    Args:
        pairs_csv: columns ``pair, fixed, moving`` and optionally ``kind, fixed_label, moving_label,
            fixed_points, moving_points, mask``; further columns are ignored, unless their names
            look like a misspelling of these.
        data: folder that the paths in the table are relative to.
        results: folder with one folder per pair.

    Raises:
        InputError: the table cannot be read, lacks a column or a field, names one twice or
            misspelled, is empty, or lists a pair twice.
    """
    rows = read_rows(pairs_csv)
    with reader_errors(str(pairs_csv), "a table of pairs"):
        return [pair_of_row(row, data, results) for row in rows]


def read_rows(pairs_csv: Path, further: Sequence[str] | None = None) -> list[dict[str, str]]:
    """Read the rows of a table of pairs, each with its text by column.

    Args:
        pairs_csv: see `read_pairs`.
        further: names of columns that are read besides those of `read_pairs`; every other name is
            then an error. None: other columns are ignored.

    Raises:
        InputError: as `read_pairs`.
    """
    check_input(pairs_csv)
    try:
        with pairs_csv.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            columns, rows = reader.fieldnames or [], list(reader)
    except OSError as error:
        raise InputError(f"{pairs_csv}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{pairs_csv}: cannot be read as CSV: {error}") from error
    _check_table(columns, rows, pairs_csv, further)
    names = [row["pair"] for row in rows]
    if not names:
        raise InputError(f"{pairs_csv}: lists no pair; add one per line")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(
            f"{pairs_csv}: lists pairs more than once: {', '.join(twice)}; rename or remove them"
        )
    return rows


def _check_table(
    columns: Sequence[str],
    rows: Sequence[dict[Any, Any]],
    table: Path,
    further: Sequence[str] | None,
) -> None:
    known = (*_REQUIRED, *_OPTIONAL, *(further or ()))
    missing = [name for name in _REQUIRED if name not in columns]
    if len(columns) == 1 and any(sign in columns[0] for sign in ";\t"):
        raise InputError(
            f"{table}: separates its columns by semicolons or tabs; separate them by commas"
        )
    if missing:
        raise InputError(
            f"{table}: has no column {', '.join(missing)}, only {', '.join(columns)}; name the "
            "columns in the first line"
        )
    if twice := sorted({name for name in columns if name and columns.count(name) > 1}):
        raise InputError(
            f"{table}: names columns more than once: {', '.join(twice)}; only the last of each "
            "would be read: rename or remove the others"
        )
    for name in columns:
        if name in known:
            continue
        near = get_close_matches(name.strip().lower(), known, 1, 0.8)
        if near:
            raise InputError(
                f"{table}: the column '{name}' would be ignored; is '{near[0]}' meant? rename it"
            )
        if further is not None:
            raise InputError(
                f"{table}: the column '{name}' is not known; remove it, or choose from: "
                f"{', '.join(known)}"
            )
    for i, row in enumerate(rows):
        if None in row:
            raise InputError(
                f"{table}: row {i + 1} has more fields than the header names columns: "
                f"{', '.join(row[None])} would be ignored"
            )
        if empty := [name for name in _REQUIRED if not row[name]]:
            raise InputError(f"{table}: row {i + 1} has no {', '.join(empty)}")


def summarise(scores: Sequence[Scored]) -> list[GroupScores]:
    """Compute means with bootstrap intervals, over all pairs first and then over each kind.

    The mean of a metric is over the pairs that have it, `MeanInterval.cases` in number.
    """
    groups = {"all": list(scores)}
    for one in scores:
        if one.kind:
            groups.setdefault(one.kind, []).append(one)
    return [_summarise_group(kind, members) for kind, members in groups.items()]


def _summarise_group(kind: str, members: Sequence[Scored]) -> GroupScores:
    scored = [one.means() for one in members if one.status == "ok"]
    metrics = {}
    for name in scored[0] if scored else ():
        values = [means[name] for means in scored if not math.isnan(means[name])]
        if values:
            low, high = quality.bootstrap_interval(values)
            metrics[name] = MeanInterval(float(np.mean(values)), low, high, len(values))
    return GroupScores(kind, len(members), len(scored), metrics)


def result_files(folder: Path) -> tuple[Path, ...]:
    """Return the file of a result that is used, see `RESULT_NAMES`; nothing if there is none."""
    return tuple(folder / name for name in RESULT_NAMES if (folder / name).exists())[:1]


def pair_of_row(row: dict[str, str], data: Path, results: Path) -> PairFiles:
    """Return the files of a row; the arguments are those of `read_pairs`."""

    def path(column: str) -> Path | None:
        return data / row[column] if row.get(column) else None

    return PairFiles(
        name=row["pair"],
        kind=row.get("kind") or "",
        fixed_image=path("fixed"),
        fixed_labels=path("fixed_label"),
        moving_labels=path("moving_label"),
        moving_image=path("moving"),
        transforms=result_files(results / row["pair"]),
        fixed_points=path("fixed_points"),
        moving_points=path("moving_points"),
        mask=path("mask"),
    )
