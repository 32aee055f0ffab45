"""The command `run`: read files, register, write files and the report.

`register` knows nothing about files, and this module knows nothing about registration.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from .. import io
from ..registration.memory import describe_device_memory
from ..registration.result_files import PAGE, REPORT
from .inputs import Inputs, read_inputs
from .outputs import earlier_files, least_bytes, run_writers, write_outputs
from .report import OutputRecord, RunReport, build_report, hash_output
from .request import PageKind, RunRequest
from .session import Session

if TYPE_CHECKING:
    from ..console.progress import Reporter
    from ..encoder.estimate import EncodingEstimate
    from ..page.stacks import SliceStack
    from ..registration.plan import Plan
    from ..registration.result import RegistrationResult

#: The function that returns the slices of the picture and the page, which it cuts once.
_Stacks: TypeAlias = Callable[[], "Sequence[SliceStack]"]


def plan_run(request: RunRequest, progress: Reporter) -> Plan:
    """Read and check everything that `run` would use, and return its plan without writing.

    Raises:
        DinoregError: as `execute_run` before the registration begins.
    """
    from ..registration.planning import plan

    _check_files(request)
    inputs = read_inputs(request, progress, Session())
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
            inputs = read_inputs(request, progress, session)
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
    inputs: Inputs,
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


def _slices(inputs: Inputs, result: RegistrationResult) -> _Stacks:
    """Return the function that cuts the slices of the picture and the page, once."""
    from ..page.stacks import cut_stacks

    labels = inputs.extras.labels
    return cache(lambda: cut_stacks(result, inputs.fixed, inputs.moving, labels))


def _add_page(
    folder: Path,
    kind: PageKind,
    report: RunReport,
    inputs: Inputs,
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


@contextmanager
def _timed(timings_ms: dict[str, float], stage: str) -> Iterator[None]:
    began = time.perf_counter()
    yield
    timings_ms[stage] = (time.perf_counter() - began) * 1e3
