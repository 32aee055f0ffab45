"""A resident worker: one registrar that does pair after pair, as `dinoreg-rt run` would."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from typing import Any

from ..config.parameters import RegistrationConfig
from ..console.progress import QuietReporter
from ..errors import DinoregError, InputError, ResourceError, is_for_want_of_memory
from ..evaluate.cohort import result_files
from ..evaluate.pair import evaluate_pair
from ..run.job import execute_run
from ..run.session import Session
from .jobs import Job
from .state import alone, clean, finished, read_report, read_scores, score_key, write_scores


@dataclass(frozen=True)
class Task:
    """A pair to do.

    Attributes:
        job: the pair.
        register: False if the results are there, and only the scores are missing.
    """

    job: Job
    register: bool = True


@dataclass(frozen=True)
class Outcome:
    """The outcome of a task.

    Attributes:
        error: why it failed; empty otherwise.
        exit_code: what `dinoreg-rt run` would have returned for the failure; 0 without one.
        registered: whether the pair has the requested result, even if its scoring failed.
        seconds: wall-clock time.
    """

    error: str = ""
    exit_code: int = 0
    registered: bool = False
    seconds: float = 0.0


@dataclass(frozen=True)
class Settings:
    """The settings of a worker.

    Attributes:
        config: the parameters that all pairs share.
        device: ``cpu`` or ``cuda:N``.
        threads: CPU threads of the worker.
    """

    config: RegistrationConfig
    device: str
    threads: int

    def of(self, config: RegistrationConfig) -> RegistrationConfig:
        """Return a pair's parameters on this worker's device and threads."""
        return config.changed(device=self.device, threads=self.threads)


class Worker:
    """Does tasks one after the other; the registrar is opened at the first."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._session: Session | None = None

    def work(self, task: Task) -> Outcome:
        """Register and score a pair. Every error becomes part of the outcome."""
        began, registered, problem = time.perf_counter(), not task.register, ("", 0)
        try:
            with alone(task.job):
                if task.register:
                    self._register(task.job)
                    registered = True
                if task.job.scored:
                    score(task.job)
        except Exception as error:  # one bad pair must not end the others
            problem = _explained(error)
        return Outcome(*problem, registered, time.perf_counter() - began)

    def _register(self, job: Job) -> None:
        if finished([job]):  # by another process, or a worker that was killed before it said so
            clean(job)
            return
        request = replace(job.request, config=self._settings.of(job.request.config))
        execute_run(request, QuietReporter(), self._open())

    def _open(self) -> Session:
        if self._session is None:
            from ..registration.registrar import Registrar

            self._session = Session(Registrar(self._settings.of(self._settings.config)))
        return self._session


def score(job: Job) -> None:
    """Score a pair by its labels or points, and keep the scores.

    Raises:
        InputError: the pair has a result that cannot be scored.
    """
    report = read_report(job.request.output)
    if report is None:
        raise InputError(f"{job.request.output}: holds no complete result")
    try:
        key = score_key(job, report)
        files = replace(job.files, transforms=result_files(job.request.output))
        scores = evaluate_pair(files).means()
    except InputError as error:
        raise InputError(f"registered, but not scored: {error}") from error
    write_scores(job, key, {name: v for name, v in scores.items() if not math.isnan(v)})


def is_scored(job: Job, report: dict[str, Any]) -> bool:
    """Return whether the scores of a finished pair are there and belong to its result."""
    try:
        return not job.scored or read_scores(job).get("key") == score_key(job, report)
    except InputError:  # labels that cannot be read: scoring says so
        return False


def _explained(error: Exception) -> tuple[str, int]:
    if isinstance(error, DinoregError):
        return str(error), error.exit_code
    if is_for_want_of_memory(error):
        return f"out of memory ({error})", ResourceError.exit_code
    return f"unexpected {type(error).__name__}: {error}", DinoregError.exit_code
