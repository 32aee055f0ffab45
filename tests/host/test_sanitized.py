"""A host program, the host library and the kernels under the sanitizers.

Python, NumPy and SimpleITK are as they are installed: what happens within them is not seen.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from c_tools import KERNELS, ROOT
from host_programs import ENVIRONMENT, compiled, run, skip_without_libpython

from dinoreg_rt import __version__

HOST = ROOT / "runtime" / "host"
KERNEL_SOURCES = (
    KERNELS / "src" / "capi.cpp",
    KERNELS / "cpu" / "backend.cpp",
    KERNELS / "cpu" / "threads.cpp",
)
#: Makes Python load the sanitized kernels, and says so.
SITECUSTOMIZE = """
import pathlib
from dinoreg_kernels import _library

def library_file():
    pathlib.Path({folder!r}, "used").touch()
    return pathlib.Path({folder!r}, "libdinoreg.so.1")

_library.library_file = library_file
"""
#: ITK locks a mutex that another thread allocated, in code that was not compiled for the sanitizer,
#: which therefore does not see that the one precedes the other.
SUPPRESSIONS = "race:_SimpleITK\n"


def build(folder: Path, sanitizers: str) -> tuple[Path, Path]:
    """Compile the generic kernels, the host library and both programs, all with sanitizers."""
    compiler = os.environ.get("CXX") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler (CXX or c++)")
    skip_without_libpython()
    sanitize = [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-g1", "-pthread"]
    common = [*compiler.split(), "-std=gnu++20", "-O1", "-fPIC", "-shared", *sanitize]
    math = ["-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros", "-Wno-psabi"]
    isa = ["-DDR_ISA=generic", "-DDR_ISA_IS_GENERIC", "-Wl,-z,nodelete"]
    includes = [f"-I{KERNELS / name}" for name in ("include", "src", "cpu")]
    version = f'-DDR_HOST_VERSION="{__version__}"'
    libraries = {
        "libdinoreg.so.1": [*math, *isa, *includes, *KERNEL_SOURCES],
        "libdinoreg_host.so.1": [version, f"-I{HOST / 'include'}", *(HOST / "src").glob("*.cpp")],
    }
    for name, flags in libraries.items():
        command = [*common, *flags, f"-Wl,-soname,{name}", "-ldl", "-o", folder / name]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        if "cannot find" in built.stderr:  # the sanitizers' libraries are packages of their own
            pytest.skip("the compiler's sanitizers are not installed")
        assert built.returncode == 0, built.stderr
    library = folder / "libdinoreg_host.so.1"
    driver = compiled("driver.cpp", folder, *sanitize, library=library)
    return driver, compiled("lifecycle.cpp", folder, *sanitize, library=library)


@pytest.mark.slow
@pytest.mark.parametrize("sanitizers", ["thread", "address,undefined"])
def test_two_threads_register_in_a_sanitized_host(tmp_path: Path, sanitizers: str) -> None:
    """A race or a wrong access ends the program, or makes its exit code 66."""
    driver, lifecycle = build(tmp_path, sanitizers)
    (tmp_path / "sitecustomize.py").write_text(SITECUSTOMIZE.format(folder=str(tmp_path)))
    (tmp_path / "suppressions").write_text(SUPPRESSIONS)
    environment = {
        "PYTHONPATH": f"{tmp_path}{os.pathsep}{ENVIRONMENT['PYTHONPATH']}",
        "TSAN_OPTIONS": f"suppressions={tmp_path / 'suppressions'}",
        "ASAN_OPTIONS": "detect_leaks=0",  # Python keeps what it allocated to the end
    }
    printed = run(driver, "threads", "2", "1", **environment)
    assert re.fullmatch(r"grown by -?\d+ kB, 2 of 2 the same\n", printed)
    run(driver, "cancelled", **environment)
    for task in ("together", "destroyed", "reentered"):
        run(lifecycle, task, **environment)
    assert (tmp_path / "used").exists()
