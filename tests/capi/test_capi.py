"""Compiles and runs a plain C11 program against the public header and the installed library."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from dinoreg_kernels._library import library_file

HERE = Path(__file__).parent
PACKAGE = library_file().parent


@pytest.fixture(scope="module")
def compiler() -> list[str]:
    command = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if command is None:
        pytest.skip("no C compiler (CC, cc or gcc)")
    return [*command.split(), "-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic"]


def include_folder() -> Path:
    """The header that was installed with the library, or the source tree's."""
    installed = PACKAGE / "include"
    return installed if installed.is_dir() else HERE.parents[1] / "kernels" / "include"


def run(command, **more):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, **more)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_c_program(compiler, tmp_path):
    program = tmp_path / "test_capi"
    library = (PACKAGE / "libdinoreg.so").resolve()
    # Linked by path: the file's own folder is where the loader looks for it.
    run([*compiler, HERE / "test_capi.c", "-I", include_folder(), "-o", program, library,
         f"-Wl,-rpath,{library.parent}", "-lm"])  # fmt: skip
    assert run([program], timeout=60).splitlines()[-1] == "0 failures"


def test_header_alone_compiles_as_c_and_cpp(compiler, tmp_path):
    """It needs no other header before it."""
    source = tmp_path / "alone.c"
    source.write_text('#include "dinoreg.h"\nint main(void) { return DR_OK; }\n')
    run([*compiler, "-fsyntax-only", "-I", include_folder(), source])
    cpp = os.environ.get("CXX") or shutil.which("c++")
    if cpp is None:
        pytest.skip("no C++ compiler for the second half")
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only", "-x", "c++"]
    run([*cpp.split(), *flags, "-I", include_folder(), source])
