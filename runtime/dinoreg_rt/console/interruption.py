"""Ctrl-C, SIGTERM and SIGHUP as exceptions, so that everything cleans up after itself."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

#: Signals that by default end a program: a request to stop, and the closing of its terminal.
STOPPING = (signal.SIGTERM, signal.SIGHUP)


class Terminated(SystemExit):
    """One of `STOPPING` as an exception, unlike any other `SystemExit`."""

    code: int


@contextmanager
def deferred_signals() -> Iterator[Callable[[], None]]:
    """Hold back SIGINT, SIGTERM and SIGHUP until the yielded function is called.

    CPython may run a signal handler as it enters a function, before any ``try`` in it. If that
    function is a callback from C, the handler's exception is printed and lost, and the C function
    continues. Within this block signals are therefore only noted, and the callback delivers them
    where an exception can be caught. The rest are delivered when the block ends. Does nothing
    outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    noted: list[tuple[int, FrameType | None]] = []
    handlers: dict[int, Callable[[int, FrameType | None], Any]] = {}
    for number in map(int, (signal.SIGINT, *STOPPING)):
        handler = signal.getsignal(number)
        if callable(handler):
            handlers[number] = handler

    def deliver() -> None:
        while noted:
            number, frame = noted.pop(0)
            handlers[number](number, frame)

    for number in handlers:
        signal.signal(number, lambda number, frame: noted.append((number, frame)))
    try:
        yield deliver
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    deliver()


@contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into `Terminated`, so that ``finally`` and ``with`` clean up.

    The exit code is 143 or 129. Does nothing outside the main thread, and nothing to a signal that
    the program ignores (``nohup``) or handles itself.
    """
    mine = []
    if threading.current_thread() is threading.main_thread():
        mine = [number for number in STOPPING if signal.getsignal(number) is signal.SIG_DFL]
    for number in mine:
        signal.signal(number, _exit_on_signal)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, signal.SIG_DFL)


def _exit_on_signal(signum: int, _frame: FrameType | None) -> NoReturn:
    for number in STOPPING:  # a second signal must not interrupt the clean-up
        if signal.getsignal(number) is _exit_on_signal:
            signal.signal(number, signal.SIG_IGN)
    raise Terminated(128 + signum)
