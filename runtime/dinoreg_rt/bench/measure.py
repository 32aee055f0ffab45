"""Measure `register` on this machine, cold and warm, stage by stage."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.parameters import RegistrationConfig
from ..device.ceilings import measure_ceilings
from ..device.choice import Device
from ..device.recording import total_bytes
from ..registration.registrar import Registrar
from ..run.report import peak_memory_mb
from ..types import Volume
from .peer import check_peer, run_convexadam
from .tables import OTHER, BenchReport, Measured, Run, build_bench_report

if TYPE_CHECKING:
    from ..registration.plan import Plan


@dataclass(frozen=True, eq=False)
class BenchRequest:
    """What to measure.

    Attributes:
        fixed: the fixed image.
        moving: the moving image.
        config: the parameters of the registrations.
        runs: number of warm registrations.
        peer_python: Python of an environment with convexAdam; None: no comparison.
        peer_runs: number of calls of convexAdam.
    """

    fixed: Volume
    moving: Volume
    config: RegistrationConfig
    runs: int = 10
    peer_python: Path | None = None
    peer_runs: int = 1


def run_bench(request: BenchRequest, say: Callable[[str, float], None]) -> BenchReport:
    """Run the measurements and build the report.

    The token cache is off, so that every registration pays for its encoder.

    Args:
        request: what to measure.
        say: called with the current step and its finished fraction.

    Raises:
        DinoregError: a registration fails, or the peer cannot run.
    """
    config = request.config.changed(cache=False)
    if request.peer_python is not None:
        check_peer(request.peer_python, encoder=config.encoder)
    plans: list[Plan] = []
    runs: list[Run] = []
    with Registrar(config) as registrar:
        for i in range(request.runs + 1):
            say("register", i / (request.runs + 1))
            runs.append(_timed(registrar, request, plans))
        memory = _memory(registrar.device, plans[-1])
    say("register", 1.0)
    plan, volumes = plans[-1], (request.fixed, request.moving)
    say("ceilings", 0.0)
    ceilings = measure_ceilings(plan.device)
    say("ceilings", 1.0)
    peer = None
    if request.peer_python is not None:
        say("convexAdam", 0.0)
        peer = run_convexadam(request.peer_python, volumes, plan, request.peer_runs)
        say("convexAdam", 1.0)
    return build_bench_report(Measured(plan, volumes, runs[0], runs[1:], ceilings, memory, peer))


def _timed(registrar: Registrar, request: BenchRequest, plans: list[Plan]) -> Run:
    plans.clear()  # a plan holds its images on the device
    began = time.perf_counter()
    result = registrar.register(request.fixed, request.moving, on_plan=plans.append)
    total_ms = (time.perf_counter() - began) * 1e3
    stages = dict(result.timings_ms)
    stages[OTHER] = max(0.0, total_ms - sum(stages.values()))
    return Run(total_ms, stages, result.versions)


def _memory(device: Device, plan: Plan) -> dict[str, float]:
    """Return the predicted memory of one registration and the peaks of this process, in MiB."""
    found = {
        "predicted_mb": round(plan.memory_bytes / 2**20, 1),
        "peak_process_mb": round(peak_memory_mb(), 1),
    }
    if plan.device_memory is not None:
        found["predicted_gpu_mb"] = round(plan.device_memory.peak_bytes / 2**20, 1)
    if device.kind == "cuda":
        with device.active() as cuda:  # each device has its own pool
            pool_bytes = device.xp.get_default_memory_pool().total_bytes() + total_bytes()
            free, total = cuda.mem_info
        found["peak_gpu_pool_mb"] = round(pool_bytes / 2**20, 1)
        found["gpu_in_use_mb"] = round((total - free) / 2**20, 1)
    return found
