"""The graphs of a session on the host: one launch for a whole solve, with the bits of the CPU.

cuda_shim records what is captured and replays it when the graph is launched. Tested are which
executable is kept, updated or replaced, how many there are, that nothing runs after an error, and
that nothing leaks. What only a GPU can show, among it the rules of the driver, is not tested here.
"""

from __future__ import annotations

import pytest

CHECKS = (
    "kept_graph_is_updated",
    "other_work_under_a_key",
    "number_of_graphs_is_bounded",
    "nothing_runs_after_an_error",
    "refused_updates",
    "lost_recordings",
    "blocking_streams_run_as_they_are",
    "destroyed_while_recording",
)


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
def test_session(check_on_host, check: str) -> None:
    check_on_host("cuda_session_check.cpp", check)
