"""How often the host calls CuPy and the library for a registration, each about 10 µs of its time.

Planning is not counted. It runs on the host, or only reads.
"""

from __future__ import annotations

import collections
from typing import Any

import cuda_on_host
import pytest

import dinoreg_rt
from dinoreg_kernels import _arrays
from dinoreg_rt.device.choice import EventTimer
from dinoreg_rt.images.phantom import phantom_grid, phantom_pair

#: Most calls of CuPy and of the library in these stages. CuPy makes the memory of each result and
#: workspace of the library, and joins what is read; `deliver` reads the results.
MOST = {
    "field of view": (14, 7),
    "trust": (4, 2),
    "quality": (5, 2),
    "deliver": (0, 0),
}


class Calls(collections.Counter[tuple[str, str]]):
    """Calls by stage and by what is called."""

    stage = "plan"


@pytest.fixture
def calls(cupy: Any, monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Count the calls of a registration."""
    counted = Calls()
    used, made = cuda_on_host._used, _arrays.Call.__init__
    stage, finish = EventTimer.stage, EventTimer.finish

    def count_used(*args: Any) -> None:
        counted[counted.stage, "cupy"] += 1
        used(*args)

    def count_call(self: Any, *args: Any, **more: Any) -> None:
        counted[counted.stage, "library"] += 1
        made(self, *args, **more)

    def enter(self: EventTimer, name: str) -> Any:
        counted.stage = name
        return stage(self, name)

    def end(self: EventTimer) -> dict[str, float]:
        counted.stage = "end"
        return finish(self)

    monkeypatch.setattr(cuda_on_host, "_used", count_used)
    monkeypatch.setattr(_arrays.Call, "__init__", count_call)
    monkeypatch.setattr(EventTimer, "stage", enter)
    monkeypatch.setattr(EventTimer, "finish", end)
    return counted


def test_stages_around_the_solver_take_few_calls(calls: Calls) -> None:
    pair = phantom_pair(phantom_grid((24, 20, 24), 8.0))
    dinoreg_rt.register(*pair, config=dinoreg_rt.RegistrationConfig(device="cuda", threads=1))
    for stage, (most_cupy, most_library) in MOST.items():
        assert calls[stage, "cupy"] <= most_cupy, stage
        assert calls[stage, "library"] <= most_library, stage
    # Measured: 49 and 24; with measures made of CuPy's functions, 971 and 39 for a larger pair.
    run = [stage for stage in {stage for stage, _ in calls} if stage not in ("plan", "end")]
    assert sum(calls[stage, "cupy"] for stage in run) <= 50
    assert sum(calls[stage, "library"] for stage in run) <= 24
