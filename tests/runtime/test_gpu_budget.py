"""The budget of a registration on a GPU: what it asks of the device and of its host, counted.

The table in docs/gpu_budget.md is what is counted here, and the time that it implies. Write it anew
with ``DINOREG_WRITE_BUDGET=1 python -m pytest -n 0 tests/runtime/test_gpu_budget.py``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from cuda_on_host import DeviceArray
from encoders import write_bundle
from gpu_budget import Budget, Counter, Counts, build_counting_library, table

import dinoreg_rt
from dinoreg_rt.engines.cpu import OrtEncoder
from dinoreg_rt.images.phantom import phantom_grid, phantom_pair
from dinoreg_rt.registration.needs import registration_work

GRID = phantom_grid((192, 160, 192), 2.0)
ITERATIONS = (40, 40)
DOCUMENT = Path(__file__).parents[2] / "docs" / "gpu_budget.md"
PLANNING = ("plan", "modality", "alignment")


@pytest.fixture(scope="session")
def counting_library(tmp_path_factory) -> Path:
    return build_counting_library(tmp_path_factory.mktemp("counting"))


@pytest.fixture
def counter(cupy, monkeypatch, counting_library) -> Counter:
    counter = Counter(counting_library)
    counter.install(monkeypatch)
    return counter


def budget_of(counter: Counter, **more: Any) -> Budget:
    """Count the third registration of a shape by a registrar."""
    config = dinoreg_rt.RegistrationConfig(
        device="cuda", threads=2, iterations=ITERATIONS, cache=False, **more
    )
    pair = phantom_pair(GRID)
    plans = []
    with dinoreg_rt.Registrar(config) as registrar:
        for _ in range(3):
            counter.take()
            registrar.register(*pair, on_plan=plans.append)
    work = registration_work(plans[-1].sizes)
    moved = {stage: sum(part.bytes for part in parts) for stage, parts in work.items()}
    return Budget(counter.take(), moved)


class QueuedEncoder(OrtEncoder):
    """An engine on the device: its tokens are computed by ONNX Runtime and are not counted."""

    def encode(self, pixels: Any) -> Any:
        return DeviceArray(super().encode(pixels.host))


@pytest.fixture
def encoder(tmp_path, monkeypatch) -> str:
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason=f"makes or runs an encoder: no {package}")

    def opened(bundle: Any, graph: Any, engine: str, threads: int, **_: Any) -> QueuedEncoder:
        return QueuedEncoder(bundle, graph, threads)

    monkeypatch.setattr("dinoreg_rt.encoder.pair_tokens.open_encoder", opened)
    monkeypatch.setattr(
        "dinoreg_rt.encoder.planning.choose_engine", lambda *_: ("ort-cuda", "simulated")
    )
    return str(write_bundle(tmp_path / "gabor", [(160, 192)]))


def without_planning(budget: Budget) -> Counts:
    return budget.total(leaving_out=PLANNING)


def test_without_an_encoder(counter) -> None:
    budget = budget_of(counter, initial="none", body_mask="off")
    check_table("Without an encoder, initial alignment given", budget)
    whole = without_planning(budget)
    assert whole.launches <= 30
    assert whole.waits == 1
    assert whole.allocated == 0
    assert budget.milliseconds() <= 30


def test_with_an_encoder(counter, encoder) -> None:
    more = {"initial": "none", "body_mask": "off", "slice_stride": 16, "axis": "axial"}
    budget = budget_of(counter, encoder=encoder, **more)
    check_table("With an encoder of 24 components, initial alignment given", budget)
    whole = without_planning(budget)
    assert whole.launches <= 60
    # The sums of the tokens, their means and variances, the residual of their directions, the end.
    assert whole.waits <= 4
    assert budget.milliseconds() <= 30


def test_with_the_search_for_the_alignment(counter) -> None:
    budget = budget_of(counter)
    check_table("Without an encoder, initial alignment searched", budget)
    assert without_planning(budget).launches <= 30
    assert budget.milliseconds() <= 30


def check_table(title: str, budget: Budget) -> None:
    """Compare the table of the documentation with what was counted, or write it."""
    text, wanted = DOCUMENT.read_text("utf-8"), table(budget)
    before, found, rest = text.partition(f"## {title}\n\n")
    assert found, f"no table '{title}' in {DOCUMENT}"
    written, _, after = rest.partition("\n\n")
    if os.environ.get("DINOREG_WRITE_BUDGET"):
        DOCUMENT.write_text(f"{before}{found}{wanted}\n\n{after}", "utf-8")
        return
    assert written.rstrip("\n") == wanted
