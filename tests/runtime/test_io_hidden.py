"""What a killed run left is removed by a later one, and what a live run uses never is."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dinoreg_rt import io
from dinoreg_rt.io import hidden
from dinoreg_rt.io.hidden import LOCK, hidden_folder, remove_abandoned, scratch_folder
from dinoreg_rt.io.staging import whole_file, whole_folder

HOUR = 3600.0
USE = """
import os, sys, time
from pathlib import Path
from dinoreg_rt import io
from dinoreg_rt.io.hidden import scratch_folder
from dinoreg_rt.io.staging import whole_file, whole_folder

# Two containers may give both their processes this number and host name.
os.getpid = lambda: 1
os.uname = lambda: os.uname_result(["Linux", "container", "6", "1", "x86_64"])

def folder(path):
    return io.staged_folder(path)

def file(path):
    return whole_file(path / "tokens.npy", 0o644)

def scratch(path):
    return scratch_folder()

with globals()[sys.argv[1]](Path(sys.argv[2])):
    print("ready", flush=True)
    time.sleep(100)
"""
KINDS = ("folder", "file", "scratch")


def start(kind: str, folder: Path) -> subprocess.Popen[bytes]:
    path = os.pathsep.join(sys.path)
    process = subprocess.Popen(
        [sys.executable, "-c", USE, kind, str(folder)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path, "TMPDIR": str(folder)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


@pytest.fixture(params=KINDS)
def live(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Another run that uses `tmp_path`."""
    with start(request.param, tmp_path) as process:
        yield process
        process.kill()


def sweep(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Do what another run does in the same folder; return what is hidden there afterwards."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: 1)
        patch.setattr(platform, "node", lambda: "container")
        patch.setattr(hidden.tempfile, "tempdir", str(folder))
        with io.staged_folder(folder), scratch_folder(), whole_file(folder / "a", 0o644):
            pass
    return sorted(path for path in folder.iterdir() if path.name.endswith(".part"))


def age(folder: Path, seconds: float) -> None:
    """Make what is hidden in a folder older."""
    then = time.time() - seconds
    for path in folder.glob("*dinoreg-*"):
        for each in (path / LOCK, path):
            if each.exists():
                os.utime(each, (then, then))


def test_a_live_run_is_left_alone(
    live: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if it has the same process id and host name, and however old it is."""
    (used,) = tmp_path.glob("*dinoreg-*")
    for days in (0, 2, 100):
        age(tmp_path, 24 * HOUR * days)
        assert sweep(tmp_path, monkeypatch) == [used]
    assert live.poll() is None


def test_a_killed_run_is_cleared_away_after_an_hour(
    live: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live.send_signal(signal.SIGKILL)
    live.wait(timeout=20)
    (left,) = sweep(tmp_path, monkeypatch)
    age(tmp_path, 0.9 * HOUR)
    assert sweep(tmp_path, monkeypatch) == [left]
    age(tmp_path, 1.1 * HOUR)
    assert sweep(tmp_path, monkeypatch) == []


@pytest.fixture
def without_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)


@pytest.mark.usefixtures("without_locks")
def test_without_locks_a_run_has_a_day(tmp_path: Path) -> None:
    with hidden_folder(tmp_path) as folder:
        for hours, kept in ((2.0, True), (23.0, True), (25.0, False)):
            age(tmp_path, hours * HOUR)
            remove_abandoned(tmp_path, ".dinoreg-")
            assert folder.exists() == kept


@pytest.mark.usefixtures("without_locks")
@pytest.mark.parametrize("make", [hidden_folder, lambda path: whole_file(path / "a", 0o644)])
def test_a_live_run_is_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[..., object]
) -> None:
    monkeypatch.setattr(hidden, "_HEARTBEAT_S", 0.01)
    with make(tmp_path):  # type: ignore[attr-defined]
        age(tmp_path, 30 * HOUR)
        (path,) = tmp_path.iterdir()
        lock = path / LOCK if path.is_dir() else path
        until = time.monotonic() + 20
        while time.time() - lock.stat().st_mtime > HOUR and time.monotonic() < until:
            time.sleep(0.01)
        remove_abandoned(tmp_path, ".dinoreg-")
        assert path.exists()


def test_a_folder_without_a_lock_has_a_day(tmp_path: Path) -> None:
    """A run was killed as it made or removed it."""
    folder = tmp_path / ".dinoreg-abcd1234.part"
    folder.mkdir()
    (folder / "half.nii").touch()
    for hours, kept in ((23.0, True), (25.0, False)):
        age(tmp_path, hours * HOUR)
        remove_abandoned(tmp_path, ".dinoreg-")
        assert folder.exists() == kept


@pytest.mark.parametrize("name", ["mine", "abcd1234", "abcd-234.part", "a.abcd1234.part"])
def test_what_someone_else_named_is_kept(tmp_path: Path, name: str) -> None:
    folder = tmp_path / f".dinoreg-{name}"
    folder.mkdir()
    (folder / LOCK).touch()
    age(tmp_path, 1000 * HOUR)
    remove_abandoned(tmp_path, ".dinoreg-")
    assert folder.exists()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / LOCK).touch()
    link = tmp_path / ".dinoreg-abcd1234.part"
    link.symlink_to(mine)
    for path in (mine / LOCK, mine):
        os.utime(path, (0, 0))
    os.utime(link, (0, 0), follow_symlinks=False)
    remove_abandoned(tmp_path, ".dinoreg-")
    assert (mine / LOCK).exists()


def test_what_is_replaced_is_not_abandoned(tmp_path: Path) -> None:
    """However old it is, another run leaves it alone while it is checked."""
    target = tmp_path / "b"
    target.mkdir()
    os.utime(target, (0, 0))
    checked = []

    def check(path: Path) -> None:
        remove_abandoned(tmp_path, ".b.replaced.")
        checked.append((path == target, path.exists()))

    with whole_folder(target, check, "taken", replace=True) as work:
        (work / "new").touch()
    assert checked == [(True, True), (False, True)]
    assert [path.name for path in tmp_path.rglob("*")] == ["b", "new"]
