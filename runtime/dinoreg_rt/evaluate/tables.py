"""Scores as tables for the terminal, and as CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from ..errors import InputError
from ..io.guard import parse_json
from ..io.paths import check_input
from .cohort import GroupScores, MeanInterval
from .pair import LabelScores, PairScores

#: Definition of each metric, for the JSON report and the command's help.
DEFINITIONS = {
    "dice": "2|A and B| / (|A| + |B|), 0..1; mean over the labels that both unwarped maps hold",
    "hd95_mm": "larger of the two directions' 95th percentiles of surface distance, mm; a lost "
    "label counts as the diagonal of the fixed grid",
    "hd95_vox": "hd95_mm with a voxel spacing of 1 along each axis",
    "tre_mm": "mean distance of mapped fixed landmarks to moving landmarks, mm",
    "sdlogj": "standard deviation of log det J where det J > 0; central differences in mm",
    "sdlogj_learn2reg": "std(log(clip(det J + 3, 1e-9, 1e9))), 2 voxels cropped from every face",
    "folded_percent": "share of voxels with det J <= 0, %",
    "jacobian_min": "smallest det J",
    "jacobian_max": "largest det J",
}

_COMPARED = {"dice": "Dice", "hd95_mm": "HD95 mm", "hd95_vox": "HD95 vox", "tre_mm": "TRE mm"}
_SINGLE = {
    "sdlogj": "SDLogJ",
    "sdlogj_learn2reg": "SDLogJ L2R",
    "folded_percent": "Folded %",
    "jacobian_min": "det J min",
    "jacobian_max": "det J max",
}
_LABEL_METRICS = ("dice", "hd95_mm", "hd95_vox")
_WHEN = ("before", "after")
_COLUMNS = [*(f"{name}_{when}" for name in _COMPARED for when in _WHEN), *_SINGLE]
#: The columns that fit a terminal of 100 characters.
_PAIR_COLUMNS = [
    *(f"{name}_{when}" for name in ("dice", "hd95_mm", "tre_mm") for when in _WHEN),
    "sdlogj",
    "folded_percent",
]


def read_label_names(path: Path) -> dict[int, str]:
    """Read the names of labels from a JSON object ``{"1": "spleen", ...}``.

    Raises:
        InputError: the file cannot be read, or is not an object from whole numbers to names.
    """
    check_input(path)
    try:
        content = parse_json(path.read_text("utf-8"))
        names = {int(label): name for label, name in content.items()}
        if other := [name for name in names.values() if not isinstance(name, str)]:
            raise ValueError(f"{str(other[0])[:40]} is not a text")
        return {label: name.encode("utf-8", "replace").decode() for label, name in names.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(
            f'{path}: is not a JSON object of label names such as {{"1": "spleen"}}: '
            f"{str(error)[:200]}"
        ) from error


def scores_to_json(
    scores: Sequence[PairScores], groups: Sequence[GroupScores], names: Mapping[int, str]
) -> str:
    """Return definitions, pairs with their labels, and means as JSON; null if not scored."""
    document = {
        "status": "ok" if all(one.status == "ok" for one in scores) else "incomplete",
        "definitions": DEFINITIONS,
        "pairs": [_pair_to_dict(one, names) for one in scores],
        "summary": [group.to_dict() for group in groups],
    }
    return json.dumps(without_nan(document), indent=2, allow_nan=False) + "\n"


def scores_to_csv(
    scores: Sequence[PairScores], groups: Sequence[GroupScores], names: Mapping[int, str]
) -> str:
    """Return the scores as CSV; a field is empty if it was not scored.

    The column ``row`` tells lines apart: ``label`` is one label of a pair, ``pair`` the means of a
    pair, and ``mean``, ``ci_low`` and ``ci_high`` are the mean over the pairs of a kind and its
    95 % interval.
    """
    columns = ["row", "pair", "kind", "status", "label", "label_name", *_COLUMNS, "message"]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    for line in _csv_lines(scores, groups, names):
        writer.writerow({key: _csv_value(value) for key, value in line.items()})
    return text.getvalue()


def label_table(scores: PairScores, names: Mapping[int, str]) -> Table:
    """Return a table of one pair's labels and their mean; a lost label is marked by a star."""
    lost = {when: part.lost if part else () for when, part in _parts(scores)}
    shown = [name for name in _COMPARED if name in _LABEL_METRICS]
    table = Table(title=Text(f"Labels of {scores.name}", "table.title"))
    if any(lost.values()):
        table.caption = "* the label has no voxel left; its HD95 is the diagonal of the grid"
    table.add_column("Label")
    for name in shown:
        for when in _WHEN:
            table.add_column(f"{_COMPARED[name]}\n{when}", justify="right")

    def cells(values: Mapping[str, Any], starred: Mapping[str, bool]) -> list[str]:
        return [
            _number(values.get(f"{name}_{when}")) + "*" * (name != "dice" and starred[when])
            for name in shown
            for when in _WHEN
        ]

    for line in _label_lines(scores):
        label = line["label"]
        starred = {when: label in lost[when] for when in _WHEN}
        table.add_row(Text(f"{label} {names.get(label, '')}".strip()), *cells(line, starred))
    table.add_section()
    starred = {when: bool(lost[when]) for when in _WHEN}
    table.add_row("mean", *cells(scores.means(), starred), style="bold")
    return table


def pair_table(scores: Sequence[PairScores]) -> Table:
    """Return a table with the main metrics of each pair, without columns that no pair has."""
    all_means = [one.means() for one in scores]
    columns = [c for c in _PAIR_COLUMNS if any(not math.isnan(means[c]) for means in all_means)]
    table = Table(title="Pairs")
    table.add_column("Pair")
    for column in columns:
        table.add_column(_heading(column), justify="right", no_wrap=True)
    table.add_column("Status", no_wrap=True)
    for one, means in zip(scores, all_means, strict=True):
        status = Text(one.status, style="" if one.status == "ok" else "red")
        table.add_row(Text(one.name), *(_number(means[c]) for c in columns), status)
    return table


def metric_table(groups: Sequence[GroupScores], title: str) -> Table:
    """Return a table of all metrics before and after, with one section for each kind."""
    table = Table(title=title)
    table.add_column("Metric")
    table.add_column("Before", justify="right")
    table.add_column("After", justify="right")
    for group in groups:
        if len(groups) > 1:
            heading = f"{group.kind}: {group.scored} of {group.pairs} pairs"
            table.add_row(Text(heading, style="bold"))
        for name, metric in (*_COMPARED.items(), *_SINGLE.items()):
            before, after = (group.metrics.get(c) for c in _columns_of(name))
            if before or after:
                scored = group.scored
                table.add_row(metric, _interval(before, scored), _interval(after, scored))
        table.add_section()
    return table


def _columns_of(name: str) -> tuple[str, str]:
    """Return a metric's columns before and after; only the transform has a Jacobian."""
    return ("", name) if name in _SINGLE else (f"{name}_before", f"{name}_after")


def _heading(column: str) -> str:
    if column in _SINGLE:
        return _SINGLE[column]
    name, when = column.rsplit("_", 1)
    return f"{_COMPARED[name]}\n{when}"


def _parts(scores: PairScores) -> tuple[tuple[str, LabelScores | None], ...]:
    return (("before", scores.before), ("after", scores.after))


def _label_lines(scores: PairScores) -> Iterator[dict[str, Any]]:
    """Yield each label with the `<metric>_before` and `<metric>_after` that were scored."""
    if scores.before is None:
        return
    for label in scores.before.dice:
        line: dict[str, Any] = {"label": label}
        for when, part in _parts(scores):
            if part is not None:
                line[f"dice_{when}"] = part.dice[label]
                line[f"hd95_mm_{when}"] = part.hd95[label].mm
                line[f"hd95_vox_{when}"] = part.hd95[label].voxels
        yield line


def _pair_to_dict(scores: PairScores, names: Mapping[int, str]) -> dict[str, Any]:
    return {
        "pair": scores.name,
        "kind": scores.kind,
        "status": scores.status,
        "message": scores.message,
        "warnings": scores.warnings,
        "means": scores.means(),
        "labels": [
            {**line, "label_name": names.get(line["label"])} for line in _label_lines(scores)
        ],
        "vanished_labels": scores.vanished,
        "jacobian_voxels": scores.jacobian.voxels if scores.jacobian else None,
        "tre_before_mm": scores.tre_before_mm,
        "tre_after_mm": scores.tre_after_mm,
    }


def _csv_lines(
    scores: Sequence[PairScores], groups: Sequence[GroupScores], names: Mapping[int, str]
) -> Iterator[dict[str, Any]]:
    for one in scores:
        common = {"pair": one.name, "kind": one.kind, "status": one.status}
        for line in _label_lines(one):
            label_name = names.get(line["label"], "")
            yield {"row": "label", **common, **line, "label_name": label_name}
        yield {"row": "pair", **common, **one.means(), "message": one.message}
    for group in groups:
        for row, part in (("mean", "mean"), ("ci_low", "low"), ("ci_high", "high")):
            values = {name: getattr(value, part) for name, value in group.metrics.items()}
            yield {"row": row, "kind": group.kind, **values}


def _csv_value(value: Any) -> Any:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.6g}"
    return value


def without_nan(value: Any) -> Any:
    """Replace NaN and infinity, which JSON cannot hold, by None in nested dicts and lists."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def _interval(value: MeanInterval | None, scored: int) -> str:
    if value is None:
        return "-"
    cases = "" if value.cases == scored else f" ({value.cases} pairs)"
    # A bracket would be markup to rich.
    return f"{value}{cases}".replace("[", r"\[")
