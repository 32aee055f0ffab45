"""Reads mutants one by one under limits of memory, and says on stdout what becomes of each.

Usage: child.py SEED MUTANTS FOLDER READER:FIRST...

Mutant N is made from the seed, the reader and N. It lies in FOLDER/READER while it is read, so that
one that ends the process can be examined.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import zlib
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

#: Address space beyond what the process has at the start, and growth of the memory in use that a
#: file of a few kB does not need.
ROOM_BYTES, GROWTH_KIB = 4 << 30, 400 << 10


def outcome(reader, path: Path) -> tuple[str, str]:
    """Read a mutant; return what happened and the message."""
    from dinoreg_rt.errors import DinoregError

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        reader.read(path)
        result = ("accepted", "")
    except DinoregError as error:
        text = str(error)
        named = not reader.names_file or path.name in text
        result = ("refused" if named else "nameless", text)
    except MemoryError as error:
        result = ("memory", str(error))
    except BaseException as error:  # whatever it is, it is a fault
        result = ("traceback", f"{type(error).__name__}: {error}")
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return ("memory", f"{growth} KiB: {result[1]}") if growth > GROWTH_KIB else result


def read_mutants(name: str, seed: int, numbers: range, folder: Path) -> None:
    """Read the mutants of one reader and tell what becomes of each."""
    import numpy as np
    from readers import READERS

    reader = READERS[name]
    path = folder / reader.file
    reader.seed(path)
    original = path.read_bytes()
    reader.read(path)  # the valid file has to be read; this also imports what the reader needs
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM_BYTES, hard))
    for number in numbers:
        tell(reader=name, mutant=number)
        rng = np.random.default_rng([seed, zlib.crc32(name.encode()), number])
        content = str(number).encode()
        if reader.mutations:
            change = reader.mutations[int(rng.integers(len(reader.mutations)))]
            content = change(original, rng)
        path.write_bytes(content)
        kind, message = outcome(reader, path)
        if kind not in ("accepted", "refused"):
            shutil.copy(path, folder / f"fault-{number}-{reader.file}")
        tell(reader=name, mutant=number, kind=kind, message=message[:300])


def tell(**what: object) -> None:
    print(json.dumps(what), flush=True)


def main() -> None:
    seed, mutants, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    for job in sys.argv[4:]:
        name, _, first = job.partition(":")
        (folder / name).mkdir()
        read_mutants(name, seed, range(int(first), mutants), folder / name)


if __name__ == "__main__":
    main()
