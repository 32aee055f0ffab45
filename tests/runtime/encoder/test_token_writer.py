"""Cache entries that are written in the background, from the host and from a CUDA device."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from encoders import config, run

import dinoreg_rt
from dinoreg_rt.device import pinned
from dinoreg_rt.device.choice import Device
from dinoreg_rt.encoder.cache import TokenCache
from dinoreg_rt.encoder.token_writer import WRITER, TokenWriter
from dinoreg_rt.encoder.tokens import PatchTokens

SHAPE = (7, 4, 5, 6)
LIMIT = 1 << 30


@pytest.fixture
def cache(tmp_path) -> TokenCache:
    return TokenCache(tmp_path / "cache", 1 << 20)


@pytest.fixture
def writer() -> Iterator[TokenWriter]:
    writer = TokenWriter()
    yield writer
    writer.wait()


@pytest.fixture
def held(monkeypatch) -> Iterator[threading.Event]:
    """An event without which no entry is stored."""
    go = threading.Event()
    store = TokenCache.store

    def store_later(self, *args):
        assert go.wait(60)
        return store(self, *args)

    monkeypatch.setattr(TokenCache, "store", store_later)
    yield go
    go.set()
    WRITER.wait()


@contextmanager
def nowhere() -> Iterator[None]:
    yield


def tokens(rng, shape=SHAPE) -> np.ndarray:
    return rng.normal(size=shape).astype(np.float16)


def write(writer, cache, key, array, *, kind="cpu", most=LIMIT, total=None) -> bool:
    made = PatchTokens(None, array, total)
    return writer.write(cache, key, made, Device(kind), most, nowhere)


def test_an_entry_is_that_of_numpy(writer, cache, rng) -> None:
    array = tokens(rng)
    assert write(writer, cache, "key", array)
    writer.wait()
    np.testing.assert_array_equal(np.load(cache.folder / "key.npy"), array)
    np.testing.assert_array_equal(cache.load("key", SHAPE), array)


def test_what_is_being_written_is_found(writer, cache, rng, held) -> None:
    array = tokens(rng)
    assert writer.find(cache, "key", Device("cpu")) is None
    assert write(writer, cache, "key", array)
    assert writer.find(cache, "key", Device("cpu")) is array
    assert write(writer, cache, "key", array)  # the same entry, once
    held.set()
    writer.wait()
    assert writer.find(cache, "key", Device("cpu")) is None


def test_too_much_is_dropped(writer, cache, rng, held) -> None:
    array = tokens(rng)
    assert write(writer, cache, "a", array, most=0)  # a single one, of whatever size
    assert not write(writer, cache, "b", array, most=2 * array.nbytes - 1)
    assert write(writer, cache, "c", array, most=2 * array.nbytes)
    held.set()
    writer.wait()
    assert sorted(p.stem for p in cache.folder.glob("*.npy")) == ["a", "c"]


def test_a_failure_is_a_warning_and_the_next_entry_is_written(
    writer, cache, rng, monkeypatch
) -> None:
    store = TokenCache.store

    def fail(self, key, *args):
        if key == "bad":
            raise MemoryError("while writing")
        return store(self, key, *args)

    monkeypatch.setattr(TokenCache, "store", fail)

    def write_both() -> None:
        write(writer, cache, "bad", tokens(rng))
        write(writer, cache, "good", tokens(rng))
        writer.wait()

    with pytest.warns(RuntimeWarning, match="could not be cached: while writing"):
        write_both()
    assert [p.stem for p in cache.folder.glob("*.npy")] == ["good"]


def filled_on_a_stream(cupy, array: np.ndarray, stream):
    """Return a device array and its sum, computed on a stream."""
    with stream:
        on_device = cupy.empty(array.shape, np.float16)
        on_device[...] = cupy.asarray(array)
        return on_device, on_device.sum(dtype=np.float32)


def test_tokens_on_a_device(cupy, writer, cache, rng, monkeypatch) -> None:
    array, stream = tokens(rng), cupy.cuda.Stream(non_blocking=True)
    monkeypatch.setattr(pinned, "PART_BYTES", 2 * array[0].nbytes + 1)
    on_device, total = filled_on_a_stream(cupy, array, stream)
    with stream:
        assert write(writer, cache, "key", on_device, kind="cuda", total=total)
    writer.wait()
    np.testing.assert_array_equal(cache.load("key", SHAPE), array)
    assert len(cupy.page_locked.made) == 2  # two buffers for four parts
    assert ("synchronize", stream.ptr) not in cupy.entered
    # The next entry of this size allocates nothing.
    with stream:
        assert write(writer, cache, "more", on_device, kind="cuda", total=total)
    writer.wait()
    assert len(cupy.page_locked.made) == 2


def test_without_the_event_there_is_a_race(cupy, writer, cache, rng, monkeypatch) -> None:
    stream = cupy.cuda.Stream(non_blocking=True)
    on_device, total = filled_on_a_stream(cupy, tokens(rng), stream)
    write(writer, cache, "key", on_device, kind="cuda", total=total)  # on another stream
    writer.wait()
    assert f"written on {stream.ptr:#x}" in " ".join(cupy.races)
    cupy.races.clear()


def test_a_part_that_is_not_waited_for_is_wrong(cupy, rng, monkeypatch) -> None:
    array = tokens(rng)
    on_device, _ = filled_on_a_stream(cupy, array, cupy.cuda.get_current_stream())
    filled = cupy.cuda.Event()
    filled.record()
    (part,) = pinned.download_in_parts(on_device, filled, Device("cuda"))
    np.testing.assert_array_equal(part, array)
    monkeypatch.setattr(pinned, "_waited", lambda host, done: host.copy())
    (part,) = pinned.download_in_parts(on_device, filled, Device("cuda"))
    assert np.isnan(part).all()


def test_tokens_that_are_not_finite_are_not_kept(cupy, writer, cache, rng) -> None:
    array = tokens(rng)
    array[3, 2, 1, 0] = np.nan
    on_device, total = filled_on_a_stream(cupy, array, cupy.cuda.get_current_stream())
    write(writer, cache, "key", on_device, kind="cuda", total=total)
    writer.wait()
    assert not cache.folder.exists()


def test_tokens_on_another_device_are_not_found(cupy, writer, cache, rng, held) -> None:
    stream = cupy.cuda.get_current_stream()
    on_device, total = filled_on_a_stream(cupy, tokens(rng), stream)
    write(writer, cache, "key", on_device, kind="cuda", total=total)
    assert writer.find(cache, "key", Device("cuda")) is on_device
    assert writer.find(cache, "key", Device("cpu")) is None


def test_the_context_of_the_host_program(writer, cache, rng) -> None:
    entered = []

    @contextmanager
    def within() -> Iterator[None]:
        entered.append(threading.current_thread().name)
        yield

    writer.write(cache, "key", PatchTokens(None, tokens(rng)), Device("cpu"), LIMIT, within)
    writer.wait()
    assert entered == ["token cache_0"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of a fork beside threads
def test_a_forked_process_writes_its_own(cache, rng, held) -> None:
    write(WRITER, cache, "parent", tokens(rng))  # waits in the thread of this process
    child = os.fork()
    if child == 0:
        held.set()
        WRITER.wait()  # for nothing
        write(WRITER, cache, "child", tokens(rng))
        WRITER.wait()
        os._exit(0 if [p.stem for p in cache.folder.glob("*.npy")] == ["child"] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    held.set()
    WRITER.wait()
    assert sorted(p.stem for p in cache.folder.glob("*.npy")) == ["child", "parent"]


def test_the_end_of_the_interpreter_waits(cache) -> None:
    program = f"""
import time
import numpy as np
from contextlib import nullcontext
from pathlib import Path
from dinoreg_rt.device.choice import Device
from dinoreg_rt.encoder.cache import TokenCache
from dinoreg_rt.encoder.token_writer import WRITER
from dinoreg_rt.encoder.tokens import PatchTokens

store = TokenCache.store
TokenCache.store = lambda *args: time.sleep(0.5) or store(*args)
cache = TokenCache(Path({str(cache.folder)!r}), 1 << 20)
tokens = np.ones({SHAPE}, np.float16)
for key in ("a", "b"):
    WRITER.write(cache, key, PatchTokens(None, tokens), Device("cpu"), 1 << 20, nullcontext)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    assert cache.load("a", SHAPE) is not None
    assert cache.load("b", SHAPE) is not None


@pytest.fixture
def quick(bundle) -> dinoreg_rt.RegistrationConfig:
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason=f"makes or runs an encoder: no {package}")
    return config(bundle, slice_stride=8)


def test_no_registration_waits(phantom, quick, own_cache, held) -> None:
    with dinoreg_rt.Registrar(quick) as registrar:
        first = registrar.register(phantom.fixed, phantom.moving)
        assert not own_cache.exists()
        second = registrar.register(phantom.fixed, phantom.moving)
        held.set()
    assert len(list(own_cache.iterdir())) == 4  # closing waits
    assert first.encoding.planes[0].from_cache == (False, False)
    assert second.encoding.planes[0].from_cache == (True, True)
    np.testing.assert_array_equal(first.displacement.vectors_mm, second.displacement.vectors_mm)


def test_a_cancelled_registration_leaves_whole_entries(phantom, quick, own_cache, held) -> None:
    def stop(stage: str, fraction: float) -> None:
        if stage == "encode moving" and fraction > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(phantom, quick, progress=stop)
    held.set()
    WRITER.wait()
    assert len(list(own_cache.iterdir())) == 2  # of the fixed image


def test_tokens_of_the_device_path(cupy, phantom, quick, own_cache) -> None:
    """The whole path, with the encoder beside the device and its tokens on it."""
    settings = quick.changed(device="cuda", engine="ort-cpu")
    first = run(phantom, settings)
    WRITER.wait()
    second = run(phantom, settings)
    assert second.encoding.planes[0].from_cache == (True, True)
    np.testing.assert_array_equal(first.displacement.vectors_mm, second.displacement.vectors_mm)
