"""Outputs appear whole or not at all."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dinoreg_rt import io
from dinoreg_rt.errors import OutputError
from dinoreg_rt.io.staging import whole_file
from dinoreg_rt.types import AffineTransform, DisplacementField, Geometry, Volume

GRID = Geometry((16, 64, 64), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3))


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*"))


def test_files_appear_together(tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with io.staged_folder(out) as folder:
        (folder / "a.txt").write_text("a")
        (folder / "sub").mkdir()
        (folder / "sub" / "b.txt").write_text("b")
        assert [p for p in out.iterdir() if p.name[0] != "."] == []
    assert names(out) == ["a.txt", "b.txt", "sub"]


def test_older_outputs_are_replaced_and_others_kept(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("old")
    (tmp_path / "mine.txt").write_text("mine")
    with io.staged_folder(tmp_path) as folder:
        (folder / "a.txt").write_text("new")
        assert (tmp_path / "a.txt").read_text() == "old"
    assert (tmp_path / "a.txt").read_text() == "new"
    assert names(tmp_path) == ["a.txt", "mine.txt"]


def test_a_whole_file_appears_with_its_permissions(tmp_path: Path) -> None:
    file = tmp_path / "a.bin"
    for mode, content in ((0o600, b"first"), (0o644, b"second")):
        with whole_file(file, mode) as stream:
            stream.write(content)
            assert file.exists() == (mode == 0o644)
        assert (file.stat().st_mode & 0o777, file.read_bytes()) == (mode, content)

    def stop() -> None:
        with whole_file(file, 0o644) as stream:
            stream.write(b"third")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert (names(tmp_path), file.read_bytes()) == (["a.bin"], b"second")


@pytest.mark.parametrize("exception", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_after_an_exception(tmp_path: Path, exception: type[BaseException]) -> None:
    def fail(out: Path) -> None:
        with io.staged_folder(out) as folder:
            (folder / "a.txt").write_text("a")
            raise exception

    (tmp_path / "kept.txt").write_text("kept")
    for out in (tmp_path, tmp_path / "new" / "out"):
        with pytest.raises(exception):
            fail(out)
    assert names(tmp_path) == ["kept.txt"]


def test_single_file(tmp_path: Path) -> None:
    def fail() -> None:
        with io.staged_file(tmp_path / "a.nii.gz") as staged:
            assert staged.name == "a.nii.gz"
            staged.write_text("half")
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fail()
    assert names(tmp_path) == []
    with io.staged_file(tmp_path / "a.nii.gz") as staged:
        staged.write_text("whole")
    assert (tmp_path / "a.nii.gz").read_text() == "whole"
    assert names(tmp_path) == ["a.nii.gz"]


def test_folder_in_the_way_leaves_everything_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "b.nii.gz").mkdir()

    def run() -> None:
        with io.staged_folder(tmp_path) as folder:
            (folder / "a.txt").write_text("a")
            (folder / "b.nii.gz").write_text("b")

    with pytest.raises(OutputError, match=r"b\.nii\.gz: a folder of this name is in the way"):
        run()
    assert names(tmp_path) == ["b.nii.gz"]
    with pytest.raises(OutputError, match=r"b\.nii\.gz: is a folder; give the name of a file"):
        io.write_volume(tmp_path / "b.nii.gz", Volume(np.zeros((2, 2, 2)), GRID))


def test_file_in_the_way_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")

    def run(folder: Path) -> None:
        with io.staged_folder(folder):
            pass

    for folder in (tmp_path / "out", tmp_path / "out" / "deeper"):
        with pytest.raises(OutputError, match="a file is in the way; remove it or name another"):
            run(folder)
        with pytest.raises(OutputError, match=r"out is a file; name another output folder"):
            io.check_writable(folder)


def test_unwritable_folder(tmp_path: Path) -> None:
    nowhere = Path("/proc/dinoreg")  # not even root can create a folder there
    with pytest.raises(OutputError, match=r"/proc/dinoreg: cannot be written"):
        io.check_writable(nowhere)
    with (
        pytest.raises(OutputError, match=r"/proc/dinoreg: cannot be written"),
        io.staged_folder(nowhere),
    ):
        pass


def test_check_writable_leaves_nothing(tmp_path: Path) -> None:
    io.check_writable(tmp_path / "a" / "b")
    io.check_writable(tmp_path)
    assert names(tmp_path) == []


def test_free_space(tmp_path: Path) -> None:
    io.check_free_space(tmp_path / "new", 1000)
    with pytest.raises(
        OutputError, match=r"the outputs need at least 1000000000000 MB and .* are free"
    ):
        io.check_free_space(tmp_path / "new", 10**18)


@pytest.fixture
def small_files() -> Iterator[None]:
    """Limit files to 100 kB, so that a write fails in the middle, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize("name", ["u.nii.gz", "u.nii", "u.nrrd", "u.mha", "t.h5"])
def test_disk_full(tmp_path: Path, name: str) -> None:
    vectors = np.random.default_rng(0).normal(size=(16, 64, 64, 3)).astype(np.float32)
    field = DisplacementField(vectors, GRID)

    def run() -> None:
        with io.staged_folder(tmp_path / "out") as folder:
            if name == "t.h5":
                io.write_composite_h5(folder / name, AffineTransform.identity(), field)
            else:
                io.write_displacement(folder / name, field)

    with pytest.raises(OutputError) as raised:
        run()
    reason = (
        "[nrrd] _nrrdGzWrite: failed to write to file" if name == "u.nrrd" else "File too large"
    )
    assert str(raised.value) == (
        f"{tmp_path}/out/{name}: cannot be written: {reason}; check the free space and the "
        "permissions of this folder, or name another"
    )
    assert names(tmp_path) == []


def test_disk_full_in_someone_elses_write(tmp_path: Path) -> None:
    def run(code: int) -> None:
        with io.staged_folder(tmp_path / "out"):
            raise OSError(code, os.strerror(code))

    with pytest.raises(OutputError, match="out: cannot be written: No space left on device"):
        run(errno.ENOSPC)
    with pytest.raises(FileNotFoundError):
        run(errno.ENOENT)


CHILD = """
import sys, time
from pathlib import Path
from dinoreg_rt import io
with io.staged_folder(sys.argv[1]) as folder:
    (folder / "half.nii.gz").write_bytes(b"x" * 1000)
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, -2)]
)
def test_killed_in_the_middle(tmp_path: Path, number: int, code: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "new" / "out")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        assert "half.nii.gz" in names(tmp_path)
        began = time.monotonic()
        child.send_signal(number)
        assert child.wait(timeout=20) == code
        assert time.monotonic() - began < 10
    assert names(tmp_path) == []


def test_importing_io_is_cheap() -> None:
    code = (
        "import sys, dinoreg_rt.io; print([m for m in ('SimpleITK', 'h5py') if m in sys.modules])"
    )
    output = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ).stdout
    assert output.strip() == "[]"


def test_obsolete_files_are_removed_with_the_renames(tmp_path: Path) -> None:
    for name in ("old.txt", "a.txt", "mine.txt"):
        (tmp_path / name).write_text("old")

    def run(problem: type[Exception] | None) -> None:
        with io.staged_folder(tmp_path, lambda: ["old.txt", "a.txt", "gone.txt"]) as folder:
            (folder / "a.txt").write_text("new")
            if problem is not None:
                raise problem

    with pytest.raises(ValueError):  # noqa: PT011
        run(ValueError)
    assert names(tmp_path) == ["a.txt", "mine.txt", "old.txt"]
    run(None)
    assert names(tmp_path) == ["a.txt", "mine.txt"]
    assert (tmp_path / "a.txt").read_text() == "new"


def test_link_to_nowhere(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("gone")

    def run(folder: Path) -> None:
        with io.staged_folder(folder):
            pass

    for folder in (tmp_path / "out", tmp_path / "out" / "deeper"):
        for use in (io.check_writable, run):
            with pytest.raises(OutputError, match="out is a link to gone, which does not exist"):
                use(folder)


def test_outputs_that_are_inputs(tmp_path: Path) -> None:
    image, output = tmp_path / "image.nii", tmp_path / "output.nii"
    image.write_text("image")
    io.check_outputs([output], [image, tmp_path, tmp_path / "missing"])
    output.hardlink_to(image)
    with pytest.raises(
        OutputError, match=r"output\.nii: is an input \(.*image\.nii\) and would be"
    ):
        io.check_outputs([output], [image])
    with pytest.raises(OutputError, match="a folder of this name is in the way"):
        io.check_outputs([tmp_path], [image])
    with pytest.raises(OutputError, match="not valid text"):
        io.check_outputs([tmp_path / "\udcfc.nii"], [image])


def test_hang_up_is_left_alone_under_nohup(tmp_path: Path) -> None:
    code = (
        "import os, signal\n"
        "from dinoreg_rt.console.interruption import signals_as_exceptions\n"
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "with signals_as_exceptions():\n"
        "    os.kill(os.getpid(), signal.SIGHUP)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
