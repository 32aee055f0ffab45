"""Two instruction sets of one CPU differ as much as two devices may; see `close_results`."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from c_tools import KERNELS, cxx_compiler, run
from close_results import check_close, register_brains

from dinoreg_kernels import build_info

#: The optimisation of CMakeLists.txt.
FLAGS = ["-std=gnu++20", "-O3", "-fPIC", "-shared", "-pthread", "-Wno-psabi"]
FLAGS += ["-fno-math-errno", "-fno-trapping-math", "-fno-signed-zeros"]
FLAGS += ["-DDR_ISA=generic", "-DDR_ISA_IS_GENERIC"]
#: Registers the pair with the library at a path, and saves the displacement.
CHILD = """
import sys
from pathlib import Path
import numpy as np
from dinoreg_kernels import _library, build_info
_library.library_file = lambda: Path(sys.argv[1])
assert build_info().isa == "generic"
sys.path.insert(0, sys.argv[3])
from close_results import register_brains
np.save(sys.argv[2], register_brains("cpu").displacement.vectors_mm)
"""


@pytest.mark.slow
def test_generic_code_against_the_widest_vectors(tmp_path) -> None:
    if build_info().isa != "x86-64-v4":
        pytest.skip(f"this CPU runs {build_info().isa}; wanted x86-64-v4 beside generic")
    library, saved = tmp_path / "libdinoreg.so.1", tmp_path / "generic.npy"
    sources = [KERNELS / "src" / "capi.cpp", *(KERNELS / "cpu").glob("*.cpp")]
    include = [f"-I{KERNELS / name}" for name in ("include", "src", "cpu")]
    run([*cxx_compiler(), *FLAGS, *include, *sources, "-o", library])
    tests = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", CHILD, library, saved, tests], check=True)
    expected = register_brains("cpu").displacement
    found = replace(expected, vectors_mm=np.load(saved))
    assert (found.vectors_mm != expected.vectors_mm).any()
    check_close(found, expected)
