"""A few mutants for each reader, always the same; `run.py` takes more and others."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import run

#: Readers that start without optional packages; `bundle` makes an ONNX file.
READERS = ["tfm", "affine", "mat", "h5", "own h5", "csv", "fcsv", "markups", "pairs", "names"]
READERS += ["records", "report", "toml", "space", "mha", "nii.gz", "nrrd", "dcm", "pth"]
READERS += ["safetensors"]


def test_mutants_are_accepted_or_refused_with_the_file_s_name() -> None:
    found = run.fuzz_all(READERS, mutants=25)
    faults = [(name, fault) for name, outcomes in found.items() for fault in outcomes.faults]
    assert not faults
    assert all(sum(outcomes.counts.values()) == 25 for outcomes in found.values())
    assert all(outcomes.counts["refused"] for name, outcomes in found.items() if name == "tfm")


def test_faults_are_found() -> None:
    """By a reader that does whatever the mutant's number says."""
    found = run.fuzz("self-test", 7, seconds=8.0)
    kinds = [(1, "traceback"), (2, "nameless"), (3, "memory"), (4, "time"), (5, "ended by -6")]
    kinds.append((6, "memory"))
    assert [(number, kind) for number, kind, _ in found.faults] == kinds
    assert found.counts["accepted"] == 1
