"""Mutants of valid files for each reader, read in a process with limits of memory and time.

Every mutant has to be accepted or refused by an error of ours that names the file. Anything else is
a fault: another exception, an end of the process, more than SECONDS, or three times the memory that
reading the valid file takes.

Usage: run.py [--reader tfm]... [--mutants 10000] [--seed 0] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

CHILD = Path(__file__).with_name("child.py")
SECONDS = 10.0
#: For the start of a process: imports and the seed.
START_SECONDS = 60.0
GOOD = ("accepted", "refused")


@dataclass
class Outcomes:
    """What became of the mutants of a reader.

    Attributes:
        counts: number of mutants by what became of them.
        faults: (number, kind, message).
        peaks: highest memory in use, as a multiple of that of reading the valid file.
    """

    counts: Counter[str] = field(default_factory=Counter)
    faults: list[tuple[int, str, str]] = field(default_factory=list)
    peaks: float = 0.0

    def add(self, number: int, kind: str, message: str, peaks: float = 0.0) -> None:
        self.counts[kind] += 1
        self.peaks = max(self.peaks, peaks)
        if kind not in GOOD:
            self.faults.append((number, kind, message))


def fuzz_all(
    readers: Sequence[str],
    mutants: int,
    seed: int = 0,
    *,
    keep: Path | None = None,
    seconds: float = SECONDS,
) -> dict[str, Outcomes]:
    """Read mutants of each reader; a process that ends is started again behind its mutant."""
    found = {reader: Outcomes() for reader in readers}
    work = [(reader, 0) for reader in readers]
    while work:
        with tempfile.TemporaryDirectory(prefix="dinoreg-fuzz-") as folder:
            work = _batch(work, mutants, seed, Path(folder), found, keep, seconds)
    return found


def fuzz(reader: str, mutants: int, seed: int = 0, *, seconds: float = SECONDS) -> Outcomes:
    """As `fuzz_all`, for one reader."""
    return fuzz_all([reader], mutants, seed, seconds=seconds)[reader]


class _Ended(Exception):
    """The process ended, or was ended: the kind of fault and a message."""


def _batch(
    work: list[tuple[str, int]],
    mutants: int,
    seed: int,
    folder: Path,
    found: dict[str, Outcomes],
    keep: Path | None,
    seconds: float,
) -> list[tuple[str, int]]:
    """Run one process until it is done or ends; return the work that is left.

    `work` lists readers and the number of the first mutant of each; `found` receives the outcomes.
    """
    jobs = [f"{reader}:{first}" for reader, first in work]
    command = [sys.executable, str(CHILD), str(seed), str(mutants), str(folder), *jobs]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TMPDIR": str(folder)}
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    reader, number = "", -1
    try:
        for told in _lines(child, seconds):
            reader, number = told["reader"], told["mutant"]
            if "kind" in told:
                found[reader].add(number, told["kind"], told["message"], told["peaks"])
    except _Ended as end:
        if not reader:
            raise RuntimeError(f"the process did not start: {end.args[1]}") from end
        found[reader].add(number, *end.args)
        for file in [f for f in (folder / reader).glob("[!f]*.*") if f.is_file()]:
            shutil.copy(file, file.with_name(f"fault-{number}-{file.name}"))
        left = work[[name for name, _ in work].index(reader) + 1 :]
        return [(reader, number + 1), *left] if number + 1 < mutants else left
    finally:
        child.kill()
        child.wait()
        child.stdout.close()
        child.stderr.close()
        _keep_faults(folder, keep)
    return []


def _lines(child: subprocess.Popen, seconds: float) -> Iterator[dict]:
    """Yield what the process tells; raise `_Ended` if it ends early or tells nothing for long."""
    limit, pending = START_SECONDS, b""
    while True:
        if not select.select([child.stdout], [], [], limit)[0]:
            child.kill()
            raise _Ended("time", f"more than {limit:g} s")
        data = os.read(child.stdout.fileno(), 1 << 16)
        if not data:
            if child.wait() == 0:
                return
            message = child.stderr.read().decode("utf-8", "replace")
            raise _Ended(f"ended by {child.returncode}", message[-300:])
        *lines, pending = (pending + data).split(b"\n")
        for line in lines:
            told = json.loads(line)
            # Behind a mutant, a reader may follow whose imports and seed take longer.
            limit = START_SECONDS if "kind" in told else seconds
            yield told


def _keep_faults(folder: Path, keep: Path | None) -> None:
    """Copy the mutants that are faults."""
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        for file in folder.glob("*/fault-*"):
            shutil.copy(file, keep / f"{file.parent.name}-{file.name}")


def main() -> int:
    from readers import READERS

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reader", action="append", choices=sorted(READERS))
    parser.add_argument("--mutants", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for the mutants that are faults")
    options = parser.parse_args()
    faults = 0
    for reader in options.reader or [name for name in READERS if name != "self-test"]:
        outcomes = fuzz_all([reader], options.mutants, options.seed, keep=options.keep)[reader]
        counts = ", ".join(f"{n} {kind}" for kind, n in sorted(outcomes.counts.items()))
        print(f"{reader}: {counts}; memory up to {outcomes.peaks:.2f} times", flush=True)
        for number, kind, message in outcomes.faults[:20]:
            print(f"  {number} {kind}: {message}", flush=True)
        faults += len(outcomes.faults)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    sys.exit(main())
