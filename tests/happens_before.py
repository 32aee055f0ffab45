"""Races between CUDA streams, found by vector clocks while a stand-in runs everything at once.

Work on a stream is ordered after earlier work on it, after the events that the stream waited for,
and after all that the host had waited for when it was queued. Two uses of a buffer of which one
writes, with neither ordered after the other, are a race. All threads of the host share one clock,
and streams do not wait for the default stream, as non-blocking ones do not.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Iterable

#: How much of each stream's work has been done, by the stream's handle.
Clock = dict[int, int]


def _join(clock: Clock, other: Clock) -> None:
    for stream, tick in other.items():
        clock[stream] = max(tick, clock.get(stream, 0))


class HappensBefore:
    """The order of all work so far, and the races found in it.

    Attributes:
        races: one line for each pair of uses without an order, such as
            ``read on 0x0, written on 0x70``.
    """

    def __init__(self) -> None:
        self.races: list[str] = []
        self._clocks: defaultdict[int, Clock] = defaultdict(dict)
        self._host: Clock = {}
        self._writes: dict[int, Clock] = {}
        self._reads: dict[int, Clock] = {}
        self._lock = threading.RLock()
        self._copies: list[tuple[int, int, Callable[[], None]]] = []

    def use(self, stream: int, reads: Iterable[int] = (), writes: Iterable[int] = ()) -> None:
        """Queue work that reads and writes buffers, each named by a number."""
        with self._lock:
            clock = self._clocks[stream]
            _join(clock, self._host)
            clock[stream] = clock.get(stream, 0) + 1
            for buffer in reads:
                self._check(clock, self._writes.get(buffer, {}), f"read on {stream:#x}, written")
                self._reads.setdefault(buffer, {})[stream] = clock[stream]
            for buffer in writes:
                text = f"written on {stream:#x}, "
                self._check(clock, self._writes.get(buffer, {}), f"{text}written")
                self._check(clock, self._reads.pop(buffer, {}), f"{text}read")
                self._writes[buffer] = {stream: clock[stream]}

    def record(self, stream: int) -> Clock:
        """Return what an event knows that is recorded on a stream."""
        with self._lock:
            return dict(self._clocks[stream])

    def wait(self, stream: int, event: Clock) -> None:
        """Let later work on a stream wait for an event."""
        with self._lock:
            _join(self._clocks[stream], event)

    def wait_on_host(self, event: Clock) -> None:
        """Let the host, and so all later work, wait for an event."""
        with self._lock:
            _join(self._host, event)
            ended = [c for c in self._copies if self._host.get(c[0], 0) >= c[1]]
            self._copies = [c for c in self._copies if c not in ended]
        for _, _, copy in ended:
            copy()

    def copy_to_host(self, stream: int, copy: Callable[[], None]) -> None:
        """Queue a copy to the host, which is made once the host has waited for it."""
        with self._lock:
            self._copies.append((stream, self._clocks[stream][stream], copy))

    def passed(self, event: Clock) -> bool:
        """Return whether the host has waited for all that precedes an event."""
        with self._lock:
            return all(self._host.get(stream, 0) >= tick for stream, tick in event.items())

    def free(self, buffer: int, stream: int) -> None:
        """Return a buffer to the pool of the stream on which it was allocated.

        The pool hands it out again for work on that stream, which uses on others must precede.
        """
        with self._lock:
            clock = self._clocks[stream]
            _join(clock, self._host)
            text = f"freed on {stream:#x}, "
            self._check(clock, self._writes.pop(buffer, {}), f"{text}written")
            self._check(clock, self._reads.pop(buffer, {}), f"{text}read")

    def _check(self, clock: Clock, before: Clock, text: str) -> None:
        for stream, tick in before.items():
            if clock.get(stream, 0) < tick:
                self.races.append(f"{text} on {stream:#x}")
