"""`report.json`: what a run did, with what, how well and how fast.

`RunReport` is its schema (``RunReport.model_json_schema()`` gives it as JSON Schema). Within one
``schema_version`` fields are only added. Numbers that do not exist are null.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import resource
import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from ..errors import UNTRUSTED_EXIT_CODE
from ..quality.trust import judge, quality_warnings
from ..registration.result import RegistrationResult
from ..types import DeviceMemory


class InputRecord(BaseModel):
    """A file, or the folder of a DICOM series, that took part."""

    model_config = ConfigDict(frozen=True)

    path: str = Field(description="as given by the user")
    sha256: str = Field(
        description="of the file's bytes; of a folder or series: of its files' digests in name "
        "order"
    )


class OutputRecord(BaseModel):
    """A file that was written."""

    model_config = ConfigDict(frozen=True)

    sha256: str
    bytes: int


class Quality(BaseModel):
    """The fields of `RunQuality`; see there for the definitions."""

    model_config = ConfigDict(frozen=True)

    feature_distance_before: float
    feature_distance_after: float
    folded_percent: float
    jacobian_min: float
    jacobian_max: float
    sdlogj: float
    inverse_consistency_mean_mm: float
    inverse_consistency_max_mm: float
    overlap_percent: float
    decoy_ratio: float | None = Field(description="of MIND-SSC; null: not measured")
    unrelated_ratio: float | None = Field(description="of MIND-SSC; null: not measured")
    alignment_similarity: float | None = Field(default=None, description="null: not searched for")
    inverse_missed_percent: float | None = Field(default=None, description="null: not measured")
    inverse_missed_max_mm: float | None = Field(default=None, description="null: not measured")

    @field_validator(
        "decoy_ratio",
        "unrelated_ratio",
        "alignment_similarity",
        "inverse_missed_percent",
        "inverse_missed_max_mm",
    )
    @classmethod
    def _not_measured(cls, value: float | None) -> float | None:
        return None if value is None or math.isnan(value) else value


class TrustReport(BaseModel):
    """Whether the result should be used; see `dinoreg_rt.quality.trust`."""

    model_config = ConfigDict(frozen=True)

    verdict: Literal["trusted", "untrusted"]
    reasons: list[str] = Field(description="what speaks against it; empty if trusted")


class EncodedPlane(BaseModel):
    """The fields of `EncodedPlaneSummary`; see there for the definitions."""

    model_config = ConfigDict(frozen=True)

    plane: str
    weight: float
    token_grid: tuple[int, int]
    moving_token_grid: tuple[int, int]
    token_mm: tuple[tuple[float, float], tuple[float, float]]
    slices: tuple[int, int]
    from_cache: tuple[bool, bool]
    feature_scale: float
    explained_variance: tuple[float, ...]


class Encoding(BaseModel):
    """The fields of `EncodingSummary`; see there for the definitions."""

    model_config = ConfigDict(frozen=True)

    model: str
    precision: str
    bundle_sha256: str
    random_weights: bool
    engine: str
    planes: tuple[EncodedPlane, ...]


class PredictedDeviceMemory(BaseModel):
    """A `DeviceMemory` in MiB."""

    model_config = ConfigDict(frozen=True)

    peak_mb: float
    largest_stage: str
    available_mb: float
    budget: bool
    stages_mb: dict[str, float]

    @classmethod
    def of(cls, memory: DeviceMemory | None) -> PredictedDeviceMemory | None:
        """None on a CPU."""
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
    exit_code: int = Field(default=0, description="9: untrusted, and not accepted as it is")
    command: list[str] = Field(description="the command line")
    started_at: datetime = Field(description="ISO 8601 with time zone")
    finished_at: datetime
    inputs: dict[str, InputRecord] = Field(
        description="by role: fixed, moving, fixed_mask, moving_mask, weights; further ones by "
        "output name"
    )
    outputs: dict[str, OutputRecord] = Field(description="by file name, beside this report")
    configuration: dict[str, Any] = Field(description="RegistrationConfig, nothing left at auto")
    choices: dict[str, str] = Field(description="what was decided for the user, and why")
    alignment: dict[str, float] = Field(
        default_factory=dict,
        description="of a searched initial alignment: similarity, confidence and overlap",
    )
    encoding: Encoding | None = Field(description="what an encoder contributed; null without one")
    quality: Quality
    trust: TrustReport
    warnings: list[str] = Field(description="what deserves a look and is not a reason of `trust`")
    timings_ms: dict[str, float] = Field(description="wall-clock time of each stage, in order")
    total_ms: float = Field(description="from the command's start to the last written image")
    device_memory: PredictedDeviceMemory | None = Field(
        default=None, description="predicted before the work; null on a CPU"
    )
    peak_memory_mb: float = Field(description="largest resident size of the process, MiB")
    versions: dict[str, str]
    image_hashes: dict[str, str] = Field(description="sha256 of voxels and header of each input")

    def to_json(self) -> str:
        """The report as text; NaN and infinities become null, which JSON can hold."""
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
) -> RunReport:
    """Put together what the run knows; `timings_ms` includes reading and writing."""
    finished_at = datetime.now(started_at.tzinfo)
    trust = judge(result.quality)
    refused = trust.verdict == "untrusted" and not accept_untrusted
    return RunReport(
        exit_code=UNTRUSTED_EXIT_CODE if refused else 0,
        # Bytes that are no text cannot be said in JSON.
        command=[word.encode("utf-8", "backslashreplace").decode("utf-8") for word in command],
        started_at=started_at,
        finished_at=finished_at,
        inputs=inputs,
        outputs=outputs,
        configuration=result.config.model_dump(mode="json"),
        choices=result.choices,
        alignment={name: round(value, 4) for name, value in result.alignment.items()},
        encoding=None if result.encoding is None else Encoding(**asdict(result.encoding)),
        quality=Quality(**asdict(result.quality)),
        trust=TrustReport(verdict=trust.verdict, reasons=list(trust.reasons)),
        warnings=run_warnings(result),
        timings_ms={stage: round(value, 3) for stage, value in timings_ms.items()},
        total_ms=round((finished_at - started_at).total_seconds() * 1e3, 3),
        device_memory=PredictedDeviceMemory.of(result.device_memory),
        peak_memory_mb=round(peak_memory_mb(), 1),
        versions=result.versions,
        image_hashes=result.hashes,
    )


def run_warnings(result: RegistrationResult) -> list[str]:
    """What a careful user would look at before using the result."""
    found = [*result.warnings, *quality_warnings(result.quality)]
    if result.encoding is not None and result.encoding.random_weights:
        found.append("the encoder's weights are random: its features mean nothing")
    return found


def hash_input(path: Path) -> InputRecord:
    """The record of an input file, of a folder or of a series in it (``FOLDER?series=UID``).

    Raises:
        OSError: it cannot be read.
        InputError: the folder does not hold the series.
    """
    from ..io import input_files

    files = input_files(path)
    if files == [path]:
        return InputRecord(path=str(path), sha256=_sha256(path))
    digest = hashlib.sha256()
    for file in files:
        digest.update(bytes.fromhex(_sha256(file)))
    return InputRecord(path=str(path), sha256=digest.hexdigest())


def hash_output(path: Path) -> OutputRecord:
    """The record of a file that was just written."""
    return OutputRecord(sha256=_sha256(path), bytes=path.stat().st_size)


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:  # file_digest releases the interpreter lock while it works
        return hashlib.file_digest(stream, "sha256").hexdigest()


def peak_memory_mb() -> float:
    """Largest resident size this process has had, in MiB."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        # getrusage keeps the size of the program that started this one, where it was larger.
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20) if sys.platform == "darwin" else peak / 1024
