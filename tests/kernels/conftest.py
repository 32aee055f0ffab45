"""Code compiled for the tests: ops without a public function, and checks of CUDA code."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[2]
# `import solving` from any test here, which `--import-mode=importlib` does not provide.
sys.path.insert(0, str(HERE))


class Ops:
    """Calls of `op_*` in ops_for_tests.cpp; NumPy arrays become pointers, floats C floats."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))

    def __call__(self, name: str, *arguments) -> None:
        """Call an op with arrays of its types, among them those that it writes."""
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


def compile_cpp(source: str, *flags: str, output: Path) -> Path:
    """Compile a file of this folder against the kernels; skips without a C++ compiler."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler (CXX, c++ or g++)")
    kernels = ROOT / "kernels"
    command = [*compiler.split(), "-std=gnu++20", "-pthread", "-Wno-psabi", *flags]
    command += [f"-I{kernels / folder}" for folder in ("", "include", "src", "cpu", "cuda")]
    command += [str(HERE / source), str(kernels / "cpu" / "threads.cpp"), "-o", str(output)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return output


@pytest.fixture(scope="session")
def ops(tmp_path_factory) -> Ops:
    """The compiled ops."""
    flags = ("-O2", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC", "-DDR_ISA=tests")
    library = tmp_path_factory.mktemp("ops") / "libops.so"
    return Ops(compile_cpp("ops_for_tests.cpp", *flags, output=library))


@pytest.fixture(scope="session")
def check_on_host(tmp_path_factory) -> Callable[[str, str], None]:
    """Runs a named check of CUDA code on the host, with cuda_shim in place of the CUDA runtime."""

    @functools.cache
    def program(source: str) -> Path:
        # Without contraction, because both back ends must round alike to be compared bit for bit.
        flags = ("-O1", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off")
        path = tmp_path_factory.mktemp("host") / Path(source).stem
        return compile_cpp(source, *flags, f"-I{HERE / 'cuda_shim'}", output=path)

    def run(source: str, check: str) -> None:
        command = [program(source), check]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stdout

    return run
