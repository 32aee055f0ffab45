"""What is compiled for the tests: ops without a public function, and checks of CUDA code."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]


class Ops:
    """Calls `op_*` of ops_for_tests.cpp; NumPy arrays become pointers, floats C floats."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))

    def __call__(self, name: str, *arguments) -> None:
        """Arrays must have the op's types; those that it writes are passed in."""
        function = getattr(self._library, f"op_{name}")
        function.restype = None
        function(*[self._convert(a) for a in arguments])

    @staticmethod
    def _convert(value):
        if value is None:
            return ctypes.c_void_p(None)
        if isinstance(value, np.ndarray):
            assert value.flags.c_contiguous
            assert value.dtype in (np.float32, np.float64, np.float16, np.int32, np.uint16)
            return ctypes.c_void_p(value.ctypes.data)
        return ctypes.c_float(value) if isinstance(value, float) else ctypes.c_int(value)


@pytest.fixture(scope="session")
def ops(tmp_path_factory) -> Ops:
    """The compiled ops; skips without a C++ compiler."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler (CXX, c++ or g++) to build the ops for tests")
    library = tmp_path_factory.mktemp("ops") / "libops.so"
    kernels = ROOT / "kernels"
    command = [
        *compiler.split(),
        "-std=gnu++20",
        "-fopenmp",
        "-O2",
        "-fno-math-errno",
        "-fno-trapping-math",
    ]
    command += ["-Wno-psabi", "-shared", "-fPIC", "-DDR_ISA=tests"]
    command += [f"-I{kernels / folder}" for folder in ("include", "cpu", "src")]
    command += [str(Path(__file__).with_name("ops_for_tests.cpp")), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return Ops(library)


@pytest.fixture(scope="module")
def compile_on_host(tmp_path_factory) -> Callable[[str], Path]:
    """Compiles a check of CUDA code beside this file, with cuda_shim in place of the runtime."""

    def compiled(source: str) -> Path:
        compiler = shutil.which(os.environ.get("CXX", "g++"))
        if compiler is None:
            pytest.skip("no C++ compiler: set CXX or install g++")
        here, kernels = Path(__file__).parent, ROOT / "kernels"
        path = tmp_path_factory.mktemp("host") / Path(source).stem
        flags = ["-std=gnu++20", "-fopenmp", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-psabi"]
        # Both back ends must round alike to be compared bit for bit.
        flags += ["-ffp-contract=off", f"-I{here / 'cuda_shim'}", f"-I{kernels}"]
        flags += [f"-I{kernels / folder}" for folder in ("include", "src", "cpu", "cuda")]
        command = [compiler, *flags, str(here / source), "-o", str(path)]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        assert built.returncode == 0, built.stderr
        return path

    return compiled
