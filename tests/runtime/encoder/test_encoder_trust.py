"""The verdict on a registration with an encoder: MIND-SSC judges the start and the result."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from encoders import write_bundle
from phantoms import make_grid, make_phantom

import dinoreg_rt
from dinoreg_rt.quality.trust import judge

pytest.importorskip("onnx", reason="makes a small ONNX encoder: onnx is not installed")
pytest.importorskip("onnxruntime", reason="runs it: ONNX Runtime is not installed")
GRID = make_grid((40, 44, 48), (2.5, 2.5, 2.5))
ENCODED = {"slice_stride": 4, "components": 8, "engine": "ort-cpu", "cache": False}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("models") / "gabor", [(96, 112)])


def register(moving: dinoreg_rt.Volume, **more) -> dinoreg_rt.RegistrationResult:
    values = {"initial": "none", "threads": 1, "device": "cpu"} | more
    fixed = make_phantom(GRID, GRID, multimodal=True).fixed
    return dinoreg_rt.register(fixed, moving, config=dinoreg_rt.RegistrationConfig(**values))


@pytest.mark.parametrize("mind_weight", [0.0, 0.5])
def test_features_that_make_a_right_start_worse_are_not_trusted(bundle, mind_weight) -> None:
    pair = make_phantom(GRID, GRID, multimodal=True)
    result = register(pair.moving, encoder=str(bundle), mind_weight=mind_weight, **ENCODED)
    found = result.displacement.vectors_mm
    # Measured: 2.6 mm at the start, 9.7 and 7.5 mm after it. The mirror test sees the start alone.
    start, end = (pair.errors_mm(mm).mean() for mm in (np.zeros_like(found), found))
    assert end > 2 * start
    assert result.quality.decoy_ratio < 0.5
    assert result.quality.feature_distance_after < result.quality.feature_distance_before
    (reason,) = result.trust.reasons
    assert reason.startswith("the difference of MIND-SSC is still 1")
    assert judge(register(pair.moving).quality).verdict == "trusted"


@pytest.mark.parametrize("flip", [None, 0, 2])
@pytest.mark.parametrize("mind_weight", [0.0, 0.5])
def test_the_mirror_test_is_that_of_mind(bundle, flip, mind_weight) -> None:
    moving = make_phantom(GRID, GRID, multimodal=True).moving
    if flip is not None:
        array = np.ascontiguousarray(np.flip(moving.array, flip))
        moving = dataclasses.replace(moving, array=array)
    result = register(moving, encoder=str(bundle), mind_weight=mind_weight, **ENCODED)
    expected = register(moving).quality
    assert judge(result.quality).verdict == "untrusted"
    assert result.quality.decoy_ratio == expected.decoy_ratio
    assert result.quality.unrelated_ratio == expected.unrelated_ratio
    assert result.choices["trust"].startswith("judged by MIND-SSC")


def test_trust_is_not_measured_without_a_request(bundle) -> None:
    moving = make_phantom(GRID, GRID, multimodal=True).moving
    result = register(moving, encoder=str(bundle), trust=False, **ENCODED)
    assert np.isnan([result.quality.decoy_ratio, result.quality.unrelated_ratio]).all()
    assert "trust" not in result.choices
    assert "trust" not in result.timings_ms
