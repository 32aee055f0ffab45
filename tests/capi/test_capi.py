"""The public header and the installed library, from C; and that the Python binding mirrors both."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from dinoreg_kernels import _structs
from dinoreg_kernels._library import library_file

HERE = Path(__file__).parent
PACKAGE = library_file().parent
STRUCTS = {
    "dr_" + re.sub(r"(?<!^)(?=[A-Z])", "_", struct.__name__).lower(): struct
    for struct in vars(_structs).values()
    if isinstance(struct, type) and issubclass(struct, ctypes.Structure)
}


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


def in_c(field: str) -> str:
    return "in" if field == "input" else field  # a word of Python's


def test_layout_of_the_binding(compiler, tmp_path):
    """Size of every struct and place of every field: a difference would be a wrong pointer."""
    lines, expected = [], []
    for name, struct in STRUCTS.items():
        lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
        expected.append(f"{name} {ctypes.sizeof(struct)}")
        for field, *_ in struct._fields_:
            lines.append(f'printf("{name}.{field} %zu\\n", offsetof({name}, {in_c(field)}));')
            expected.append(f"{name}.{field} {getattr(struct, field).offset}")
    source, program = tmp_path / "layout.c", tmp_path / "layout"
    body = "\n".join(lines)
    source.write_text(f'#include "dinoreg.h"\n#include <stdio.h>\nint main(void) {{\n{body}\n}}\n')
    run([*compiler, "-I", include_folder(), source, "-o", program])
    assert run([program]).splitlines() == expected


def test_binding_leaves_no_field_out():
    header = (include_folder() / "dinoreg.h").read_text("utf-8")
    header = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    taken = set(re.findall(r"const (dr_\w+_args|dr_execution)\* ", header))
    assert taken <= set(STRUCTS)
    for name, struct in STRUCTS.items():
        (body,) = re.findall(rf"typedef struct {name} {{(.*?)}} {name};", header, re.DOTALL)
        fields = re.findall(r"(\w+)(?:\[\d+\])?\s*(?=[,;])", body)
        assert fields == [in_c(field) for field, *_ in struct._fields_]
