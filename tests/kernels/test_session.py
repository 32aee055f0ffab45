"""The binding of sessions, without a device: the stand-in's tests cover what is recorded."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from dinoreg_kernels import KernelError, KernelUnavailable, SessionCounts, cuda_devices, session


def test_counts_of_a_new_session_and_its_end() -> None:
    graphs = session._Graphs(3)
    assert graphs.counts() == SessionCounts(0, 0, 0, 0)
    graphs.close()
    graphs.close()
    with pytest.raises(KernelError, match="dr_session_count: session is NULL"):
        graphs.counts()


@pytest.mark.parametrize("graphs", [0, 1025, -1])
def test_number_of_graphs(graphs: int) -> None:
    with pytest.raises(KernelError, match=rf"graphs = {graphs}; wanted 1..1024"):
        session._Graphs(graphs)


def test_nothing_is_open_at_first() -> None:
    graphs = session._Graphs(1)
    for ends in (graphs.end, graphs.abandon):
        with pytest.raises(KernelError, match="the session has not begun"):
            ends()


def test_without_a_device(monkeypatch) -> None:
    if cuda_devices().count:
        pytest.skip("this machine has a CUDA device")
    stream = SimpleNamespace(get_current_stream=lambda: SimpleNamespace(ptr=0))
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=stream))
    graphs = session._Graphs(1)
    with pytest.raises(KernelUnavailable, match="dr_session_begin: no CUDA"):
        graphs.begin(1 << 63)
    with pytest.raises(KernelError, match="the session has not begun"):
        graphs.end()


def test_keys_are_64_bits_that_tell_work_apart() -> None:
    keys = {session._number(key) for key in (("solve", 1), ("solve", 2), ("warp", 1), "solve")}
    assert len(keys) == 4
    assert all(0 <= key < 1 << 64 for key in keys)
    assert session._number(("solve", 1)) in keys
