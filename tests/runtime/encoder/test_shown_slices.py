"""Registrations whose slices are left out, padded, or shown at one scale."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from encoders import config, errors_voxels, run, write_bundle
from phantoms import make_grid, make_phantom

import dinoreg_rt
from dinoreg_rt.device.choice import Device
from dinoreg_rt.encoder import features as features_module
from dinoreg_rt.encoder import slice_stack as slice_stack_module
from dinoreg_rt.encoder.pca import fit_basis
from dinoreg_rt.errors import ConfigError
from dinoreg_rt.geometry import shifted_grid
from dinoreg_rt.registration.demands import check_encoder
from dinoreg_rt.types import Volume

pytest.importorskip("onnx", reason="makes a small ONNX encoder: onnx is not installed")
pytest.importorskip("onnxruntime", reason="runs it: ONNX Runtime is not installed")
pytestmark = pytest.mark.usefixtures("own_cache")
GRID = make_grid((40, 44, 52), (2.0, 2.0, 2.0))
LONG = make_grid((96, 44, 52), (2.0, 2.0, 2.0))


@pytest.fixture
def every_slice_needed(monkeypatch) -> Callable[[], None]:
    """Call it to encode the slices that cannot meet the other image, too."""
    return partial(
        monkeypatch.setattr,
        slice_stack_module,
        "_slices_of",
        lambda region, stack: (0, stack.shape_zyx[0] - 1),
    )


def run_twice(phantom, settings) -> dinoreg_rt.RegistrationResult:
    """Check that the second run takes both images' tokens from the cache, with the same bits."""
    first, second = run(phantom, settings), run(phantom, settings)
    from_cache = [result.encoding.planes[0].from_cache for result in (first, second)]
    assert from_cache == [(False, False), (True, True)]
    np.testing.assert_array_equal(second.displacement.vectors_mm, first.displacement.vectors_mm)
    return first


def slab_of(image: Volume, first: int, count: int) -> Volume:
    return Volume(
        np.ascontiguousarray(image.array[first : first + count]),
        shifted_grid(image.geometry, (first, 0, 0), (count, *image.geometry.shape_zyx[1:])),
    )


def test_moving_slices_that_cannot_meet_the_fixed_image_are_not_encoded(
    bundle, monkeypatch, every_slice_needed
) -> None:
    """With the same basis, the features in reach and so the field have the same bits."""
    long = make_phantom(LONG, LONG, peak_mm=8.0)
    slab = slab_of(long.fixed, 40, 12)
    settings = config(bundle, slice_stride=3, search_radius_mm=16.0, cache=False)
    bases = []

    def kept_basis(*args):
        bases.append(fit_basis(*args))
        return bases[0]

    monkeypatch.setattr(features_module, "fit_basis", kept_basis)
    few = dinoreg_rt.register(slab, long.moving, config=settings)
    reached = re.search(r"(\d+) of 96 moving slices can meet the fixed", few.choices["slices"])
    assert reached
    assert 12 + 2 * 8 <= int(reached[1]) <= 48
    assert few.encoding.planes[0].slices[0] == 5
    assert few.encoding.planes[0].slices[1] <= int(reached[1]) // 3 + 2
    every_slice_needed()
    every = dinoreg_rt.register(slab, long.moving, config=settings)
    assert every.encoding.planes[0].slices == (5, 33)
    np.testing.assert_array_equal(few.displacement.vectors_mm, every.displacement.vectors_mm)


def test_nor_are_slices_of_the_fixed_image(bundle, every_slice_needed) -> None:
    long = make_phantom(LONG, LONG, peak_mm=4.0)
    slab = slab_of(long.moving, 40, 24)
    settings = config(bundle, slice_stride=2, search_radius_mm=8.0, cache=False)
    few = dinoreg_rt.register(long.fixed, slab, config=settings)
    assert "of 96 fixed slices can meet the moving image" in few.choices["slices"]
    assert few.encoding.planes[0].slices[0] < 40
    every_slice_needed()
    every = dinoreg_rt.register(long.fixed, slab, config=settings)
    assert every.encoding.planes[0].slices[0] == 49
    both = replace(long, moving=slab)
    with_few, with_all = (errors_voxels(both, result).mean() for result in (few, every))
    assert with_few < with_all + 0.025


def test_padded_slices(phantom, bundle) -> None:
    """The padding's tokens are not kept, and the field is still recovered."""
    settings = config(bundle, slice_stride=2, slice_padding=4)
    plan = dinoreg_rt.plan(phantom.fixed, phantom.moving, settings)
    assert plan.choices["tokens"].startswith("40 x 48 tokens in ")
    assert "4 more at each edge are discarded" in plan.choices["tokens"]
    result = run_twice(phantom, settings)
    assert result.encoding.planes[0].token_grid == (40, 48)
    assert errors_voxels(phantom, result).mean() < 0.6
    plain = run(phantom, config(bundle, slice_stride=2))
    assert plain.encoding.planes[0].from_cache == (False, False)  # other tokens, other entries


@pytest.mark.parametrize("scale", ["common", "body"])
def test_one_scale_for_two_fields_of_view(bundle, scale) -> None:
    """Tokens differ from those of `fit`, have one size in mm, and the field is recovered."""
    wide = make_phantom(GRID, make_grid((40, 76, 60), (2.0, 2.0, 2.0)), peak_mm=8.0)
    result = run_twice(wide, config(bundle, slice_stride=2, slice_scale=scale, body_mask="auto"))
    token_mm = np.array(result.encoding.planes[0].token_mm)
    assert np.ptp(token_mm) < 0.1 * token_mm.mean()
    assert f"a token is {token_mm.mean():.1f} mm in both images" in result.choices["tokens"]
    assert ("cropped to the bodies" in result.choices["tokens"]) == (scale == "body")
    assert errors_voxels(wide, result).mean() < 0.7
    fitted = run(wide, config(bundle, slice_stride=2, body_mask="auto"))
    assert fitted.encoding.planes[0].from_cache == (False, False)
    assert fitted.encoding.planes[0].token_grid == fitted.encoding.planes[0].moving_token_grid


def test_on_one_grid_the_common_scale_may_equal_fit(phantom, tmp_path) -> None:
    """If the encoder's input has the slices' aspect, tokens come from the same cache entries."""
    same = write_bundle(tmp_path / "same", [(176, 208)], patch=4)
    fit, common = (
        run(phantom, config(same, slice_stride=4, slice_scale=scale)) for scale in ("fit", "common")
    )
    assert common.encoding.planes[0].from_cache == (True, True)
    np.testing.assert_array_equal(common.displacement.vectors_mm, fit.displacement.vectors_mm)


@pytest.mark.parametrize(
    ("moving_yx", "more"),
    [((76, 60), {"slice_scale": "common"}), ((44, 52), {"slice_padding": 3})],
)
def test_a_constant_picture_is_cropped_to_the_slices(bundle, moving_yx, more) -> None:
    fixed, moving = (make_grid((40, *yx), (2.0, 2.0, 2.0)) for yx in ((44, 52), moving_yx))
    wide = make_phantom(fixed, moving, peak_mm=8.0)
    settings = config(bundle, slice_stride=4, position_components=2, **more)
    assert errors_voxels(wide, run(wide, settings)).mean() < 1


def test_too_much_padding_is_an_error(phantom, tmp_path) -> None:
    small = write_bundle(tmp_path / "small", [(32, 40)], patch=4)
    wide = config(small, slice_padding=4)
    with pytest.raises(ConfigError, match=r"on the grids .8 10. of .* at most 3"):
        dinoreg_rt.plan(phantom.fixed, phantom.moving, wide)
    with pytest.raises(ConfigError, match=r"on the grids .8 10. of .* at most 3"):
        check_encoder(wide, Device("cpu", threads=1))
    assert dinoreg_rt.plan(phantom.fixed, phantom.moving, config(small, slice_padding=3))
    with pytest.raises(ConfigError, match="holds no graph of 20 x 20 tokens"):
        run(phantom, config(small, slice_padding=2, token_grid=(20, 20)))
    two = write_bundle(tmp_path / "two", [(32, 40), (64, 72)], patch=4)
    plan = dinoreg_rt.plan(phantom.fixed, phantom.moving, config(two, slice_padding=4))
    assert plan.choices["tokens"].startswith("8 x 10 tokens in ")
