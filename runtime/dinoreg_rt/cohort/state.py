"""The state of a cohort, which lies in its output folder alone.

A pair is finished if the report in its folder has the fingerprint of the requested registration,
and the files that it lists exist in their full size. The report is the last file to appear, so that
a killed process leaves no folder that only looks finished. Scores and failures lie in a hidden
folder beside the pairs, one file for each pair, so that any number of processes can share it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import InputError
from ..evaluate.cohort import result_files
from ..io.guard import parse_json
from ..io.hashes import versions
from ..io.hidden import remove_abandoned
from ..io.paths import HIDDEN, output_errors
from ..io.staging import whole_file
from ..registration.result_files import REPORT
from ..run.fingerprint import file_hash
from .jobs import Job
from .names import STATE

_READERS = 4
_MODE = 0o644


class FileHashes:
    """Hashes of input files, each read once."""

    def __init__(self) -> None:
        self._known: dict[Path, str] = {}

    def of(self, path: Path) -> str:
        """Return the sha256 of an input; `InputError` if it cannot be read."""
        if path not in self._known:
            self._known[path] = file_hash(path)
        return self._known[path]


def finished(jobs: Sequence[Job]) -> dict[str, dict[str, Any]]:
    """Return, by name, the reports of the pairs that have the requested results."""
    hashes = FileHashes()
    with ThreadPoolExecutor(_READERS, thread_name_prefix="hash") as pool:
        reports = pool.map(lambda job: _report_if_current(job, hashes), jobs)
        return {
            job.name: report
            for job, report in zip(jobs, reports, strict=True)
            if report is not None
        }


@contextmanager
def alone(job: Job) -> Iterator[None]:
    """Keep other processes from the pair during the block, after waiting for the one that has it.

    Where the file system knows no locks, nobody is kept away.

    Raises:
        OutputError: the output folder cannot be written.
    """
    file = _file(job, "lock")
    with _locked(file):
        try:
            yield
        finally:
            file.unlink(missing_ok=True)


def _locked(file: Path) -> BinaryIO:
    """Return a file of this name, locked, and created if it does not exist."""
    while True:
        with output_errors(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            stream = file.open("ab")
        with suppress(OSError):
            fcntl.flock(stream, fcntl.LOCK_EX)
        # The process that had the lock has removed its file, which then keeps nobody away.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(stream.fileno()), file.stat()):
                return stream
        stream.close()


def clean(job: Job) -> None:
    """Remove what killed processes have left in the folder of a finished pair."""
    remove_abandoned(job.request.output, HIDDEN)


def read_report(folder: Path) -> dict[str, Any] | None:
    """Return the report of a folder in which every listed file is complete; otherwise None."""
    try:
        report: dict[str, Any] = parse_json((folder / REPORT).read_text("utf-8"))
        complete = all(
            (folder / name).stat().st_size == record["bytes"]
            for name, record in report["outputs"].items()
        )
        return report if complete and report["trust"]["verdict"] and report["quality"] else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None  # missing, damaged, or of something else: the pair is registered


def _report_if_current(job: Job, hashes: FileHashes) -> dict[str, Any] | None:
    report = read_report(job.request.output)
    if report is None or not report.get("fingerprint"):
        return None
    try:
        inputs = {role: hashes.of(path) for role, path in job.request.roles().items()}
    except InputError:  # it fails where it is registered, with its message
        return None
    return report if report["fingerprint"] == job.request.fingerprint(inputs) else None


def score_key(job: Job, report: dict[str, Any]) -> str:
    """Return the sha256 of all that the scores of a pair depend on."""
    files = job.files
    given = (files.fixed_labels, files.moving_labels, files.fixed_points, files.moving_points)
    results = [path.name for path in result_files(job.request.output)]
    parts = [
        *(report["outputs"][name]["sha256"] for name in results if name in report["outputs"]),
        *("" if path is None else file_hash(path) for path in (*given, files.mask)),
        versions()["dinoreg-rt"],
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def read_scores(job: Job) -> dict[str, Any]:
    """Return ``key`` and ``scores`` as they were written; empty if there are none."""
    return _read(_file(job, "scores"))


def write_scores(job: Job, key: str, scores: dict[str, float]) -> None:
    """Keep the scores of a pair under the key of what they depend on."""
    _write(_file(job, "scores"), {"key": key, "scores": scores})


def read_failure(job: Job) -> dict[str, Any]:
    """Return what `write_failure` kept; empty if the pair has not failed."""
    found = _read(_file(job, "failure"))
    return found if {"error", "exit_code", "tries", "registered"} <= found.keys() else {}


def write_failure(job: Job, **failure: Any) -> None:
    """Keep ``error``, ``exit_code``, ``tries`` and ``registered`` until the pair succeeds."""
    _write(_file(job, "failure"), failure)


def forget_failure(job: Job) -> None:
    """Remove the failure of a pair that has succeeded."""
    _file(job, "failure").unlink(missing_ok=True)


def _file(job: Job, what: str) -> Path:
    return job.request.output.parent / STATE / f"{job.name}.{what}.json"


def _read(file: Path) -> dict[str, Any]:
    try:
        found = parse_json(file.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _write(file: Path, content: dict[str, Any]) -> None:
    with output_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file, _MODE) as stream:
            stream.write((json.dumps(content, indent=2) + "\n").encode())
