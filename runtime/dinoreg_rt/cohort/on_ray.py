"""Workers as actors of Ray, on one machine or many that share a file system."""

from __future__ import annotations

import logging
import os
import secrets
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import DeviceError, ResourceError
from .worker import Outcome, Settings, Task, Worker


class RayWorkers:
    """Actors that each hold a registrar, for `dinoreg_rt.cohort.schedule.run_tasks`.

    Args:
        address: ``local`` starts Ray on this machine alone; otherwise the address of a running
            cluster, or ``auto`` for the one that this machine belongs to.
        settings: one for each worker.
        folder: folder for Ray's own files, with ``local`` (default: Ray's choice).

    Raises:
        DeviceError: Ray is not installed, or there is no cluster at the address.
        ResourceError: the cluster has too few CPUs or GPUs for a worker.
    """

    def __init__(self, address: str, settings: Sequence[Settings], folder: str | None) -> None:
        self._ray = _connected(address, folder, sum(one.threads for one in settings))
        # Ray shows an actor its own GPU alone, which is then the first.
        self._settings = [replace(one, device=one.device.partition(":")[0]) for one in settings]
        self._actors: dict[int, Any] = {}
        self._busy: dict[Any, int] = {}
        # Ray would wait for ever for an actor that no machine of the cluster can hold.
        self._check_room(settings[0])

    @property
    def count(self) -> int:
        """The number of workers."""
        return len(self._settings)

    def send(self, worker: int, task: Task) -> None:
        """Give a task to an idle worker, which is started first if there is none."""
        if worker not in self._actors:
            self._actors[worker] = self._start(self._settings[worker])
        self._busy[self._actors[worker].work.remote(task)] = worker

    def wait(self) -> list[tuple[int, Outcome | None]]:
        """Wait for busy workers; see `Workers`."""
        ready, _ = self._ray.wait(list(self._busy), num_returns=1)
        done: list[tuple[int, Outcome | None]] = []
        for reference in ready:
            worker = self._busy.pop(reference)
            try:
                done.append((worker, self._ray.get(reference)))
            except self._ray.exceptions.RayError:  # the actor, its machine or the way to it is gone
                self._actors.pop(worker, None)
                done.append((worker, None))
        return done

    def close(self) -> None:
        """End all workers at once, and Ray itself if it was started here."""
        self._busy.clear()
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._actors.clear()
        self._ray.shutdown()

    def _start(self, settings: Settings) -> Any:
        return self._actor(settings).remote(settings, str(Path.cwd()))

    def _actor(self, settings: Settings) -> Any:
        on_gpu = settings.device != "cpu"
        return self._ray.remote(
            num_cpus=settings.threads, num_gpus=int(on_gpu), max_restarts=0, max_task_retries=0
        )(_Actor)

    def _check_room(self, settings: Settings) -> None:
        wanted = {"CPU": settings.threads, "GPU": int(settings.device != "cpu")}
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if not any(all(node.get(k, 0) >= n for k, n in wanted.items()) for node in nodes):
            self._ray.shutdown()
            raise ResourceError(
                f"no machine of the cluster has {wanted['CPU']} CPUs"
                f"{' and a GPU' if wanted['GPU'] else ''} for a worker; give fewer --threads, or "
                "another --device"
            )


class _Actor:
    """A `Worker` in a process of Ray, in the working folder of the command."""

    def __init__(self, settings: Settings, folder: str) -> None:
        os.chdir(folder)
        self._worker = Worker(settings)

    def work(self, task: Task) -> Outcome:
        """Do one task."""
        return self._worker.work(task)


def _connected(address: str, folder: str | None, cpus: int) -> Any:
    # No statistics about the use, which Ray would also note in the home folder.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == "local" and not any(name.startswith("RAY_AUTH") for name in os.environ):
        # Processes of this machine alone may join, by a token that is not left in the home folder.
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    try:
        import ray
    except ImportError as error:
        raise DeviceError(
            f"--ray {address}: Ray is not installed; pip install 'dinoreg-rt[ray]'"
        ) from error
    # What this process can import, its workers can import as well.
    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}}
    more: dict[str, Any] = {"address": address}
    if address == "local":
        more |= {"num_cpus": cpus, "include_dashboard": False, "_temp_dir": folder}
    try:
        ray.init(runtime_env=environment, log_to_driver=False, logging_level=logging.ERROR, **more)
    except (ConnectionError, OSError, ValueError, RuntimeError) as error:
        raise DeviceError(f"--ray {address}: {str(error)[:300]}; check the address") from error
    return ray
