"""Host programs of `libdinoreg_host`, compiled and run in this test's environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dinoreg_kernels._library import library_file
from dinoreg_rt.types import Geometry

FOLDER = Path(__file__).parent / "host"
LIBRARY = library_file().parent / "libdinoreg_host.so.1"
#: What the programs need to find this test's interpreter and packages.
ENVIRONMENT = {"DINOREG_PYTHON": sys.executable, "PYTHONPATH": os.pathsep.join(sys.path)}


def skip_without_libpython() -> None:
    """Skip the test where this Python cannot be embedded."""
    if not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        pytest.skip("this Python has no shared library to embed")


def compiled(source: str, folder: Path, *flags: str, library: Path = LIBRARY) -> Path:
    """Compile a program of tests/host with the installed headers and a library."""
    compiler = os.environ.get("CXX") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no compiler (CXX or c++)")
    skip_without_libpython()
    program = folder / Path(source).stem
    warnings = ["-Wall", "-Wextra", "-Werror"]
    include = f"-I{LIBRARY.parent / 'include'}"
    link = [str(library), f"-Wl,-rpath,{library.parent}", "-ldl", "-o", str(program)]
    command = [*compiler.split(), "-std=c++20", "-O1", *warnings, "-pthread", include, *flags]
    built = subprocess.run(
        [*command, str(FOLDER / source), *link], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    return program


def run(program: Path, *task: str, timeout: float = 300, **environment: str) -> str:
    """What the program prints; it must succeed."""
    done = subprocess.run(
        [program, *task],
        env=os.environ | ENVIRONMENT | environment,
        capture_output=True,
        check=False,
        timeout=timeout,
    )
    assert done.returncode == 0, (done.stdout.decode(), done.stderr.decode()[:4000])
    return done.stdout.decode()


def write_pair(folder: Path, fixed: tuple[Any, Geometry], moving: tuple[Any, Geometry]) -> None:
    """Write images for the driver: raw voxels, and files of size, spacing, origin and direction."""
    for name, dtype, (array, grid) in (("fixed", np.float32, fixed), ("moving", np.int16, moving)):
        np.ascontiguousarray(array, dtype).tofile(folder / f"{name}.raw")
        places = [*grid.spacing_mm, *grid.origin_mm, *grid.direction.ravel()]
        numbers = [*map(str, grid.shape_xyz), *(repr(float(n)) for n in places)]
        (folder / f"{name}.txt").write_text(" ".join(numbers) + "\n")
