"""A whole registration with an encoder: from ONNX to field, cached, in pieces, joined, refused."""

from __future__ import annotations

import errno
import re
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from encoders import write_bundle
from phantoms import Phantom, make_grid, make_phantom

import dinoreg_rt
from dinoreg_rt.bundle.opened import open_bundle
from dinoreg_rt.device.choice import Device
from dinoreg_rt.encoder import features as extract_module
from dinoreg_rt.encoder import slice_stack as slice_stack_module
from dinoreg_rt.encoder import tokens as tokens_module
from dinoreg_rt.encoder.cache import TokenCache
from dinoreg_rt.encoder.pca import fit_basis
from dinoreg_rt.encoder.slice_stack import SliceStack, plan_slices
from dinoreg_rt.encoder.tokens import encode, token_array
from dinoreg_rt.engines.cpu import OrtEncoder
from dinoreg_rt.engines.open import open_encoder
from dinoreg_rt.errors import (
    ConfigError,
    DeviceError,
    InputError,
    RegistrationError,
    ResourceError,
)
from dinoreg_rt.geometry import shifted_grid
from dinoreg_rt.registration.demands import check_encoder
from dinoreg_rt.types import LabelMap, Volume

pytest.importorskip("onnx", reason="makes a small ONNX encoder: onnx is not installed")
pytest.importorskip("onnxruntime", reason="runs it: ONNX Runtime is not installed")
CPU = Device("cpu", threads=1)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("models") / "gabor", [(192, 224)], patch=4)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DINOREG_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    grid = make_grid((40, 44, 52), (2.0, 2.0, 2.0))
    return make_phantom(grid, grid, peak_mm=8.0)


def config(bundle: Path, **more) -> dinoreg_rt.RegistrationConfig:
    values = {"encoder": str(bundle), "threads": 1, "initial": "none", "device": "cpu"}
    # The encoder alone tells where things are. Tokens as they are: in a phantom of blobs the mean
    # of a slice is most of what distinguishes it from the next one.
    values |= {"token_centre": "none", "token_scale": "none"}
    # Features alone take longer to converge than with the correlation, for which the default is.
    values |= {"body_mask": "off", "correlation_weight": 0.0, "iterations": (40, 20)} | more
    return dinoreg_rt.RegistrationConfig(**values)


def errors_voxels(phantom: Phantom, result: dinoreg_rt.RegistrationResult) -> np.ndarray:
    return phantom.errors_mm(result.displacement.vectors_mm) / 2.0


def run(phantom, settings, **more) -> dinoreg_rt.RegistrationResult:
    return dinoreg_rt.register(phantom.fixed, phantom.moving, config=settings, **more)


def test_the_field_is_recovered_to_under_one_voxel(phantom, bundle) -> None:
    """From ONNX to field: nothing but the encoder's features tells where things are."""
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
    def fields(**more) -> np.ndarray:
        result = run(phantom, config(bundle, search_levels=2, **more))
        return result.displacement.vectors_mm

    leads = {"search_features": ("encoder", "mind"), "refinement_features": "mind"}
    result = run(phantom, config(bundle, search_levels=2, **leads))
    assert "search: encoder, then MIND-SSC; refinement: MIND-SSC" in result.choices["features"]
    assert errors_voxels(phantom, result).mean() < 0.5
    # What the stages compare alone decides, not how it is said.
    everything = fields(search_features=("encoder", "encoder"), refinement_features="encoder")
    np.testing.assert_array_equal(everything, fields())
    for changed in (leads, {"search_features": ("mind",)}, {"refinement_features": "mind"}):
        assert np.abs(fields(**changed) - everything).max() > 0.01


def test_an_encoder_that_no_stage_compares_is_refused(bundle) -> None:
    with pytest.raises(ConfigError, match="no stage would compare the encoder"):
        config(bundle, search_features=("mind",), refinement_features="mind")
    with pytest.raises(ConfigError, match="for 2 levels"):
        config(bundle, search_features=("encoder", "mind"), search_levels=1)


def test_there_are_levels_for_all_search_features(phantom, bundle) -> None:
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
    for plane in ("axial", "coronal", "sagittal"):  # slices are counted for each
        assert {f"encode fixed, {plane}", f"encode moving, {plane}"} <= stages
    assert [p.plane for p in result.encoding.planes] == ["axial", "coronal", "sagittal"]
    assert sum(p.weight for p in result.encoding.planes) == pytest.approx(1)
    assert errors_voxels(phantom, result).mean() < 0.5


def test_same_bits_with_cache_file_and_batches(phantom, bundle, own_cache, monkeypatch) -> None:
    settings = config(bundle, slice_stride=4)
    first = run(phantom, settings)
    assert first.encoding.planes[0].from_cache == (False, False)
    assert len(list(own_cache.iterdir())) == 4
    second = run(phantom, settings)
    assert second.encoding.planes[0].from_cache == (True, True)
    in_file = run(phantom, config(bundle, slice_stride=4, token_memory_gb=0.0, cache=False))
    for other in (second, in_file):
        np.testing.assert_array_equal(other.displacement.vectors_mm, first.displacement.vectors_mm)


def test_one_fixed_image_is_encoded_once(phantom, bundle) -> None:
    settings = config(bundle, slice_stride=8)
    run(phantom, settings)
    other = Volume(phantom.moving.array[:, :, ::-1].copy(), phantom.moving.geometry)
    result = dinoreg_rt.register(phantom.fixed, other, config=settings)
    assert result.encoding.planes[0].from_cache == (True, False)


def slab_of(image: Volume, first: int, count: int) -> Volume:
    return Volume(
        np.ascontiguousarray(image.array[first : first + count]),
        shifted_grid(image.geometry, (first, 0, 0), (count, *image.geometry.shape_zyx[1:])),
    )


def test_slices_that_cannot_meet_the_other_image_are_not_encoded(bundle, monkeypatch) -> None:
    """They are given the same features in the same basis, so the field has the same bits."""
    grid = make_grid((96, 44, 52), (2.0, 2.0, 2.0))
    long = make_phantom(grid, grid, peak_mm=8.0)
    slab = slab_of(long.fixed, 40, 12)
    settings = config(bundle, slice_stride=3, search_radius_mm=16.0, cache=False)
    bases = []

    def kept_basis(*args):
        bases.append(fit_basis(*args))
        return bases[0]

    monkeypatch.setattr(extract_module, "fit_basis", kept_basis)
    few = dinoreg_rt.register(slab, long.moving, config=settings)
    reached = re.search(r"(\d+) of 96 moving slices can meet the fixed", few.choices["slices"])
    assert reached
    assert 12 + 2 * 8 <= int(reached[1]) <= 48
    assert few.encoding.planes[0].slices[0] == 5
    assert few.encoding.planes[0].slices[1] <= int(reached[1]) // 3 + 2
    monkeypatch.setattr(
        slice_stack_module, "_slices_of", lambda region, stack: (0, stack.shape_zyx[0] - 1)
    )
    all_of_them = dinoreg_rt.register(slab, long.moving, config=settings)
    assert all_of_them.encoding.planes[0].slices == (5, 33)
    np.testing.assert_array_equal(few.displacement.vectors_mm, all_of_them.displacement.vectors_mm)


def test_nor_are_slices_of_the_fixed_image(bundle, monkeypatch) -> None:
    grid = make_grid((96, 44, 52), (2.0, 2.0, 2.0))
    long = make_phantom(grid, grid, peak_mm=4.0)
    slab = slab_of(long.moving, 40, 24)
    settings = config(bundle, slice_stride=2, search_radius_mm=8.0, cache=False)
    few = dinoreg_rt.register(long.fixed, slab, config=settings)
    assert "of 96 fixed slices can meet the moving image" in few.choices["slices"]
    assert few.encoding.planes[0].slices[0] < 40
    monkeypatch.setattr(
        slice_stack_module, "_slices_of", lambda region, stack: (0, stack.shape_zyx[0] - 1)
    )
    every = dinoreg_rt.register(long.fixed, slab, config=settings)
    assert every.encoding.planes[0].slices[0] == 49
    both = replace(long, moving=slab)
    wrong, with_all = (both.errors_mm(r.displacement.vectors_mm).mean() for r in (few, every))
    assert wrong < with_all + 0.05


def test_padded_slices(phantom, bundle, own_cache) -> None:
    """The padding's tokens are kept nowhere, and the field is recovered all the same."""
    settings = config(bundle, slice_stride=2, slice_padding=4)
    plan = dinoreg_rt.plan(phantom.fixed, phantom.moving, settings)
    assert plan.choices["tokens"].startswith("40 x 48 tokens in ")
    assert "4 more at each edge are thrown away" in plan.choices["tokens"]
    first, second = run(phantom, settings), run(phantom, settings)
    assert first.encoding.planes[0].token_grid == (40, 48)
    assert first.encoding.planes[0].from_cache == (False, False)
    assert second.encoding.planes[0].from_cache == (True, True)
    np.testing.assert_array_equal(second.displacement.vectors_mm, first.displacement.vectors_mm)
    assert errors_voxels(phantom, first).mean() < 0.6
    plain = run(phantom, config(bundle, slice_stride=2))
    assert plain.encoding.planes[0].from_cache == (False, False)  # other tokens, other entries


@pytest.mark.parametrize("scale", ["common", "body"])
def test_one_scale_for_two_fields_of_view(bundle, own_cache, scale) -> None:
    """Other tokens than with `fit`, of one size in mm, and the field is recovered from them."""
    grid, larger = (
        make_grid((40, 44, 52), (2.0, 2.0, 2.0)),
        make_grid((40, 76, 60), (2.0, 2.0, 2.0)),
    )
    wide = make_phantom(grid, larger, peak_mm=8.0)
    settings = config(bundle, slice_stride=2, slice_scale=scale, body_mask="auto")
    first, second = run(wide, settings), run(wide, settings)
    (plane,) = first.encoding.planes
    assert (plane.from_cache, second.encoding.planes[0].from_cache) == ((False,) * 2, (True,) * 2)
    np.testing.assert_array_equal(second.displacement.vectors_mm, first.displacement.vectors_mm)
    token_mm = np.array(plane.token_mm)
    assert np.ptp(token_mm) < 0.1 * token_mm.mean()
    assert f"a token is {token_mm.mean():.1f} mm in both images" in first.choices["tokens"]
    assert ("cropped to the bodies" in first.choices["tokens"]) == (scale == "body")
    assert errors_voxels(wide, first).mean() < 0.7
    fitted = run(wide, config(bundle, slice_stride=2, body_mask="auto"))
    assert fitted.encoding.planes[0].from_cache == (False, False)
    assert fitted.encoding.planes[0].token_grid == fitted.encoding.planes[0].moving_token_grid


def test_on_one_grid_one_scale_may_be_the_usual_one(phantom, tmp_path) -> None:
    """With an encoder of the slices' aspect the same tokens from the same entries of the cache."""
    same = write_bundle(tmp_path / "same", [(176, 208)], patch=4)
    fit, common = (
        run(phantom, config(same, slice_stride=4, slice_scale=scale)) for scale in ("fit", "common")
    )
    assert common.encoding.planes[0].from_cache == (True, True)
    np.testing.assert_array_equal(common.displacement.vectors_mm, fit.displacement.vectors_mm)


def test_positions_where_two_slices_lie(bundle) -> None:
    grid, larger = (
        make_grid((20, 44, 52), (2.0, 2.0, 4.0)),
        make_grid((20, 76, 60), (2.0, 2.0, 4.0)),
    )
    wide = make_phantom(grid, larger, peak_mm=4.0)
    settings = config(bundle, slice_stride=4, slice_scale="common", position_components=2)
    assert errors_voxels(wide, run(wide, settings)).mean() < 1


def test_a_constant_picture_has_no_padding(phantom, bundle) -> None:
    settings = config(bundle, slice_stride=4, slice_padding=3, position_components=2)
    assert errors_voxels(phantom, run(phantom, settings)).mean() < 1


def test_too_much_padding_is_an_error(phantom, tmp_path) -> None:
    small = write_bundle(tmp_path / "small", [(32, 40)], patch=4)
    with pytest.raises(ConfigError, match=r"on the grids .8 10. of .* at most 3"):
        dinoreg_rt.plan(phantom.fixed, phantom.moving, config(small, slice_padding=4))
    with pytest.raises(ConfigError, match=r"on the grids .8 10. of .* at most 3"):
        check_encoder(config(small, slice_padding=4), CPU)
    assert dinoreg_rt.plan(phantom.fixed, phantom.moving, config(small, slice_padding=3))
    with pytest.raises(ConfigError, match="holds no graph of 20 x 20 tokens"):
        run(phantom, config(small, slice_padding=2, token_grid=(20, 20)))
    two = write_bundle(tmp_path / "two", [(32, 40), (64, 72)], patch=4)
    plan = dinoreg_rt.plan(phantom.fixed, phantom.moving, config(two, slice_padding=4))
    assert plan.choices["tokens"].startswith("8 x 10 tokens in ")


def test_no_cache_writes_nothing(phantom, bundle, own_cache) -> None:
    run(phantom, config(bundle, slice_stride=8, cache=False))
    assert not own_cache.exists()


def test_the_cache_is_written_while_the_next_image_is_encoded(
    phantom, bundle, own_cache, monkeypatch
) -> None:
    begun = threading.Event()
    batch, store = SliceStack.batch, TokenCache.store

    def cut(self, *args):
        if self.volume.array is phantom.moving.array:
            begun.set()
        return batch(self, *args)

    def store_later(self, *args):
        assert begun.wait(60)
        return store(self, *args)

    monkeypatch.setattr(SliceStack, "batch", cut)
    monkeypatch.setattr(TokenCache, "store", store_later)
    run(phantom, config(bundle, slice_stride=8))
    assert len(list(own_cache.iterdir())) == 4


def test_what_fails_in_the_cache_is_told(phantom, bundle, monkeypatch) -> None:
    def fail(*_):
        raise MemoryError("while writing")

    monkeypatch.setattr(TokenCache, "store", fail)
    with pytest.raises(MemoryError, match="while writing"):
        run(phantom, config(bundle, slice_stride=8))


def test_masks_choose_the_tokens_of_the_basis(phantom, bundle) -> None:
    inside = np.zeros(phantom.fixed.array.shape, np.int32)
    inside[8:-8, 12:-12, 12:-12] = 1
    mask = LabelMap(inside, phantom.fixed.geometry)
    masked = run(phantom, config(bundle, slice_stride=4), fixed_mask=mask, moving_mask=mask)
    whole = run(phantom, config(bundle, slice_stride=4))
    assert masked.encoding.planes[0].explained_variance != pytest.approx(
        whole.encoding.planes[0].explained_variance
    )


def test_random_weights_are_said_aloud(phantom, tmp_path) -> None:
    random = write_bundle(tmp_path / "random", [(48, 56)], patch=4, random_weights=True)
    result = run(phantom, config(random, slice_stride=8))
    assert result.encoding.random_weights
    assert "RANDOM WEIGHTS" in result.choices["features"]


def test_the_plan_says_what_will_be_encoded(phantom, bundle) -> None:
    plan = dinoreg_rt.plan(phantom.fixed, phantom.moving, config(bundle, slice_stride=4))
    assert plan.choices["tokens"].startswith("48 x 56 tokens in ")
    without = dinoreg_rt.plan(
        phantom.fixed, phantom.moving, config(bundle).model_copy(update={"encoder": None})
    )
    assert plan.memory_bytes > without.memory_bytes


def test_what_cannot_be_had_is_an_error(phantom, bundle, monkeypatch) -> None:
    with pytest.raises(ConfigError, match=r"holds no graph of 20 x 20 tokens; .* of 48 56"):
        run(phantom, config(bundle, token_grid=(20, 20)))
    with pytest.raises(ConfigError, match=r"--components 100: .* gives 37 channels"):
        dinoreg_rt.plan(phantom.fixed, phantom.moving, config(bundle, components=100))
    black = Volume(np.full_like(phantom.fixed.array, -900), phantom.fixed.geometry)
    black.array[0, 0, 0] = -800
    with pytest.raises(RegistrationError, match="no axial slice of the fixed image holds a value"):
        dinoreg_rt.register(black, phantom.moving, config=config(bundle, axis="axial"))
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(DeviceError, match=r"--engine openvino .* is not installed"):
        run(phantom, config(bundle, engine="openvino", slice_stride=8))


def test_tokens_beyond_half_precision_are_an_error(phantom, tmp_path, monkeypatch, own_cache):
    loud = write_bundle(tmp_path / "loud", [(48, 56)], patch=4)
    encode_one = OrtEncoder.encode
    monkeypatch.setattr(OrtEncoder, "encode", lambda *a: 1e6 * encode_one(*a))
    with pytest.raises(InputError, match="not finite in half precision"):
        run(phantom, config(loud, slice_stride=8))
    assert not own_cache.exists()


def test_no_room_for_tokens(tmp_path, monkeypatch) -> None:
    usage = tokens_module.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(tokens_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ResourceError, match=r"more than --token-memory-gb"):
        token_array((4, 10, 10, 64), 0)


def test_a_disk_that_is_full_after_all(tmp_path, monkeypatch) -> None:
    """The room is taken at once: a sparse file's page without room would end the program."""
    monkeypatch.setattr(tokens_module.tempfile, "tempdir", str(tmp_path))
    asked = []

    def allocate(file: int, offset: int, size: int) -> None:
        asked.append((offset, size))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tokens_module.os, "posix_fallocate", allocate)
    with pytest.raises(ResourceError, match=r"more than --token-memory-gb .* \(No space left on"):
        token_array((4, 10, 10, 64), 0)
    assert asked == [(0, 2 * 4 * 10 * 10 * 64)]


def test_a_file_system_that_takes_no_room_in_advance(monkeypatch) -> None:
    def allocate(file: int, offset: int, size: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(tokens_module.os, "posix_fallocate", allocate)
    assert token_array((4, 10, 10, 64), 0).shape == (4, 10, 10, 64)


def test_a_temporary_folder_is_asked_for_only_beyond_the_budget(monkeypatch) -> None:
    def none() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tokens_module.tempfile, "gettempdir", none)
    assert token_array((4, 10, 10, 64), 1 << 20).nbytes == 2 * 4 * 10 * 10 * 64
    with pytest.raises(ResourceError, match=r"no temporary folder .* another TMPDIR helps"):
        token_array((4, 10, 10, 64), 0)


def test_a_stop_ends_a_run_of_the_encoder(phantom, bundle, tmp_path) -> None:
    opened = open_bundle(bundle)
    graph = opened.manifest.graphs[0]
    encoder = open_encoder(opened, graph, "ort-cpu", 1)
    stack = plan_slices(phantom.fixed, (0.0, 1.0), "axial", (192, 224), 4, 1)

    def stop(_: float) -> None:
        raise KeyboardInterrupt

    threads = threading.active_count()
    began = time.monotonic()
    out = token_array((len(stack.encoded), 48, 56, opened.manifest.channels), 1 << 30)
    norm = opened.manifest.normalisation
    with pytest.raises(KeyboardInterrupt):
        encode(stack, encoder, norm, out, batch=1, device=CPU, progress=stop)
    assert threading.active_count() == threads
    assert time.monotonic() - began < 5
