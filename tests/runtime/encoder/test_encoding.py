"""Whole registrations with an encoder: from ONNX to field, cached, joined and refused."""

from __future__ import annotations

import sys
import weakref
from typing import Any

import numpy as np
import pytest
from encoders import config, errors_voxels, run, write_bundle

import dinoreg_rt
from dinoreg_rt.encoder.pair_tokens import PairTokens, tokens_of_pair
from dinoreg_rt.encoder.token_writer import WRITER
from dinoreg_rt.errors import ConfigError, DeviceError, RegistrationError
from dinoreg_rt.types import LabelMap, Volume

pytest.importorskip("onnx", reason="makes a small ONNX encoder: onnx is not installed")
pytest.importorskip("onnxruntime", reason="runs it: ONNX Runtime is not installed")
pytestmark = pytest.mark.usefixtures("own_cache")


def test_the_field_is_recovered_to_under_one_voxel(phantom, bundle) -> None:
    result = run(phantom, config(bundle))
    errors = errors_voxels(phantom, result)
    assert phantom.errors_mm(np.zeros(3)).mean() / 2.0 > 1.5
    assert errors.mean() < 0.6
    assert np.percentile(errors, 95) < 1.0
    assert result.quality.folded_percent == 0
    assert result.encoding is not None
    assert result.encoding.planes[0].slices == (40, 40)


def test_skipped_slices_and_joined_mind(phantom, bundle) -> None:
    skipped = run(phantom, config(bundle, slice_stride=3, mind_weight=1.0))
    assert errors_voxels(phantom, skipped).mean() < 0.5
    assert "both, joined with MIND-SSC of weight 1" in skipped.choices["features"]
    assert skipped.encoding.planes[0].slices[0] < 20


def test_each_stage_compares_features_of_its_own(phantom, bundle) -> None:
    def field(**more) -> np.ndarray:
        return run(phantom, config(bundle, search_levels=2, **more)).displacement.vectors_mm

    leads = {"search_features": ("encoder", "mind"), "refinement_features": "mind"}
    result = run(phantom, config(bundle, search_levels=2, **leads))
    assert "search: encoder, then MIND-SSC; refinement: MIND-SSC" in result.choices["features"]
    assert errors_voxels(phantom, result).mean() < 0.5
    # Naming the default features makes no difference.
    everything = field(search_features=("encoder", "encoder"), refinement_features="encoder")
    np.testing.assert_array_equal(everything, field())
    for changed in (leads, {"search_features": ("mind",)}, {"refinement_features": "mind"}):
        assert np.abs(field(**changed) - everything).max() > 0.01


def test_search_features_and_levels(phantom, bundle) -> None:
    with pytest.raises(ConfigError, match="no stage would compare the encoder"):
        config(bundle, search_features=("mind",), refinement_features="mind")
    with pytest.raises(ConfigError, match="at least 2 levels"):
        config(bundle, search_features=("encoder", "mind"), search_levels=1)
    settings = config(bundle, search_features=("encoder", "mind", "mind"))
    assert dinoreg_rt.plan(phantom.fixed, phantom.moving, settings).grids.search_levels == 3


def test_all_three_axes(phantom, tmp_path) -> None:
    everywhere = write_bundle(tmp_path / "cube", [(192, 192)], patch=4)
    stages: set[str] = set()
    result = run(
        phantom,
        config(everywhere, axis="all", components=8, slice_stride=2),
        progress=lambda stage, fraction: stages.add(stage),
    )
    for plane in ("axial", "coronal", "sagittal"):  # each reports its own progress
        assert {f"encode fixed, {plane}", f"encode moving, {plane}"} <= stages
    assert [p.plane for p in result.encoding.planes] == ["axial", "coronal", "sagittal"]
    assert sum(p.weight for p in result.encoding.planes) == pytest.approx(1)
    assert errors_voxels(phantom, result).mean() < 0.5


def test_tokens_of_one_plane_at_a_time(phantom, tmp_path, monkeypatch) -> None:
    everywhere = write_bundle(tmp_path / "cube", [(192, 192)], patch=4)
    made: list[weakref.ref[np.ndarray]] = []
    alive: list[int] = []

    def watched(*args: Any) -> PairTokens:
        alive.append(sum(tokens() is not None for tokens in made))
        found = tokens_of_pair(*args)
        made.extend(weakref.ref(of_image.tokens) for of_image in found.tokens)
        return found

    monkeypatch.setattr("dinoreg_rt.encoder.features.tokens_of_pair", watched)
    run(phantom, config(everywhere, axis="all", components=8, slice_stride=4, cache=False))
    assert alive == [0, 0, 0]
    assert len(made) == 6


def test_same_bits_from_the_cache_and_from_a_file(phantom, bundle, own_cache) -> None:
    in_file = run(phantom, config(bundle, slice_stride=4, token_memory_gb=0.0, cache=False))
    assert not own_cache.exists()
    settings = config(bundle, slice_stride=4)
    first = run(phantom, settings)
    assert first.encoding.planes[0].from_cache == (False, False)
    WRITER.wait()
    assert len(list(own_cache.iterdir())) == 4
    second = run(phantom, settings)
    assert second.encoding.planes[0].from_cache == (True, True)
    for other in (second, in_file):
        np.testing.assert_array_equal(other.displacement.vectors_mm, first.displacement.vectors_mm)


def test_one_fixed_image_is_encoded_once(phantom, bundle) -> None:
    settings = config(bundle, slice_stride=8)
    run(phantom, settings)
    other = Volume(phantom.moving.array[:, :, ::-1].copy(), phantom.moving.geometry)
    result = dinoreg_rt.register(phantom.fixed, other, config=settings)
    assert result.encoding.planes[0].from_cache == (True, False)


def test_masks_choose_the_tokens_of_the_basis(phantom, bundle) -> None:
    inside = np.zeros(phantom.fixed.array.shape, np.int32)
    inside[8:-8, 12:-12, 12:-12] = 1
    mask = LabelMap(inside, phantom.fixed.geometry)
    masked = run(phantom, config(bundle, slice_stride=4), fixed_mask=mask, moving_mask=mask)
    whole = run(phantom, config(bundle, slice_stride=4))
    assert masked.encoding.planes[0].explained_variance != pytest.approx(
        whole.encoding.planes[0].explained_variance
    )


def test_random_weights_are_reported(phantom, tmp_path) -> None:
    random = write_bundle(tmp_path / "random", [(48, 56)], patch=4, random_weights=True)
    result = run(phantom, config(random, slice_stride=8))
    assert result.encoding.random_weights
    assert "RANDOM WEIGHTS: its features mean nothing" in result.choices["features"]


def test_the_plan_reports_tokens_and_their_memory(phantom, bundle) -> None:
    plan = dinoreg_rt.plan(phantom.fixed, phantom.moving, config(bundle, slice_stride=4))
    assert plan.choices["tokens"].startswith("48 x 56 tokens in ")
    without = dinoreg_rt.plan(
        phantom.fixed, phantom.moving, config(bundle).model_copy(update={"encoder": None})
    )
    assert plan.memory_bytes > without.memory_bytes


def test_unavailable_choices_are_errors(phantom, bundle, monkeypatch) -> None:
    with pytest.raises(ConfigError, match=r"holds no graph of 20 x 20 tokens; .* of 48 56"):
        run(phantom, config(bundle, token_grid=(20, 20)))
    with pytest.raises(ConfigError, match=r"--components 100: .* gives 37 channels"):
        dinoreg_rt.plan(phantom.fixed, phantom.moving, config(bundle, components=100))
    black = Volume(np.full_like(phantom.fixed.array, -900), phantom.fixed.geometry)
    black.array[0, 0, 0] = -800
    axial_ct = config(bundle, axis="axial", fixed_modality="ct")
    with pytest.raises(RegistrationError, match="no axial slice of the fixed image holds a value"):
        dinoreg_rt.register(black, phantom.moving, config=axial_ct)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(DeviceError, match=r"--engine openvino .* is not installed"):
        run(phantom, config(bundle, engine="openvino", slice_stride=8))
