"""Tokens of a fixed image stay on the GPU between registrations, in an order that streams keep."""

from __future__ import annotations

import gc
from dataclasses import replace

import numpy as np
import pytest
from encoders import config, run

import dinoreg_rt
from dinoreg_rt.device import shared
from dinoreg_rt.device.choice import Device
from dinoreg_rt.device.shared import end_of_use, shared_empty
from dinoreg_rt.encoder import kept_tokens
from dinoreg_rt.encoder.kept_tokens import KeptTokens
from dinoreg_rt.encoder.slice_stack import SliceStack
from dinoreg_rt.encoder.token_writer import WRITER
from dinoreg_rt.registration import planning
from dinoreg_rt.types import Volume

CUDA = Device("cuda")
SHAPE = (3, 4, 5, 6)


def array(cupy, shape=SHAPE):
    return cupy.zeros(shape, np.float16)


def test_the_least_recently_used_go(cupy, monkeypatch) -> None:
    kept, tokens = KeptTokens(), [array(cupy) for _ in range(6)]
    for i in range(4):
        kept.keep(str(i), tokens[i], CUDA, None)
    assert kept.find("0", CUDA) is tokens[0]
    kept.keep("4", tokens[4], CUDA, None)
    assert kept.find("1", CUDA) is None
    assert all(kept.find(str(i), CUDA) is tokens[i] for i in (0, 2, 3, 4))
    assert kept.find("0", Device("cuda", 1)) is None
    # Three of them fit into the budget.
    kept.keep("5", tokens[5], CUDA, int(3 * tokens[0].nbytes / kept_tokens._SHARE))
    assert [i for i in range(6) if kept.find(str(i), CUDA) is not None] == [3, 4, 5]
    kept.keep("large", array(cupy, (4, *SHAPE[1:])), CUDA, 8 * tokens[0].nbytes)
    assert kept.find("large", CUDA) is None
    assert kept.clear()
    assert not kept.clear()


def test_users_wait_for_what_fills_them(cupy) -> None:
    kept = KeptTokens()
    with cupy.cuda.Stream(non_blocking=True):
        tokens = array(cupy)
        tokens[...] = 1.0
        kept.keep("a", tokens, CUDA, None)
    with cupy.cuda.Stream(non_blocking=True):
        assert float(kept.find("a", CUDA).sum()) == tokens.size


def test_memory_is_reused_after_every_user(cupy) -> None:
    made = shared_empty(CUDA, SHAPE, np.float16)
    home = shared._homes[id(made)]
    other = cupy.cuda.Stream(non_blocking=True)
    assert (f"{home.ptr:#x} awaited", 0) in cupy.entered  # the first user waits for the memory
    with other:
        end_of_use(made, CUDA)
        end_of_use(array(cupy), CUDA)  # has no home
    assert (f"{other.ptr:#x} awaited", home.ptr) in cupy.entered
    second = shared_empty(CUDA, SHAPE, np.float16)
    assert shared._homes[id(second)] is not home
    del made
    gc.collect()
    third = shared_empty(CUDA, SHAPE, np.float16)
    assert shared._homes[id(third)] is home
    del second, third
    gc.collect()
    assert not shared._homes


@pytest.fixture
def quick(cupy, bundle) -> dinoreg_rt.RegistrationConfig:
    """The encoder runs beside the device, and its tokens lie on it."""
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason=f"makes or runs an encoder: no {package}")
    return config(bundle, slice_stride=8, device="cuda", engine="ort-cpu", cache=False)


@pytest.fixture
def others(phantom) -> list[Volume]:
    """Further moving images."""
    moving = phantom.moving
    return [replace(moving, array=np.roll(moving.array, i, axis=2)) for i in (1, 2)]


@pytest.fixture
def cut(monkeypatch) -> list[str]:
    """The names of the images whose slices were cut."""
    seen: list[str] = []
    batch = SliceStack.batch
    monkeypatch.setattr(
        SliceStack, "batch", lambda self, *args: seen.append(self.volume.name) or batch(self, *args)
    )
    return seen


def from_memory(result) -> tuple[bool, bool]:
    return result.encoding.planes[0].from_cache


def test_the_fixed_image_is_encoded_once(cupy, phantom, others, quick, cut) -> None:
    fixed = replace(phantom.fixed, name="fixed")
    expected = dinoreg_rt.register(fixed, others[1], config=quick)
    cut.clear()
    with dinoreg_rt.Registrar(quick) as registrar:
        registrar.register(fixed, others[0])
        cut.clear()
        second = registrar.register(fixed, others[1])
        assert from_memory(second) == (True, False)
        assert "fixed" not in cut
        changed = replace(fixed, array=fixed.array + 1)
        assert from_memory(registrar.register(changed, others[1])) == (False, False)
        assert len(registrar._encoders.kept._kept) == 2
    np.testing.assert_array_equal(second.displacement.vectors_mm, expected.displacement.vectors_mm)
    assert not registrar._encoders.kept._kept


def test_one_registration_keeps_nothing(cupy, phantom, quick) -> None:
    for _ in range(2):
        assert from_memory(run(phantom, quick)) == (False, False)


def test_the_memory_of_the_warm_up_is_free(cupy, quick) -> None:
    with dinoreg_rt.Registrar(quick) as registrar:
        registrar.warm_up()
        assert not registrar._encoders.kept._kept


def test_tokens_of_the_cache_stay_on_the_device(
    cupy, phantom, others, quick, own_cache, monkeypatch
) -> None:
    settings = quick.changed(cache=True)
    first = run(phantom, settings)
    WRITER.wait()
    with dinoreg_rt.Registrar(settings) as registrar:
        second = registrar.register(phantom.fixed, phantom.moving)
        monkeypatch.setattr("dinoreg_rt.encoder.cache.TokenCache.load", lambda *_: None)
        third = registrar.register(phantom.fixed, others[0])
    assert [from_memory(r) for r in (second, third)] == [(True, True), (True, False)]
    np.testing.assert_array_equal(first.displacement.vectors_mm, second.displacement.vectors_mm)


def test_a_plan_that_is_short_of_memory_gets_it(cupy, phantom, others, quick, monkeypatch) -> None:
    with dinoreg_rt.Registrar(quick) as registrar:
        first = registrar.register(phantom.fixed, others[0])
        fits: list[bool] = []
        fit = planning.fit_to_device

        def fitting(device, sizes, held):
            """Leave no room for tokens on the device while others are kept."""
            kept = bool(registrar._encoders.kept._kept)
            fits.append(not kept)
            fitted, memory = fit(device, sizes, held)
            if kept:
                fitted = replace(fitted, encoding=replace(fitted.encoding, tokens_on_device=False))
            return fitted, memory

        monkeypatch.setattr(planning, "fit_to_device", fitting)
        second = registrar.register(phantom.fixed, others[0])
    assert fits == [False, True]
    assert from_memory(second) == (False, False)
    np.testing.assert_array_equal(first.displacement.vectors_mm, second.displacement.vectors_mm)


def test_their_memory_is_predicted(cupy, phantom, quick) -> None:
    plan = dinoreg_rt.plan(phantom.fixed, phantom.moving, quick).encoding
    plane = plan.planes[0]
    kept = replace(plan, keeps=True)
    assert plan.lingering_bytes(quick, on_gpu=True) == 0
    size = 2 * int(np.prod(plan.token_shape(plane, 0)))
    assert kept.lingering_bytes(quick, on_gpu=True) == size
    assert kept.lingering_bytes(quick.changed(cache=True), on_gpu=True) > size
    on_host = replace(kept, tokens_on_device=False)
    assert on_host.lingering_bytes(quick, on_gpu=True) == 0
