"""Other projects find libdinoreg: in the installed package, an install prefix and a build tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from c_tools import ROOT, c_compiler, cxx_compiler, run

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def cmake() -> str:
    found = shutil.which("cmake", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None:
        pytest.skip("no CMake")
    c_compiler(), cxx_compiler()  # skips without
    return found


def package(option: str) -> Path:
    # The packages under test, wherever they are.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    printed = run([sys.executable, "-m", "dinoreg_kernels", option], env=environment)
    return Path(printed.strip())


def check_programs(folder: Path) -> None:
    assert run([folder / "test_capi"], timeout=60).splitlines()[-1] == "0 failures"
    assert "smallest det J 1.0; wanted 1.0" in run([folder / "warp"], timeout=60)


def consume(cmake: str, folder: Path, *definitions: str) -> None:
    """Configure, build and run a project that knows of libdinoreg only what it is given."""
    run([cmake, "-S", HERE / "consumer", "-B", folder, *definitions])
    run([cmake, "--build", folder])
    check_programs(folder)


def consume_by_pkg_config(folder: Path, pkgconfig: Path, *, rpath: bool) -> None:
    if shutil.which("pkg-config") is None:
        pytest.skip("no pkg-config")
    environment = os.environ | {"PKG_CONFIG_PATH": str(pkgconfig)}
    flags = run(["pkg-config", "--cflags", "--libs", "dinoreg"], env=environment).split()
    if rpath:
        flags.append(f"-Wl,-rpath,{next(f[2:] for f in flags if f.startswith('-L'))}")
    for compiler, source in (
        (c_compiler(), HERE / "test_capi.c"),
        ([*cxx_compiler(), "-std=c++20"], ROOT / "examples" / "warp.cpp"),
    ):
        run([*compiler, source, *flags, "-lm", "-o", folder / source.stem])
    check_programs(folder)


def test_cmake_finds_the_package(cmake, tmp_path):
    consume(cmake, tmp_path, f"-Ddinoreg_DIR={package('--cmake-dir')}")


def test_pkg_config_finds_the_package(tmp_path):
    consume_by_pkg_config(tmp_path, package("--pkgconfig-dir"), rpath=False)


def test_paths_of_the_package():
    assert (package("--include-dir") / "dinoreg.hpp").is_file()
    assert re.fullmatch(r"libdinoreg\.so\.\d+", package("--library").name)


@pytest.mark.slow
def test_build_tree_and_install_prefix(cmake, tmp_path):
    """The prefix is moved after the installation."""
    build = tmp_path / "build"
    said = run([cmake, "-S", ROOT, "-B", build, "-DCMAKE_BUILD_TYPE=Release"])
    assert re.search(r"libdinoreg [\d.]+ with CPU kernels: .*-DDINOREG_CUDA=ON adds", said)
    run([cmake, "--build", build, "--parallel", "2"])
    consume(cmake, tmp_path / "from_build_tree", f"-Ddinoreg_DIR={build}")

    run([cmake, "--install", build, "--prefix", tmp_path / "before"])
    shutil.move(tmp_path / "before", tmp_path / "moved")
    shutil.move(build, tmp_path / "gone")
    prefix = tmp_path / "moved"
    assert (prefix / "share" / "doc" / "dinoreg" / "LICENSE").is_file()
    consume(cmake, tmp_path / "from_prefix", f"-DCMAKE_PREFIX_PATH={prefix}")
    (pkgconfig,) = prefix.glob("lib*/pkgconfig")
    (tmp_path / "by_pkg_config").mkdir()
    consume_by_pkg_config(tmp_path / "by_pkg_config", pkgconfig, rpath=True)


@pytest.mark.slow
def test_an_unknown_choice_of_cuda_is_refused(cmake, tmp_path):
    command = [cmake, "-S", str(ROOT), "-B", str(tmp_path), "-DDINOREG_CUDA=AUTO"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "DINOREG_CUDA = AUTO; wanted ON or OFF" in " ".join(done.stderr.split())
