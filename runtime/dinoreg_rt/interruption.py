"""Ctrl-C and SIGTERM: as exceptions, so that everything cleans up after itself."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn


class Terminated(SystemExit):
    """SIGTERM, as an exception; every other `SystemExit` is someone's own way out."""


@contextmanager
def deferred_signals() -> Iterator[Callable[[], None]]:
    """Hold SIGINT and SIGTERM back until the yielded function is called.

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
    for number in (int(signal.SIGINT), int(signal.SIGTERM)):
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
def sigterm_as_exception() -> Iterator[None]:
    """Turn SIGTERM into `Terminated` (code 143), so that ``finally`` blocks and `with` clean up.

    Does nothing outside the main thread, or where the program has a SIGTERM handler of its own.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _exit_on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit_on_signal(signum: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(signum, signal.SIG_IGN)  # a second one must not interrupt the cleaning up
    raise Terminated(128 + signum)
