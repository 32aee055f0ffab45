"""Other projects find both libraries: in the package, an install prefix and a build tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from c_tools import ROOT, c_compiler, cmake_command, cxx_compiler, run
from host_programs import FOLDER as HOST

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def cmake() -> str:
    c_compiler(), cxx_compiler()  # skips without
    return cmake_command()


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


def consume_host(cmake: str, folder: Path, *definitions: str) -> None:
    """The same with libdinoreg_host; the program calls all its functions where it is run."""
    run([cmake, "-S", HOST / "consumer", "-B", folder, *definitions])
    run([cmake, "--build", folder])
    assert "libdinoreg_host.so.1" in run(["readelf", "-d", folder / "program"])


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
    flags = run(["pkg-config", "--cflags", "--libs", "dinoreg_host"], env=environment).split()
    source = HOST / "abi1" / "program.c"
    run([*c_compiler(), source, *flags, "-lm", "-o", folder / "program"])
    assert "libdinoreg_host.so.1" in run(["readelf", "-d", folder / "program"])


def test_cmake_finds_the_package(cmake, tmp_path):
    definition = f"-Ddinoreg_DIR={package('--cmake-dir')}"
    consume(cmake, tmp_path / "kernels", definition)
    consume_host(cmake, tmp_path / "host", definition)


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
    consume_host(cmake, tmp_path / "host_from_build_tree", f"-Ddinoreg_DIR={build}")

    run([cmake, "--install", build, "--prefix", tmp_path / "before"])
    shutil.move(tmp_path / "before", tmp_path / "moved")
    shutil.move(build, tmp_path / "gone")
    prefix = tmp_path / "moved"
    assert (prefix / "share" / "doc" / "dinoreg" / "LICENSE").is_file()
    consume(cmake, tmp_path / "from_prefix", f"-DCMAKE_PREFIX_PATH={prefix}")
    consume_host(cmake, tmp_path / "host_from_prefix", f"-DCMAKE_PREFIX_PATH={prefix}")
    (pkgconfig,) = prefix.glob("lib*/pkgconfig")
    (tmp_path / "by_pkg_config").mkdir()
    consume_by_pkg_config(tmp_path / "by_pkg_config", pkgconfig, rpath=True)


@pytest.mark.slow
def test_an_unknown_choice_of_cuda_is_refused(cmake, tmp_path):
    command = [cmake, "-S", str(ROOT), "-B", str(tmp_path), "-DDINOREG_CUDA=AUTO"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "DINOREG_CUDA = AUTO; wanted ON or OFF" in " ".join(done.stderr.split())
