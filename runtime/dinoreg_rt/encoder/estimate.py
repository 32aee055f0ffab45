"""Estimate of the encoding time: the slices' operations over the rate measured on this CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points

import psutil

from ..bundle.manifest import Graph
from ..bundle.opened import Bundle
from ..config.parameters import RegistrationConfig
from ..console.progress import duration
from ..device.ceilings import THREAD_VARIABLES
from ..device.choice import Device
from ..device.limits import cache_folder
from .cache import TokenCache
from .encoding import EncodingPlan
from .pair_tokens import token_key

#: Entry points that count an encoder's operations: (model, rows and columns of tokens, layers) ->
#: operations of one slice, or None for an unknown model.
_ENCODER_OPERATIONS = "dinoreg_rt.encoder_operations"
#: Share of the rate of a float32 matrix product that each engine reached with a float32 encoder
#: ("An encoder's slice" in docs/benchmarks.md). No time is predicted for other engines.
_SHARE = {"ort-cpu": 0.77, "openvino": 0.87}
#: Run in a process of its own, because BLAS reads its number of threads when it is loaded.
_PRODUCTS = """
import time, numpy
n = 768
matrix = numpy.random.default_rng(0).random((n, n), numpy.float32)
times = []
for _ in range(7):
    began = time.process_time()
    matrix @ matrix
    times.append(time.process_time() - began)
print(2 * n**3 / min(times))
"""


@dataclass(frozen=True)
class EncodingEstimate:
    """The predicted cost of encoding.

    Attributes:
        slices: number of slices to encode.
        cached: number of slices whose tokens are in the cache.
        operations: multiplications and additions of the slices to encode; None for an unknown
            model.
        operations_per_s: rate of the encoder on this CPU; None where it was not measured.
    """

    slices: int
    cached: int
    operations: float | None
    operations_per_s: float | None

    @property
    def seconds(self) -> float | None:
        """Predicted time of encoding; None where it is unknown."""
        if self.slices == 0:
            return 0.0
        if self.operations is None or self.operations_per_s is None:
            return None
        return self.operations / self.operations_per_s

    def to_dict(self) -> dict[str, float | None]:
        """Return the slices and seconds for JSON."""
        seconds = None if self.seconds is None else round(self.seconds, 1)
        return {"slices": self.slices, "cached_slices": self.cached, "seconds": seconds}

    def __str__(self) -> str:
        """Format as ``about 40 s on this CPU (100 slices of 0.08 TFLOP at 0.2 TFLOP/s)``."""
        cached = f"{self.cached} slices are in the cache" if self.cached else ""
        if self.slices == 0:
            return f"nothing to encode: all {cached}"
        work = f"{self.slices} slices"
        if self.operations is not None:
            work += f" of {self.operations / self.slices / 1e12:.2g} TFLOP"
        if self.seconds is not None and self.operations_per_s is not None:
            rate = f"{self.operations_per_s / 1e12:.2g} TFLOP/s"
            work = f"about {duration(self.seconds)} on this CPU ({work} at {rate})"
        return f"{work}; {cached}" if cached else work


def estimate_encoding(
    plan: EncodingPlan, config: RegistrationConfig, device: Device
) -> EncodingEstimate:
    """Estimate the cost of encoding a plan's slices, except those whose tokens are in the cache.

    On a CPU the rate is derived from a matrix product timed here in a fraction of a second. No time
    is predicted for GPUs or for precisions other than float32.
    """
    slices = cached = 0
    operations: float | None = 0.0
    for graph, count, held in _images(plan, config, device):
        if held:
            cached += count
            continue
        slices += count
        each = slice_operations(plan.bundle, graph)
        operations = None if each is None or operations is None else operations + count * each
    rate = None
    share = _SHARE.get(plan.engine) if plan.bundle.manifest.precision == "fp32" else None
    if slices and operations is not None and share is not None:
        product_rate = _product_rate(device.threads)
        rate = None if product_rate is None else share * product_rate
    return EncodingEstimate(slices, cached, operations, rate)


def slice_operations(bundle: Bundle, graph: Graph) -> float | None:
    """Return the multiplications and additions of one slice; None for an unknown model."""
    for found in entry_points(group=_ENCODER_OPERATIONS):
        manifest, grid = bundle.manifest, bundle.token_grid(graph)
        count: float | None = found.load()(manifest.model, *grid, manifest.layers)
        return count
    return None


def _images(
    plan: EncodingPlan, config: RegistrationConfig, device: Device
) -> Iterator[tuple[Graph, int, bool]]:
    """Yield the graph, number of slices and whether they are cached, per plane and image."""
    cache = TokenCache(cache_folder(), 0) if config.cache else None
    for plane in plan.planes:
        for stack in plane.stacks:
            # Hashing an image is only worth it where the cache may hold its tokens.
            held = (
                cache is not None
                and os.path.isdir(cache.folder)  # Path.is_dir raises for a name too long
                and cache.holds(token_key(plan, plane, stack, device))
            )
            yield plane.graph, len(stack.encoded), held


def _product_rate(threads: int) -> float | None:
    """Return the float32 operations per second of a matrix product, or None if it failed.

    One thread is timed by its CPU time and multiplied by the threads that have a core of their own:
    timing all of them at once would also measure the other programs on the machine.
    """
    environment = os.environ | dict.fromkeys(THREAD_VARIABLES, "1")
    done = subprocess.run(
        [sys.executable, "-c", _PRODUCTS], env=environment, capture_output=True, check=False
    )
    try:
        rate = float(done.stdout)
    except ValueError:
        return None
    return rate * min(threads, psutil.cpu_count(logical=False) or threads)
