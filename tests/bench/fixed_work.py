"""What it saves that a registrar keeps the work on its fixed image.

    python tests/bench/fixed_work.py FIXED MOVING [--rounds 3]

Prints the least CPU seconds of one registration, without and with that work in memory, in turns on
one thread. Reading and writing are not part of it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import dinoreg_rt
from dinoreg_rt.io import read_volume


def cpu_s(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("fixed", type=Path)
    parser.add_argument("moving", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    config = dinoreg_rt.RegistrationConfig(device="cpu", threads=1)
    pair = read_volume(given.fixed), read_volume(given.moving)
    with dinoreg_rt.Registrar(config) as registrar:
        registrar.register(*pair)
        ways = {
            "without": lambda: dinoreg_rt.register(*pair, config=config),
            "with": lambda: registrar.register(*pair),
        }
        times = {name: [cpu_s(work) for _ in range(1)] for name, work in ways.items()}
        for _ in range(given.rounds - 1):
            for name, work in ways.items():
                times[name].append(cpu_s(work))
    least = {name: min(values) for name, values in times.items()}
    saved = 100 * (1 - least["with"] / least["without"])
    print(f"without {least['without']:.3f} s, with {least['with']:.3f} s: {saved:.1f} % saved")


if __name__ == "__main__":
    main()
