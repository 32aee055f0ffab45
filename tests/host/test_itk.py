"""The ITK filter in the example and in a program of its own, where ITK is found."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from c_tools import ROOT, c_compiler, cmake_command, cxx_compiler
from c_tools import run as run_tool
from host_programs import FOLDER, LIBRARY, run, skip_without_libpython

import dinoreg_rt

ABDOMEN = ROOT / "tests" / "data" / "abdomen"
PAIR = (str(ABDOMEN / "mr.nii.gz"), str(ABDOMEN / "ct.nii.gz"))
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def programs(tmp_path_factory) -> Path:
    """The folder with both programs, built with ITK's CMake package."""
    c_compiler(), cxx_compiler()  # skips without
    skip_without_libpython()
    folder = tmp_path_factory.mktemp("itk")
    found = f"-Ddinoreg_DIR={LIBRARY.parent / 'cmake'}"
    configure = [cmake_command(), "-S", FOLDER / "itk", "-B", folder, found]
    done = subprocess.run(
        [*configure, "-DCMAKE_BUILD_TYPE=Release"], capture_output=True, text=True, check=False
    )
    if re.search(r"ITKConfig\.cmake|ITK_DIR", done.stderr):
        pytest.skip("ITK with its CMake package is not installed (Debian: libinsighttoolkit5-dev)")
    assert done.returncode == 0, done.stderr
    run_tool([cmake_command(), "--build", folder])
    return folder


def test_example(programs: Path, tmp_path: Path) -> None:
    """ITK reads the files and writes them, and the field is that of Python, bit for bit."""
    warped, field = str(tmp_path / "warped.nii.gz"), str(tmp_path / "field.nii.gz")
    assert run(programs / "register_files", *PAIR, warped, field) == "trusted\n"
    result = dinoreg_rt.register(*PAIR)
    (written,) = dinoreg_rt.io.read_transform(field)
    np.testing.assert_array_equal(
        np.float32(written.vectors_mm), np.float32(result.displacement.vectors_mm)
    )


def test_filter(programs: Path) -> None:
    printed = run(programs / "filter", *PAIR, LC_ALL=os.environ.get("LC_ALL", "C.UTF-8"))
    found = dict(line.split(": ", 1) for line in printed.splitlines())
    # GetTransform and GetWarpedImage differ at the border, where ITK has other rules.
    assert float(found["resampled"]) < 2e-3  # measured: 7e-4
    assert found["then"] == found["resampled"]
    assert float(found["itself"]) < 0.02  # measured: 0.006
    assert found["kept"] == "1"
    part, same_region = found["part"].split()
    assert float(part) < 2e-3  # measured: 1e-6
    assert same_region == "1"
    assert found["aborted"] == "1"
    assert "unknown option 'smoothnes'" in found["error"]
