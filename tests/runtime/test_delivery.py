"""Results on their way from a CUDA device: page-locked memory, one wait, no use before it."""

from __future__ import annotations

import gc
import importlib

import numpy as np
import pytest
from cuda_on_host import DeviceArray

import dinoreg_rt
from dinoreg_rt import Placement
from dinoreg_rt.device import pinned
from dinoreg_rt.device.choice import Device
from dinoreg_rt.device.placement import delivering
from dinoreg_rt.device.streams import give_stream, take_stream
from dinoreg_rt.errors import RegistrationError
from dinoreg_rt.images.phantom import phantom_grid, phantom_pair

GRID = phantom_grid((20, 24, 28), 4.0)
CUDA = Device("cuda")
VALUES = {"threads": 1, "iterations": (3, 2), "initial": "none", "cache": False, "device": "cuda"}


@pytest.fixture(scope="module")
def pair():
    return phantom_pair(GRID)


@pytest.fixture
def results(cupy) -> dict[str, DeviceArray]:
    """Arrays that a stream has filled, which is made the current one."""
    with cupy.cuda.Stream(non_blocking=True):
        made = {
            "displacement": cupy.full((*GRID.shape_zyx, 3), 2.0, np.float32),
            "warped": cupy.full(GRID.shape_zyx, 3.0, np.float32),
            "inverse": None,
        }
        yield made


def buffers() -> dict[str, np.ndarray]:
    vectors = np.full((*GRID.shape_zyx, 3), np.nan, np.float32)
    return {"displacement": vectors, "warped": np.full(GRID.shape_zyx, np.nan, np.float32)}


def test_the_host_waits_once(cupy, results) -> None:
    with delivering(Placement(), CUDA, results) as arrays:
        more = cupy.full((4,), 5.0, np.float32)
        cupy.entered.clear()
        placed, (other,) = arrays(more)
        assert [entry[0] for entry in cupy.entered if entry[0] == "event"] == ["event"]
    assert placed["inverse"] is None
    assert (placed["displacement"] == 2).all()
    assert (placed["warped"] == 3).all()
    assert (other == 5).all()
    assert all(isinstance(a, np.ndarray) for a in (placed["displacement"], placed["warped"]))


def test_arrays_stay_where_they_are(results) -> None:
    with delivering(Placement(on_device=True), CUDA, results) as arrays:
        placed, (other,) = arrays(results["warped"])
    assert placed == results
    assert (other == 3).all()


def test_buffers_of_the_caller(results) -> None:
    into = buffers()
    with delivering(Placement(**into), CUDA, results) as arrays:
        placed, _ = arrays()
    assert placed["displacement"] is into["displacement"]
    assert (into["displacement"] == 2).all()
    assert (into["warped"] == 3).all()


def test_page_locked_buffers_of_the_caller_are_filled_at_once(cupy, results, monkeypatch) -> None:
    warped = pinned.page_locked(CUDA, GRID.shape_zyx, np.float32)
    with delivering(Placement(warped=warped), CUDA, results) as arrays:
        cupy.cuda.get_current_stream().synchronize()
        assert not (warped == 3).any()
        monkeypatch.delattr(DeviceArray, "get")  # nothing more is queued
        placed, _ = arrays()
    assert placed["warped"] is warped
    assert (warped == 3).all()


def test_memory_returns_when_a_result_is_freed(cupy, results) -> None:
    def deliver() -> np.ndarray:
        with delivering(Placement(), CUDA, results) as arrays:
            return arrays()[0]["displacement"]

    view = deliver()[3]
    made = list(cupy.page_locked.made)
    assert len(made) == 2
    other = deliver()  # the first vectors are in use, the first image is not
    assert cupy.page_locked.made == [*made, made[0]]
    assert (view == 2).all()
    del view, other
    gc.collect()
    deliver()
    assert len(cupy.page_locked.made) == 3


def test_the_limit_of_page_locked_memory(cupy, results, monkeypatch) -> None:
    """Beyond it, results lie in ordinary memory."""
    gc.collect()
    monkeypatch.setattr(pinned, "MOST_BYTES", pinned._results._used + (128 << 10))
    with delivering(Placement(), CUDA, results) as arrays:
        placed, _ = arrays()
    assert cupy.page_locked.made == [64 << 10]  # the image; the vectors would take 256 KiB
    assert (placed["displacement"] == 2).all()
    assert (placed["warped"] == 3).all()


def test_a_system_without_page_locked_memory(cupy, results, monkeypatch) -> None:
    def fails(size: int) -> None:
        raise RuntimeError("cudaErrorMemoryAllocation: out of memory")

    used = pinned._results._used
    monkeypatch.setattr(cupy.cuda, "alloc_pinned_memory", fails)
    with delivering(Placement(), CUDA, results) as arrays:
        placed, _ = arrays()
    assert (placed["warped"] == 3).all()
    assert pinned._results._used == used


def test_an_array_that_is_not_waited_for_is_wrong(cupy, results, monkeypatch) -> None:
    """What the stand-in finds: a delivery that forgets its wait."""
    monkeypatch.setattr("cuda_on_host.Event.synchronize", lambda self: None)
    with delivering(Placement(), CUDA, results) as arrays:
        assert np.isnan(arrays()[0]["warped"]).all()
    del arrays
    gc.collect()
    assert "page-locked memory freed" in cupy.races[0]
    cupy.races.clear()


def test_an_array_that_changes_under_way_is_a_race(cupy, results) -> None:
    with delivering(Placement(), CUDA, results):
        results["warped"][0] = 1.0
    assert any("written on" in race for race in cupy.races)
    cupy.races.clear()


def test_memory_freed_under_way_is_a_race(cupy, results) -> None:
    out = pinned.page_locked(CUDA, GRID.shape_zyx, np.float32)
    results["warped"].get(out=out, stream=cupy.cuda.get_current_stream(), blocking=False)
    del out
    gc.collect()
    assert any("page-locked memory freed" in race for race in cupy.races)
    cupy.races.clear()


def test_an_error_in_between_waits(cupy, results) -> None:
    with pytest.raises(ZeroDivisionError), delivering(Placement(), CUDA, results):
        raise ZeroDivisionError
    gc.collect()
    assert cupy.races == []


def test_the_second_registration_allocates_nothing(cupy, pair) -> None:
    config = dinoreg_rt.RegistrationConfig(inverse=True, confidence=True, **VALUES)
    with dinoreg_rt.Registrar(config) as registrar:
        first = registrar.register(*pair)
        expected = first.displacement.vectors_mm.copy()
        made = len(cupy.page_locked.made)
        del first
        gc.collect()
        second = registrar.register(*pair)
    assert len(cupy.page_locked.made) == made > 0
    np.testing.assert_array_equal(second.displacement.vectors_mm, expected)


def test_copies_begin_before_the_quality_is_measured(cupy, pair, monkeypatch) -> None:
    begun = []
    real = DeviceArray.get

    def get(self, *args, blocking=True, **more):
        if not blocking:
            begun.append(self.shape)
        return real(self, *args, blocking=blocking, **more)

    def measured(*_, **__):
        assert (*GRID.shape_zyx, 3) in begun
        raise ZeroDivisionError

    monkeypatch.setattr(DeviceArray, "get", get)
    monkeypatch.setattr("dinoreg_rt.registration.register.measure", measured)
    with pytest.raises(ZeroDivisionError):
        dinoreg_rt.register(*pair, config=dinoreg_rt.RegistrationConfig(**VALUES))
    gc.collect()
    assert cupy.races == []


def test_a_result_that_is_not_finite(cupy, pair, monkeypatch) -> None:
    real = importlib.import_module("dinoreg_rt.registration.fields").warp_volume

    def spoiled(*args, **more):
        warped = real(*args, **more)
        warped.array[2, 3, 4] = np.inf
        return warped

    monkeypatch.setattr("dinoreg_rt.registration.fields.warp_volume", spoiled)
    with pytest.raises(RegistrationError, match="the warped image would hold NaN or infinity"):
        dinoreg_rt.register(*pair, config=dinoreg_rt.RegistrationConfig(**VALUES))


def test_each_purpose_keeps_its_streams(cupy, pair) -> None:
    """Memory is only reused on the stream where it was freed."""
    config = dinoreg_rt.RegistrationConfig(**VALUES)
    home = take_stream(CUDA, "tokens")
    dinoreg_rt.register(*pair, config=config)
    give_stream(CUDA, "tokens", home)
    dinoreg_rt.register(*pair, config=config)
    assert len(cupy.launched_on) == 1
