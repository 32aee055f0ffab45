"""Stages recorded as CUDA graphs: the bits of the CPU, few launches, no memory after the first."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from captures import Capture
from cuda_on_host import DeviceArray

import dinoreg_kernels
import dinoreg_rt
from dinoreg_kernels import Session, SessionCounts, sessions
from dinoreg_kernels.session import _new_memory
from dinoreg_rt import Placement
from dinoreg_rt.device.recording import Sessions, Turns, idle_bytes
from dinoreg_rt.errors import ConfigError, InputError
from dinoreg_rt.images.fixed_work import FixedWork, Kept
from dinoreg_rt.images.phantom import phantom_grid, phantom_pair

GRID = phantom_grid((20, 24, 28), 4.0)
OTHER = phantom_grid((24, 20, 22), 4.0)
VALUES = {"threads": 1, "iterations": (3, 2), "inverse": True, "confidence": True, "cache": False}
#: Stages that are recorded: features, solve, trust, warp, quality.
STAGES = 5


def config(device: str, **more: object) -> dinoreg_rt.RegistrationConfig:
    return dinoreg_rt.RegistrationConfig(device=device, **(VALUES | more))


@pytest.fixture(scope="module")
def pairs() -> list[Any]:
    """Two pairs of one shape and one of another."""
    return [phantom_pair(GRID), phantom_pair(GRID, seed=2), phantom_pair(OTHER)]


@pytest.fixture(scope="module")
def expected(pairs) -> list[Any]:
    return [dinoreg_rt.register(*pair, config=config("cpu")) for pair in pairs]


def check_same(result: Any, wanted: Any) -> None:
    for one, other in (
        (result.displacement.vectors_mm, wanted.displacement.vectors_mm),
        (result.warped.array, wanted.warped.array),
        (result.inverse.vectors_mm, wanted.inverse.vectors_mm),
        (result.confidence.array, wanted.confidence.array),
    ):
        host = one.get() if isinstance(one, DeviceArray) else one
        np.testing.assert_array_equal(host, other)
    assert result.quality == wanted.quality


def counts() -> SessionCounts:
    (session,) = sessions()
    return session.counts()


def test_recorded_stages_give_the_same_bits(cupy, pairs, expected) -> None:
    with dinoreg_rt.Registrar(config("cuda")) as registrar:
        for number in (0, 0, 1, 2, 0, 2, 1):
            check_same(registrar.register(*pairs[number]), expected[number])
        # The first of each shape ran as it was; the second made graphs, and the others set them.
        assert counts() == SessionCounts(2 * STAGES, 5 * STAGES, 3 * STAGES, 0)


def test_nothing_that_is_recorded_is_kept_of_a_fixed_image(cupy, pairs, expected) -> None:
    class Refusing(FixedWork):
        def of(self, *_: Any) -> Kept:
            raise AssertionError

    with pytest.raises(AssertionError):
        dinoreg_rt.register(*pairs[0], config=config("cpu"), fixed_work=Refusing())
    result = dinoreg_rt.register(*pairs[0], config=config("cuda"), fixed_work=Refusing())
    check_same(result, expected[0])


def test_launches_and_memory_of_a_known_shape(cupy, pairs) -> None:
    with dinoreg_rt.Registrar(config("cuda")) as registrar:
        seen = []
        for _ in range(3):
            cupy.launches.clear()
            registrar.register(*pairs[0])
            seen.append((dict(cupy.launches), [pool.reserved for pool in cupy.pools]))
    (first, reserved), *later = seen
    for launches, reserved_later in later:
        assert launches["graph"] == STAGES
        assert sum(launches.values()) < sum(first.values()) - 50
        assert reserved_later == reserved  # nothing was allocated
    assert "graph" not in first
    # Nothing but the session's pool was used after planning.
    assert cupy.pools[0].used == 0


def test_numbers_make_no_other_graphs(cupy, pairs, expected) -> None:
    """A graph is set to other weights, also after a synthetic pair of the same grids."""
    softer = {"smoothness": 0.3, "initial": "none"}
    wanted = dinoreg_rt.register(*pairs[0], config=config("cpu", **softer))
    with dinoreg_rt.Registrar(config("cuda", initial="none")) as registrar:
        registrar.warm_up(GRID)
        for _ in range(2):
            check_same(registrar.register(*pairs[0], config=config("cuda", **softer)), wanted)
        assert counts() == SessionCounts(STAGES, 2 * STAGES, STAGES, 0)


def test_without_sessions_nothing_is_recorded(cupy, pairs, expected) -> None:
    with dinoreg_rt.Registrar(config("cuda"), graphs=0) as registrar:
        for _ in range(2):
            check_same(registrar.register(*pairs[0]), expected[0])
    dinoreg_rt.register(*pairs[0], config=config("cuda"))
    assert sessions() == []
    assert "graph" not in cupy.launches
    for graphs in (-1, 1025, 1.5):
        with pytest.raises(ConfigError, match="wanted a whole number from 0 to 1024"):
            dinoreg_rt.Registrar(config("cuda"), graphs=graphs)


def test_results_kept_on_the_device_let_the_pool_grow(cupy, pairs, expected) -> None:
    """The recording that meets a full pool is lost, of which nothing has run, and runs as it is."""
    kept = []
    with dinoreg_rt.Registrar(config("cuda")) as registrar:
        for number in (0, 1, 0, 1, 0, 1):
            placement = Placement(on_device=True)
            kept.append(registrar.register(*pairs[number], placement=placement))
        assert counts().lost > 0
        assert counts().recorded > 0
    for number, result in zip((0, 1, 0, 1, 0, 1), kept, strict=True):
        check_same(result, expected[number])


def test_a_blocking_stream_of_the_caller_is_not_recorded(cupy, pairs, expected) -> None:
    """What other threads put on the default stream would fail meanwhile."""
    with dinoreg_rt.Registrar(config("cuda")) as registrar:
        for _ in range(2):
            check_same(registrar.register(*pairs[0], stream=0x70), expected[0])
        assert counts() == SessionCounts(2 * STAGES, 0, 0, 0)


def test_number_of_graphs_is_bounded(cupy, pairs, expected) -> None:
    """Room for one shape: another takes its place."""
    with dinoreg_rt.Registrar(config("cuda"), graphs=STAGES) as registrar:
        for number in (0, 0, 2, 0, 0):
            check_same(registrar.register(*pairs[number]), expected[number])
        assert counts() == SessionCounts(3 * STAGES, 2 * STAGES, 0, 0)


def test_each_stream_has_a_session(cupy, pairs, expected) -> None:
    with dinoreg_rt.Registrar(config("cuda"), workers=2) as registrar:
        for _ in range(3):
            futures = [registrar.submit(*pair) for pair in pairs]
            for future, wanted in zip(futures, expected, strict=True):
                check_same(future.result(60), wanted)
        found = [session.counts() for session in sessions()]
        assert 1 <= len(found) <= 3
        assert sum(c.recorded + c.as_it_is + c.lost for c in found) == 9 * STAGES
        assert sum(c.recorded for c in found) > 0


def test_progress_is_told_between_recorded_stages(cupy, pairs) -> None:
    told: list[str] = []
    with dinoreg_rt.Registrar(config("cuda")) as registrar:
        for _ in range(2):
            told.clear()
            registrar.register(*pairs[0], progress=lambda stage, _: told.append(stage))
    assert {"features", "warp"} <= set(told)
    assert not {"search", "refine"} & set(told)


@pytest.fixture
def session(cupy) -> Session:
    """A session whose key "known" is recorded, on a stream that can be."""
    with cupy.cuda.Stream(non_blocking=True):
        made = Session(2)
        made.run("known", lambda: cupy.zeros(1000, np.float32) + 1)
        yield made


FORBIDDEN: dict[str, Callable[[Any, DeviceArray], Any]] = {
    "a read by the host": lambda cupy, a: float(a.sum()),
    "an upload": lambda cupy, a: a + cupy.asarray(np.ones(4, np.float32)),
    "an upload of an index": lambda cupy, a: a[[3, 2, 1, 0]],
    "an upload of pointers": lambda cupy, a: cupy.concatenate([a] * 9),
    "cuBLAS": lambda cupy, a: a @ a,
    "cuSOLVER": lambda cupy, a: cupy.linalg.qr(a.reshape(2, 2))[0],
    "an event": lambda cupy, a: cupy.cuda.Event().record(),
    "a wait of the host": lambda cupy, a: cupy.cuda.get_current_stream().synchronize(),
    "a change of an array from outside": lambda cupy, a: a.__iadd__(1),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_what_may_not_be_recorded(cupy, session, what) -> None:
    """The stand-in refuses it as CUDA and CuPy do; then the work runs as it is."""
    array = cupy.asarray(np.ones(4, np.float32))
    session.run("known", lambda: FORBIDDEN[what](cupy, array))
    assert cupy.forbidden == [what]
    cupy.forbidden.clear()
    assert session.counts() == SessionCounts(1, 0, 0, 1)


def test_memory_in_a_recording_comes_from_the_pool(cupy, session) -> None:
    small = session.run("known", lambda: cupy.zeros(1000, np.float32) + 2)
    assert session.counts() == SessionCounts(1, 1, 0, 0)
    large = session.run("known", lambda: cupy.zeros(100_000, np.float32) + 3)
    assert session.counts() == SessionCounts(1, 1, 0, 1)
    assert cupy.pools[0].peak == 0
    assert float(small[0]) == 2
    assert float(large[-1]) == 3


def test_what_a_lost_recording_made_is_not_there(cupy, session) -> None:
    """Work that keeps arrays outside would find numbers in them that were never computed."""
    kept = []

    def work() -> DeviceArray:
        kept.append(cupy.zeros(10, np.float32))
        return cupy.zeros(100_000, np.float32)

    session.run("known", work)
    assert np.isnan(kept[0].get()).all()
    assert (kept[1].get() == 0).all()


def test_an_error_in_recorded_work(cupy, session) -> None:
    def fail(error: type[BaseException]) -> None:
        raise error("of the work")

    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error, match="of the work"):
            session.run("known", lambda error=error: fail(error))
        assert Capture.current() is None
    assert float(session.run("known", lambda: cupy.zeros(3, np.float32) + 1)[0]) == 1
    assert session.counts().recorded == 1


def test_an_event_is_recorded_behind_the_graph(cupy, session) -> None:
    """The solver's numbers are complete once its event has passed."""
    from dinoreg_kernels._arrays import queued

    done = session.run("known", lambda: queued(cupy.zeros(3, np.float32)))
    assert cupy.launches["graph"] == 1
    assert done.stream is cupy.cuda.get_current_stream()
    assert cupy.forbidden == []


def test_exhausted_memory_is_taken_from_other_pools(cupy, session, monkeypatch) -> None:
    other = Session(1)
    with other.memory():
        cupy.zeros(5000, np.float32)
    assert idle_bytes() >= 20_000
    attempts = []

    def memory(size: int) -> Any:
        attempts.append(size)
        if len(attempts) == 1:
            raise RuntimeError("cudaErrorMemoryAllocation: out of memory")
        return size

    monkeypatch.setattr(cupy.cuda, "Memory", memory, raising=False)
    monkeypatch.setattr(cupy.cuda, "MemoryPointer", lambda memory, _: memory, raising=False)
    monkeypatch.setitem(__import__("sys").modules, "cupy.cuda", cupy.cuda)
    assert _new_memory(64) == 64
    assert attempts == [64, 64]
    assert other.idle_bytes() == 0
    # What lies in the pool of a session that records may be needed when its graph is launched.
    with other.memory():
        cupy.zeros(5000, np.float32)
    with other._recording:
        dinoreg_kernels.release_idle_memory()
        assert other.idle_bytes() >= 20_000


def test_memory_of_a_turn_that_ends_is_at_the_disposal_of_the_next(cupy) -> None:
    device, turns, lent = dinoreg_rt.device.choice.Device("cuda"), Turns(2), Sessions(1)
    small, large, idle = 1024, 4096, 512
    with cupy.cuda.Stream(non_blocking=True), lent.borrowed(device) as one:
        with one.memory():
            kept = [cupy.zeros(small, np.uint8)]
            cupy.zeros(idle, np.uint8)
        with turns, turns.awaited():
            assert idle_bytes() == idle  # one turn is left, so nothing needs to end
        with cupy.cuda.Stream(non_blocking=True), lent.borrowed(device) as other:
            with other.memory():
                kept.append(cupy.zeros(large, np.uint8))
            with turns, turns:
                assert idle_bytes() == idle
                with turns.awaited():
                    assert idle_bytes() == idle + small
            with turns.awaited(), turns:
                assert idle_bytes() == idle
    assert len(kept) == 2


def test_number_of_idle_sessions_is_bounded(cupy) -> None:
    lent = Sessions(1)
    device = dinoreg_rt.device.choice.Device("cuda")
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in range(12)]
    made = []
    for _ in range(2):
        for stream in streams[-8:] if made else streams:
            with stream, lent.borrowed(device) as session:
                made.append(session)
    assert len(set(map(id, made))) == 12
    assert made[12:] == made[4:12]
    assert [session._graphs.closed for session in made[:12]] == [True] * 4 + [False] * 8
    with streams[-1], lent.borrowed(device) as session:
        lent.close()
        assert not session._graphs.closed
    assert all(session._graphs.closed for session in made)


def together(cupy: Any, pairs: Any, workers: int, **more: Any) -> list[Any]:
    with dinoreg_rt.Registrar(config("cuda"), workers=workers) as registrar:
        return [future.result() for future in registrar.register_many(pairs, **more)]


@pytest.mark.parametrize("workers", [1, 2])
def test_many_pairs(cupy, pairs, expected, workers) -> None:
    order = [0, 1, 2, 1, 0]
    given = [pairs[n] if n else {"fixed": pairs[n][0], "moving": pairs[n][1]} for n in order]
    results = together(cupy, iter(given), workers)
    for number, result in zip(order, results, strict=True):
        check_same(result, expected[number])


def test_the_next_pair_is_planned_while_the_device_works(cupy, pairs) -> None:
    """The first registration goes on only after the second was planned."""
    planned = [threading.Event(), threading.Event()]

    def on_plan(number: int) -> Callable[..., None]:
        return lambda plan: planned[number].set()

    def progress(stage: str, fraction: float) -> None:
        assert planned[1].wait(60)

    first, second = (dict(zip(("fixed", "moving"), pair, strict=True)) for pair in pairs[:2])
    first |= {"on_plan": on_plan(0), "progress": progress}
    second |= {"on_plan": on_plan(1)}
    assert len(together(cupy, [first, second], 1)) == 2


def test_one_pair_at_a_time_is_on_the_device(cupy, pairs, monkeypatch) -> None:
    at_work: list[int] = []
    most: list[int] = []
    real = importlib.import_module("dinoreg_rt.registration.register").compute_fields

    def counted(*args: Any) -> Any:
        at_work.append(1)
        most.append(len(at_work))
        try:
            return real(*args)
        finally:
            at_work.pop()

    monkeypatch.setattr("dinoreg_rt.registration.register.compute_fields", counted)
    together(cupy, pairs, 1)
    assert most == [1, 1, 1]


def test_few_pairs_are_in_flight() -> None:
    pair = phantom_pair(GRID)
    quick = dinoreg_rt.RegistrationConfig(
        device="cpu", threads=1, initial="none", iterations=(1,), trust=False
    )
    taken, seen = [], []

    def given() -> Any:
        for number in range(6):
            taken.append(number)
            yield pair

    with dinoreg_rt.Registrar(quick, workers=2) as registrar:
        many = registrar.register_many(given())
        assert taken == []
        for number, future in enumerate(many):
            assert future.done()
            seen.append(number)
            assert len(taken) - number <= 3
            if number == 3:
                break
        many.close()
        assert seen == [0, 1, 2, 3]
        assert len(taken) == 6
        assert registrar.register(*pair).displacement is not None


def test_an_error_of_one_pair_leaves_the_others() -> None:
    pair = phantom_pair(GRID)
    quick = dinoreg_rt.RegistrationConfig(
        device="cpu", threads=1, initial="none", iterations=(1,), trust=False
    )
    bad: list[Any] = [pair, (pair[0], "nowhere.nii.gz"), pair[:1], (pair[0], 5), pair]
    bad += [{"fixed": pair[0]}, {"fixed": pair[0], "moving": pair[1], "maps": None}, 7, pair]
    with dinoreg_rt.Registrar(quick) as registrar:
        futures = list(registrar.register_many(bad))
        alone = registrar.register(*pair)
    for number in (0, 4, 8):
        vectors = futures[number].result().displacement.vectors_mm
        np.testing.assert_array_equal(vectors, alone.displacement.vectors_mm)
    for number, text in ((1, "nowhere"), (2, "a pair has 1 parts"), (3, "int")):
        with pytest.raises(InputError, match=text):
            futures[number].result()
    for number, text in ((5, "moving"), (6, "maps"), (7, "int")):
        with pytest.raises(TypeError, match=text):
            futures[number].result()
