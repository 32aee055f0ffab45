"""The report of `dinoreg-rt bench`: distributions, achieved rates, floors and ratios."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, Field

from ..device.ceilings import Ceilings
from ..registration.needs import registration_work
from ..registration.sizes import Work
from ..types import Volume

if TYPE_CHECKING:
    from ..registration.plan import Plan

#: Time outside the stages.
OTHER = "other"
#: Stages that do not count in the time without the encoder, from upload to download.
_NOT_COUNTED = ("plan", "modality", "alignment", "encode", "hash")


@dataclass(frozen=True)
class Run:
    """The times of one registration.

    Attributes:
        total_ms: wall-clock time.
        stages_ms: time of each stage, and of what belongs to no stage.
        versions: versions of the packages that took part.
    """

    total_ms: float
    stages_ms: dict[str, float]
    versions: dict[str, str]

    @property
    def without_encoder_ms(self) -> float:
        """Time from upload to download: without planning, encoding and hashing."""
        return self.total_ms - sum(self.stages_ms.get(stage, 0.0) for stage in _NOT_COUNTED)


@dataclass(frozen=True, eq=False)
class Measured:
    """Everything that was measured.

    Attributes:
        plan: the plan of the registrations.
        volumes: fixed and moving image.
        cold: the first registration.
        warm: the later registrations.
        ceilings: the highest rates of the device.
        memory: measured and predicted memory in MiB, by name.
        peer: the report of convexAdam; None if it was not run.
    """

    plan: Plan
    volumes: tuple[Volume, Volume]
    cold: Run
    warm: list[Run]
    ceilings: Ceilings
    memory: dict[str, float]
    peer: dict[str, Any] | None


class Distribution(BaseModel):
    """Milliseconds of a stage over the warm runs."""

    p50: float
    p95: float
    p99: float

    @classmethod
    def of(cls, values: list[float]) -> Distribution:
        """Return the percentiles, interpolated linearly between the values."""
        p50, p95, p99 = (round(float(v), 3) for v in np.percentile(values, [50, 95, 99]))
        return cls(p50=p50, p95=p95, p99=p99)


class PartReport(BaseModel):
    """The work of one part of a stage, and the least time that it takes."""

    stage: str
    name: str
    megabytes: float
    giga_operations: float
    floor_ms: float


class StageReport(BaseModel):
    """The time of one stage beside its floor.

    `gigabytes_per_s` and `giga_operations_per_s` are the work of its parts over the median time; an
    operation is a float32 multiply-add or its equivalent.
    """

    cold_ms: float
    warm_ms: Distribution
    floor_ms: float = Field(description="sum over the stage's parts")
    gigabytes_per_s: float
    giga_operations_per_s: float


class BenchReport(BaseModel):
    """The report of `dinoreg-rt bench`."""

    version: str
    device: str
    threads: int
    versions: dict[str, str]
    fixed_grid: str
    moving_grid: str
    features: str
    warnings: list[str] = Field(description="what the images leave open, with the option for it")
    runs: int
    configuration: dict[str, Any]
    cold_ms: float = Field(description="first registration, opening the encoder included")
    warm_ms: Distribution
    cold_without_encoder_ms: float
    without_encoder_ms: Distribution = Field(
        description="warm runs from upload to download: no planning, encoding and hashing"
    )
    pairs_per_second: float
    stages: dict[str, StageReport]
    parts: list[PartReport]
    ceilings: dict[str, float | str]
    memory: dict[str, float]
    peer: dict[str, Any] | None = None
    times_faster_than_peer: float | None = None
    solver_times_faster: float | None = Field(
        None, description="stage `solve` against the peer's call with the same features"
    )


def build_bench_report(measured: Measured) -> BenchReport:
    """Compute the report from the measurements."""
    plan, cold, warm, peer = measured.plan, measured.cold, measured.warm, measured.peer
    fixed, moving = (volume.geometry for volume in measured.volumes)
    totals = [run.total_ms for run in warm]
    work = registration_work(plan.sizes)
    total = Distribution.of(totals)
    stages = {s: _stage(s, measured, work.get(s, [])) for s in cold.stages_ms}
    faster = solver_faster = None
    if peer is not None:
        faster = _ratio(peer["wall_s"], total)
        solver_faster = _ratio(peer["same_features"]["wall_s"], stages["solve"].warm_ms)
    return BenchReport(
        version=cold.versions["dinoreg-rt"],
        device=plan.choices["device"],
        threads=plan.device.threads,
        versions=cold.versions,
        fixed_grid=fixed.summary(),
        moving_grid=moving.summary(),
        features=plan.choices["features"],
        warnings=list(plan.warnings),
        runs=len(warm),
        configuration=plan.config.model_dump(mode="json"),
        cold_ms=round(cold.total_ms, 3),
        warm_ms=total,
        cold_without_encoder_ms=round(cold.without_encoder_ms, 3),
        without_encoder_ms=Distribution.of([run.without_encoder_ms for run in warm]),
        pairs_per_second=round(1e3 * len(totals) / sum(totals), 4),
        stages=stages,
        parts=[_part(s, part, measured.ceilings) for s, parts in work.items() for part in parts],
        ceilings=_ceilings(measured.ceilings),
        memory=measured.memory,
        peer=peer,
        times_faster_than_peer=faster,
        solver_times_faster=solver_faster,
    )


def _ratio(peer_s: list[float], ours_ms: Distribution) -> float:
    return round(1e3 * float(np.median(peer_s)) / ours_ms.p50, 2)


def _stage(stage: str, measured: Measured, parts: list[Work]) -> StageReport:
    times = Distribution.of([run.stages_ms[stage] for run in measured.warm])
    seconds = max(times.p50, 1e-6) / 1e3
    return StageReport(
        cold_ms=round(measured.cold.stages_ms[stage], 3),
        warm_ms=times,
        floor_ms=round(1e3 * sum(w.floor_s(measured.ceilings) for w in parts), 3),
        gigabytes_per_s=round(sum(w.bytes for w in parts) / seconds / 1e9, 3),
        giga_operations_per_s=round(sum(w.operations for w in parts) / seconds / 1e9, 3),
    )


def _part(stage: str, work: Work, ceilings: Ceilings) -> PartReport:
    return PartReport(
        stage=stage,
        name=work.name,
        megabytes=round(work.bytes / 1e6, 3),
        giga_operations=round(work.operations / 1e9, 4),
        floor_ms=round(1e3 * work.floor_s(ceilings), 3),
    )


def _ceilings(ceilings: Ceilings) -> dict[str, float | str]:
    return {
        "gigabytes_per_s": round(ceilings.bytes_per_s / 1e9, 2),
        "vector_giga_operations_per_s": round(ceilings.vector_per_s / 1e9, 2),
        "scalar_giga_operations_per_s": round(ceilings.scalar_per_s / 1e9, 2),
        "matrix_giga_operations_per_s": round(ceilings.matrix_per_s / 1e9, 2),
        "matrix_type": ceilings.matrix_type,
        "how": ceilings.how,
    }
