"""A small encoder, a phantom and an empty cache for whole registrations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from encoders import write_bundle
from phantoms import Phantom, make_grid, make_phantom

from dinoreg_rt.encoder.token_writer import WRITER


@pytest.fixture(scope="session")
def bundle(tmp_path_factory) -> Path:
    pytest.importorskip("onnx", reason="makes a small ONNX encoder: onnx is not installed")
    return write_bundle(tmp_path_factory.mktemp("models") / "gabor", [(192, 224)], patch=4)


@pytest.fixture(scope="session")
def phantom() -> Phantom:
    grid = make_grid((40, 44, 52), (2.0, 2.0, 2.0))
    return make_phantom(grid, grid, peak_mm=8.0)


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Iterator[Path]:
    monkeypatch.setenv("DINOREG_CACHE", str(tmp_path / "cache"))
    yield tmp_path / "cache"
    WRITER.wait()
