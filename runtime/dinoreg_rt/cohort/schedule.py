"""Give tasks to workers, and try those that fail again."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from ..errors import ConfigError, InputError, RegistrationError, ResourceError
from .worker import Outcome, Task

#: Failures that would come again: the same files, parameters and images fail in the same way.
_FINAL = (InputError.exit_code, ConfigError.exit_code, RegistrationError.exit_code)
_KILLED = "the process that registered it was killed, most often for lack of memory"


class Workers(Protocol):
    """Some workers, in processes of this machine or elsewhere; each has a number from 0 on."""

    @property
    def count(self) -> int:
        """The number of workers."""

    def send(self, worker: int, task: Task) -> None:
        """Give a task to an idle worker, which is started again first if it has died."""

    def wait(self) -> list[tuple[int, Outcome | None]]:
        """Wait for busy workers; return those that are done, with None for one that has died."""

    def close(self) -> None:
        """End all workers at once; unfinished tasks are abandoned."""


@dataclass(frozen=True)
class Attempt:
    """One try of a task.

    Attributes:
        task: the task.
        outcome: what became of it.
        tries: the number of tries so far.
        final: whether it succeeded, or is not tried again.
    """

    task: Task
    outcome: Outcome
    tries: int
    final: bool


class _Queue:
    """Waiting tasks, in groups of those that share a fixed image."""

    def __init__(self, tasks: Sequence[Task]) -> None:
        self._groups: dict[object, deque[Task]] = {}
        self._group_of: dict[int, object] = {}
        for task in tasks:
            self.put(task)

    def put(self, task: Task) -> None:
        """Add a task at the end of its group."""
        self._groups.setdefault(task.job.shared(), deque()).append(task)

    def next_for(self, worker: int) -> Task | None:
        """Return a task of the worker's group, of one without a worker, or of the longest one."""
        own = self._group_of.get(worker)
        if own not in self._groups:
            taken = {group for other, group in self._group_of.items() if other != worker}
            free = [group for group in self._groups if group not in taken]
            longest = sorted(self._groups, key=lambda group: -len(self._groups[group]))
            own = next(iter([*free, *longest]), None)
            if own is None:
                return None
            self._group_of[worker] = own
        task = self._groups[own].popleft()
        if not self._groups[own]:
            del self._groups[own]
        return task


def run_tasks(tasks: Sequence[Task], workers: Workers, retries: int) -> Iterator[Attempt]:
    """Do all tasks, trying each that fails again up to `retries` times; yield every attempt.

    A failure by the inputs, the parameters or the images themselves is final at once. The workers
    are closed at the end, also if the caller stops early.
    """
    queue, tries = _Queue(tasks), Counter[str]()
    busy: dict[int, Task] = {}
    try:
        while True:
            for worker in range(workers.count):
                if worker not in busy and (task := queue.next_for(worker)) is not None:
                    busy[worker] = task
                    workers.send(worker, task)
            if not busy:
                return
            for worker, found in workers.wait():
                task = busy.pop(worker)
                outcome = found or Outcome(_KILLED, ResourceError.exit_code)
                tries[task.job.name] += 1
                count = tries[task.job.name]
                final = not outcome.error or outcome.exit_code in _FINAL or count > retries
                if not final:
                    # What was registered before its scoring failed is only scored again.
                    again = task.register and not outcome.registered
                    queue.put(replace(task, register=again))
                yield Attempt(task, outcome, count, final)
    finally:
        workers.close()
