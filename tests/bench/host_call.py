"""What a warm C call of `libdinoreg_host` costs beyond `Registrar.register`.

    python tests/bench/host_call.py [--rounds 3]

A C++ program and a Python program, each a process of its own, register the same voxels in turns, on
one thread. Both get memory for the displacement and the warped image. Printed are the least CPU and
wall milliseconds of a call after the second one; and those of what the C call does besides, on its
Python side, measured with a registrar that returns at once.
"""

from __future__ import annotations

import argparse
import ctypes
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import dinoreg_rt
from dinoreg_rt.device.placement import Placement
from dinoreg_rt.embedded import bridge, structs
from dinoreg_rt.images.phantom import phantom_grid, phantom_pair
from dinoreg_rt.io import read_volume

TESTS = Path(__file__).parents[1]
sys.path.insert(0, str(TESTS))
from host_programs import compiled, run, write_pair  # noqa: E402

OPTIONS = "threads = 1"


def small_pair() -> list[dinoreg_rt.Volume]:
    """Return the synthetic pair of 48 x 48 x 48 voxels that `Registrar.warm_up` uses."""
    return list(phantom_pair(phantom_grid((48, 48, 48), 4.0), None))


def real_pair(fixed: str, moving: str) -> list[dinoreg_rt.Volume]:
    """Return a pair that comes with the project."""
    return [read_volume(TESTS / "data" / f"{name}.nii.gz") for name in (fixed, moving)]


def in_python(folder: Path, count: int) -> None:
    """Print what `times` of the driver prints, for `Registrar.register`."""
    pair = []
    for name, dtype in (("fixed", np.float32), ("moving", np.int16)):
        numbers = (folder / f"{name}.txt").read_text().split()
        x, y, z = (int(n) for n in numbers[:3])
        places = np.array(numbers[3:], float)
        grid = dinoreg_rt.Geometry(
            (z, y, x), tuple(places[:3]), tuple(places[3:6]), places[6:].reshape(3, 3)
        )
        pair.append((np.fromfile(folder / f"{name}.raw", dtype).reshape(z, y, x), grid))
    shape = pair[0][0].shape
    placement = Placement(
        displacement=np.empty((*shape, 3), np.float32), warped=np.empty(shape, np.float32)
    )
    taken = []
    with dinoreg_rt.Registrar(dinoreg_rt.RegistrationConfig(threads=1)) as registrar:
        for _ in range(count + 2):
            wall, cpu = time.perf_counter(), time.process_time()
            registrar.register(*pair, placement=placement)
            taken.append((time.process_time() - cpu, time.perf_counter() - wall))
    print(*(1e3 * min(values) for values in zip(*taken[2:], strict=True)))


class Ready:
    """A registrar that has its result already."""

    def __init__(self, result: dinoreg_rt.RegistrationResult) -> None:
        self.result = result

    def register(self, **_: Any) -> dinoreg_rt.RegistrationResult:
        return self.result


def besides(pair: list[dinoreg_rt.Volume], count: int = 20) -> list[float]:
    """Return the least CPU and wall milliseconds of the bridge alone."""
    config = dinoreg_rt.RegistrationConfig(threads=1)
    registrar = Ready(dinoreg_rt.register(*pair, config=config))
    arguments, result = structs.Arguments(), structs.Result()
    displacement = np.empty((*pair[0].array.shape, 3), np.float32)
    warped = np.empty(pair[0].array.shape, np.float32)
    kept = []
    for name, volume in zip(("fixed", "moving"), pair, strict=True):
        array = np.ascontiguousarray(volume.array, np.float32)
        struct = structs.VolumeStruct(
            voxels=array.ctypes.data,
            size=volume.geometry.shape_xyz,
            spacing=tuple(volume.geometry.spacing_mm),
            origin=tuple(volume.geometry.origin_mm),
            direction=tuple(volume.geometry.direction.ravel()),
        )
        kept.append((array, struct))
        setattr(arguments, name, ctypes.pointer(struct))
    arguments.displacement, arguments.warped = displacement.ctypes.data, warped.ctypes.data
    taken = []
    for _ in range(count):
        wall, cpu = time.perf_counter(), time.process_time()
        reply = bridge.run(registrar, ctypes.addressof(arguments), ctypes.addressof(result))
        taken.append((time.process_time() - cpu, time.perf_counter() - wall))
        assert reply[0] == 0, reply[1]
    return [1e3 * min(values) for values in zip(*taken, strict=True)]


def main() -> None:
    """Run both programs in turns and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        in_python(Path(given.child[0]), int(given.child[1]))
        return
    pairs = {
        "small": (small_pair(), 30),
        "abdomen": (real_pair("abdomen/mr", "abdomen/ct"), 6),
        "brain": (real_pair("brain/fixed_t1", "brain/moving_t1"), 3),
    }
    with tempfile.TemporaryDirectory() as work:
        driver = compiled("driver.cpp", Path(work))
        for name, (pair, count) in pairs.items():
            folder = Path(work, name)
            folder.mkdir()
            write_pair(folder, *((volume.array, volume.geometry) for volume in pair))
            child = [sys.executable, __file__, "--child", str(folder), str(count)]
            found: dict[str, list[list[float]]] = {"C": [], "Python": []}
            for _ in range(given.rounds):
                in_c = run(driver, "times", str(folder), OPTIONS, str(count))
                found["C"].append([float(n) for n in in_c.split()])
                done = subprocess.run(child, check=True, stdout=subprocess.PIPE, text=True)
                found["Python"].append([float(n) for n in done.stdout.split()])
            for way, rounds in found.items():
                cpu, wall = (min(values) for values in zip(*rounds, strict=True))
                print(f"{name:8} {way:7} CPU {cpu:8.1f} ms, wall {wall:8.1f} ms", flush=True)
            cpu, wall = besides(pair)
            print(f"{name:8} besides CPU {cpu:8.2f} ms, wall {wall:8.2f} ms", flush=True)


if __name__ == "__main__":
    main()
