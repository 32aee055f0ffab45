"""Beginnings and ends of host programs (lifecycle.cpp), and hosts in unusual states."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from host_programs import ENVIRONMENT, compiled, run


@pytest.fixture(scope="module")
def lifecycle(tmp_path_factory) -> Path:
    return compiled("lifecycle.cpp", tmp_path_factory.mktemp("host"))


def test_several_threads_make_the_first_registrar(lifecycle: Path) -> None:
    assert run(lifecycle, "together") == "4 made\n"


def test_registrars_come_and_go_without_a_trace(lifecycle: Path) -> None:
    printed = run(lifecycle, "cycles", "200")
    found = re.fullmatch(r"(-?\d+) kB, (-?\d+) threads, (-?\d+) files\n", printed)
    assert found is not None, printed
    memory, threads, files = (int(n) for n in found.groups())
    assert (threads, files) == (0, 0)
    assert memory < 40_000  # measured: 7000; an array of each registrar would be 80 MB


def test_a_registrar_destroyed_at_work_cancels_it(lifecycle: Path) -> None:
    assert run(lifecycle, "destroyed", timeout=60) == "130 cancelled\n" * 2


def test_a_callback_that_calls_the_library_is_refused(lifecycle: Path) -> None:
    refused = "a progress or log callback must not call this library\n"
    inside = f"run: 2 {refused}submit: 2 {refused}destroy: {refused}"
    assert run(lifecycle, "reentered", timeout=60) == f"{inside}outer: 0 {refused}then: 0 \n"


def test_a_finalised_interpreter_is_an_error(lifecycle: Path) -> None:
    printed = run(lifecycle, "finalised")
    assert printed == (
        "create: 0 \nwarm_up: 5 the Python interpreter of this process has been finalised\n"
    )


@pytest.mark.parametrize(
    "state",
    ["trap '' CHLD; exec {}", "exec {} <&- 2>&-", "cd /; exec {}"],
    ids=["ignores children", "without input and error output", "elsewhere"],
)
def test_hosts_in_unusual_states(lifecycle: Path, state: str) -> None:
    command = ["sh", "-c", state.format(f"{shlex.quote(str(lifecycle))} make")]
    done = subprocess.run(
        command, env=os.environ | ENVIRONMENT, stdout=subprocess.PIPE, check=False
    )
    assert (done.returncode, done.stdout) == (0, b"create: 0 \n")


def test_a_host_without_standard_files(lifecycle: Path) -> None:
    """All three are closed, so that the library's own files get their numbers."""
    command = f"exec {shlex.quote(str(lifecycle))} make <&- >&- 2>&-"
    environment = os.environ | ENVIRONMENT
    assert subprocess.run(["sh", "-c", command], env=environment, check=False).returncode == 0


def test_an_empty_environment(lifecycle: Path) -> None:
    """The C locale, in which Python would by itself change a variable."""
    done = subprocess.run([lifecycle, "make"], env=ENVIRONMENT, stdout=subprocess.PIPE, check=False)
    assert done.stdout == b"create: 0 \n"


@pytest.mark.parametrize("locale", ["C", "C.UTF-8"])
def test_names_of_the_interpreter(lifecycle: Path, tmp_path: Path, locale: str) -> None:
    """A path in any characters, relative to the folder, or a name on the PATH."""
    folder = tmp_path / "Größe"
    folder.symlink_to(sys.prefix)
    name = Path(sys.executable).name
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for given in (str(folder / "bin" / name), f"Größe/bin/{name}", name):
        done = subprocess.run(
            [lifecycle, "make"],
            env=os.environ
            | ENVIRONMENT
            | {"DINOREG_PYTHON": given, "LC_ALL": locale, "PATH": path},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            check=False,
        )
        assert done.stdout == b"create: 0 \n", given


def test_what_is_no_interpreter_is_an_error(lifecycle: Path, tmp_path: Path) -> None:
    echo = tmp_path / "echo"
    echo.write_text("#!/bin/sh\necho /nowhere/libpython.so\n")
    echo.chmod(0o755)
    for given, wanted in (
        (tmp_path, f"{tmp_path} cannot be run: "),
        ("no-such-python", "no-such-python cannot be run: No such file"),
        ("/bin/true", "/bin/true has no shared library"),
        (echo, "the Python library cannot be loaded: /nowhere/libpython.so"),
    ):
        printed = run(lifecycle, "make", DINOREG_PYTHON=str(given))
        assert printed.startswith("create: 5 ")
        assert wanted in printed
