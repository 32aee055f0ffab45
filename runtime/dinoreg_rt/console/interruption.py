"""Ctrl-C, SIGTERM and SIGHUP: as exceptions, so that everything cleans up after itself."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

#: What ends a program that does not say otherwise: asked to, or its terminal was closed.
STOPPING = (signal.SIGTERM, signal.SIGHUP)


class Terminated(SystemExit):
    """One of `STOPPING`, as an exception; every other `SystemExit` is someone's own way out."""

    code: int


@contextmanager
def deferred_signals() -> Iterator[Callable[[], None]]:
    """Hold SIGINT, SIGTERM and SIGHUP back until the yielded function is called.

    CPython runs signal handlers as it enters a function, before any ``try`` in it. In a callback
    from C an exception raised there is printed and lost, and the call goes on. So the handlers
    only take a note here, and the callback asks for them to be run. What is still noted when the
    block ends is delivered then. Does nothing outside the main thread.
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
    """Turn SIGTERM and SIGHUP into `Terminated`, so that ``finally`` blocks and `with` clean up.

    Its code is 143 or 129. Does nothing outside the main thread, and leaves a signal alone that
    the program ignores (``nohup``) or has a handler of its own for.
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
    for number in STOPPING:  # a second one must not interrupt the cleaning up
        if signal.getsignal(number) is _exit_on_signal:
            signal.signal(number, signal.SIG_IGN)
    raise Terminated(128 + signum)
