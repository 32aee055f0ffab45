"""Print each kernel's registers, stack, spills and shared memory, and the hot ones' occupancy.

Usage: resources.py PTX LOG...  with the PTX that `nvcc -ptx` makes of backend.cu, and the log of
`nvcc -Xptxas -v` for each architecture, named for example 90.log.
"""

from __future__ import annotations

import re
import sys
from dataclasses import astuple, dataclass
from pathlib import Path

from occupancy import occupancy

# Kernels in the loops of the solver and of the descriptor, and the one that makes an encoder's
# pixels. A spill there costs time at every voxel.
HOT = {
    "AddSmoothnessGradient +",
    "Compose",
    "CutSlices",
    "FeatureChannel",
    "FeatureCosine +",
    "FeatureDifference +",
    "FoldLack",
    "KeepBest",
    "MapField",
    "MindFeatures",
    "ResampleLinear",
    "SampleTokens",
    "ShiftCost",
    "Smooth",
    "WarpIntensity",
    "WarpIntensity +",
    "WarpVectors",
}
# Those of tiled_cost.cuh by the number of shifts along x, those of tiled_mind.cuh by the radius
# along z.
HOT |= {f"ShiftCost tiled {n}" for n in (3, 5, 7, 9)}
HOT |= {f"MindSums tiled {radius}" for radius in (1, 2, 3)}
# Those of tiled_smooth.cuh by where the numbers come from, and by what becomes of them.
HOT |= {f"SmoothColumns {source}" for source in ("FromArrays", "WeightedProducts")}
HOT |= {
    f"SmoothPlanes {sink}"
    for sink in ("AdamStep", "AddCorrelationGradient", "CorrelationFactors", "ToArrays")
}

# `run_op<Op>` is mangled as ..6run_op I N 2dr 4cuda <length><Op> E .., so the op is the first name
# after it that is no namespace. Kernels of another form keep their whole name.
_KERNEL = re.compile(r"run_(?:op|features|smooth_planes)I")
_NAMESPACES = {"dr", "cuda"}
_ENTRY = re.compile(r"Compiling entry function '(?P<name>\w+)' for 'sm_\d+\w*'")
_MEMORY = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_REGISTERS = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")
# The form of __launch_bounds__ in PTX.
_BOUNDS = re.compile(r"\.entry (\w+)\([^)]*\)\s*\.maxntid (\d+), (\d+), (\d+)")


@dataclass(frozen=True)
class Usage:
    """Registers of a kernel on one architecture, and bytes of its other resources."""

    registers: int
    stack: int
    spills: int
    shared: int

    def largest(self, other: Usage) -> Usage:
        """Return the larger of both numbers for each resource."""
        return Usage(*map(max, astuple(self), astuple(other)))

    def __str__(self) -> str:
        extras = [("st", self.stack), ("sp", self.spills), ("sh", self.shared)]
        return " ".join([str(self.registers), *(f"{name}{n}" for name, n in extras if n)])


def _names(mangled: str) -> list[str]:
    """List the names in a mangled name, each of which follows its length."""
    rest, names = re.sub(r"S\d*_", "", mangled), []
    while match := re.search(r"\d+", rest):
        name = rest[match.end() :][: int(match[0])]
        names += [name] if name not in _NAMESPACES else []
        rest = rest[match.end() + len(name) :]
    return names


def op_name(mangled: str) -> str:
    """Find the op in a mangled name: _ZN2dr4cuda6run_opINS0_8FoldLackEEEvT_ -> FoldLack.

    The first of two ops in one launch is followed by " +", a template by its argument.
    """
    if tiled := re.search(r"run_tiledILi(\d+)E", mangled):
        return f"ShiftCost tiled {tiled[1]}"
    if tiled := re.search(r"run_mind_sumsILi(\d+)E", mangled):
        return f"MindSums tiled {tiled[1]}"
    kernel = _KERNEL.search(mangled)
    names = _names(mangled[kernel.end() :]) if kernel else []
    if not kernel or not names:
        return mangled
    if kernel[0] == "run_smooth_planesI":
        return f"SmoothPlanes {names[0]}"
    if names[0] == "Both":
        return f"{names[1]} +"
    return " ".join(names)


def read_log(text: str) -> dict[str, Usage]:
    """Read the usage of every kernel in one log, the largest of those with the same name.

    Several have it if an op is compiled for float and double, or with several second ops.
    """
    usage = {}
    parts = _ENTRY.split(text)
    for mangled, report in zip(parts[1::2], parts[2::2], strict=True):
        memory, registers = _MEMORY.search(report), _REGISTERS.search(report)
        if memory is None or registers is None:
            raise SystemExit(f"no resource report for {mangled}; wanted the output of -Xptxas -v")
        shared = _SHARED.search(report)
        found = Usage(
            registers=int(registers[1]),
            stack=int(memory[1]),
            spills=int(memory[2]) + int(memory[3]),
            shared=int(shared[1]) if shared else 0,
        )
        usage[op_name(mangled)] = found.largest(usage.get(op_name(mangled), found))
    return usage


def read_threads(ptx: str) -> dict[str, int]:
    """Read the launch bound of every kernel, the threads of its largest block.

    All kernels are launched with this number, except `run_op` for ops with fewer than eight rows.
    """
    return {op_name(m[1]): int(m[2]) * int(m[3]) * int(m[4]) for m in _BOUNDS.finditer(ptx)}


def print_occupancy(table: dict[str, dict[str, Usage]], threads: dict[str, int]) -> None:
    """Print the occupancy of the hot kernels, with a column for each architecture."""
    print("occupancy in % of the warps, full blocks; limited by r registers, s shared memory,")
    print("w warps, b blocks")
    print(f"{'':40}{'threads':>8}" + "".join(f"{'sm_' + arch:>12}" for arch in table))
    for name in sorted(HOT & threads.keys()):
        line = f"{name:40}{threads[name]:>8}"
        for arch, usage in table.items():
            used = usage.get(name)
            found = used and occupancy(arch, used.registers, used.shared, threads[name])
            line += f"{found or '-'!s:>12}"
        print(line)


def print_table(table: dict[str, dict[str, Usage]]) -> None:
    """Print the usage of all kernels, with a column for each architecture."""
    print("registers [st: stack, sp: spilled, sh: shared bytes]; * in a hot loop")
    print(f"{'':40}" + "".join(f"{'sm_' + arch:>12}" for arch in table))
    for name in sorted({name for usage in table.values() for name in usage}):
        usages = "".join(f"{usage.get(name, '-')!s:>12}" for usage in table.values())
        print(f"{name + (' *' if name in HOT else ''):40}" + usages)


def main(ptx: str, paths: list[str]) -> int:
    """Print the tables; returns 1 if a hot kernel spills, is missing or has no launch bound."""
    logs = sorted((Path(path) for path in paths), key=lambda path: int(path.stem))
    table = {path.stem: read_log(path.read_text()) for path in logs}
    print_table(table)
    threads = read_threads(Path(ptx).read_text())
    print_occupancy(table, threads)
    faults = [f"{name}: no launch bound" for name in sorted(HOT - threads.keys())]
    for arch, usage in table.items():
        # A renamed op must not escape the check.
        faults += [f"sm_{arch}: no kernel {name}" for name in sorted(HOT - usage.keys())]
        faults += [
            f"sm_{arch}: {name} spills {usage[name].spills} bytes"
            for name in sorted(HOT & usage.keys())
            if usage[name].spills
        ]
    print("\n".join(faults) or "no hot kernel spills")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2:]))
