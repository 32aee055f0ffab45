"""A cohort whose workers and driver are killed: is everything there, once, with the same bits?

    python tests/bench/cohort_kill.py PAIRS.CSV -o FOLDER [--seed 1]

Three times a random worker gets SIGKILL, then the driver. The same command then resumes. Afterwards
each pair is registered by a `dinoreg-rt run` of its own, and the hashes are compared.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

COMMAND = [sys.executable, "-m", "dinoreg_rt"]
COMPARED = ("displacement.nii.gz", "warped.nii.gz")


def reports(output: Path) -> dict[str, dict[str, Any]]:
    """Return the reports that are there, by the name of the pair."""
    found = sorted(output.glob("*/report.json"))
    return {path.parent.name: json.loads(path.read_text("utf-8")) for path in found}


def workers_of(driver: psutil.Process) -> list[psutil.Process]:
    """Return the workers: the children that multiprocessing has started to run our code."""
    return [child for child in driver.children() if "spawn_main" in " ".join(child.cmdline())]


def killed_run(command: list[str], output: Path, count: int, draw: random.Random) -> list[str]:
    """Run the cohort, kill three workers and the driver, and return what was killed when."""
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    driver, said = psutil.Process(process.pid), []
    for number in range(1, 5):
        while len(reports(output)) < number * count // 6:
            assert process.poll() is None, "the driver ended by itself"
            time.sleep(0.05)
        time.sleep(draw.uniform(0, 1))
        workers = workers_of(driver)
        victim = driver if number == 4 else draw.choice(workers)
        victim.kill()
        what = "driver" if number == 4 else "worker"
        said.append(f"{what} killed with {len(reports(output))} pairs done")
    process.wait()
    gone, left = psutil.wait_procs(workers, timeout=30)
    assert not left, "workers have outlived their driver"
    assert gone
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with given.table.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    cohort, single = given.output / "cohort", given.output / "single"
    command = [*COMMAND, "cohort", str(given.table), "-o", str(cohort), "--no-qc", "-q"]
    command.append("--accept-untrusted")
    print("\n".join(killed_run(command, cohort, len(rows), random.Random(given.seed))))
    before = reports(cohort)
    began = time.perf_counter()
    code = subprocess.run(command, check=False).returncode
    print(f"resumed in {time.perf_counter() - began:.1f} s, exit code {code}")
    after = reports(cohort)
    assert code == 0
    assert set(after) == {row["pair"] for row in rows}, "pairs are missing"
    twice = [name for name, report in before.items() if after[name] != report]
    assert not twice, f"done twice: {twice}"
    left = [path for path in cohort.rglob(".dinoreg-*")]
    assert not left, f"unfinished files were left: {left}"
    different = []
    for row in rows:
        images = [str(given.table.parent / row[role]) for role in ("fixed", "moving")]
        arguments = ["-f", images[0], "-m", images[1], "-o", str(single / row["pair"])]
        options = ["--no-qc", "-q", "--accept-untrusted"]
        done = [*COMMAND, "run", *arguments, *options]
        subprocess.run(done, check=True, stderr=subprocess.DEVNULL)
        alone = json.loads((single / row["pair"] / "report.json").read_text("utf-8"))
        together = after[row["pair"]]
        if any(alone["outputs"][n]["sha256"] != together["outputs"][n]["sha256"] for n in COMPARED):
            different.append(row["pair"])
    print(f"{len(rows)} pairs, {len(before)} of them before the kill of the driver")
    print(f"bits differ from those of single runs in {len(different)}: {different}")
    assert not different


if __name__ == "__main__":
    main()
