"""Workers as processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

from ..console.interruption import signals_as_exceptions
from .worker import Outcome, Settings, Task, Worker

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

#: Time for which a worker may remove its unfinished files before it is killed.
_PATIENCE_S = 10.0


class LocalWorkers:
    """Processes that each hold a registrar, for `dinoreg_rt.cohort.schedule.run_tasks`.

    A worker that dies, even by SIGKILL, is replaced when it is next given a task, and workers die
    with the process that started them.
    """

    def __init__(self, settings: Sequence[Settings]) -> None:
        # Not fork: libraries with threads may leave locks in the child that nobody releases.
        self._context = multiprocessing.get_context("spawn")
        self._settings = settings
        self._running: dict[int, tuple[SpawnProcess, Connection]] = {}
        self._busy: set[int] = set()

    @property
    def count(self) -> int:
        """The number of workers."""
        return len(self._settings)

    def send(self, worker: int, task: Task) -> None:
        """Give a task to an idle worker, which is started first if there is none."""
        self._busy.add(worker)
        if worker in self._running:
            try:
                self._running[worker][1].send(task)
                return
            except OSError:  # it died while it was idle
                self._drop(worker)
        self._start(worker)
        with suppress(OSError):  # it died at once; `wait` tells
            self._running[worker][1].send(task)

    def wait(self) -> list[tuple[int, Outcome | None]]:
        """Wait for busy workers; see `Workers`."""
        by_connection = {self._running[worker][1]: worker for worker in self._busy}
        done: list[tuple[int, Outcome | None]] = []
        # A connection to a dead process is at its end, so this returns for it as well.
        for connection in wait(list(by_connection)):
            worker = by_connection[connection]  # type: ignore[index]
            self._busy.discard(worker)
            try:
                done.append((worker, self._running[worker][1].recv()))
            except (EOFError, OSError):
                self._drop(worker)
                done.append((worker, None))
        return done

    def close(self) -> None:
        """End all workers at once."""
        for process, connection in self._running.values():
            connection.close()
            process.terminate()
        for process, _ in self._running.values():
            process.join(_PATIENCE_S)
            if process.is_alive():
                process.kill()
                process.join()
        self._running.clear()
        self._busy.clear()

    def _start(self, worker: int) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_serve, args=(theirs, self._settings[worker]), name=f"cohort-{worker}"
        )
        process.start()
        theirs.close()  # otherwise the end of the process would not be the end of the connection
        self._running[worker] = process, ours

    def _drop(self, worker: int) -> None:
        process, connection = self._running.pop(worker)
        connection.close()
        process.kill()
        process.join()


def _serve(connection: Connection, settings: Settings) -> None:
    """Do tasks until the connection ends: the main function of a worker."""
    # Ctrl-C reaches every process of the terminal, but the parent ends the others in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    worker = Worker(settings)
    with signals_as_exceptions():
        while True:
            try:
                task = connection.recv()
            except EOFError:
                return
            connection.send(worker.work(task))


def _die_with_parent() -> None:
    """End this process when its parent is gone: the next run would do the same pair again."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
