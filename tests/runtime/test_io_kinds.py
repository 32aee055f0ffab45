"""FIFOs, folders and text that is not UTF-8 as inputs: an error with the name, and no waiting."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from dicom_series import write_raw

from dinoreg_rt import io
from dinoreg_rt.bundle.manifest import read_manifest
from dinoreg_rt.commands.main import cli
from dinoreg_rt.config.files import read_toml
from dinoreg_rt.errors import ConfigError, InputError
from dinoreg_rt.evaluate.cohort import read_pairs
from dinoreg_rt.evaluate.tables import read_label_names
from dinoreg_rt.io.learn2reg import read_learn2reg_displacement
from dinoreg_rt.types import AffineTransform, Geometry, Volume

GRID = Geometry((4, 5, 6), (1, 1, 1), (0, 0, 0), np.eye(3))
NOT_UTF8 = "Sch\xe4del\n".encode("latin-1")
TRANSFORMS = (".tfm", ".txt", ".mat", ".h5", ".hdf5")
IMAGES = (".nii", ".nii.gz", ".nrrd", ".nhdr", ".mha", ".mhd")


def pairs(path: Path) -> Any:
    return read_pairs(path, path.parent, path.parent)


def learn2reg(path: Path) -> Any:
    return read_learn2reg_displacement(path, GRID, GRID)


def readers() -> list:
    """Return each reader with a file name."""
    found: list[tuple[Callable[[Path], Any], str]] = []
    found += [(io.read_transform, f"a{suffix}") for suffix in (*TRANSFORMS, *IMAGES)]
    found += [(io.read_volume, f"a{suffix}") for suffix in IMAGES]
    found += [(io.read_points, name) for name in ("p.csv", "p.mrk.json", "p.fcsv")]
    found += [(io.read_labels, "l.nii"), (io.read_geometry, "g.nrrd"), (learn2reg, "d.nii.gz")]
    found += [(io.read_initial, "a.tfm"), (pairs, "p.csv"), (read_label_names, "n.json")]
    found += [(read_toml, "c.toml"), (learn2reg, "d.nii")]
    return [pytest.param(*case, id=f"{case[0].__name__}-{case[1]}") for case in found]


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    signal.alarm(20)  # ends the process: what waits for a FIFO cannot be interrupted
    yield
    signal.alarm(0)


@pytest.mark.parametrize(("read", "name"), readers())
def test_fifo(tmp_path: Path, read: Callable[[Path], Any], name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(
        (InputError, ConfigError), match=rf"{name}: is a FIFO, a socket or a device"
    ):
        read(tmp_path / name)


@pytest.mark.parametrize(("read", "name"), readers())
def test_folder(tmp_path: Path, read: Callable[[Path], Any], name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises((InputError, ConfigError), match=rf"{name}: "):
        read(tmp_path / name)


@pytest.mark.parametrize(("read", "name"), readers())
def test_text_that_is_not_utf8(tmp_path: Path, read: Callable[[Path], Any], name: str) -> None:
    (tmp_path / name).write_bytes(NOT_UTF8 * 100)
    with pytest.raises((InputError, ConfigError), match=rf"{name}: ") as error:
        read(tmp_path / name)
    str(error.value).encode("utf-8")


def test_latin1_in_a_good_transform(tmp_path: Path) -> None:
    io.write_affine(tmp_path / "a.tfm", AffineTransform(np.eye(3), np.array([1.0, 2, 3])))
    lines = (tmp_path / "a.tfm").read_bytes().splitlines(keepends=True)
    (tmp_path / "a.tfm").write_bytes(lines[0] + b"# " + NOT_UTF8 + b"".join(lines[1:]))
    (affine,) = io.read_transform(tmp_path / "a.tfm")
    np.testing.assert_array_equal(affine.translation_mm, [1, 2, 3])


def test_manifest_that_is_a_fifo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "manifest.json")
    with pytest.raises(InputError, match=r"manifest\.json: is not a regular file"):
        read_manifest(tmp_path)


def test_fifo_among_slices(tmp_path: Path) -> None:
    stored = np.arange(210, dtype=np.uint16).reshape(5, 6, 7)
    write_raw(tmp_path / "s", stored)
    os.mkfifo(tmp_path / "s" / "im999.dcm")
    np.testing.assert_array_equal(io.read_volume(tmp_path / "s").array, stored)
    assert len(io.input_files(tmp_path / "s")) == 5


@pytest.mark.parametrize(
    "option", ["-f", "-m", "--fixed-mask", "--weights", "--config", "--initial"]
)
def test_fifo_on_the_command_line(tmp_path: Path, option: str) -> None:
    values = np.random.default_rng(0).normal(size=(16, 16, 16)).astype(np.float32)
    grid = Geometry(values.shape, (1, 1, 1), (0, 0, 0), np.eye(3))
    io.write_volume(tmp_path / "a.nii.gz", Volume(values, grid))
    fifo = tmp_path / ("p.tfm" if option == "--initial" else "p.nii.gz")
    os.mkfifo(fifo)
    given = {"-f": tmp_path / "a.nii.gz", "-m": tmp_path / "a.nii.gz", "-o": tmp_path / "out"}
    given |= {option: fifo}
    arguments = [str(word) for pair in given.items() for word in pair]
    result = CliRunner().invoke(cli, ["run", "-q", *arguments])
    assert result.exit_code == (4 if option == "--config" else 3)
    assert "is a FIFO, a socket or a device" in " ".join(result.stderr.split())
