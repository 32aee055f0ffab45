"""Pairs a minute of a cohort, beside single runs one after the other, or beside the cohort on Ray.

    python tests/bench/cohort_speed.py PAIRS.CSV -o FOLDER [--ray FOLDER] [--rounds 2]

Prints wall-clock and CPU seconds of each way, in turns, and the least of each. CPU time counts all
processes; on a machine that others use as well it is the more certain measure.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

COMMAND = [sys.executable, "-m", "dinoreg_rt"]


def measured(work: Callable[[], None]) -> tuple[float, float]:
    """Return wall-clock seconds, and CPU seconds of the processes that `work` has waited for."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    work()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - began, cpu


def working_s(output: Path) -> float:
    """Return the seconds from the start of the first pair to the end of the last."""
    times = [json.loads(path.read_text("utf-8")) for path in output.glob("*/report.json")]
    from datetime import datetime

    first = min(datetime.fromisoformat(one["started_at"]) for one in times)
    last = max(datetime.fromisoformat(one["finished_at"]) for one in times)
    return (last - first).total_seconds()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--ray", type=Path, help="folder for Ray's files: compare Ray, not runs")
    parser.add_argument("--rounds", type=int, default=2)
    given = parser.parse_args()
    with given.table.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    common = ["-q", "--accept-untrusted"]

    def cohort(name: str, *more: str) -> Callable[[], None]:
        output = given.output / name
        words = [*COMMAND, "cohort", str(given.table), "-o", str(output), *common, *more]
        return lambda: subprocess.run(words, check=True, stderr=subprocess.DEVNULL) and None

    def single() -> None:
        for row in rows:
            fixed, moving = (str(given.table.parent / row[role]) for role in ("fixed", "moving"))
            output = str(given.output / "single" / row["pair"])
            words = [*COMMAND, "run", "-f", fixed, "-m", moving, "-o", output, *common]
            subprocess.run(words, check=True, stderr=subprocess.DEVNULL)

    ways: dict[str, Callable[[], None]] = {"cohort": cohort("cohort", "--workers", "2")}
    if given.ray:
        more = ("--workers", "2", "--ray", "local", "--ray-folder", str(given.ray))
        ways["ray"] = cohort("ray", *more)
    else:
        ways["single"] = single
    least: dict[str, list[float]] = {}
    for _ in range(given.rounds):
        for name, work in ways.items():
            shutil.rmtree(given.output / name, ignore_errors=True)
            numbers = [*measured(work), working_s(given.output / name)]
            print(
                f"{name}: wall {numbers[0]:.1f} s, CPU {numbers[1]:.1f} s, first pair to last "
                f"{numbers[2]:.1f} s",
                flush=True,
            )
            known = least.setdefault(name, numbers)
            least[name] = [min(a, b) for a, b in zip(known, numbers, strict=True)]
    for name, (wall, cpu, inner) in least.items():
        rate = 60 * len(rows) / wall
        print(
            f"least of {name}: wall {wall:.1f} s ({rate:.1f} pairs a minute), CPU {cpu:.1f} s, "
            f"first pair to last {inner:.1f} s"
        )


if __name__ == "__main__":
    main()
