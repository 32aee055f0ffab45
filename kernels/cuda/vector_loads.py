"""Check that ops which gather channels of half precision load and store 16 bytes at once.

Usage: vector_loads.py PTX  with the PTX that `nvcc -ptx` makes of backend.cu. It decides whether a
load is a vector: ptxas turns one ld.global.v4 into one LDG.E.128.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from resources import op_name

# Ops that read features, and those that write them.
LOADS = {
    "FeatureCosine +",
    "FeatureDifference",
    "FeatureDifference +",
    "FeatureSquare",
    "PoolFeatures",
    "PoolPlanar",
    "Rearrange",
    "WarpPlanar",
}
STORES = {"PoolFeatures", "Rearrange"}

_KERNEL = re.compile(r"\.entry (\w+)\(")


def faults(ptx: str) -> list[str]:
    """List the ops that are missing or that move one channel at a time."""
    parts = _KERNEL.split(ptx)
    bodies = {op_name(name): body for name, body in zip(parts[1::2], parts[2::2], strict=True)}
    found = [f"no kernel {name}" for name in sorted((LOADS | STORES) - bodies.keys())]
    for access, names in (("ld", LOADS), ("st", STORES)):
        for name in sorted(names & bodies.keys()):
            body = bodies[name]
            if not re.search(rf"\b{access}\.global\S*\.v4", body):
                found.append(f"{name}: no {access}.global.v4")
            if re.search(rf"\b{access}\.global\S*\.[bsu]16", body):
                found.append(f"{name}: {access}.global of single channels")
    return found


if __name__ == "__main__":
    errors = faults(Path(sys.argv[1]).read_text())
    print("\n".join(errors) or "features are loaded and stored by 16 bytes")
    sys.exit(bool(errors))
