"""Tables of what `first_gpu.sh` recorded: `first_gpu.json` and `first_gpu.md` in its folder.

    python tests/bench/first_gpu_tables.py OUTPUT

Exits with 1 if a step failed or a target was missed. A target that could not be measured, because
its step was skipped or failed, counts as neither met nor missed.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Step:
    """One command of the script: its exit status (None: skipped), seconds and command or reason."""

    name: str
    exit_status: int | None
    seconds: int
    command: str


@dataclass(frozen=True)
class Target:
    """One claim: the measured number, its limit, and whether it is met (None: not measured)."""

    claim: str
    step: str
    limit: float
    measured: float | None

    @property
    def met(self) -> bool | None:
        """Whether the measured number is within the limit."""
        return None if self.measured is None else self.measured <= self.limit


#: (claim, step, limit, number out of the step's JSON).
CLAIMS: tuple[tuple[str, str, float, Callable[[Any], float]], ...] = (
    (
        "registration without an encoder, start given: p50, ms",
        "bench_given_start",
        30.0,
        lambda d: d["without_encoder_ms"]["p50"],
    ),
    (
        "the same: p95 over p50",
        "bench_given_start",
        1.2,
        lambda d: d["without_encoder_ms"]["p95"] / d["without_encoder_ms"]["p50"],
    ),
    (
        "the same without the mirror test: p50, ms",
        "bench_without_trust",
        30.0,
        lambda d: d["without_encoder_ms"]["p50"],
    ),
    (
        "registration with planning: p50, ms",
        "bench",
        60.0,
        lambda d: d["warm_ms"]["p50"],
    ),
    (
        "solver over its floor",
        "bench_given_start",
        3.0,
        lambda d: d["stages"]["solve"]["warm_ms"]["p50"] / d["stages"]["solve"]["floor_ms"],
    ),
    (
        "all but the encoder, 24 channels of an encoder: p50, ms",
        "bench_24_channels",
        30.0,
        lambda d: d["without_encoder_ms"]["p50"],
    ),
    (
        "preset fast, ViT-L, 32 x 32 tokens, end to end: p50, ms",
        "bench_fast",
        1000.0,
        lambda d: d["warm_ms"]["p50"],
    ),
    (
        "memory pool over its prediction",
        "bench",
        1.0,
        lambda d: d["memory"]["peak_gpu_pool_mb"] / d["memory"]["predicted_gpu_mb"],
    ),
)


def read_steps(folder: Path) -> list[Step]:
    """Read the list of steps that the script kept."""
    steps = []
    for line in (folder / "steps.tsv").read_text().splitlines():
        name, status, seconds, command = line.split("\t", 3)
        steps.append(
            Step(name, None if status == "skipped" else int(status), int(seconds), command)
        )
    return steps


def results(folder: Path, steps: list[Step]) -> dict[str, Any]:
    """Return the JSON of each successful step that printed any."""
    found = {}
    for step in steps:
        output = folder / "logs" / f"{step.name}.out"
        if step.exit_status == 0 and output.read_text().startswith("{"):
            found[step.name] = json.loads(output.read_text())
    return found


def targets(found: dict[str, Any]) -> list[Target]:
    """Compare what was measured with every claim."""
    made = []
    for claim, step, limit, number in CLAIMS:
        try:
            measured = float(number(found[step])) if step in found else None
        except (KeyError, ZeroDivisionError):  # such as no GPU memory in a run on a CPU
            measured = None
        made.append(Target(claim, step, limit, measured))
    return made


def counted_tests(folder: Path) -> str:
    """Return pytest's closing line."""
    log = folder / "logs" / "tests.out"
    lines = log.read_text().splitlines() if log.exists() else []
    return next((line for line in reversed(lines) if re.search(r"\d+ (passed|skipped)", line)), "")


def machine(folder: Path) -> str:
    """Return what nvidia-smi says about the GPU."""
    return (folder / "logs" / "machine.out").read_text().strip() or "no GPU"


def commit() -> str:
    """Return the commit of the sources, with a mark if they were changed."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"


def markdown(report: dict[str, Any]) -> Iterator[str]:
    """Yield the lines of the tables."""
    yield f"{report['machine']}; {report['date']}; commit {report['commit']}"
    yield ""
    yield "| claim | at most | measured | met |"
    yield "|---|---|---|---|"
    for target in report["targets"]:
        measured, met = target["measured"], target["met"]
        number = "not measured" if measured is None else f"{measured:.3g}"
        word = "" if met is None else "yes" if met else "**no**"
        yield f"| {target['claim']} | {target['limit']:g} | {number} | {word} |"
    yield ""
    yield "| stage | p50, ms | floor, ms | share |"
    yield "|---|---|---|---|"
    stages = report["results"].get("bench", {}).get("stages", {})
    for name, stage in stages.items():
        p50, floor = stage["warm_ms"]["p50"], stage["floor_ms"]
        share = f"{100 * floor / p50:.0f} %" if p50 and floor else ""
        yield f"| {name} | {p50:.2f} | {floor:.2f} | {share} |"
    yield ""
    yield "| step | result | seconds |"
    yield "|---|---|---|"
    for step in report["steps"]:
        status = step["exit_status"]
        word = "skipped" if status is None else "done" if status == 0 else f"**failed ({status})**"
        yield f"| {step['name']} | {word} | {step['seconds']} |"
    yield ""
    yield f"Tests: {report['tests'] or 'not run'}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    steps = read_steps(folder)
    found = results(folder, steps)
    compared = targets(found)
    report = {
        "machine": machine(folder),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": commit(),
        "tests": counted_tests(folder),
        "steps": [asdict(step) for step in steps],
        "targets": [asdict(target) | {"met": target.met} for target in compared],
        "results": found,
    }
    (folder / "first_gpu.json").write_text(json.dumps(report, indent=1) + "\n")
    text = "\n".join(markdown(report)) + "\n"
    (folder / "first_gpu.md").write_text(text)
    print(f"\n{text}\nwritten: {folder / 'first_gpu.json'}, {folder / 'first_gpu.md'}")
    failed = any(step.exit_status not in (0, None) for step in steps)
    missed = any(target.met is False for target in compared)
    return int(failed or missed)


if __name__ == "__main__":
    raise SystemExit(main())
