"""How many workers a machine can hold: one for each GPU, or as many as CPUs and memory allow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config.parameters import RegistrationConfig
from ..console.progress import QuietReporter
from ..device.limits import memory_bytes, usable_cpus
from ..errors import DinoregError
from ..io import read_geometry
from ..registration.demands import check_demands
from ..run.job import plan_run
from .jobs import Job
from .worker import Settings

#: Resident size of a worker besides images and arrays. Measured: 180 MiB before the first pair
#: (Python, NumPy, SimpleITK), up to 370 MiB after ten small pairs with their pictures.
_PROCESS_BYTES = 400 << 20
#: Share of the free memory that workers may fill, so that other programs and files find room.
_SHARE = 0.8


@dataclass(frozen=True)
class Crew:
    """The workers of a cohort.

    Attributes:
        settings: one for each worker.
        reason: why there are that many.
    """

    settings: tuple[Settings, ...]
    reason: str


def crew(config: RegistrationConfig, jobs: Sequence[Job], wanted: int | None) -> Crew:
    """Choose the workers for some pairs on this machine.

    Args:
        config: the parameters that all pairs share.
        jobs: the pairs to register.
        wanted: number of workers; None: as many as make sense.

    Raises:
        DinoregError: this machine cannot run the configuration.
    """
    device = check_demands(config)
    cpus = usable_cpus()[0]
    if device.kind == "cuda":
        gpus = _gpus(config.device)
        count = min(wanted or len(gpus), max(1, len(jobs)))
        devices = [gpus[number % len(gpus)] for number in range(count)]
        reason = "as asked" if wanted else "one for each GPU"
    else:
        count, reason = _on_cpu(config, jobs, wanted, cpus)
        devices = ["cpu"] * count
    threads = config.threads or max(1, cpus // count)
    settings = tuple(Settings(config, device, threads) for device in devices)
    return Crew(settings, f"{count} with {threads} threads each, {reason}")


def _gpus(wanted: str) -> list[str]:
    """Return the GPUs to use; a number in the parameter chooses one."""
    if ":" in wanted:
        return [wanted]
    from dinoreg_kernels import cuda_devices

    return [f"cuda:{number}" for number in range(max(1, cuda_devices().count))]


def _on_cpu(
    config: RegistrationConfig, jobs: Sequence[Job], wanted: int | None, cpus: int
) -> tuple[int, str]:
    if wanted:
        return min(wanted, max(1, len(jobs))), "as asked"
    most = max(1, min(cpus // (config.threads or 1), len(jobs)))
    if most == 1:
        return 1, "limited by the number of CPUs or pairs"
    need, free = _largest_need(jobs), int(_SHARE * memory_bytes()[1])
    fitting = max(1, free // need)
    about = f"a worker takes about {need / 2**20:.0f} MiB of {free / 2**20:.0f} MiB"
    why = "one for each CPU" if most <= fitting else "limited by memory"
    return min(most, fitting), f"{why}: {about}"


def _largest_need(jobs: Sequence[Job]) -> int:
    """Predict the memory of a worker for the largest pair that can be planned."""
    sizes = {job.name: _voxels(job) for job in jobs}
    for job in sorted(jobs, key=lambda job: -sizes[job.name])[:3]:
        try:
            plan = plan_run(job.request, QuietReporter())
        except DinoregError:
            continue  # it fails where it is registered, with its message
        images = sum(int(image.volume.array.nbytes) for image in plan.pair)
        # The fixed image and its features stay from one pair to the next.
        return _PROCESS_BYTES + plan.memory_bytes + 2 * images
    return _PROCESS_BYTES + 8 * 4 * max(sizes.values(), default=0)


def _voxels(job: Job) -> int:
    def of(path: Path) -> int:
        try:
            return math.prod(read_geometry(path).shape_zyx)
        except (DinoregError, OSError):
            return 0

    return of(job.request.fixed) + of(job.request.moving)
