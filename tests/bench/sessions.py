"""The gain on a GPU from recording the stages of a known shape as CUDA graphs.

    python tests/bench/sessions.py FIXED MOVING [--runs 20]

Registers a pair with and without recording, in turn, and prints one JSON object: milliseconds for
each way (median and 90th percentile of the whole registration, and medians of its stages), the
milliseconds of the host in recorded stages, and how often they were recorded, updated and lost.
Recording costs the host time for each kernel, during which the device works on an earlier stage.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

import dinoreg_rt
from dinoreg_kernels import Session, sessions
from dinoreg_rt.io import read_volume

#: Milliseconds that the host spent in each recorded stage.
host_ms: defaultdict[str, list[float]] = defaultdict(list)


def timed_run(self: Session, key: Any, work: Any, run: Any = Session.run) -> Any:
    began = time.perf_counter()
    try:
        return run(self, key, work)
    finally:
        host_ms[key[0]].append((time.perf_counter() - began) * 1e3)


def summary(values: list[float]) -> dict[str, float]:
    return {f"p{p}": round(float(np.percentile(values, p)), 3) for p in (50, 90)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("fixed", type=Path)
    parser.add_argument("moving", type=Path)
    parser.add_argument("--runs", type=int, default=20)
    given = parser.parse_args()
    config = dinoreg_rt.RegistrationConfig(device="cuda")
    pair = read_volume(given.fixed), read_volume(given.moving)
    Session.run = timed_run  # type: ignore[method-assign]
    ways = {"as it is": 0, "recorded": 64}
    whole: dict[str, list[float]] = {name: [] for name in ways}
    stages = {name: defaultdict[str, list[float]](list) for name in ways}
    registrars = {n: dinoreg_rt.Registrar(config, graphs=graphs) for n, graphs in ways.items()}
    for run in range(given.runs + 2):
        for name, registrar in registrars.items():
            began = time.perf_counter()
            result = registrar.register(*pair)
            if run < 2:  # kernels are loaded, pools grow, graphs are made
                host_ms.clear()
                continue
            whole[name].append((time.perf_counter() - began) * 1e3)
            for stage, value in result.timings_ms.items():
                stages[name][stage].append(value)
    found = {
        "registration_ms": {name: summary(values) for name, values in whole.items()},
        "stages_ms": {
            name: {stage: summary(values)["p50"] for stage, values in of.items()}
            for name, of in stages.items()
        },
        "host_in_recorded_ms": {stage: summary(values) for stage, values in host_ms.items()},
        "counts": [vars(session.counts()) for session in sessions()],
    }
    print(json.dumps(found, indent=1))
    for registrar in registrars.values():
        registrar.close()


if __name__ == "__main__":
    main()
