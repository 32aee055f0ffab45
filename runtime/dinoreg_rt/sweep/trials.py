"""The trials of a sweep: many configurations on many pairs, in parallel and resumable.

Every finished trial is immediately appended to ``results.jsonl``. Its key covers everything that
the result depends on, so a sweep that was stopped resumes where it was, and trials run again after
images, parameters or the version have changed.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from .. import io
from ..config.parameters import RegistrationConfig
from ..console.interruption import Terminated
from ..errors import DinoregError, InputError, ResourceError
from ..evaluate.pair import PairFiles, evaluate_pair
from ..io.hashes import versions
from ..registration.demands import check_demands, check_used
from ..run.fingerprint import encoder_hash, file_hash
from .records import Record, read_records, to_line
from .space import Candidate, config_hash, config_of

#: A callback for the number of finished trials, the number of all trials, and the last record.
Finished = Callable[[int, int, "Record"], None]


@dataclass(frozen=True)
class Trial:
    """One configuration on one pair.

    Attributes:
        key: sha256 of everything that the result depends on.
        pair: files of the pair.
        candidate: values that replace those of the base configuration.
        config: the complete configuration, including the pair's initial alignment.
    """

    key: str
    pair: PairFiles
    candidate: Candidate
    config: RegistrationConfig


def plan_trials(
    pairs: Sequence[PairFiles],
    candidates: Sequence[Candidate],
    base: RegistrationConfig,
    initial_folder: Path | None = None,
) -> list[Trial]:
    """List all trials, candidate by candidate, once values, devices and files are checked.

    Args:
        pairs: pairs with their images.
        candidates: from `SweepSpace.candidates`.
        base: the configuration whose values the candidates replace.
        initial_folder: folder of initial alignments ``<pair>.tfm``; a pair without one uses that of
            the configuration.

    Raises:
        ConfigError: a candidate is not a valid configuration.
        DeviceError: this machine cannot run a candidate.
        InputError: an encoder, or a file of a pair, is missing.
    """
    if initial_folder is not None and not initial_folder.is_dir():
        raise InputError(f"{initial_folder}: is not a folder; give one of initial transforms")
    configs = [config_of(base, candidate) for candidate in candidates]
    for candidate, config in zip(candidates, configs, strict=True):
        check_used(config, candidate)
        check_demands(config)
    trials = []
    for candidate, config in zip(candidates, configs, strict=True):
        for pair in pairs:
            start = None if initial_folder is None else initial_folder / f"{pair.name}.tfm"
            own = config
            if start is not None and start.exists() and "initial" not in candidate:
                own = config.changed(initial=str(start))
            trials.append(Trial(_key(pair, own), pair, candidate, own))
    return trials


def run_trials(
    trials: Sequence[Trial], results: Path, *, jobs: int, finished: Finished
) -> list[Record]:
    """Run the trials that `results` lacks or that failed, and append each record to the file.

    Returns:
        The records of all trials, in their order.

    Raises:
        ResourceError: a process was killed, most often for lack of memory.
        KeyboardInterrupt: with a note on how to resume, as for `Terminated`.
    """
    known = read_records(results)
    done = {t.key: known[t.key] for t in trials if t.key in known and known[t.key].status == "ok"}
    # Candidates may be equal (a default written out); one run serves both.
    missing = list({t.key: t for t in trials if t.key not in done}.values())
    total = len(done) + len(missing)
    results.parent.mkdir(parents=True, exist_ok=True)
    with results.open("a+b") as stream:
        _end_line(stream)
        try:
            for record in _run_all(missing, jobs):
                stream.write((to_line(record) + "\n").encode())
                stream.flush()
                done[record.key] = record
                finished(len(done), total, record)
        except (KeyboardInterrupt, Terminated) as stop:
            stop.add_note(
                f"{len(done)} of {total} are in {results}; the same command resumes from there"
            )
            raise
    return [_as_of(done[trial.key], trial) for trial in trials]


def run_trial(trial: Trial) -> Record:
    """Register and score one pair; an error becomes part of the record."""
    from ..registration.register import register

    found = versions()
    version = f"{found['dinoreg-rt']}, libdinoreg {found['libdinoreg']}"
    head = (trial.key, trial.pair.name, trial.pair.kind, trial.candidate)
    try:
        pair = replace(trial.pair, orientation=trial.config.orientation)
        fixed, moving = _read_images(pair)
        cpu, wall = time.process_time(), time.perf_counter()
        result = register(fixed, moving, config=trial.config)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        scores = evaluate_pair(pair, (result.displacement,)).means()
    except Exception as error:  # one bad pair must not end a night's work
        name = "" if isinstance(error, DinoregError) else f"{type(error).__name__}: "
        return Record(*head, status="failed", message=f"{name}{error}", version=version)
    return Record(
        *head,
        cpu_s=cpu,
        wall_s=wall,
        scores=scores,
        quality=asdict(result.quality),
        version=version,
        warnings=result.plan_warnings,
    )


def _run_all(trials: Sequence[Trial], jobs: int) -> Iterator[Record]:
    if jobs == 1 or len(trials) < 2:
        yield from map(run_trial, trials)
        return
    # Not fork: the child would inherit locks and CUDA contexts of threads that it does not have.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(jobs, len(trials)), context, initializer=_ignore_interrupt)
    try:
        pending = [pool.submit(run_trial, trial) for trial in trials]
        for future in as_completed(pending):
            yield future.result()
    except BrokenProcessPool as error:
        raise ResourceError(
            "a process of the sweep was killed, most often for lack of memory; finished trials are "
            "kept: run the same command to resume, with fewer --jobs if it happens again"
        ) from error
    except (KeyboardInterrupt, Terminated, GeneratorExit):
        _end_workers(pool)
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _end_workers(pool: ProcessPoolExecutor) -> None:
    """End all workers at once; the next run repeats their trials."""
    # From Python 3.14 on, the pool has a method for this.
    for process in list((pool._processes or {}).values()):
        process.terminate()


def _ignore_interrupt() -> None:
    # Ctrl-C reaches every process of the terminal, but the parent ends the others in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _read_images(pair: PairFiles) -> tuple[Any, Any]:
    if pair.fixed_image is None or pair.moving_image is None:
        raise InputError(
            f"{pair.name}: lacks an image; name fixed and moving in the table of pairs"
        )
    read = partial(io.read_volume, orientation=pair.orientation)
    return read(pair.fixed_image), read(pair.moving_image)


def _key(pair: PairFiles, config: RegistrationConfig) -> str:
    found = versions()
    files = [pair.fixed_image, pair.moving_image, pair.fixed_labels, pair.moving_labels]
    files += [pair.fixed_points, pair.moving_points, pair.mask]
    start = Path(config.initial)
    parts = [
        pair.name,
        config_hash(config),
        encoder_hash(config.encoder, config.token_grid, config.encoder_depth),
        _file_hash(start) if start.is_file() else config.initial,
        *("" if file is None else _file_hash(file) for file in files),
        found["dinoreg-rt"],
        found["libdinoreg"],
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@cache
def _file_hash(file: Path) -> str:
    return file_hash(file)


def _as_of(record: Record, trial: Trial) -> Record:
    """Return the record with this trial's candidate; it may stem from an equal one."""
    return replace(record, candidate=trial.candidate, kind=trial.pair.kind)


def _end_line(stream: Any) -> None:
    """Complete the last line of a file, of which a killed process may have left a part."""
    if stream.seek(0, os.SEEK_END) > 0:
        stream.seek(-1, os.SEEK_END)
        if stream.read(1) != b"\n":
            stream.write(b"\n")
