"""Compilers, the header and commands, for the tests of the C interface and the C programs."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from dinoreg_kernels._library import library_file

ROOT = Path(__file__).parents[1]
KERNELS = ROOT / "kernels"


def c_compiler() -> list[str]:
    """The command of the C compiler with the flags that the header promises to be clean with."""
    command = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if command is None:
        pytest.skip("no C compiler (CC, cc or gcc)")
    return [*command.split(), "-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic"]


def cxx_compiler() -> list[str]:
    """The command of the C++ compiler."""
    command = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if command is None:
        pytest.skip("no C++ compiler (CXX, c++ or g++)")
    return command.split()


def cmake_command() -> str:
    """CMake, that of this environment before another."""
    found = shutil.which("cmake", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None:
        pytest.skip("no CMake")
    return found


def include_folder() -> Path:
    """The folder of the installed headers, or that of the source tree."""
    installed = library_file().parent / "include"
    return installed if installed.is_dir() else KERNELS / "include"


def link_flags() -> list[str | Path]:
    """The library by its path, with its folder as the place where the loader looks for it."""
    library = library_file().resolve()
    return [library, f"-Wl,-rpath,{library.parent}", "-lm"]


def run(command: list[Any], **more: Any) -> str:
    """What the command prints; it must succeed."""
    done = subprocess.run(
        [str(c) for c in command], capture_output=True, text=True, check=False, **more
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def header_fields(header: str, name: str) -> list[tuple[str, str]]:
    """The fields of a struct as a header declares them: name and type, without const."""
    header = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    (body,) = re.findall(rf"typedef struct {name} {{(.*?)}} {name};", header, re.DOTALL)
    fields = []
    for declaration in body.split(";")[:-1]:
        text = " ".join(declaration.split())
        kind, star, names = re.fullmatch(r"(?:const )?(\w+) ?(\*?) ?(.+)", text).groups()
        for each in names.split(","):
            field, length = re.fullmatch(r" ?(\w+)(\[\d+\])?", each).groups()
            fields.append((field, kind + star + (length or "")))
    return fields


Structs = Mapping[str, type[ctypes.Structure]]
Scalars = Mapping[type, tuple[str, ...]]


def agrees(kind: Any, declared: str, structs: Structs, scalars: Scalars) -> bool:
    """Return whether a ctypes type stands for a declared one; c_void_p stands for any pointer."""
    if declared in scalars.get(kind, ()):
        return True
    if kind in (ctypes.c_void_p, ctypes.c_char_p):
        return declared.endswith("*")
    if issubclass(kind, ctypes.Array):
        base, _, length = declared.partition("[")
        return length == f"{kind._length_}]" and agrees(kind._type_, base, structs, scalars)
    if issubclass(kind, ctypes._Pointer):
        return declared.endswith("*") and agrees(kind._type_, declared[:-1], structs, scalars)
    return structs.get(declared) is kind


def check_fields(
    header: str, name: str, structs: Structs, scalars: Scalars, in_c: Callable[[str], str] = str
) -> None:
    """A ctypes struct has the names and types of a header's struct, in the same order."""
    fields, declared = structs[name]._fields_, header_fields(header, name)
    assert [in_c(field) for field, *_ in fields] == [field for field, _ in declared]
    wrong = [
        f"{field} is {kind.__name__}; wanted {wanted}"
        for (field, kind, *_), (_, wanted) in zip(fields, declared, strict=True)
        if not agrees(kind, wanted, structs, scalars)
    ]
    assert not wrong


def check_layout(
    header: Path, structs: Structs, folder: Path, in_c: Callable[[str], str] = str
) -> None:
    """Sizes and offsets of ctypes structs are those that a C compiler finds."""
    lines, expected = [], []
    for name, struct in structs.items():
        lines.append(f'printf("{name} %zu\\n", sizeof({name}));')
        expected.append(f"{name} {ctypes.sizeof(struct)}")
        for field, kind, *_ in struct._fields_:
            place = f"offsetof({name}, {in_c(field)}), sizeof((({name}*)0)->{in_c(field)})"
            lines.append(f'printf("{name}.{field} %zu %zu\\n", {place});')
            offset = getattr(struct, field).offset
            expected.append(f"{name}.{field} {offset} {ctypes.sizeof(kind)}")
    source, program = folder / "layout.c", folder / "layout"
    body = "\n".join(lines)
    source.write_text(
        f'#include "{header}"\n#include <stdio.h>\n#include <stddef.h>\n'
        f"int main(void) {{\n{body}\n}}\n"
    )
    run([*c_compiler(), source, "-o", program])
    assert run([program]).splitlines() == expected
