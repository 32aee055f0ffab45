"""The tables that `tests/bench/first_gpu.sh` ends with, from records made up here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BENCH = {
    "without_encoder_ms": {"p50": 25.0, "p95": 27.0},
    "warm_ms": {"p50": 61.0},
    "stages": {"solve": {"warm_ms": {"p50": 9.0}, "floor_ms": 4.5}},
    "memory": {"peak_gpu_pool_mb": 90.0, "predicted_gpu_mb": 100.0},
}


def tables(folder: Path, steps: list[tuple[str, str, str]]) -> tuple[int, dict, str]:
    """Run the program on steps (name, status, command) whose output is `BENCH`."""
    (folder / "logs").mkdir()
    lines = [f"{name}\t{status}\t3\t{command}" for name, status, command in steps]
    (folder / "steps.tsv").write_text("\n".join(lines) + "\n")
    (folder / "logs" / "machine.out").write_text("NVIDIA H200, 580.95.05\n")
    for name, *_ in steps:
        (folder / "logs" / f"{name}.out").write_text(json.dumps(BENCH))
    (folder / "logs" / "tests.out").write_text("...\n240 passed, 3 skipped in 12.0s\n")
    done = subprocess.run(
        [sys.executable, ROOT / "tests" / "bench" / "first_gpu_tables.py", folder],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    report = json.loads((folder / "first_gpu.json").read_text())
    return done.returncode, report, (folder / "first_gpu.md").read_text()


def test_targets_that_are_met(tmp_path) -> None:
    status, report, text = tables(
        tmp_path, [("bench_given_start", "0", "bench --json"), ("engine", "skipped", "none")]
    )
    assert status == 0
    assert report["machine"] == "NVIDIA H200, 580.95.05"
    assert report["tests"] == "240 passed, 3 skipped in 12.0s"
    assert "| solver over its floor | 3 | 2 | yes |" in text
    assert "| engine | skipped | 3 |" in text


def test_a_target_that_is_missed(tmp_path) -> None:
    status, _, text = tables(tmp_path, [("bench", "0", "bench --json")])
    assert status == 1
    assert "| registration with planning: p50, ms | 60 | 61 | **no** |" in text


@pytest.mark.parametrize("code", ["1", "124"])
def test_a_step_that_fails_measures_nothing(tmp_path, code: str) -> None:
    status, report, text = tables(tmp_path, [("bench_given_start", code, "bench --json")])
    assert status == 1
    assert all(target["met"] is None for target in report["targets"])
    assert f"| bench_given_start | **failed ({code})** | 3 |" in text
