"""`Registrar`: opened once, used from several threads, cancelled, closed."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError, wait
from contextlib import contextmanager

import numpy as np
import psutil
import pytest
from encoders import write_bundle

import dinoreg_rt
from dinoreg_rt.encoder import open_encoders as pool_module
from dinoreg_rt.encoder import pair_tokens
from dinoreg_rt.encoder.open_encoders import EncoderPool
from dinoreg_rt.errors import DeviceError, DinoregError, InputError
from dinoreg_rt.images.phantom import phantom_grid, phantom_pair
from dinoreg_rt.io import write_affine

GRID = phantom_grid((24, 28, 32), 4.0)
QUICK = dinoreg_rt.RegistrationConfig(device="cpu", threads=1, initial="none", iterations=(2,))


@pytest.fixture(scope="module")
def pair():
    return phantom_pair(GRID)


@pytest.fixture(scope="module")
def other_pair():
    return phantom_pair(GRID, seed=2)


def field(result) -> np.ndarray:
    return result.displacement.vectors_mm


@pytest.fixture
def with_encoder(tmp_path, monkeypatch) -> tuple[dinoreg_rt.RegistrationConfig, list]:
    """A configuration with an encoder, and the list of what was opened: graphs and bundles."""
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason=f"makes or runs an encoder: no {package}")
    bundle = write_bundle(tmp_path / "gabor", [(56, 64)])
    opened = []

    def counting(module, name):
        real = getattr(module, name)

        def call(*args, **kwargs):
            opened.append(name)
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, call)

    counting(pair_tokens, "open_encoder")
    counting(pool_module, "open_bundle")
    return QUICK.changed(encoder=str(bundle), cache=False), opened


def test_same_field_as_the_function(pair) -> None:
    alone = dinoreg_rt.register(*pair, config=QUICK)
    with dinoreg_rt.Registrar(QUICK) as registrar:
        registrar.warm_up()
        first, second = registrar.register(*pair), registrar.register(*pair)
    np.testing.assert_array_equal(field(first), field(alone))
    np.testing.assert_array_equal(field(second), field(alone))


def test_encoder_is_opened_once(pair, with_encoder) -> None:
    config, opened = with_encoder
    alone = dinoreg_rt.register(*pair, config=config)
    opened.clear()
    with dinoreg_rt.Registrar(config) as registrar:
        registrar.warm_up(GRID)
        assert opened == ["open_bundle", "open_encoder"]
        results = [registrar.register(*pair) for _ in range(2)]
    assert opened == ["open_bundle", "open_encoder"]
    for result in results:
        np.testing.assert_array_equal(field(result), field(alone))


def test_threads_share_one_encoder(pair, other_pair, with_encoder, monkeypatch) -> None:
    config, opened = with_encoder
    at_work, most = [], []
    encode = pair_tokens.encode

    def watched(stack, encoder, *args, **kwargs):
        at_work.append(encoder)
        most.append(len(at_work))
        time.sleep(0.02)
        try:
            return encode(stack, encoder, *args, **kwargs)
        finally:
            at_work.remove(encoder)

    monkeypatch.setattr(pair_tokens, "encode", watched)
    pairs = [pair, other_pair] * 2
    with dinoreg_rt.Registrar(config, workers=4) as registrar:
        futures = [registrar.submit(*p) for p in pairs]
        results = [future.result(60) for future in futures]
        alone = [registrar.register(*p) for p in pairs[:2]]
    assert opened.count("open_encoder") == 1
    assert len(most) == 12
    assert max(most) == 1
    for result, expected in zip(results, alone * 2, strict=True):
        np.testing.assert_array_equal(field(result), field(expected))


def test_encoder_is_opened_anew_after_a_failure(pair, with_encoder) -> None:
    config, opened = with_encoder

    def stop(stage: str, fraction: float) -> None:
        if stage == "encode moving" and fraction > 0:  # while the encoder is at work
            raise ZeroDivisionError

    with dinoreg_rt.Registrar(config) as registrar:
        with pytest.raises(ZeroDivisionError):
            registrar.register(*pair, progress=stop)
        assert field(registrar.register(*pair)).any()
    assert opened.count("open_encoder") == 2


def test_running_registration_is_cancelled_between_stages(pair) -> None:
    entered, go_on = threading.Event(), threading.Event()
    stages = []

    def progress(stage: str, fraction: float) -> None:
        stages.append(stage)
        entered.set()
        assert go_on.wait(10)

    with dinoreg_rt.Registrar(QUICK) as registrar:
        running = registrar.submit(*pair, progress=progress)
        waiting = registrar.submit(*pair)
        assert entered.wait(10)
        assert running.running()
        assert not waiting.running()
        assert running.cancel()
        assert waiting.cancel()
        assert not running.running()
        go_on.set()
        assert wait([running, waiting], 10).not_done == set()
        with pytest.raises(CancelledError):
            running.result()
        assert field(registrar.register(*pair)).any()
    assert len(stages) == 1


def test_future_carries_result_and_error(pair) -> None:
    with dinoreg_rt.Registrar(QUICK) as registrar:
        told = []
        good = registrar.submit(*pair, on_plan=lambda plan: told.append(plan.device.name))
        bad = registrar.submit(pair[0], "nowhere.nii.gz")
        assert isinstance(good.result(30), dinoreg_rt.RegistrationResult)
        assert not good.cancel()
        with pytest.raises(InputError, match="nowhere"):
            bad.result(30)
    assert told == ["cpu"]


def test_close_waits_or_cancels(pair) -> None:
    registrar = dinoreg_rt.Registrar(QUICK)
    done = registrar.submit(*pair)
    registrar.close()
    registrar.close()
    assert done.done()
    assert field(done.result()).any()
    for use in (registrar.register, registrar.submit):
        with pytest.raises(DinoregError, match="this registrar is closed; make a new one"):
            use(*pair)
    with pytest.raises(DinoregError, match="closed"):
        registrar.warm_up()
    registrar = dinoreg_rt.Registrar(QUICK)
    futures = [registrar.submit(*pair) for _ in range(3)]
    registrar.close(cancel=True)
    assert futures[-1].cancelled()


def test_error_in_the_block_cancels_what_was_submitted(pair) -> None:
    futures = []

    def fail() -> None:
        with dinoreg_rt.Registrar(QUICK) as registrar:
            futures.extend(registrar.submit(*pair) for _ in range(3))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert futures[-1].cancelled()


def test_all_work_is_done_in_the_given_context(pair) -> None:
    entered, depth = [], threading.local()

    @contextmanager
    def context():
        entered.append(threading.current_thread().name)
        depth.value = getattr(depth, "value", 0) + 1
        yield
        depth.value -= 1

    with dinoreg_rt.Registrar(QUICK, cuda_context=context) as registrar:
        entered.clear()
        inside = []
        registrar.submit(*pair, progress=lambda *_: inside.append(depth.value)).result(30)
    assert set(inside) == {1}
    assert entered[0] == threading.current_thread().name  # where the images are taken
    assert entered[1].startswith("registrar")


def test_missing_device_is_found_at_once() -> None:
    import dinoreg_kernels

    if dinoreg_kernels.cuda_devices().count:
        pytest.skip("this machine has a CUDA device")
    with pytest.raises(DeviceError, match="--device cuda: "):
        dinoreg_rt.Registrar(dinoreg_rt.RegistrationConfig(device="cuda"))


class Session:
    concurrent = False
    closed = 0
    fails = False

    def encode(self, pixels: int) -> int:
        if self.fails:
            raise MemoryError
        return pixels + 1

    def cancel(self) -> None:
        self.fails = True

    def close(self) -> None:
        self.closed += 1


def nothing() -> None:
    pass


def give_up() -> None:
    raise TimeoutError


class Sessions(list):
    """Makes encoders and remembers them."""

    def __init__(self, *, concurrent: bool) -> None:
        self.concurrent = concurrent

    def make(self) -> Session:
        self.append(Session())
        self[-1].concurrent = self.concurrent
        return self[-1]


def test_an_encoder_is_used_by_one_thread_at_a_time() -> None:
    made = Sessions(concurrent=False)
    with EncoderPool() as pool:
        with (
            pool.borrowed("a", made.make, nothing) as first,
            pool.borrowed("b", made.make, nothing) as second,
        ):
            assert first is not second
            with pytest.raises(TimeoutError), pool.borrowed("a", made.make, give_up):
                pass
        with pool.borrowed("a", made.make, give_up) as again:
            assert again is first
    assert [session.closed for session in made] == [1, 1]
    with pytest.raises(DeviceError, match="closed"), pool.borrowed("a", made.make, nothing):
        pass


def test_a_shared_encoder_is_cancelled_for_one_user_alone() -> None:
    made = Sessions(concurrent=True)
    with EncoderPool() as pool:
        with (
            pool.borrowed("a", made.make, give_up) as one,
            pool.borrowed("a", made.make, give_up) as other,
        ):
            one.cancel()
            with pytest.raises(DeviceError, match="the encoder was cancelled"):
                one.encode(1)
            assert other.encode(1) == 2
        with pool.borrowed("a", made.make, give_up) as again:
            assert again.encode(4) == 5
            made[0].fails = True
            with pytest.raises(MemoryError):
                again.encode(4)
        with pool.borrowed("a", made.make, give_up) as new:
            assert new.encode(4) == 5
    assert len(made) == 2


def test_pool_survives_an_encoder_that_cannot_be_opened() -> None:
    def fail() -> Session:
        raise InputError("broken")

    with EncoderPool() as pool:
        for _ in range(2):
            with pytest.raises(InputError, match="broken"), pool.borrowed("a", fail, nothing):
                pass
        with pool.borrowed("a", Session, nothing) as session:
            assert isinstance(session, Session)


def test_memory_does_not_grow(pair) -> None:
    """25 results are 6 MiB of displacements; measured growth: 0.2 to 0.8 MiB."""
    process = psutil.Process()
    with dinoreg_rt.Registrar(QUICK) as registrar:
        for _ in range(5):
            registrar.submit(*pair).result(30)
        before = process.memory_info().rss
        for _ in range(25):
            registrar.submit(*pair).result(30)
    assert process.memory_info().rss - before < 3 << 20


def test_an_initial_alignment_of_its_own(pair, tmp_path) -> None:
    """`initial=` counts instead of the configuration's, as if it had been read from a file."""
    shift = dinoreg_rt.AffineTransform(np.eye(3), np.array([3.0, -2.0, 1.0]))
    write_affine(tmp_path / "shift.tfm", shift)
    with dinoreg_rt.Registrar(QUICK) as registrar:
        given = registrar.register(*pair, initial=shift)
        usual = registrar.register(*pair)
        with pytest.raises(InputError, match="initial is a str"):
            registrar.register(*pair, initial="shift.tfm")
    read = dinoreg_rt.register(*pair, config=QUICK.changed(initial=str(tmp_path / "shift.tfm")))
    assert given.choices["initial alignment"] == "given by the caller"
    np.testing.assert_array_equal(field(given), field(read))
    assert not np.array_equal(field(given), field(usual))


def test_a_cancelled_registration_lets_go(pair) -> None:
    began, go = threading.Event(), threading.Event()

    def progress(stage: str, fraction: float) -> None:
        began.set()
        assert go.wait(60)

    with dinoreg_rt.Registrar(QUICK) as registrar:
        future = registrar.submit(*pair, progress=progress)
        assert began.wait(60)
        assert future.cancel()
        assert not future._idle.is_set()
        go.set()
        future.wait_until_idle()
        with pytest.raises(CancelledError):
            future.result()
