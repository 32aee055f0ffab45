"""The outcome of a cohort: `cohort.csv`, `failures.csv`, and the exit code."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import UNTRUSTED_EXIT_CODE
from ..io.staging import staged_file
from ..page.cohort_rows import CohortRow
from .jobs import Job
from .names import FAILURES, TABLE
from .state import read_failure, read_report, read_scores
from .worker import is_scored

_HEAD = ("pair", "kind", "status", "trusted", "reasons", "warnings", "seconds")


@dataclass(frozen=True)
class Failure:
    """A line of ``failures.csv``."""

    pair: str
    exit_code: int
    tries: int
    error: str


def rows_of(jobs: Sequence[Job], folder: Path) -> list[CohortRow]:
    """Return the rows of all pairs that have a result or have failed, in the order of `jobs`.

    Pairs with neither are left out: another shard may still be working on them.
    """
    rows = (_row(job, folder) for job in jobs)
    return [row for row in rows if row is not None]


def failures_of(jobs: Sequence[Job]) -> list[Failure]:
    """Return the recorded failures of pairs."""
    found = ((job, read_failure(job)) for job in jobs)
    return [
        Failure(job.name, failure["exit_code"], failure["tries"], failure["error"])
        for job, failure in found
        if failure
    ]


def exit_code_of(jobs: Sequence[Job], *, accept_untrusted: bool) -> int:
    """Return the exit code of a cohort: of its first failure, or 9 if a result is not trusted."""
    if failures := failures_of(jobs):
        return failures[0].exit_code
    reports = [read_report(job.request.output) for job in jobs]
    verdicts = {report["trust"]["verdict"] for report in reports if report is not None}
    return UNTRUSTED_EXIT_CODE if "untrusted" in verdicts and not accept_untrusted else 0


def write_tables(folder: Path, rows: Sequence[CohortRow], failures: Sequence[Failure]) -> None:
    """Write both tables; either is replaced as a whole."""
    with staged_file(folder / TABLE) as path:
        path.write_text(rows_to_csv(rows), "utf-8")
    write_failures(folder, failures)


def write_failures(folder: Path, failures: Sequence[Failure]) -> None:
    """Write ``failures.csv``, which has only a header if nothing failed."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(Failure.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(failure) for failure in failures)
    with staged_file(folder / FAILURES) as path:
        path.write_text(text.getvalue(), "utf-8")


def rows_to_csv(rows: Sequence[CohortRow]) -> str:
    """Return the rows as CSV, with empty fields for missing values and semicolons in lists.

    Measures of the result have the prefix ``quality.``, scores by labels and points ``score.``.
    """
    lines = [_line(row) for row in rows]
    measured = [name for line in lines for name in line if name not in (*_HEAD, "error")]
    text = io.StringIO()
    columns = [*_HEAD, *dict.fromkeys(measured), "error"]
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def row_to_dict(row: CohortRow) -> dict[str, Any]:
    """Return a row for JSON."""
    return asdict(row) | {"folder": None if row.folder is None else row.folder.as_posix()}


def _line(row: CohortRow) -> dict[str, Any]:
    trusted = "" if row.trusted is None else ("yes" if row.trusted else "no")
    line: dict[str, Any] = {"pair": row.pair, "kind": row.kind, "status": row.status}
    line |= {"trusted": trusted, "reasons": "; ".join(row.reasons)}
    line |= {"warnings": "; ".join(row.warnings), "seconds": _number(row.seconds)}
    line |= {f"quality.{name}": _number(value) for name, value in row.quality.items()}
    line |= {f"score.{name}": _number(value) for name, value in row.scores.items()}
    return line | {"error": row.error}


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _row(job: Job, folder: Path) -> CohortRow | None:
    report, failure = read_report(job.request.output), read_failure(job)
    if failure and not failure["registered"]:  # what is there belongs to other inputs
        report = None
    error = failure.get("error", "")
    if report is None:
        return CohortRow(job.name, job.files.kind, None, "failed", error=error) if error else None
    scores = read_scores(job).get("scores", {}) if is_scored(job, report) else {}
    return CohortRow(
        pair=job.name,
        kind=job.files.kind,
        folder=job.request.output.relative_to(folder),
        status="failed" if error else "ok",
        trusted=report["trust"]["verdict"] == "trusted",
        reasons=tuple(report["trust"]["reasons"]),
        warnings=tuple(report["warnings"]),
        quality=report["quality"],
        scores=scores,
        seconds=report["total_ms"] / 1e3,
        error=error,
    )
