from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from gpu_budget import Counter

import dinoreg_rt
from dinoreg_rt.images.phantom import phantom_grid, phantom_pair

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def counting_library(tmp_path_factory):
    k = ROOT / "kernels"
    out = tmp_path_factory.mktemp("c") / "libcounting.so"
    t = ROOT / "tests" / "kernels"
    cmd = [
        "g++",
        "-std=gnu++20",
        "-O0",
        "-shared",
        "-pthread",
        "-fPIC",
        "-Wno-psabi",
        "-DDR_HAVE_CUDA",
        "-DDR_ISA=generic",
        "-DDR_ISA_IS_GENERIC",
        f"-I{t}/cuda_shim",
        *(f"-I{k / f}" for f in ("", "include", "src", "cpu", "cuda")),
        "-x",
        "c++",
        str(t / "cuda_counting.cpp"),
        str(k / "src" / "capi.cpp"),
        str(k / "cpu" / "backend.cpp"),
        str(k / "cpu" / "threads.cpp"),
        "-o",
        str(out),
    ]
    subprocess.run(cmd, check=True)
    return out


def test_it(cupy, monkeypatch, counting_library):
    c = Counter(counting_library)
    c.install(monkeypatch)
    pair = phantom_pair(phantom_grid((192, 160, 192), 2.0))
    cfg = dinoreg_rt.RegistrationConfig(device="cuda", threads=2, initial="none")
    with dinoreg_rt.Registrar(cfg) as r:
        for _ in range(2):
            r.register(*pair)
            for name, n in c.take().items():
                print(f"{name:15}", n)
