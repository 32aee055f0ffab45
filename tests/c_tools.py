"""Compilers, the header and commands, for the tests of the C interface and the C programs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
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
