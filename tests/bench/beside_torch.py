"""Measure `register` alone and in a process that imported torch or another library first.

Every measurement is a process of its own, in turn; the least of several rounds is printed, with a
hash of the displacement and the warped image, which must not depend on threads or neighbours. Torch
is the one of the extra `oracle`.

    python beside_torch.py [--threads 1 2] [--beside nothing torch] [--library OTHER/libdinoreg.so]
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path

NEIGHBOURS = ("nothing", "torch", "onnxruntime", "SimpleITK")
BRAIN = Path(__file__).parents[1] / "data" / "brain"


def measure(threads: int, library: str, beside: str) -> None:
    """Print wall and CPU seconds of the second of two registrations, and a hash, as JSON."""
    if beside != "nothing":
        neighbour = importlib.import_module(beside)
    if beside == "torch":
        matrix = neighbour.rand(1000, 1000)
        (matrix @ matrix).sum().item()  # starts its threads
    from dinoreg_kernels import _library

    if library:
        _library.library_file = lambda: Path(library)
    import dinoreg_rt
    from dinoreg_rt import io

    images = [io.read_volume(BRAIN / f"{side}_t1.nii.gz") for side in ("fixed", "moving")]
    config = dinoreg_rt.RegistrationConfig(threads=threads, device="cpu")
    for _ in range(2):
        wall, cpu = time.perf_counter(), time.process_time()
        result = dinoreg_rt.register(*images, config=config)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    digest = hashlib.sha256(result.displacement.vectors_mm.tobytes())
    digest.update(result.warped.array.tobytes())
    print(json.dumps([wall, cpu, digest.hexdigest()[:12]]))


def main() -> None:
    """Run all measurements in turn and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--library", nargs="+", default=[""], help="builds to measure in turn")
    parser.add_argument("--beside", nargs="+", choices=NEIGHBOURS, default=NEIGHBOURS[:2])
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        measure(int(args.child[0]), *args.child[1:])
        return
    cases = [(t, lib, n) for t in args.threads for n in args.beside for lib in args.library]
    found: dict[tuple[int, str, str], list[tuple[float, float, str]]] = {c: [] for c in cases}
    for _ in range(args.rounds):
        for threads, library, neighbour in cases:
            command = [sys.executable, __file__, "--child", str(threads), library, neighbour]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[threads, library, neighbour].append(tuple(json.loads(done.stdout)))
    for (threads, library, neighbour), results in found.items():
        wall, cpu = min(r[0] for r in results), min(r[1] for r in results)
        hashes = " ".join(sorted({r[2] for r in results}))
        case = f"{threads} beside {neighbour:11} {library}"
        print(f"{case}: wall {wall:.2f} s, CPU {cpu:.2f} s, {hashes}")


if __name__ == "__main__":
    main()
