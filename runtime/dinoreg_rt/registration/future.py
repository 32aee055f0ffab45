"""Results of registrations that run in the threads of a `Registrar`: one, or many in order."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, wait
from typing import Any, TypeAlias

from ..errors import InputError
from .result import RegistrationResult

#: (fixed, moving), or the arguments of `Registrar.register` by name.
PairLike: TypeAlias = Sequence[Any] | Mapping[str, Any]


class RegistrationFuture(Future[RegistrationResult]):
    """A pending result. `cancel` also ends a registration that is already running.

    It ends at its next report of progress: between stages, slices or iterations of the solver, but
    not within a stage that is recorded on a GPU.
    """

    # The base class cancels only pending futures, so for it a future stays pending while the work
    # runs; `running` says whether it does.
    _started = False

    def __init__(self) -> None:
        super().__init__()
        self._idle = threading.Event()

    def running(self) -> bool:
        """Return whether a thread is working on it."""
        return self._started and not self.done()

    def wait_until_idle(self) -> None:
        """Wait until no thread will use the images and buffers any more, also after `cancel`."""
        self._idle.wait()

    def _run(self, work: Callable[[], RegistrationResult]) -> None:
        self._started = True
        result, error = None, None
        try:
            if not self.cancelled():
                result = work()
        except BaseException as problem:  # raised where the result is requested
            error = problem
        finally:
            self._idle.set()
        if not self.set_running_or_notify_cancel():
            return
        if error is not None:
            self.set_exception(error)
        elif result is not None:
            self.set_result(result)

    def _stop_if_cancelled(self) -> None:
        if self.cancelled():
            raise CancelledError


def in_order(
    submit: Callable[..., RegistrationFuture], pairs: Iterable[PairLike], most: int
) -> Iterator[RegistrationFuture]:
    """Submit pairs, at most `most` at a time, and yield their futures completed and in order.

    Those that are pending when the iteration is left are cancelled.
    """
    pending: deque[RegistrationFuture] = deque()
    try:
        for pair in pairs:
            pending.append(_submitted(submit, pair))
            if len(pending) == most:
                wait([pending[0]])
                yield pending.popleft()
        while pending:
            wait([pending[0]])
            yield pending.popleft()
    finally:
        for future in pending:
            future.cancel()


def _submitted(submit: Callable[..., RegistrationFuture], pair: PairLike) -> RegistrationFuture:
    """Submit a pair; one that cannot be submitted becomes a future with that error."""
    try:
        if isinstance(pair, Mapping):
            return submit(**pair)
        if len(pair) != 2:
            raise InputError(f"a pair has {len(pair)} parts; wanted (fixed, moving)")
        return submit(*pair)
    except Exception as error:  # such as an argument that is missing or unknown
        failed = RegistrationFuture()
        failed.set_exception(error)
        return failed
