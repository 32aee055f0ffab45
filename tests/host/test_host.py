"""`libdinoreg_host` in a C++ host program of its own (driver.cpp), and in a process with Python."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from host_programs import LIBRARY, compiled, run, write_pair

import dinoreg_rt
from dinoreg_rt import io
from dinoreg_rt.fields.warp import warp_labels
from dinoreg_rt.quality.metrics import dice, label_counts

OPTIONS = {"initial": "none", "threads": 2, "iterations": [20], "inverse": True}
TOML = "initial = 'none'\nthreads = 2\niterations = [20]\ninverse = true\n"

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="module")
def driver(tmp_path_factory) -> Path:
    return compiled("driver.cpp", tmp_path_factory.mktemp("host"))


def test_the_same_bits_as_in_python(driver: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    fixed = rng.normal(100, 1, (24, 30, 36)).astype(np.float32)
    fixed[6:18, 8:22, 10:26] += 200
    fixed[9:13, 10:15, 12:18] += 100
    moving = np.roll(fixed, (0, 1, 2), (0, 1, 2)).astype(np.int16)
    labels = (moving > 250).astype(np.uint8) * 7
    turned = np.array([[0.8, -0.6, 0], [0.6, 0.8, 0], [0, 0, 1]])
    grids = (
        dinoreg_rt.Geometry(fixed.shape, (1.5, 1.25, 2), (-10, 5, 3), turned),
        dinoreg_rt.Geometry(moving.shape, (1.5, 1.25, 2), (-10, 5, 3), turned),
    )
    config = dinoreg_rt.RegistrationConfig(**OPTIONS)
    check_bits(driver, tmp_path, (fixed, grids[0]), (moving, grids[1]), labels, TOML, config)


def check_bits(
    driver: Path,
    folder: Path,
    fixed: tuple[Any, dinoreg_rt.Geometry],
    moving: tuple[Any, dinoreg_rt.Geometry],
    labels: Any,
    toml: str,
    config: dinoreg_rt.RegistrationConfig,
) -> Any:
    """Compare the driver's results with those of Python, and return the warped labels."""
    write_pair(folder, fixed, moving)
    labels.tofile(folder / "labels.raw")

    printed = run(driver, "bits", str(folder), toml)

    result = dinoreg_rt.register(fixed, moving, config=config)
    carried = warp_labels(dinoreg_rt.LabelMap(labels, moving[1]), result.displacement)
    assert result.inverse is not None
    for name, array in (
        ("displacement", result.displacement.vectors_mm),
        ("inverse", result.inverse.vectors_mm),
        ("warped", result.warped.array),
        ("warped_labels", carried.array.astype(np.int32)),
    ):
        assert (folder / f"{name}.raw").read_bytes() == array.tobytes(), name
    report = json.loads((folder / "report.json").read_text("utf-8"))
    assert printed.strip() == report["trust"]["verdict"] == result.trust.verdict
    assert report["quality"]["folded_percent"] == result.quality.folded_percent
    return carried.array


@pytest.mark.parametrize(
    ("pair", "fixed", "moving", "wanted"),
    [
        pytest.param("brain", "fixed", "moving", 0.6, marks=pytest.mark.slow),
        ("abdomen", "mr", "ct", 0.5),
    ],
)
def test_the_same_bits_on_real_pairs(
    driver: Path, tmp_path: Path, pair: str, fixed: str, moving: str, wanted: float
) -> None:
    """The labels that `dinoreg-rt run` warps are the same too, and so is their Dice."""
    folder = DATA / pair
    image = "_t1" if pair == "brain" else ""
    files = [folder / f"{name}{image}.nii.gz" for name in (fixed, moving)]
    label_files = [folder / f"{name}_labels.nii.gz" for name in (fixed, moving)]
    volumes = [io.read_volume(file) for file in files]
    numbers = [io.read_labels(file).array for file in label_files]
    whole = volumes[1].array.astype(np.int16)
    np.testing.assert_array_equal(whole, volumes[1].array)
    warped = check_bits(
        driver,
        tmp_path,
        (volumes[0].array.astype(np.float32), volumes[0].geometry),
        (whole, volumes[1].geometry),
        numbers[1].astype(np.uint8),
        "inverse = true",
        dinoreg_rt.RegistrationConfig(inverse=True),
    )
    command = ["run", "-f", files[0], "-m", files[1], "--labels", label_files[1]]
    more = ["--save", "inverse", "--no-qc", "--report", "none", "-o", tmp_path / "run"]
    subprocess.run([sys.executable, "-m", "dinoreg_rt", *command, *more], check=True)
    (written,) = (tmp_path / "run").glob("*labels*.nii.gz")
    np.testing.assert_array_equal(io.read_labels(written).array, warped)
    shared = label_counts(numbers[0]).keys() & label_counts(numbers[1]).keys()
    scores = dice(numbers[0], warped, shared)
    assert np.mean(list(scores.values())) > wanted


def test_a_host_process_stays_as_it_was(driver: Path) -> None:
    assert run(driver, "unchanged", LC_ALL="C.UTF-8") == "compared\n"


def test_several_threads_get_the_same_and_keep_no_memory(driver: Path) -> None:
    printed = run(driver, "threads", "4", "5")
    found = re.fullmatch(r"grown by (-?\d+) kB, 4 of 4 the same\n", printed)
    assert found is not None, printed
    assert int(found[1]) < 40_000  # a leaked field of each call would be 26 MB


@pytest.mark.slow
def test_a_hundred_calls_keep_no_memory(driver: Path) -> None:
    """From four threads; as the process is as large as it gets after two calls of each."""
    printed = run(driver, "threads", "4", "25")
    found = re.fullmatch(r"grown by (-?\d+) kB, 4 of 4 the same\n", printed)
    assert found is not None, printed
    assert int(found[1]) < 40_000


def test_cancelling_ends_the_work(driver: Path) -> None:
    assert run(driver, "cancelled") == ("submitted: 130 cancelled\nstopped: 130\nthen: a report\n")


def test_wrong_arguments_are_errors_with_a_message(driver: Path) -> None:
    lines = dict(line.split(": ", 1) for line in run(driver, "wrong").splitlines())
    wanted = {
        **dict.fromkeys(("created", "later, unused"), "0 "),
        **dict.fromkeys(("null", "no handle", "size", "no moving", "null registrar"), "2 "),
        **dict.fromkeys(("voxel type", "voxels", "extent", "huge", "stride"), "3 moving"),
        **dict.fromkeys(("spacing", "direction"), "3 moving"),
        **dict.fromkeys(("option", "toml", "inverse"), "4 "),
        "later, used": "2 dr_registration_args has fields",
    }
    assert lines.keys() == wanted.keys()
    for name, start in wanted.items():
        assert lines[name].startswith(start), (name, lines[name])
        assert start == "0 " or len(lines[name]) > 15


def test_an_interpreter_without_the_package_is_an_error(driver: Path, tmp_path: Path) -> None:
    base = Path(sysconfig.get_config_var("BINDIR")) / Path(sys.executable).resolve().name
    environment = {"DINOREG_PYTHON": str(base), "PYTHONPATH": "", "PYTHONNOUSERSITE": "1"}
    done = subprocess.run(
        [driver, "cancelled"], env=os.environ | environment, capture_output=True, check=False
    )
    if done.returncode == 0:
        pytest.skip("the package is installed outside an environment")
    assert b"cannot import dinoreg_rt" in done.stdout


def test_a_program_that_is_no_interpreter_is_an_error(driver: Path) -> None:
    environment = os.environ | {"DINOREG_PYTHON": "/nowhere/python"}
    done = subprocess.run([driver, "wrong"], env=environment, capture_output=True, check=False)
    assert b"/nowhere/python cannot be run" in done.stdout


def test_the_interpreter_of_the_process_is_used() -> None:
    """In a host that runs Python already, as 3D Slicer does; here the host is Python itself."""
    code = f"""
import ctypes, sys
library = ctypes.CDLL({str(LIBRARY)!r})
library.dr_host_last_error.restype = ctypes.c_char_p
class Args(ctypes.Structure):
    _fields_ = [("size", ctypes.c_size_t), ("python", ctypes.c_char_p),
                ("options", ctypes.c_char_p), ("workers", ctypes.c_int64)]
args = Args(ctypes.sizeof(Args), b"/nowhere/python", b"threads = 1", 1)
registrar = ctypes.c_void_p()
status = library.dr_registrar_create(ctypes.byref(args), ctypes.byref(registrar))
print(status, library.dr_host_last_error().decode(), "dinoreg_rt" in sys.modules)
library.dr_registrar_destroy(registrar)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.stdout.decode() == "0  True\n", done.stderr.decode()
