"""Bad input to `dinoreg-rt run`, end to end: exit code, message, and nothing left behind.

How each fault is detected is tested in test_io_bad_input.py, and here that a run stops at it.
"""

from __future__ import annotations

import gzip
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
import SimpleITK as sitk
from click.testing import CliRunner, Result
from phantoms import Body, centres_of, make_grid

from dinoreg_rt import Geometry, LabelMap, Volume, io
from dinoreg_rt.commands.main import cli
from dinoreg_rt.io import integrity, validate

GRID = make_grid((20, 24, 28), (4.0, 4.0, 4.0))
MAIN = [sys.executable, "-c", "from dinoreg_rt.commands.main import main; main()"]


def write_body(path: Path, grid: Geometry = GRID) -> None:
    io.write_volume(path, Volume((1000 * Body()(centres_of(grid))).astype(np.float32), grid))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a pair that can be registered."""
    for name in ("fixed.nii.gz", "moving.nii.gz"):
        write_body(tmp_path / name)
    return tmp_path


def arguments(folder: Path, *more: object) -> list[str]:
    words: list[object] = ["run", "--no-qc", *more]
    given = {"-f": "fixed.nii.gz", "-m": "moving.nii.gz", "-o": "out"}
    for option, name in given.items():
        words += [option, folder / name] if option not in more else []
    return [str(w) for w in words]


def invoke(folder: Path, *more: object) -> Result:
    return CliRunner().invoke(cli, arguments(folder, *more))


def _missing(path: Path) -> None:
    path.unlink()


def _corrupt(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(raw)


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _sitk(image: Callable[[], sitk.Image]) -> Callable[[Path], None]:
    return lambda path: sitk.WriteImage(image(), str(path))


def _values(value: float, part: slice) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        array = np.random.default_rng(0).normal(size=GRID.shape_zyx).astype(np.float32)
        array[part] = value
        io.write_volume(path, Volume(array, GRID))

    return write


def _header(codes: tuple[int, int], offset: int, numbers: list[float]) -> Callable[[Path], None]:
    """Return a function that overwrites qform and sform codes and header fields of a NIfTI file."""

    def write(path: Path) -> None:
        raw = bytearray(gzip.decompress(path.read_bytes()))
        raw[252:256] = np.array(codes, "<i2").tobytes()
        raw[offset : offset + 4 * len(numbers)] = np.array(numbers, "<f4").tobytes()
        path.write_bytes(gzip.compress(bytes(raw), 1))

    return write


SLICE = slice(3, 5)
BAD_IMAGES = {
    "missing": (_missing, "no such file"),
    "corrupt": (_corrupt, "corrupt gzip file"),
    "truncated": (_truncated, "truncated gzip file"),
    "2D": (_sitk(lambda: sitk.Image([20, 20], sitk.sitkFloat32)), "is 2D"),
    "4D": (_sitk(lambda: sitk.Image([9, 9, 9, 3], sitk.sitkFloat32)), "is 4D"),
    "one slice": (_sitk(lambda: sitk.Image([20, 20, 1], sitk.sitkFloat32)), "axis of one voxel"),
    "NaN": (_values(np.nan, SLICE), "NaN or Inf"),
    "Inf": (_values(np.inf, SLICE), "NaN or Inf"),
    "constant": (_values(7.0, slice(None)), "every voxel is 7"),
    "complex": (_sitk(lambda: sitk.Image([9, 9, 9], sitk.sitkComplexFloat32)), "complex pixels"),
    "RGB": (_sitk(lambda: sitk.Image([9, 9, 9], sitk.sitkVectorUInt8, 3)), "3 values per voxel"),
    "spacing": (_header((0, 0), 80, [4e4, 4e4, 4e4]), "voxel spacing of 4e+04 x"),
    "singular": (_header((0, 1), 280, [4.0, 0.0, 0.0, 0.0] * 3), "singular or sheared"),
}


@pytest.mark.parametrize("role", ["fixed", "moving"])
@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_image_that_cannot_be_used(folder: Path, role: str, kind: str) -> None:
    spoil, message = BAD_IMAGES[kind]
    spoil(folder / f"{role}.nii.gz")
    refused(folder, invoke(folder), 3, message)
    assert f"{role}.nii.gz" in invoke(folder).stderr


def refused(folder: Path, result: Result, code: int, message: str) -> None:
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert "Traceback" not in result.output
    assert not (folder / "out").exists()
    assert not [p.name for p in folder.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("role", ["fixed", "moving"])
@pytest.mark.parametrize("dry", [False, True])
def test_mask_that_cannot_be_used(folder: Path, role: str, dry: bool) -> None:
    more = ["--dry-run"] if dry else []
    io.write_labels(folder / "e.nii.gz", LabelMap(np.zeros(GRID.shape_zyx, np.int32), GRID))
    result = invoke(folder, f"--{role}-mask", folder / "e.nii.gz", *more)
    refused(folder, result, 3, f"the {role} mask is empty")
    other = make_grid(GRID.shape_zyx, (4.0, 4.0, 4.1))
    io.write_labels(folder / "o.nii.gz", LabelMap(np.ones(GRID.shape_zyx, np.int32), other))
    result = invoke(folder, f"--{role}-mask", folder / "o.nii.gz", *more)
    refused(folder, result, 3, f"the {role} mask must lie on the {role} image's grid")


def test_no_overlap(folder: Path) -> None:
    far = make_grid(GRID.shape_zyx, GRID.spacing_mm, "RAS", (0.0, 0.0, 900.0))
    pixels = io.read_volume(folder / "fixed.nii.gz").array
    io.write_volume(folder / "moving.nii.gz", Volume(pixels, far))
    result = invoke(folder, "--initial", "none")
    refused(folder, result, 8, "the images do not overlap after the initial alignment")
    assert "--initial auto, centre or moments" in result.stderr
    # Alignment by centres also works for boxes beyond the reach of the search.
    assert invoke(folder, "--initial", "centre", "--iterations", "2", "--dry-run").exit_code == 0


def test_not_enough_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dinoreg_rt.registration.memory.memory_bytes", lambda: (8 << 30, 1 << 10))
    result = invoke(folder)
    refused(folder, result, 6, "0 MiB are free")
    assert "--working-megavoxels" in result.stderr


def test_initial_that_cannot_be_used(folder: Path) -> None:
    refused(folder, invoke(folder, "--initial", folder / "no.tfm"), 3, "no.tfm")
    refused(folder, invoke(folder, "--initial", "identity"), 3, "is neither auto, affine")
    (folder / "bad.tfm").write_text("nonsense")
    refused(folder, invoke(folder, "--initial", folder / "bad.tfm"), 3, "bad.tfm")


def test_output_that_cannot_be_made(folder: Path) -> None:
    (folder / "file").write_text("in the way")
    for more in ([], ["--dry-run"]):
        result = invoke(folder, "-o", folder / "file" / "sub", *more)
        refused(folder, result, 7, "file")
    assert (folder / "file").read_text() == "in the way"


def test_disk_full(folder: Path) -> None:
    """A limit on the file size stands in for a disk that fills while results are written."""

    for name in ("fixed", "moving"):  # a compressed file would be unpacked first
        io.write_volume(folder / f"{name}.nii", io.read_volume(folder / f"{name}.nii.gz"))
    words = [*MAIN, *arguments(folder, "-f", folder / "fixed.nii", "-m", folder / "moving.nii")]

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))

    ended = subprocess.run(words, capture_output=True, text=True, preexec_fn=limit, timeout=60)
    assert ended.returncode == 7, ended.stderr
    assert "cannot be written" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (folder / "out").exists()


def test_coupling_of_options_is_checked_first(folder: Path) -> None:
    """A wrong parameter is reported before any file is read."""
    _missing(folder / "fixed.nii.gz")
    refused(folder, invoke(folder, "--fold-margin", "1.5"), 4, "--fold-margin 1.5")


def _wait_for(stream: IO[str], begin: str) -> None:
    for line in stream:
        if line.startswith(begin):
            return
    raise AssertionError(f"the run ended without a line that begins with '{begin}'")


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)],
    ids=["SIGTERM", "SIGHUP", "SIGINT"],
)
@pytest.mark.parametrize("existing", [False, True], ids=["new folder", "earlier run"])
def test_killed_during_the_solve(
    folder: Path, number: signal.Signals, code: int, existing: bool
) -> None:
    """The run ends within 2 s, says so, and leaves the folder unchanged."""
    if existing:
        (folder / "out").mkdir()
        (folder / "out" / "warped.nii.gz").write_text("of an earlier run")
    more = ["--iterations", "10000,10000,10000", "--working-megavoxels", "20", "--threads", "1"]
    process = subprocess.Popen(
        [*MAIN, *arguments(folder, *more)], stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        _wait_for(process.stderr, "search: done")
        process.send_signal(number)
        sent = time.monotonic()
        assert process.wait(timeout=20) == code
        assert time.monotonic() - sent < 2
        said = process.stderr.read()
    finally:
        process.kill()
        process.wait()
        process.stderr.close()
    assert "Traceback" not in said
    assert "Exception ignored" not in said
    if existing:
        assert os.listdir(folder / "out") == ["warped.nii.gz"]
        assert (folder / "out" / "warped.nii.gz").read_text() == "of an earlier run"
    else:
        assert not (folder / "out").exists()
    assert not [name for name in os.listdir(folder) if name.startswith(".")]


@pytest.mark.parametrize("kind", [sitk.sitkInt16, sitk.sitkFloat32])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd"])
def test_a_run_looks_for_nan_in_each_voxel_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, kind: int
) -> None:
    """It does so in the file if ITK would hide NaN there, and otherwise in the array."""
    image = sitk.Cast(sitk.ReadImage(str(folder / "fixed.nii.gz")), kind)
    files = [folder / f"{role}_{suffix}" for role in ("fixed", "moving", "weights")]
    for file in files:
        sitk.WriteImage(sitk.Cast(image / 10, kind) if file == files[-1] else image, str(file))
    examined: list[int] = []

    def count(module: Any, name: str, size: Callable[..., int]) -> None:
        original = getattr(module, name)

        def counted(*arguments: Any) -> Any:
            examined.append(size(*arguments))
            return original(*arguments)

        monkeypatch.setattr(module, name, counted)

    count(validate, "_finite_extremes", lambda array, name: array.size)
    count(integrity, "_check_floats", lambda file, header, *more: header.voxels)
    words = ["run", "-f", files[0], "-m", files[1], "--weights", files[2], "-o", folder / "out"]
    result = CliRunner().invoke(cli, [*map(str, words), "--initial", "none", "--no-trust"])
    assert result.exit_code == 0, result.output
    assert examined == [np.prod(GRID.shape_zyx)] * 3
