"""The public header and the library from C, and the Python binding's copy of the header."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest
from c_tools import (
    c_compiler,
    check_fields,
    check_layout,
    cxx_compiler,
    include_folder,
    link_flags,
    run,
)

from dinoreg_kernels import _measure_structs, _structs

HERE = Path(__file__).parent
STRUCTS = {
    "dr_" + re.sub(r"(?<!^)(?=[A-Z])", "_", struct.__name__).lower(): struct
    for struct in (vars(_structs) | vars(_measure_structs)).values()
    if isinstance(struct, type)
    and issubclass(struct, ctypes.Structure)
    and hasattr(struct, "_fields_")
}


@pytest.fixture(scope="module")
def compiler() -> list[str]:
    return c_compiler()


def test_c_program(compiler, tmp_path):
    program = tmp_path / "test_capi"
    run([*compiler, HERE / "test_capi.c", "-I", include_folder(), "-o", program, *link_flags()])
    assert run([program], timeout=60).splitlines()[-1] == "0 failures"


def test_header_alone_compiles_as_c_and_cpp(compiler, tmp_path):
    """No other header needs to precede it."""
    source = tmp_path / "alone.c"
    source.write_text('#include "dinoreg.h"\nint main(void) { return DR_OK; }\n')
    run([*compiler, "-fsyntax-only", "-I", include_folder(), source])
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only", "-x", "c++"]
    run([*cxx_compiler(), *flags, "-I", include_folder(), source])


def header() -> str:
    return (include_folder() / "dinoreg.h").read_text("utf-8")


#: Enums have the size of int, which is 32 bits wide on every supported machine.
SCALARS = {
    ctypes.c_int32: ("int32_t", "dr_device"),
    ctypes.c_int64: ("int64_t",),
    ctypes.c_float: ("float",),
    ctypes.c_double: ("double",),
    ctypes.c_size_t: ("size_t", "uint64_t"),
    ctypes.c_int64: ("int64_t",),
    _structs.PROGRESS: ("dr_progress",),
}


def in_c(field: str) -> str:
    return "in" if field == "input" else field  # `in` is a keyword of Python


@pytest.mark.parametrize("name", STRUCTS)
def test_binding_has_the_fields_of_the_header(name):
    """The same names and types in the same order."""
    check_fields(header(), name, STRUCTS, SCALARS, in_c)


def test_binding_leaves_no_struct_out():
    assert set(re.findall(r"const (dr_\w+_args|dr_execution)\* ", header())) <= set(STRUCTS)


def test_layout_of_the_binding(tmp_path):
    """The size of every struct and the offset and size of every field, as a C compiler has them."""
    check_layout(include_folder() / "dinoreg.h", STRUCTS, tmp_path, in_c)


def test_cpp_header(tmp_path):
    program = tmp_path / "test_hpp"
    flags = ["-std=c++20", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-pedantic"]
    run([*cxx_compiler(), *flags, HERE / "test_hpp.cpp", "-I", include_folder(), "-o", program,
         *link_flags()])  # fmt: skip
    assert run([program], timeout=60).splitlines()[-1] == "0 failures"
