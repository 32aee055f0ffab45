"""A sweep: many configurations on many pairs, resumable, several at a time.

Every finished trial is one line of ``results.jsonl``, appended at once. A line is found again by
its key, which holds all that its result depends on; so a sweep that was stopped goes on where it
was, and one whose images, parameters or version have changed runs again.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from ..config.parameters import RegistrationConfig
from ..console.interruption import Terminated
from ..errors import DinoregError, InputError, ResourceError
from ..evaluate.pair import PairFiles, evaluate_pair
from ..registration.demands import check_demands, check_used
from .space import Candidate, config_hash, config_of

#: Called with the trials that have finished, their number in all, and the last one's record.
Finished = Callable[[int, int, "Record"], None]


@dataclass(frozen=True)
class Trial:
    """One configuration on one pair.

    Attributes:
        key: sha256 of everything that the result depends on.
        pair: its files.
        candidate: values that differ from the base configuration.
        config: the whole configuration, the pair's initial alignment included.
    """

    key: str
    pair: PairFiles
    candidate: Candidate
    config: RegistrationConfig


@dataclass(frozen=True)
class Record:
    """A line of ``results.jsonl``.

    Attributes:
        key: of the trial.
        pair: its name.
        kind: its group.
        candidate: values that differ from the base configuration.
        status: ``failed`` if this pair could not be registered or scored so.
        message: why.
        cpu_s: CPU time of the registration, all threads, without reading and scoring.
        wall_s: its wall-clock time.
        scores: as of `PairScores.means`; NaN where not scored.
        quality: as of `RunQuality`.
        version: of dinoreg-rt and its library.
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

    def means(self) -> dict[str, float]:
        """The scores and the time, as the summary of a cohort takes them."""
        return {**(self.scores or {}), "cpu_s": self.cpu_s, "wall_s": self.wall_s}


def plan_trials(
    pairs: Sequence[PairFiles],
    candidates: Sequence[Candidate],
    base: RegistrationConfig,
    initial_folder: Path | None = None,
) -> list[Trial]:
    """All trials, candidate by candidate; finds wrong values, devices and files beforehand.

    Args:
        pairs: with their images.
        candidates: from `SweepSpace.candidates`.
        base: values of everything that the candidates leave open.
        initial_folder: holds ``<pair>.tfm``, the start of a pair; pairs without one take the
            configuration's.

    Raises:
        ConfigError: a candidate that is no configuration.
        DeviceError: one that this machine cannot run.
        InputError: an encoder, or a file of a pair, that is not there.
    """
    if initial_folder is not None and not initial_folder.is_dir():
        raise InputError(f"{initial_folder}: no such folder of initial transforms")
    configs = [config_of(base, candidate) for candidate in candidates]
    for candidate, config in zip(candidates, configs, strict=True):
        check_used(config, candidate)
        check_demands(config)
    trials = []
    for candidate, config in zip(candidates, configs, strict=True):
        for pair in pairs:
            start = None if initial_folder is None else initial_folder / f"{pair.name}.tfm"
            if start is not None and start.exists() and "initial" not in candidate:
                mine = config.changed(initial=str(start))
            else:
                mine = config
            trials.append(Trial(_key(pair, mine), pair, candidate, mine))
    return trials


def read_records(file: Path) -> dict[str, Record]:
    """Records by key, the last of each; lines that were cut short are passed over."""
    records = {}
    if file.exists():
        for line in file.read_text("utf-8", errors="replace").splitlines():
            try:
                record = Record(**_with_nan(json.loads(line)))
            except (ValueError, TypeError):
                continue  # the process was stopped while it wrote this line
            records[record.key] = record
    return records


def run_trials(
    trials: Sequence[Trial], results: Path, *, jobs: int, finished: Finished
) -> list[Record]:
    """Run what `results` does not hold yet; failed ones again. Appends each as it finishes.

    Returns:
        The records of all trials, in their order.

    Raises:
        ResourceError: a process was killed, most often for want of memory.
        KeyboardInterrupt, Terminated: with a note on what was kept.
    """
    known = read_records(results)
    done = {t.key: known[t.key] for t in trials if t.key in known and known[t.key].status == "ok"}
    # Two candidates may say the same (a default written out): one run serves both.
    missing = list({t.key: t for t in trials if t.key not in done}.values())
    total = len(done) + len(missing)
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a+b") as stream:
        _end_line(stream)
        try:
            for record in _run_all(missing, jobs):
                stream.write((_to_line(record) + "\n").encode())
                stream.flush()
                done[record.key] = record
                finished(len(done), total, record)
        except (KeyboardInterrupt, Terminated) as stop:
            stop.add_note(
                f"{len(done)} of {total} are in {results}; the same command goes on from there"
            )
            raise
    return [_as_of(done[trial.key], trial) for trial in trials]


def run_trial(trial: Trial) -> Record:
    """Register and score one pair; what goes wrong is part of the record."""
    from ..io.hashes import versions
    from ..registration.register import register

    found = versions()
    version = f"{found['dinoreg-rt']}, libdinoreg {found['libdinoreg']}"
    head = (trial.key, trial.pair.name, trial.pair.kind, trial.candidate)
    try:
        fixed, moving = _read_images(trial.pair)
        cpu, wall = time.process_time(), time.perf_counter()
        result = register(fixed, moving, config=trial.config)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        scores = evaluate_pair(trial.pair, (result.displacement,)).means()
    except Exception as error:  # one bad pair must not end a night's work
        name = "" if isinstance(error, DinoregError) else f"{type(error).__name__}: "
        return Record(*head, status="failed", message=f"{name}{error}", version=version)
    quality = asdict(result.quality)
    return Record(*head, cpu_s=cpu, wall_s=wall, scores=scores, quality=quality, version=version)


def _run_all(trials: Sequence[Trial], jobs: int) -> Iterator[Record]:
    if jobs == 1 or len(trials) < 2:
        yield from map(run_trial, trials)
        return
    # spawn: a forked process would share the state of OpenMP threads that it does not have.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(jobs, len(trials)), context, initializer=_ignore_interrupt)
    try:
        pending = [pool.submit(run_trial, trial) for trial in trials]
        for future in as_completed(pending):
            yield future.result()
    except BrokenProcessPool as error:
        raise ResourceError(
            "a process of the sweep was killed, most often for want of memory; what had finished "
            "is kept: the same command goes on, with fewer --jobs if it happens again"
        ) from error
    except (KeyboardInterrupt, Terminated, GeneratorExit):
        _end_workers(pool)
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _end_workers(pool: ProcessPoolExecutor) -> None:
    """At once: what they are at is done again by the next run, and nobody else reads of it."""
    # The pool offers this itself from Python 3.14 on.
    for process in list((pool._processes or {}).values()):
        process.terminate()


def _ignore_interrupt() -> None:
    # Ctrl-C reaches every process of the terminal; the first one ends the others in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _read_images(pair: PairFiles) -> tuple[Any, Any]:
    from ..io import read_volume

    if pair.fixed_image is None or pair.moving_image is None:
        raise InputError(f"{pair.name}: the table of pairs names no fixed or no moving image")
    return read_volume(pair.fixed_image), read_volume(pair.moving_image)


def _key(pair: PairFiles, config: RegistrationConfig) -> str:
    from ..io.hashes import versions

    found = versions()
    files = (
        pair.fixed_image,
        pair.moving_image,
        pair.fixed_labels,
        pair.moving_labels,
        pair.fixed_points,
        pair.moving_points,
        pair.mask,
    )
    start = Path(config.initial)
    parts = [
        pair.name,
        config_hash(config),
        _encoder_hash(config.encoder, config.token_grid, config.encoder_depth),
        _file_hash(start) if start.is_file() else config.initial,
        *("" if file is None else _file_hash(file) for file in files),
        found["dinoreg-rt"],
        found["libdinoreg"],
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@cache
def _encoder_hash(encoder: str | None, grid: tuple[int, int] | None, depth: float | None) -> str:
    """Of its contents, which may change under one name."""
    from ..bundle.checkpoints import Wanted, bundle_folder
    from ..bundle.manifest import read_manifest

    if encoder is None:
        return ""
    return read_manifest(bundle_folder(encoder, Wanted(grid, depth))).hash()


@cache
def _file_hash(file: Path) -> str:
    from ..run.report import hash_input

    try:
        return hash_input(file).sha256
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from error


def _as_of(record: Record, trial: Trial) -> Record:
    """The record under this trial's name: it may have been made for an equal candidate."""
    values = record.__dict__ | {"candidate": trial.candidate, "kind": trial.pair.kind}
    return Record(**values)


def _end_line(stream: Any) -> None:
    """A process that was killed may have left half a line: the next one begins on its own."""
    if stream.seek(0, os.SEEK_END) > 0:
        stream.seek(-1, os.SEEK_END)
        if stream.read(1) != b"\n":
            stream.write(b"\n")


def _to_line(record: Record) -> str:
    from ..evaluate.tables import without_nan

    return json.dumps(without_nan(asdict(record)), allow_nan=False)


def _with_nan(values: dict[str, Any]) -> dict[str, Any]:
    for name in ("cpu_s", "wall_s"):
        values[name] = math.nan if values.get(name) is None else values[name]
    for name in ("scores", "quality"):
        if values.get(name) is not None:
            values[name] = {k: math.nan if v is None else v for k, v in values[name].items()}
    return values
