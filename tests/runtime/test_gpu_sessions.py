"""On a real GPU: stages recorded as CUDA graphs, what cannot be recorded, and several threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from close_results import BRAIN, register_brains

import dinoreg_rt
from dinoreg_kernels import Session, SessionCounts, sessions
from dinoreg_rt.images.phantom import phantom_grid, phantom_pair

pytestmark = pytest.mark.gpu
PAIRS = [phantom_pair(phantom_grid((48, 56, 64), 4.0), seed=n) for n in (1, 2)]
PAIRS.append(phantom_pair(phantom_grid((40, 64, 48), 4.0)))
CONFIG = dinoreg_rt.RegistrationConfig(device="cuda", inverse=True, confidence=True)


def check_same(result: Any, wanted: Any) -> None:
    for name in ("displacement", "inverse"):
        one, other = getattr(result, name).vectors_mm, getattr(wanted, name).vectors_mm
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(result.warped.array, wanted.warped.array)
    np.testing.assert_array_equal(result.confidence.array, wanted.confidence.array)
    assert result.quality == wanted.quality


@pytest.fixture
def expected(gpu) -> list[Any]:
    """What the same device computes without sessions."""
    return [dinoreg_rt.register(*pair, config=CONFIG) for pair in PAIRS]


def test_recorded_registrations(gpu, expected) -> None:
    with dinoreg_rt.Registrar(CONFIG) as registrar:
        for number in (0, 0, 0, 1, 2, 2, 0, 1, 2):
            check_same(registrar.register(*PAIRS[number]), expected[number])
        (session,) = sessions()
        counts = session.counts()
        reserved = session.total_bytes()
        registrar.register(*PAIRS[0])
        assert session.total_bytes() == reserved  # nothing was allocated
    assert counts.recorded > 0
    assert counts.updated > 0
    # Memory of other alignments may have to grow once.
    assert counts.lost <= counts.recorded / 4


def test_the_shipped_pair_is_recorded(gpu) -> None:
    wanted = register_brains("cuda")
    with dinoreg_rt.Registrar(dinoreg_rt.RegistrationConfig(device="cuda")) as registrar:
        for _ in range(3):
            result = registrar.register(BRAIN / "fixed_t1.nii.gz", BRAIN / "moving_t1.nii.gz")
            vectors = result.displacement.vectors_mm
            np.testing.assert_array_equal(vectors, wanted.displacement.vectors_mm)


def test_many_pairs_and_workers(gpu, expected) -> None:
    order = [0, 1, 2] * 4
    with dinoreg_rt.Registrar(CONFIG, workers=2) as registrar:
        futures = registrar.register_many(PAIRS[n] for n in order)
        for number, future in zip(order, futures, strict=True):
            check_same(future.result(), expected[number])


@pytest.fixture
def session(gpu) -> Any:
    """A session whose key "known" is recorded."""
    with gpu.xp.cuda.Stream(non_blocking=True):
        made = Session(2)
        made.run("known", lambda: gpu.xp.zeros(1000, np.float32) + 1)
        yield made
        made.close()


@pytest.mark.parametrize("what", ["a read", "a wait", "cuBLAS", "memory"])
def test_what_cannot_be_recorded_runs_as_it_is(gpu, session, what) -> None:
    xp = gpu.xp
    array = xp.ones((64, 64), np.float32)
    work = {
        "a read": lambda: float((array + 1).sum()),
        "a wait": lambda: xp.cuda.get_current_stream().synchronize() or 8192.0,
        "cuBLAS": lambda: (array @ array).sum() / 32,
        "memory": lambda: xp.full(1 << 26, 2, np.float32)[:4096].sum(),
    }[what]
    for _ in range(2):
        assert float(session.run("known", work)) == 8192.0
    counts = session.counts()
    assert counts.lost + counts.recorded >= 1
    after = session.run("known", lambda: gpu.xp.zeros(1000, np.float32) + 5)
    assert float(after[-1]) == 5


def test_a_graph_is_set_to_other_arrays_and_numbers(gpu, session) -> None:
    xp, kept = gpu.xp, []
    for number in range(6):
        kept.append(session.run("known", lambda n=number: xp.zeros(1000 + n, np.float32) + n))
    for number, array in enumerate(kept):
        assert array.shape == (1000 + number,)
        assert (array.get() == number).all()
    assert session.counts() != SessionCounts(1, 0, 0, 0)
