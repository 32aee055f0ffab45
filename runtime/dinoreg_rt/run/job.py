"""One `run`, files in and files out: read, register, write, report.

`register` knows no files and this module knows no mathematics.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.parameters import RegistrationConfig
from ..registration.memory import describe_device_memory
from ..types import LabelMap, Volume
from .outputs import (
    Extras,
    earlier_files,
    extra_names,
    file_names,
    least_bytes,
    result_writers,
    write_outputs,
)
from .report import InputRecord, RunReport, build_report, hash_input

if TYPE_CHECKING:
    from ..console.progress import Reporter
    from ..encoder.estimate import EncodingEstimate
    from ..registration.plan import Plan


@dataclass(frozen=True)
class RunRequest:
    """What the user asked for. Paths may be files or folders of one DICOM series."""

    fixed: Path
    moving: Path
    output: Path
    config: RegistrationConfig
    fixed_mask: Path | None = None
    moving_mask: Path | None = None
    weights: Path | None = None
    labels: tuple[Path, ...] = ()
    images: tuple[Path, ...] = ()
    picture: bool = True
    save_features: bool = False
    command: tuple[str, ...] = ()
    accept_untrusted: bool = False

    def files(self) -> list[str]:
        """Names of the files the run writes into `output`."""
        extras = [*extra_names("labels", self.labels), *extra_names("image", self.images)]
        return file_names(
            inverse=self.config.inverse,
            confidence=self.config.confidence,
            picture=self.picture,
            features=self.save_features,
            extras=extras,
        )

    def inputs(self) -> list[Path]:
        """Files and folders that the run reads."""
        single = (self.fixed, self.moving, self.fixed_mask, self.moving_mask, self.weights)
        given = [path for path in single if path is not None]
        return [*given, *self.labels, *self.images, Path(self.config.initial)]


@dataclass(frozen=True, eq=False)
class _Inputs:
    fixed: Volume
    moving: Volume
    fixed_mask: LabelMap | None
    moving_mask: LabelMap | None
    weights: Volume | None
    extras: Extras
    records: dict[str, InputRecord]


def plan_run(request: RunRequest, progress: Reporter) -> Plan:
    """Read and check everything that `run` would use, and say what it would do; writes nothing.

    Raises:
        DinoregError: whatever `run` would stop at before its work begins.
    """
    from ..registration.planning import plan

    _check_files(request)
    inputs = _read_inputs(request, progress)
    return plan(
        inputs.fixed,
        inputs.moving,
        request.config,
        fixed_mask=inputs.fixed_mask,
        moving_mask=inputs.moving_mask,
        weights=inputs.weights,
    )


def execute_run(request: RunRequest, progress: Reporter) -> RunReport:
    """Register and write all files; they appear together, or not at all.

    What an earlier run left in the folder and this one doesn't write is removed with them.

    Raises:
        DinoregError: see its subclasses; the output folder is then as it was before.
    """
    from ..io import check_free_space, staged_folder
    from ..registration.register import register

    started_at = datetime.now().astimezone()
    timings_ms: dict[str, float] = {}
    _check_files(request)
    with staged_folder(request.output, partial(_obsolete, request)) as folder:
        with _timed(timings_ms, "read"):
            inputs = _read_inputs(request, progress)
        check_free_space(request.output, least_bytes(inputs.fixed.geometry))
        result = register(
            inputs.fixed,
            inputs.moving,
            config=request.config,
            fixed_mask=inputs.fixed_mask,
            moving_mask=inputs.moving_mask,
            keep_features=request.save_features,
            weights=inputs.weights,
            progress=progress,
            on_plan=lambda plan: announce(plan, progress),
        )
        timings_ms |= result.timings_ms
        with _timed(timings_ms, "write"):
            writers = result_writers(
                result, inputs.moving, inputs.fixed, inputs.extras, picture=request.picture
            )
            threads = request.config.threads
            outputs = write_outputs(folder, writers, threads=threads, progress=progress)
        report = build_report(
            result,
            command=list(request.command),
            started_at=started_at,
            inputs=inputs.records,
            outputs=outputs,
            timings_ms=timings_ms,
            accept_untrusted=request.accept_untrusted,
        )
        (folder / "report.json").write_text(report.to_json(), encoding="utf-8")
    return report


def _check_files(request: RunRequest) -> None:
    """What is wrong with the names of files alone."""
    from ..io import check_outputs, check_writable

    check_writable(request.output)
    check_outputs((request.output / name for name in request.files()), request.inputs())


def _obsolete(request: RunRequest) -> list[str]:
    """Files of an earlier run, but for those that this run has read."""
    kept = [path for path in request.inputs() if path.exists()]
    names = earlier_files(request.output, set(request.files()))
    return [n for n in names if not any((request.output / n).samefile(path) for path in kept)]


def announce(plan: Plan, progress: Reporter) -> None:
    """Say what was decided for the user, and why: nothing is chosen silently."""
    for topic, reason in plan.choices.items():
        progress.say(topic, reason)
    estimate = encoding_estimate(plan)
    if plan.encoding is not None and estimate is not None:
        progress.say("encoding", str(estimate))
        for plane in plan.encoding.planes:
            for image, stack in zip(plan.pair, plane.stacks, strict=True):
                stage = plan.encoding.stage(plane, image.role)
                progress.expect(stage, len(stack.encoded), "slices")
    here = sum(image.volume.array.nbytes for image in plan.pair)
    progress.say(
        "memory",
        f"about {plan.memory_bytes / (1 << 20):.0f} MiB will be needed beside the images' "
        f"{here / (1 << 20):.0f} MiB",
    )
    if plan.device_memory is not None:
        progress.say("GPU memory", describe_device_memory(plan.device_memory))


def encoding_estimate(plan: Plan) -> EncodingEstimate | None:
    """What encoding will take; None without an encoder."""
    if plan.encoding is None:
        return None
    from ..encoder.estimate import estimate_encoding

    return estimate_encoding(plan.encoding, plan.config, plan.device)


def _read_inputs(request: RunRequest, progress: Reporter) -> _Inputs:
    """Everything is read before the work begins, so that a wrong file is found at once."""
    from ..io import read_labels, read_volume

    read_mask = partial(read_labels, mask=True)
    read_any = partial(read_volume, constant=True)
    jobs: dict[str, tuple[Callable[[Path], Any], Path]] = {
        "fixed": (read_volume, request.fixed),
        "moving": (read_volume, request.moving),
    }
    if request.fixed_mask is not None:
        jobs["fixed_mask"] = (read_mask, request.fixed_mask)
    if request.moving_mask is not None:
        jobs["moving_mask"] = (read_mask, request.moving_mask)
    if request.weights is not None:
        jobs["weights"] = (partial(read_volume, constant=True), request.weights)
    label_names = extra_names("labels", request.labels)
    image_names = extra_names("image", request.images)
    jobs |= {name: (read_labels, path) for name, path in label_names.items()}
    jobs |= {name: (read_any, path) for name, path in image_names.items()}
    values, records = _read_all(jobs, progress)
    return _Inputs(
        fixed=values["fixed"],
        moving=values["moving"],
        fixed_mask=values.get("fixed_mask"),
        moving_mask=values.get("moving_mask"),
        weights=values.get("weights"),
        extras=Extras(
            labels={name: values[name] for name in label_names},
            images={name: values[name] for name in image_names},
        ),
        records=records,
    )


def _read_all(
    jobs: dict[str, tuple[Callable[[Path], Any], Path]], progress: Reporter
) -> tuple[dict[str, Any], dict[str, InputRecord]]:
    """Read and hash on two threads: decompression and hashing release the interpreter lock."""
    # Here: where it cannot be loaded, the second thread would meet the half of it.
    import SimpleITK  # noqa: F401

    values: dict[str, Any] = {}
    records: dict[str, InputRecord] = {}
    progress("read", 0.0)
    with ThreadPoolExecutor(2, thread_name_prefix="read") as pool:
        pending = {role: pool.submit(_read_one, *job) for role, job in jobs.items()}
        try:
            for done, (role, future) in enumerate(pending.items(), start=1):
                values[role], records[role] = future.result()
                progress("read", done / len(pending))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return values, records


def _read_one(read: Callable[[Path], Any], path: Path) -> tuple[Any, InputRecord]:
    value = read(path)
    return replace(value, name=str(path)), hash_input(path)


@contextmanager
def _timed(timings_ms: dict[str, float], stage: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    timings_ms[stage] = (time.perf_counter() - began) * 1e3
