"""The programs of examples/ and the Python of the README, run as a reader would run them."""

from __future__ import annotations

import ast
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from c_tools import include_folder, link_flags

import dinoreg_kernels
import dinoreg_rt
from dinoreg_kernels._library import library_file

ROOT = Path(__file__).parents[1]
EXAMPLES, ABDOMEN = ROOT / "examples", ROOT / "tests" / "data" / "abdomen"
FIXED, MOVING = ABDOMEN / "mr.nii.gz", ABDOMEN / "ct.nii.gz"


def run(command: list[str | Path], folder: Path) -> str:
    """What the command prints."""
    # The packages under test, wherever they are, and messages in English.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "LC_ALL": "C"}
    done = subprocess.run(
        [str(c) for c in command], cwd=folder, env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


@pytest.mark.parametrize(
    ("source", "variable", "compiler", "flags", "output"),
    [
        ("solver.c", "CC", "cc", ["-std=c11"], r"\d\.\d\d (3\.[5-9]|4\.[0-5])\d mm"),
        ("warp.cpp", "CXX", "c++", ["-std=c++20"], "first voxel 2.0; .*\n.*det J 1.0;"),
    ],
)
def test_compiled_example(source, variable, compiler, flags, output, tmp_path) -> None:
    command = os.environ.get(variable) or shutil.which(compiler)
    if command is None:
        pytest.skip(f"no compiler ({variable} or {compiler})")
    warnings = ["-Wall", "-Wextra", "-Werror", "-pedantic"]
    link = [*link_flags(), "-o", tmp_path / "program"]
    compile_ = [
        *command.split(),
        *flags,
        *warnings,
        EXAMPLES / source,
        "-I",
        include_folder(),
        *link,
    ]
    run(compile_, tmp_path)
    assert re.search(output, run([tmp_path / "program"], tmp_path))


def test_registration_in_c(tmp_path: Path) -> None:
    compiler = os.environ.get("CC") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no compiler (CC or cc)")
    if not sysconfig.get_config_var("Py_ENABLE_SHARED"):
        pytest.skip("this Python has no shared library to embed")
    package = library_file().parent
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-I", package / "include"]
    link = [package / "libdinoreg_host.so.1", f"-Wl,-rpath,{package}", "-lz", "-lm"]
    built = subprocess.run(
        [*compiler.split(), *flags, EXAMPLES / "register.c", *link, "-o", tmp_path / "program"],
        capture_output=True,
        text=True,
        check=False,
    )
    if "zlib.h" in built.stderr:
        pytest.skip("zlib's header is not installed")
    assert built.returncode == 0, built.stderr
    printed = run(
        [tmp_path / "program", FIXED, MOVING, "field.mha", "warped.mha", sys.executable], tmp_path
    )
    assert printed == "trusted\n"
    labels = ["-f", ABDOMEN / "mr_labels.nii.gz", "-m", ABDOMEN / "ct_labels.nii.gz"]
    evaluate = [sys.executable, "-m", "dinoreg_rt", "evaluate", "--json", "-"]
    evaluated = run([*evaluate, *labels, "-t", "field.mha"], tmp_path)
    dice = json.loads(evaluated)["pairs"][0]["means"]["dice_after"]
    assert dice > 0.5  # measured: 0.535, as with `run`


def test_python_example(tmp_path: Path) -> None:
    labels = ABDOMEN / "ct_labels.nii.gz"
    printed = run(
        [sys.executable, EXAMPLES / "register.py", FIXED, MOVING, labels, "out"], tmp_path
    )
    folded = re.search(r"(\d\.\d+) % folded", printed)
    assert folded is not None
    assert float(folded[1]) < 0.01  # measured: 0.000
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"warped.nii.gz", "transform.h5", "labels.nii.gz"}


def test_registrar_example(tmp_path: Path) -> None:
    printed = run([sys.executable, EXAMPLES / "registrar.py", FIXED, MOVING, "out"], tmp_path)
    assert re.search(r"\d s on (cpu|cuda:0)\n0\.0\d\d % folded", printed)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"warped.nii.gz", "transform.h5"}


@pytest.mark.parametrize("example", ["register.py", "registrar.py"])
def test_example_says_what_it_wants(example: str) -> None:
    """The usage line is the one of the docstring."""
    command = [sys.executable, EXAMPLES / example]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    usage = done.stderr.strip().removeprefix("usage: ")
    assert usage.startswith(f"python {example} FIXED MOVING")
    assert f"\n{usage}\n" in (EXAMPLES / example).read_text("utf-8")


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("example", "needs"), [("cuda_arrays.py", ["cupy"]), ("pycuda_host.py", ["cupy", "pycuda"])]
)
def test_gpu_example(example: str, needs: list[str], tmp_path: Path) -> None:
    if problem := dinoreg_kernels.cuda_devices().problem:
        pytest.skip(f"GPU example: {problem}")
    for package in needs:
        pytest.importorskip(package, reason=f"GPU example: {package} is not installed")
    printed = run([sys.executable, EXAMPLES / example, FIXED, MOVING], tmp_path)
    assert re.search(r"\d\.\d\d mm on average", printed)


@pytest.mark.parametrize("example", ["cuda_arrays.py", "pycuda_host.py"])
def test_gpu_example_uses_names_that_exist(example: str) -> None:
    """Compiled, and every name of ours in it looked up: what can be checked without a GPU."""
    source = (EXAMPLES / example).read_text("utf-8")
    tree = ast.parse(source)
    compile(tree, example, "exec")
    names = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute)]
    ours = {n.attr for n in names if isinstance(n.value, ast.Name) and n.value.id == "dinoreg_rt"}
    assert "Registrar" in ours
    assert ours <= set(dinoreg_rt.__all__)
    for node in (n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)):
        module = importlib.import_module(node.module or "")
        assert {alias.name for alias in node.names} <= set(vars(module))


def test_python_of_the_readme(tmp_path: Path) -> None:
    shutil.copy(FIXED, tmp_path / "fixed.nii.gz")
    shutil.copy(MOVING, tmp_path / "moving.nii.gz")
    shutil.copy(ABDOMEN / "ct_labels.nii.gz", tmp_path / "labels.nii.gz")
    blocks = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.M | re.S
    )
    assert blocks
    (tmp_path / "readme.py").write_text("".join(blocks), encoding="utf-8")
    run([sys.executable, "readme.py"], tmp_path)
    assert (tmp_path / "result" / "warped.nii.gz").exists()
