"""The CUDA launcher's index arithmetic, run on the host: cuda_shim stands for the runtime.

What only a GPU can show (timing, races, the device compiler's arithmetic) is not tested here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "kernels"
CHECKS = (
    "every_element_once",
    "large_counts",
    "margins",
    "empty_launches_nothing",
    "first_error_is_kept",
    "same_as_cpu",
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which(os.environ.get("CXX", "g++"))
    if compiler is None:
        pytest.skip("no C++ compiler: set CXX or install g++")
    path = tmp_path_factory.mktemp("cuda_launch") / "check"
    command = [
        compiler,
        "-std=gnu++17",
        "-fopenmp",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-psabi",
    ]
    # Both launchers must round alike to be compared bit for bit.
    command += ["-fopenmp", "-ffp-contract=off"]
    command += [f"-I{folder}" for folder in (HERE / "cuda_shim", KERNELS, KERNELS / "include")]
    built = subprocess.run(
        [*command, str(HERE / "cuda_launch_check.cpp"), "-o", str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert built.returncode == 0, built.stderr
    return path


@pytest.mark.parametrize("check", CHECKS)
def test_cuda_launcher(program: Path, check: str) -> None:
    done = subprocess.run([program, check], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
