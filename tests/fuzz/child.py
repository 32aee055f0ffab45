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

#: Address space beyond what the process has at the start.
ROOM_BYTES = 4 << 30
#: The memory in use may peak at this many times that of reading the valid file.
PEAKS = 3.0


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def peak_since() -> int:
    """Return the highest memory in use, in KiB, since `forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])


def outcome(reader, path: Path) -> tuple[str, str]:
    """Read a mutant; return what happened and the message."""
    from dinoreg_rt.errors import DinoregError

    try:
        reader.read(path)
        return "accepted", ""
    except DinoregError as error:
        text = str(error)
        named = not reader.names_file or path.name in text
        return "refused" if named else "nameless", text
    except MemoryError as error:
        return "memory", str(error)
    except BaseException as error:  # whatever it is, it is a fault
        return "traceback", f"{type(error).__name__}: {error}"


def read_mutants(name: str, seed: int, numbers: range, folder: Path) -> None:
    """Read the mutants of one reader and tell what becomes of each."""
    import numpy as np
    from readers import READERS

    reader = READERS[name]
    path = folder / reader.file
    reader.seed(path)
    original = path.read_bytes()
    reader.read(path)  # the valid file has to be read; this also imports what the reader needs
    forget_peak()
    reader.read(path)
    honest = peak_since()
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
        forget_peak()
        kind, message = outcome(reader, path)
        peaks = peak_since() / honest
        if peaks > PEAKS:
            kind, message = "memory", f"{peaks:.1f} times the valid file's: {message}"
        if kind not in ("accepted", "refused"):
            shutil.copy(path, folder / f"fault-{number}-{reader.file}")
        tell(reader=name, mutant=number, kind=kind, message=message[:300], peaks=peaks)


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
