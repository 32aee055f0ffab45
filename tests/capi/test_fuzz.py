"""All exported functions under the sanitizers, with sane and hostile arguments (fuzz.cpp)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "kernels"
SOURCES = (
    HERE / "fuzz.cpp",
    KERNELS / "src" / "capi.cpp",
    KERNELS / "cpu" / "backend.cpp",
    KERNELS / "cpu" / "threads.cpp",
)
#: Seconds of calls, after about half a minute of compiling; .ci/run sets more.
SECONDS = os.environ.get("DINOREG_FUZZ_SECONDS", "5")


def build(folder: Path, sanitizers: str) -> Path:
    """Compile the library's generic CPU back end and the fuzzer with sanitizers."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler (CXX, c++ or g++)")
    command = [*compiler.split(), "-std=gnu++20", "-g1", "-O1", "-pthread", "-Wno-psabi"]
    command += [f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all"]
    command += ["-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros"]
    command += ["-DDR_ISA=generic", "-DDR_ISA_IS_GENERIC"]
    command += [f"-I{KERNELS / name}" for name in ("include", "src", "cpu")]

    jobs = [
        subprocess.Popen(
            [*command, "-c", source, "-o", folder / f"{source.stem}.o"],
            stderr=subprocess.PIPE,
            text=True,
        )
        for source in SOURCES
    ]
    messages = [job.communicate()[1] for job in jobs]
    assert not any(job.returncode for job in jobs), "".join(messages)
    program = folder / "fuzz"
    objects = [folder / f"{source.stem}.o" for source in SOURCES]
    linked = subprocess.run(
        [*command, *objects, "-o", program], capture_output=True, text=True, check=False
    )
    if "cannot find" in linked.stderr:  # libasan, libubsan and libtsan are packages of their own
        pytest.skip("the compiler's sanitizers are not installed")
    assert linked.returncode == 0, linked.stderr
    return program


def test_every_exported_function_is_called() -> None:
    header = (KERNELS / "include" / "dinoreg.h").read_text()
    exported = set(re.findall(r"^DR_API .*?\b(dr_\w+)\(", header, re.MULTILINE))
    called = set(re.findall(r"\b(dr_\w+)\b", (HERE / "fuzz.cpp").read_text()))
    assert len(exported) > 15
    assert exported <= called


@pytest.mark.slow
@pytest.mark.parametrize("sanitizers", ["address,undefined,float-cast-overflow", "thread"])
def test_no_argument_breaks_the_library(tmp_path, sanitizers):
    """The sanitizers end the program at the first error; each function also succeeds at times."""
    done = subprocess.run(
        [build(tmp_path, sanitizers), SECONDS],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"TSAN_OPTIONS": "halt_on_error=1"},
        timeout=120 + float(SECONDS),
    )
    assert done.returncode == 0, done.stdout + done.stderr[:4000]
    assert "rounds from seed" in done.stdout
