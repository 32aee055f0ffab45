"""tests/bench/sanitizer.sh, with stand-ins for Python and compute-sanitizer."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "bench" / "sanitizer.sh"
TOOLS = ["memcheck", "racecheck", "initcheck"]


def stand_in(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def run(folder: Path, *, problem: str = "", sanitizer: str | None) -> tuple[int, str]:
    """Exit code and output; `sanitizer`: what it does, given its options; None: there is none."""
    if sanitizer is not None:
        stand_in(folder / "compute-sanitizer", sanitizer)
    environment = os.environ | {
        "PATH": f"{folder}:/usr/bin:/bin",
        "CUDA_HOME": str(folder / "none"),
        "PYTHON": stand_in(folder / "python", f'echo "{problem}"'),
    }
    done = subprocess.run(
        [SCRIPT, "-k", "solver"], env=environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout


def test_every_tool_runs_over_the_gpu_tests(tmp_path) -> None:
    code, said = run(tmp_path, sanitizer='echo "$@"; echo "pool $DINOREG_TEST_POOL"; echo 3 passed')
    assert code == 0, said
    lines = said.splitlines()
    assert lines[-1] == "clean: memcheck, racecheck, initcheck"
    started = [line for line in lines if line.startswith("--tool")]
    assert [line.split()[1] for line in started] == TOOLS
    assert all("--error-exitcode" in line and "-m gpu -k solver" in line for line in started)
    assert lines.count("pool 0") == 3


@pytest.mark.parametrize(
    ("sanitizer", "wrong"),
    [
        ('echo 3 passed; [ "$2" != racecheck ] || exit 99', "racecheck"),
        ("echo 3 skipped", " ".join(TOOLS)),
    ],
)
def test_what_is_not_clean_fails(tmp_path, sanitizer, wrong) -> None:
    code, said = run(tmp_path, sanitizer=sanitizer)
    assert (code, said.splitlines()[-1]) == (1, f"not clean: {wrong}")


def test_skipped_with_a_reason(tmp_path) -> None:
    assert run(tmp_path, problem="no driver", sanitizer="exit 1") == (0, "skipped: no driver\n")
    (tmp_path / "compute-sanitizer").unlink()
    code, said = run(tmp_path, sanitizer=None)
    assert (code, said.startswith("skipped: compute-sanitizer is not installed")) == (0, True)
