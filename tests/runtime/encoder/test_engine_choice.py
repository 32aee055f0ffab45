"""``--engine auto`` on a GPU: cached engines of one flavour for all input sizes in use."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from dinoreg_rt.engines import selection as engine_choice
from dinoreg_rt.engines.selection import choose_for_gpu

AXIAL, CORONAL = "axial", "coronal"


@pytest.fixture
def cached(monkeypatch) -> set[tuple[str, str]]:
    """The flavours and sizes of the engines in the cache."""
    found: set[tuple[str, str]] = set()

    def problem(bundle: Any, graph: str, flavour: str, device: int) -> str | None:
        return None if (flavour, graph) in found else f"no engine for {graph}"

    monkeypatch.setattr(engine_choice, "engine_problem", problem)
    monkeypatch.setattr(engine_choice, "provider_problem", lambda engine: None)
    return found


def choose(*graphs: str) -> tuple[str, str]:
    return choose_for_gpu(0, SimpleNamespace(), graphs)


def test_every_input_size_needs_an_engine(cached) -> None:
    cached.add(("tensorrt", AXIAL))
    assert choose(AXIAL)[0] == "tensorrt"
    name, reason = choose(AXIAL, CORONAL, CORONAL)
    assert (name, "tensorrt: no engine for coronal" in reason) == ("ort-cuda", True)
    cached.add(("tensorrt", CORONAL))
    assert choose(AXIAL, CORONAL, CORONAL)[0] == "tensorrt"


def test_flavours_are_not_mixed(cached) -> None:
    cached |= {("tensorrt", AXIAL), ("tensorrt-rtx", CORONAL)}
    assert choose(AXIAL, CORONAL)[0] == "ort-cuda"
    cached.add(("tensorrt-rtx", AXIAL))
    assert choose(AXIAL, CORONAL)[0] == "tensorrt-rtx"
