"""The host memory that `plan` predicts is what `register` takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

PROGRAM = r"""
import json, re, sys
from pathlib import Path

import numpy as np
import dinoreg_rt
from dinoreg_rt import Geometry, RegistrationConfig

def memory(key):
    # Not getrusage, whose maximum includes that of the parent before exec.
    text = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(key + r":\s*(\d+) kB", text)[1])

def image(shape, seed):
    array = np.random.default_rng(seed).random(shape, dtype=np.float32)
    return array, Geometry(shape, (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3))

options = json.loads(sys.argv[1])
# Given, because a search in noise finds chance alignments, on which the sizes of all grids depend.
options = options | {"initial": "centre", "iterations": (1,), "inverse_consistency_rounds": 1}
config = RegistrationConfig(**options)
small = (24, 24, 24)  # loads all code
dinoreg_rt.register(image(small, 1), image(small, 2), config=config)
fixed, moving = image((120, 136, 128), 1), image((128, 120, 136), 2)
before = memory("VmRSS")  # also before the plan, whose freed memory is used again
predicted = dinoreg_rt.plan(fixed, moving, config).memory_bytes
result = dinoreg_rt.register(fixed, moving, config=config)
print(json.dumps({"predicted": predicted, "measured": memory("VmHWM") - before}))
"""


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"inverse": True},
        {"inverse": True, "confidence": True},
        {"control_spacing_mm": 1.0},
        {"working_megavoxels": 0.5},
        {"search_levels": 3},
        {"transform": "affine"},
        {"control_spacing_mm": 1.0, "feature_similarity": "lncc", "correlation_weight": 0.0},
    ],
    ids=[
        "default",
        "inverse",
        "all results",
        "fine control grid",
        "coarse working grid",
        "three search levels",
        "linear",
        "correlated features",
    ],
)
def test_prediction(options: dict[str, object]) -> None:
    # With one arena, threads reuse what others have freed.
    environment = os.environ | {"MALLOC_ARENA_MAX": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(options)],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    found = json.loads(ended.stdout)
    ratio = found["predicted"] / found["measured"]
    # Measured: 1.00 to 1.13, and 1.33 for the linear transform: its peak is that of MIND-SSC, whose
    # workspace has room for as many threads as could help, of which a few use it.
    assert 0.9 < ratio < (1.4 if "transform" in options else 1.3)
