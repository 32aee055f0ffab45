"""Registrations that run at the same time share the memory of a GPU."""

from __future__ import annotations

import threading

import pytest

import dinoreg_rt
from dinoreg_rt.device.choice import Device
from dinoreg_rt.images.phantom import phantom_grid, phantom_pair
from dinoreg_rt.registration import memory, register
from dinoreg_rt.registration.reservations import Claim, Reservations

CUDA = Device("cuda")


@pytest.fixture
def reservations() -> Reservations:
    made = Reservations()
    made.capacity(CUDA, lambda: 100)
    return made


def no_room() -> None:
    raise TimeoutError


def test_capacity_is_measured_when_nothing_runs(reservations) -> None:
    assert reservations.capacity(CUDA, lambda: 90) == 90
    with reservations.claimed(CUDA, Claim(50), no_room):
        assert reservations.capacity(CUDA, lambda: 40) == 90
    assert reservations.capacity(CUDA, lambda: 80) == 80


def test_a_claim_waits_for_room(reservations) -> None:
    begun, waited = threading.Event(), threading.Event()

    def second() -> None:
        with reservations.claimed(CUDA, Claim(50), waited.set):
            begun.set()

    with reservations.claimed(CUDA, Claim(60), no_room):
        with reservations.claimed(CUDA, Claim(40), no_room):
            pass
        with reservations.claimed(Device("cuda", 1), Claim(400), no_room):
            pass
        thread = threading.Thread(target=second)
        thread.start()
        assert waited.wait(10)
        assert not begun.is_set()
    thread.join(10)
    assert begun.is_set()


def test_giving_up_leaves_nothing_behind(reservations) -> None:
    with (
        reservations.claimed(CUDA, Claim(60), no_room),
        pytest.raises(TimeoutError),
        reservations.claimed(CUDA, Claim(50), no_room),
    ):
        pass
    with reservations.claimed(CUDA, Claim(100), no_room):
        pass


def test_one_alone_may_need_more(reservations) -> None:
    """Whether it fits at all was checked before."""
    with reservations.claimed(CUDA, Claim(1000), no_room):
        pass


def test_an_engine_is_shared(reservations) -> None:
    with reservations.claimed(CUDA, Claim(20, "a", 50), no_room):
        with reservations.claimed(CUDA, Claim(30, "a", 50), no_room):
            pass
        with pytest.raises(TimeoutError), reservations.claimed(CUDA, Claim(0, "b", 50), no_room):
            pass


@pytest.mark.parametrize(("room", "most"), [(1.5, 1), (2.5, 2)])
def test_registrations_of_one_registrar(cupy, monkeypatch, room, most) -> None:
    """As many run at once as there is memory for, with the results of one after the other."""
    pair = phantom_pair(phantom_grid((20, 24, 28), 4.0))
    config = dinoreg_rt.RegistrationConfig(
        device="cuda", threads=1, iterations=(2, 1), initial="none", cache=False
    )
    expected = dinoreg_rt.register(*pair, config=config)
    # The free memory that the stand-in states does not fall while a registration runs.
    monkeypatch.setattr(
        memory, "_free_bytes", lambda _: int(room * expected.device_memory.peak_bytes)
    )
    running, seen, both = [], [], threading.Event()
    compute = register.compute_fields

    def counted(*args):
        running.append(args)
        seen.append(len(running))
        if len(running) == 2:
            both.set()
        both.wait(1.0 if most == 1 else 30.0)
        try:
            return compute(*args)
        finally:
            running.pop()

    monkeypatch.setattr(register, "compute_fields", counted)
    with dinoreg_rt.Registrar(config, workers=2) as registrar:
        results = [f.result() for f in [registrar.submit(*pair) for _ in range(2)]]
    assert max(seen) == most
    for result in results:
        assert result.hashes == expected.hashes
        assert (result.displacement.vectors_mm == expected.displacement.vectors_mm).all()
