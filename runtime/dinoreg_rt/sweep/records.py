"""The records of a sweep's trials, one per line of ``results.jsonl``."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ..evaluate.tables import without_nan
from ..io.guard import parse_json
from .space import Candidate


@dataclass(frozen=True)
class Record:
    """A line of ``results.jsonl``.

    Attributes:
        key: key of the trial.
        pair: name of the pair.
        kind: group of the pair.
        candidate: values that replace those of the base configuration.
        status: ``failed`` if the pair could not be registered or scored.
        message: reason of a failure; otherwise empty.
        cpu_s: CPU time of the registration over all threads, without reading and scoring.
        wall_s: wall-clock time of the registration.
        scores: `PairScores.means`; None after a failure, and NaN for what was not scored.
        quality: fields of `RunQuality`; None after a failure.
        version: version of dinoreg-rt and of its library.
        warnings: what the headers and the values of the images leave in doubt.
    """

    key: str
    pair: str
    kind: str
    candidate: Candidate
    status: Literal["ok", "failed"] = "ok"
    message: str = ""
    cpu_s: float = math.nan
    wall_s: float = math.nan
    scores: dict[str, float] | None = None
    quality: dict[str, float] | None = None
    version: str = ""
    warnings: Sequence[str] = ()

    def means(self) -> dict[str, float]:
        """Return scores and times for the summary of a cohort."""
        return {**(self.scores or {}), "cpu_s": self.cpu_s, "wall_s": self.wall_s}


def read_records(file: Path) -> dict[str, Record]:
    """Read the last record of each key; incomplete lines are skipped."""
    records = {}
    if file.exists():
        for line in file.read_text("utf-8", errors="replace").splitlines():
            try:
                record = Record(**_with_nan(parse_json(line)))
                _check_types(record)
            except (ValueError, TypeError, AttributeError):
                continue  # the process was stopped while writing this line, or it is damaged
            records[record.key] = record
    return records


def to_line(record: Record) -> str:
    """Return a record as a line of JSON, without its line break."""
    return json.dumps(without_nan(asdict(record)), allow_nan=False)


def _check_types(record: Record) -> None:
    """Raise `ValueError` for a line of JSON whose values are not those of a record."""
    texts = [record.key, record.pair, record.kind, record.message, record.version]
    texts += record.warnings
    tables = (record.scores, record.quality)
    numbers = [record.cpu_s, record.wall_s]
    numbers += [value for table in tables if table is not None for value in table.values()]
    if (
        not all(isinstance(text, str) for text in texts)
        or isinstance(record.warnings, str)
        or not isinstance(record.candidate, dict)
        or record.status not in ("ok", "failed")
        or not all((isinstance(n, int | float) and abs(n) <= 1e300) or n != n for n in numbers)
    ):
        raise ValueError("not a record")


def _with_nan(values: dict[str, Any]) -> dict[str, Any]:
    for name in ("cpu_s", "wall_s"):
        values[name] = math.nan if values.get(name) is None else values[name]
    for name in ("scores", "quality"):
        if values.get(name) is not None:
            values[name] = {k: math.nan if v is None else v for k, v in values[name].items()}
    return values
