"""Programs compiled against the published dinoreg_host.h run with every later library."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

import pytest
from c_tools import (
    ROOT,
    c_compiler,
    check_fields,
    check_layout,
    cxx_compiler,
    header_fields,
    include_folder,
    run,
)
from host_programs import ENVIRONMENT, FOLDER, LIBRARY, skip_without_libpython

from dinoreg_rt.embedded import structs

PUBLISHED = (FOLDER / "abi1" / "dinoreg_host.h").read_text("utf-8")
HOST = ROOT / "runtime" / "host"
HEADER = (HOST / "include" / "dinoreg_host.h").read_text("utf-8")

#: Never shorter. What is added here is added to runtime/host/dinoreg_host.map as well.
EXPORTED = {
    "dr_host_last_error",
    "dr_host_version",
    "dr_registrar_create",
    "dr_registrar_destroy",
    "dr_registrar_run",
    "dr_registrar_submit",
    "dr_registrar_warm_up",
    "dr_registration_cancel",
    "dr_registration_destroy",
    "dr_registration_result_free",
    "dr_registration_wait",
}
STRUCTS = {
    "dr_volume": structs.VolumeStruct,
    "dr_registration_args": structs.Arguments,
    "dr_registration_result": structs.Result,
}
SCALARS = {
    ctypes.c_int32: ("int32_t",),
    ctypes.c_int64: ("int64_t",),
    ctypes.c_double: ("double",),
    ctypes.c_size_t: ("size_t",),
    ctypes.c_void_p: ("dr_host_progress", "dr_host_log"),
}
#: What the published program prints, with every library.
PRINTED = """\
abi 1, a version: 1
shift of 2 mm: 1, back: 1
warped image is closer: 1
labels overlap: 1
report: 1, initial: 1
called: 1 1
the same from another thread: 1
cancelled: 130
stopped: 130
refused: 2 dr_registration_args needs a fixed and a moving image
"""


def published_structs() -> list[str]:
    return re.findall(r"typedef struct (\w+) {", PUBLISHED)


def declarations(header: str) -> dict[str, str]:
    """Return the functions, constants of enums and callback types with their declarations."""
    text = " ".join(re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL).split())
    found = dict(re.findall(r"DR_HOST_API [\w *]+?\b(dr_\w+)(\([^)]*\));", text))
    found |= dict(re.findall(r"(DR_[A-Z0-9_]+) = (\d+)", text))
    found |= dict(re.findall(r"typedef \w+ \(\*(dr_\w+)\)(\([^)]*\));", text))
    return found


def test_exported_names_and_their_version() -> None:
    """All of the one version node, and nothing else, not even of the C++ library."""
    lines = run(["nm", "-D", "--defined-only", "--with-symbol-versions", LIBRARY])
    symbols = [line.split()[-1] for line in lines.splitlines() if " A " not in line]
    assert set(symbols) == {f"{name}@@DINOREG_HOST_1" for name in EXPORTED}


def test_soname_is_that_of_the_header() -> None:
    (abi,) = re.findall(r"#define DR_HOST_ABI (\d+)", HEADER)
    dynamic = run(["readelf", "-d", LIBRARY])
    assert re.findall(r"SONAME.*\[(.*)\]", dynamic) == [f"libdinoreg_host.so.{abi}"]


def test_published_functions_and_constants_are_as_they_were() -> None:
    published = declarations(PUBLISHED)
    assert set(published) >= EXPORTED | {"DR_HOST_OK", "DR_VOXEL_INT16", "dr_host_log"}
    now = declarations(HEADER)
    assert {name: now.get(name) for name in published} == published


@pytest.mark.parametrize("name", published_structs())
def test_published_structs_only_grow_at_their_end(name: str) -> None:
    before, now = header_fields(PUBLISHED, name), header_fields(HEADER, name)
    assert before[0] == ("struct_size", "size_t")
    assert now[: len(before)] == before
    # A field appended into padding would not change the size by which it is recognised.
    assert now[-1][1].endswith("*") or now[-1][1].startswith(("int64_t", "double", "dr_host_"))


def test_smallest_sizes_are_those_of_the_published_header(tmp_path: Path) -> None:
    """What the library takes for the first version of a struct."""
    known = dict(re.findall(r"DR_PUBLISHED\((\w+), (\d+)\)", (HOST / "src/structs.h").read_text()))
    assert set(known) == set(published_structs())
    body = "".join(f'printf("%zu\\n", sizeof({name}));' for name in known)
    source = tmp_path / "sizes.c"
    text = f'#include "dinoreg_host.h"\n#include <stdio.h>\nint main(void) {{ {body} }}\n'
    source.write_text(text)
    run([*c_compiler(), source, "-I", FOLDER / "abi1", "-o", tmp_path / "sizes"])
    assert run([tmp_path / "sizes"]).split() == list(known.values())


@pytest.mark.parametrize("name", STRUCTS)
def test_python_side_has_the_fields_of_the_header(name: str) -> None:
    check_fields(HEADER, name, STRUCTS, SCALARS)


def test_python_side_has_the_layout_of_the_header(tmp_path: Path) -> None:
    check_layout(HOST / "include" / "dinoreg_host.h", STRUCTS, tmp_path)


def test_voxel_types_are_those_of_the_header() -> None:
    declared = re.findall(r"DR_VOXEL_(\w+) = (\d+)", HEADER)
    assert [(name, int(number)) for name, number in declared] == [
        (name.upper(), i) for i, name in enumerate(structs._TYPES)
    ]


def test_headers_alone_compile_as_c_and_cpp(tmp_path: Path) -> None:
    """No other header needs to precede them."""
    warnings = ["-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only"]
    source = tmp_path / "alone.c"
    source.write_text('#include "dinoreg_host.h"\nint main(void) { return DR_HOST_OK; }\n')
    run([*c_compiler(), *warnings, "-I", include_folder(), source])
    run([*cxx_compiler(), "-std=c++17", *warnings, "-x", "c++", "-I", include_folder(), source])
    source.write_text('#include "dinoreg_host.hpp"\nint main() { return DR_HOST_OK; }\n')
    run([*cxx_compiler(), "-std=c++20", *warnings, "-x", "c++", "-I", include_folder(), source])


def test_published_program_runs_with_the_library_of_today(tmp_path: Path) -> None:
    skip_without_libpython()
    program, source = tmp_path / "program", FOLDER / "abi1" / "program.c"
    rpath = f"-Wl,-rpath,{LIBRARY.parent}"
    run([*c_compiler(), source, "-I", source.parent, "-o", program, LIBRARY, rpath, "-lm"])
    assert run([program], env=os.environ | ENVIRONMENT, timeout=60) == PRINTED
