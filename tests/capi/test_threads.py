"""The library's own threads, alone (threads_check.cpp), also under the thread sanitizer."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CPU = HERE.parents[1] / "kernels" / "cpu"
CHECKS = (
    "each_element_once",
    "several_callers",
    "calls_within_a_piece_are_serial",
    "a_busy_pool_delays_nobody",
    "idle_threads_sleep",
)
#: The sanitizer starts no threads in a forked process, and needs more memory.
NOT_SANITIZED = ("a_fork_has_its_own_threads", "works_without_threads")


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Callable[..., Path]:
    """Compile the checks with further flags."""

    @functools.cache
    def build(*flags: str) -> Path:
        compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
        if compiler is None:
            pytest.skip("no C++ compiler (CXX, c++ or g++)")
        output = tmp_path_factory.mktemp("threads") / "threads_check"
        command = [*compiler.split(), "-std=gnu++20", "-g1", "-O1", "-Wall", "-Wextra", "-Werror"]
        command += ["-pthread", *flags, f"-I{CPU}", HERE / "threads_check.cpp", CPU / "threads.cpp"]
        built = subprocess.run(
            [*command, "-o", output], capture_output=True, text=True, check=False
        )
        if "cannot find" in built.stderr:  # libtsan is a package of its own
            pytest.skip("the compiler's thread sanitizer is not installed")
        assert built.returncode == 0, built.stderr
        return output

    return build


def run(program: Path, *arguments: str) -> str:
    done = subprocess.run(
        [program, *arguments], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == (0 if arguments else 2), done.stdout + done.stderr[:4000]
    return done.stdout


@pytest.mark.parametrize("check", [*CHECKS, *NOT_SANITIZED])
def test_threads(program, check):
    run(program(), check)


def test_no_check_is_left_out(program):
    assert run(program()).split() == [*CHECKS, *NOT_SANITIZED]


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
def test_threads_without_races(program, check):
    """The sanitizer reports a race with exit code 66."""
    run(program("-fsanitize=thread"), check)
