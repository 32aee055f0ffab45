"""The command `run`: read files, register, write files and the report.

`register` knows nothing about files, and this module knows nothing about registration.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from .. import io
from ..config.parameters import RegistrationConfig
from ..quality.label_placement import misplaced
from ..registration.memory import describe_device_memory
from ..registration.result_files import PAGE, REPORT
from ..types import Volume
from .fingerprint import fingerprint
from .outputs import (
    Extras,
    earlier_files,
    extra_names,
    file_names,
    least_bytes,
    run_writers,
    write_outputs,
)
from .report import (
    InputRecord,
    OutputRecord,
    RunReport,
    build_report,
    hash_input,
    hash_output,
)
from .session import Session

if TYPE_CHECKING:
    from ..console.progress import Reporter
    from ..encoder.estimate import EncodingEstimate
    from ..page.stacks import SliceStack
    from ..registration.plan import Plan
    from ..registration.result import RegistrationResult


#: Which page a run writes: slices alone, also the 3D viewer and both volumes, or none.
PageKind: TypeAlias = Literal["static", "full", "none"]
#: The function that returns the slices of the picture and the page, which it cuts once.
_Stacks: TypeAlias = Callable[[], "Sequence[SliceStack]"]
#: The functions that read the inputs, with their paths, by role or output name.
_Readers: TypeAlias = dict[str, tuple[Callable[[Path], Any], Path]]


@dataclass(frozen=True)
class RunRequest:
    """The arguments of the command. Image paths may be folders of one DICOM series."""

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
    page: PageKind = "static"
    save_displacement: bool = False
    save_features: bool = False
    command: tuple[str, ...] = ()
    accept_untrusted: bool = False

    def files(self) -> list[str]:
        """Return the names of the files that the run writes into `output`."""
        extras = [*extra_names("labels", self.labels), *extra_names("image", self.images)]
        return file_names(
            extras,
            displacement=self.save_displacement,
            inverse=self.config.inverse,
            confidence=self.config.confidence,
            features=self.save_features,
            linear=self.config.linear_transform is not None,
            picture=self.picture,
            page=self.page != "none",
        )

    def fingerprint(self, inputs: Mapping[str, str]) -> str:
        """Return what another run must share to write the same files; see `fingerprint`."""
        return fingerprint(self.config, [*self.files(), f"page: {self.page}"], inputs)

    def roles(self) -> dict[str, Path]:
        """Return the images, masks, weights and labels to read, by the names in the report."""
        named = ("fixed", "moving", "fixed_mask", "moving_mask", "weights")
        single = {name: getattr(self, name) for name in named}
        given = {name: path for name, path in single.items() if path is not None}
        extras = extra_names("labels", self.labels) | extra_names("image", self.images)
        return given | extras

    def inputs(self) -> list[Path]:
        """Return the files and folders that the run reads."""
        return [*self.roles().values(), Path(self.config.initial)]


@dataclass(frozen=True, eq=False)
class _Inputs:
    """The inputs read for a run; `more` holds masks and weights as keyword arguments."""

    fixed: Volume
    moving: Volume
    more: dict[str, Any]
    extras: Extras
    records: dict[str, InputRecord]


def plan_run(request: RunRequest, progress: Reporter) -> Plan:
    """Read and check everything that `run` would use, and return its plan without writing.

    Raises:
        DinoregError: as `execute_run` before the registration begins.
    """
    from ..registration.planning import plan

    _check_files(request)
    inputs = _read_inputs(request, progress, Session())
    return plan(inputs.fixed, inputs.moving, request.config, **inputs.more)


def execute_run(
    request: RunRequest, progress: Reporter, session: Session | None = None
) -> RunReport:
    """Register and write all files, which appear together or not at all.

    Files of an earlier run in the folder that this run does not write are removed at the same time.

    Args:
        request: the arguments of the command.
        progress: is told about decisions and progress.
        session: what the run shares with others of the same process (default: nothing).

    Raises:
        DinoregError: see its subclasses; the output folder is then unchanged.
    """
    session = session or Session()
    started_at = datetime.now().astimezone()
    timings_ms: dict[str, float] = {}
    _check_files(request)
    with io.staged_folder(request.output, partial(_obsolete, request)) as folder:
        with _timed(timings_ms, "read"):
            inputs = _read_inputs(request, progress, session)
        result = session.register(
            inputs.fixed,
            inputs.moving,
            config=request.config,
            keep_features=request.save_features,
            progress=progress,
            on_plan=lambda plan: _begin(plan, request, progress),
            **inputs.more,
        )
        timings_ms |= result.timings_ms
        stacks = _slices(inputs, result)
        with _timed(timings_ms, "write"):
            outputs, warnings = _write(folder, request, inputs, result, progress, stacks)
        report = build_report(
            result,
            command=list(request.command),
            started_at=started_at,
            inputs=inputs.records,
            outputs=outputs,
            timings_ms=timings_ms,
            accept_untrusted=request.accept_untrusted,
            warnings=warnings,
        )
        hashes = {role: record.sha256 for role, record in inputs.records.items()}
        report = report.model_copy(update={"fingerprint": request.fingerprint(hashes)})
        if request.page != "none":
            report = _add_page(folder, request.page, report, inputs, result, stacks)
        (folder / REPORT).write_text(report.to_json(), encoding="utf-8")
    return report


def _write(
    folder: Path,
    request: RunRequest,
    inputs: _Inputs,
    result: RegistrationResult,
    progress: Reporter,
    stacks: _Stacks,
) -> tuple[dict[str, OutputRecord], list[str]]:
    """Write all files but the reports, and return their records and the warnings about them."""
    warnings: list[str] = []
    writers = run_writers(
        result,
        inputs.moving,
        inputs.fixed,
        inputs.extras,
        displacement=request.save_displacement,
        stacks=stacks if request.picture else None,
        warn=warnings.append,
    )
    threads = request.config.threads
    return write_outputs(folder, writers, threads=threads, progress=progress), warnings


def _slices(inputs: _Inputs, result: RegistrationResult) -> _Stacks:
    """Return the function that cuts the slices of the picture and the page, once."""
    from ..page.stacks import cut_stacks

    labels = inputs.extras.labels
    return cache(lambda: cut_stacks(result, inputs.fixed, inputs.moving, labels))


def _add_page(
    folder: Path,
    kind: PageKind,
    report: RunReport,
    inputs: _Inputs,
    result: RegistrationResult,
    stacks: _Stacks,
) -> RunReport:
    """Write the page, which shows the report's values, and return the report with its record."""
    from ..page.report_page import render_page

    content = json.loads(report.to_json())
    images = (inputs.fixed, inputs.moving)
    page = render_page(content, result, images, stacks(), viewer=kind == "full")
    file = folder / PAGE
    file.write_text(page, encoding="utf-8")
    outputs = report.outputs | {PAGE: hash_output(file)}
    return report.model_copy(update={"outputs": outputs})


def _check_files(request: RunRequest) -> None:
    """Check the paths as far as possible without reading a file."""
    io.check_writable(request.output)
    io.check_outputs((request.output / name for name in request.files()), request.inputs())


def _obsolete(request: RunRequest) -> list[str]:
    """Return the files of an earlier run, except those that this run has read."""
    kept = [path for path in request.inputs() if path.exists()]
    names = earlier_files(request.output, set(request.files()))
    return [n for n in names if not any((request.output / n).samefile(path) for path in kept)]


def _begin(plan: Plan, request: RunRequest, progress: Reporter) -> None:
    """Check that the files will fit on the disk, before the heavy work, and report the plan."""
    io.check_free_space(request.output, least_bytes(plan.grids.control))
    announce(plan, progress)


def announce(plan: Plan, progress: Reporter) -> None:
    """Report every automatic decision and its reason."""
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
        f"about {plan.memory_bytes / (1 << 20):.0f} MiB will be needed in addition to the images' "
        f"{here / (1 << 20):.0f} MiB",
    )
    if plan.device_memory is not None:
        progress.say("GPU memory", describe_device_memory(plan.device_memory))


def encoding_estimate(plan: Plan) -> EncodingEstimate | None:
    """Estimate the cost of encoding; None without an encoder."""
    if plan.encoding is None:
        return None
    from ..encoder.estimate import estimate_encoding

    return estimate_encoding(plan.encoding, plan.config, plan.device)


def _read_inputs(request: RunRequest, progress: Reporter, session: Session) -> _Inputs:
    """Read all inputs before the registration begins, so that a wrong file is reported at once."""
    orientation = request.config.orientation
    read_image = partial(io.read_volume, orientation=orientation)
    read_labels = partial(io.read_labels, orientation=orientation)
    read_mask, read_any = partial(read_labels, mask=True), partial(read_image, constant=True)
    readers: _Readers = {
        "fixed": (read_image, request.fixed),
        "moving": (read_image, request.moving),
    }
    optional: dict[str, tuple[Callable[[Path], Any], Path | None]] = {
        "fixed_mask": (read_mask, request.fixed_mask),
        "moving_mask": (read_mask, request.moving_mask),
        "weights": (read_any, request.weights),
    }
    readers |= {role: (read, path) for role, (read, path) in optional.items() if path is not None}
    label_names = extra_names("labels", request.labels)
    image_names = extra_names("image", request.images)
    readers |= {name: (read_labels, path) for name, path in label_names.items()}
    readers |= {name: (read_any, path) for name, path in image_names.items()}
    values, records = _read_all(readers, progress, partial(session.read, orientation))
    for name in label_names:
        if doubt := misplaced(values[name], values["moving"].geometry):
            record = records[name]
            records[name] = record.model_copy(update={"warnings": [*record.warnings, doubt]})
    # What was corrected in the fixed and the moving image is among the plan's choices.
    for name in [name for name in ("weights", *image_names) if name in values]:
        notes = [f"{values[name].name}: {text}" for text in values[name].notes]
        record = records[name]
        records[name] = record.model_copy(update={"warnings": [*record.warnings, *notes]})
    for record in records.values():
        for warning in record.warnings:
            progress.say("warning", warning)
    return _Inputs(
        fixed=values["fixed"],
        moving=values["moving"],
        more={role: values[role] for role in optional if role in values},
        extras=Extras(
            labels={name: values[name] for name in label_names},
            images={name: values[name] for name in image_names},
        ),
        records=records,
    )


def _read_all(
    readers: _Readers, progress: Reporter, repeated: Callable[..., Any]
) -> tuple[dict[str, Any], dict[str, InputRecord]]:
    """Read and hash on two threads; decompression and hashing release the interpreter lock."""
    # Imported here because a failing import would leave a half-loaded module to the second thread.
    import SimpleITK  # noqa: F401

    values: dict[str, Any] = {}
    records: dict[str, InputRecord] = {}
    progress("read", 0.0)
    with ThreadPoolExecutor(2, thread_name_prefix="read") as pool:
        pending = {
            role: pool.submit(repeated, role, path, partial(_read_one, read))
            for role, (read, path) in readers.items()
        }
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
    record = hash_input(path)
    return replace(value, name=str(path)), record.model_copy(
        update={"warnings": list(value.geometry.notes)}
    )


@contextmanager
def _timed(timings_ms: dict[str, float], stage: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    timings_ms[stage] = (time.perf_counter() - began) * 1e3
