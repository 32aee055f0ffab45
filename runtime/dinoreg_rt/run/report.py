"""`report.json`: the inputs, outputs, quality and timings of a run.

`RunReport` is its schema (``RunReport.model_json_schema()`` returns it as JSON Schema). Within one
``schema_version`` fields are only added. A number that does not exist is null.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import resource
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, create_model

from ..align.linear_models import LinearSummary
from ..bundle.manifest import file_sha256
from ..errors import UNTRUSTED_EXIT_CODE
from ..io import image_parts
from ..registration.decisions import Decisions
from ..registration.result import RegistrationResult
from ..summaries import (
    DeviceMemory,
    EncodedPlaneSummary,
    EncodingSummary,
    RegionQuality,
    RunQuality,
)


class InputRecord(BaseModel):
    """A file, or the folder of a DICOM series, that was read."""

    model_config = ConfigDict(frozen=True)

    path: str = Field(description="as given by the user")
    sha256: str = Field(
        description="of the file's bytes; of a folder or series: of its files' digests in name "
        "order; of a header with data files: of their digests in the header's order"
    )
    warnings: list[str] = Field(
        default_factory=list, description="doubts about its header or its place"
    )


class OutputRecord(BaseModel):
    """A file that was written."""

    model_config = ConfigDict(frozen=True)

    sha256: str
    bytes: int


class TrustReport(BaseModel):
    """Whether the result should be used; see `dinoreg_rt.quality.trust`."""

    model_config = ConfigDict(frozen=True)

    verdict: Literal["trusted", "untrusted"]
    reasons: list[str] = Field(description="the rules that it violates; empty if trusted")


def _reported(name: str, dataclass: type, **replaced: Any) -> Any:
    """Return a model with the fields of a dataclass; `replaced` overrides some of them."""
    kinds = get_type_hints(dataclass)
    fields: dict[str, Any] = {field: (kind, ...) for field, kind in kinds.items()}
    text = f"The fields of `{dataclass.__name__}`; see there for the definitions."
    config = ConfigDict(frozen=True)
    return create_model(name, __config__=config, __doc__=text, **fields | replaced)


def _not_measured(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


#: A measure that may be missing: NaN in `RunQuality`, null in the report.
_Measure = Annotated[float | None, BeforeValidator(_not_measured)]

if TYPE_CHECKING:  # type checkers see the dataclasses that the models follow
    from ..align.linear_models import LinearSummary as LinearMap
    from ..summaries import EncodingSummary as Encoding
    from ..summaries import RegionQuality as RegionReport
    from ..summaries import RunQuality as Quality
else:
    Quality = _reported(
        "Quality",
        RunQuality,
        decoy_ratio=(_Measure, Field(description="of MIND-SSC; null: not measured")),
        unrelated_ratio=(_Measure, Field(description="of MIND-SSC; null: not measured")),
        **dict.fromkeys(
            (
                "sides_ratio",
                "turned_ratio",
                "symmetry",
                "mind_distance_before",
                "mind_distance_after",
                "information_before",
                "information_after",
            ),
            (_Measure, Field(default=None, description="null: not measured")),
        ),
        feature_distance_before=(
            _Measure,
            Field(default=None, description="null: a linear registration"),
        ),
        alignment_similarity=(_Measure, Field(default=None, description="null: not searched for")),
        inverse_missed_percent=(_Measure, Field(default=None, description="null: not measured")),
        inverse_missed_max_mm=(_Measure, Field(default=None, description="null: not measured")),
        sides_in_doubt=(bool, False),
    )
    RegionReport = _reported(
        "RegionReport",
        RegionQuality,
        information=(_Measure, Field(description="null: less than half of it has a match")),
    )
    EncodedPlane = _reported("EncodedPlane", EncodedPlaneSummary)
    LinearMap = _reported("LinearMap", LinearSummary)
    Encoding = _reported("Encoding", EncodingSummary, planes=(tuple[EncodedPlane, ...], ...))


class PredictedDeviceMemory(BaseModel):
    """A `DeviceMemory` in MiB, as reports show it."""

    model_config = ConfigDict(frozen=True)

    peak_mb: float
    largest_stage: str
    available_mb: float
    budget: bool
    stages_mb: dict[str, float]

    @classmethod
    def of(cls, memory: DeviceMemory | None) -> PredictedDeviceMemory | None:
        """Convert a prediction in bytes; None, on a CPU, stays None."""
        if memory is None:
            return None
        return cls(
            peak_mb=round(memory.peak_bytes / 2**20, 1),
            largest_stage=memory.largest_stage,
            available_mb=round(memory.available_bytes / 2**20, 1),
            budget=memory.budget,
            stages_mb={name: round(size / 2**20, 1) for name, size in memory.stages.items()},
        )


class RunReport(BaseModel):
    """The content of ``report.json``."""

    model_config = ConfigDict(frozen=True)

    schema_version: Literal[2] = 2
    status: Literal["ok"] = Field(default="ok", description="a run that fails writes no report")
    exit_code: int = Field(default=0, description="9: untrusted, without --accept-untrusted")
    command: list[str] = Field(description="the command line")
    started_at: datetime = Field(description="ISO 8601 with time zone")
    finished_at: datetime
    inputs: dict[str, InputRecord] = Field(
        description="by role: fixed, moving, fixed_mask, moving_mask, weights; further images and "
        "labels by output name"
    )
    outputs: dict[str, OutputRecord] = Field(description="by file name, beside this report")
    configuration: dict[str, Any] = Field(description="RegistrationConfig without any auto")
    choices: dict[str, str] = Field(description="automatic decisions and their reasons")
    decisions: Decisions | None = Field(default=None, description="the same as values")
    alignment: dict[str, float] = Field(
        default_factory=dict,
        description="similarity, confidence and overlap of an initial alignment by search",
    )
    transform: LinearMap | None = Field(
        default=None, description="the map of a linear registration; null if a field was refined"
    )
    encoding: Encoding | None = Field(description="contribution of an encoder; null without one")
    quality: Quality
    trust: TrustReport
    regions: list[RegionReport] = Field(
        default_factory=list, description="regions of the body; empty with --no-trust"
    )
    warnings: list[str] = Field(
        description="what to check, also about the inputs; not among the reasons of `trust`"
    )
    timings_ms: dict[str, float] = Field(
        description="time of each stage, in order, and of what belongs to none; on a CPU stages "
        "follow one another and add up to total_ms"
    )
    total_ms: float = Field(description="from the command's start to the last written image")
    device_memory: PredictedDeviceMemory | None = Field(
        default=None, description="predicted before the registration; null on a CPU"
    )
    peak_memory_mb: float = Field(description="largest resident size of the process, MiB")
    versions: dict[str, str]
    image_hashes: dict[str, str] = Field(description="sha256 of voxels and header of each input")
    fingerprint: str = Field(
        default="",
        description="sha256 of inputs, parameters and version, by which `cohort` recognises a pair",
    )

    def to_json(self) -> str:
        """Return the report as JSON, in which NaN and infinities become null."""
        return self.model_dump_json(indent=2) + "\n"


def build_report(
    result: RegistrationResult,
    *,
    command: list[str],
    started_at: datetime,
    inputs: dict[str, InputRecord],
    outputs: dict[str, OutputRecord],
    timings_ms: dict[str, float],
    accept_untrusted: bool = False,
    warnings: Sequence[str] = (),
) -> RunReport:
    """Build the report of a finished run.

    `timings_ms` includes reading and writing; `warnings` are those about the output files.
    """
    finished_at = datetime.now(started_at.tzinfo)
    total_ms = (finished_at - started_at).total_seconds() * 1e3
    timings_ms = timings_ms | {"other": max(0.0, total_ms - sum(timings_ms.values()))}
    refused = result.trust.verdict == "untrusted" and not accept_untrusted
    return RunReport(
        exit_code=UNTRUSTED_EXIT_CODE if refused else 0,
        # JSON cannot hold bytes that are not valid text.
        command=[word.encode("utf-8", "backslashreplace").decode("utf-8") for word in command],
        started_at=started_at,
        finished_at=finished_at,
        inputs=inputs,
        outputs=outputs,
        configuration=result.config.model_dump(mode="json"),
        choices=result.choices,
        decisions=result.decisions,
        alignment={name: round(value, 4) for name, value in result.alignment.items()},
        transform=None
        if (linear := result.linear_summary()) is None
        else LinearMap(**vars(linear)),
        encoding=None if result.encoding is None else Encoding(**asdict(result.encoding)),
        quality=Quality(**asdict(result.quality)),
        trust=TrustReport(verdict=result.trust.verdict, reasons=list(result.trust.reasons)),
        regions=[RegionReport(**asdict(region)) for region in result.regions],
        warnings=list(
            dict.fromkeys(
                [
                    *(warning for record in inputs.values() for warning in record.warnings),
                    *result.warnings,
                    *warnings,
                ]
            )
        ),
        timings_ms={stage: round(value, 3) for stage, value in timings_ms.items()},
        total_ms=round(total_ms, 3),
        device_memory=PredictedDeviceMemory.of(result.device_memory),
        peak_memory_mb=round(peak_memory_mb(), 1),
        versions=result.versions,
        image_hashes=result.hashes,
    )


def hash_input(path: Path) -> InputRecord:
    """Hash an input file with its data files, a folder, or a DICOM series (``FOLDER?series=UID``).

    Raises:
        OSError: a file cannot be read.
        InputError: the folder does not hold the series.
    """
    files = image_parts(path)
    if files == [path]:
        return InputRecord(path=str(path), sha256=file_sha256(path))
    digest = hashlib.sha256()
    for file in files:
        digest.update(bytes.fromhex(file_sha256(file)))
    return InputRecord(path=str(path), sha256=digest.hexdigest())


def hash_output(path: Path) -> OutputRecord:
    """Hash a file that was just written."""
    return OutputRecord(sha256=file_sha256(path), bytes=path.stat().st_size)


def peak_memory_mb() -> float:
    """Return the largest resident size that this process has had, in MiB."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        # getrusage starts from the size of the parent process if that was larger.
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20) if sys.platform == "darwin" else peak / 1024
