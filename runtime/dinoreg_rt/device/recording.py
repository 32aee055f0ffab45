"""Sessions of the kernels, in which the stages of a registration are recorded as CUDA graphs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from dinoreg_kernels import Session, sessions

from .choice import Device

#: Idle sessions that are kept, one for each stream that is in use at the same time.
_MOST_IDLE = 8


class Sessions:
    """Sessions that are lent to one registration at a time, each for the same stream again.

    Memory that is released on a stream is used again only there.

    Args:
        graphs: number of graphs that each session keeps, one for each stage of each shape; 0 lends
            no sessions, so that nothing is recorded.
    """

    def __init__(self, graphs: int) -> None:
        self._graphs = graphs
        self._idle: list[tuple[tuple[int, int], Session]] = []
        self._lock = threading.Lock()
        self._most_idle = _MOST_IDLE

    @contextmanager
    def borrowed(self, device: Device) -> Iterator[Session | None]:
        """Lend a session for the current stream; None on a CPU."""
        if device.kind == "cpu" or self._graphs == 0:
            yield None
            return
        place = device.index, int(device.xp.cuda.get_current_stream().ptr)
        session = self._taken(place) or Session(self._graphs)
        try:
            yield session
        finally:
            self._put_back(place, session)

    def close(self) -> None:
        """Close the sessions, those that are lent when they come back."""
        self._most_idle = 0
        self._drop()

    def _taken(self, place: tuple[int, int]) -> Session | None:
        with self._lock:
            found = next((entry for entry in self._idle if entry[0] == place), None)
            if found is not None:
                self._idle.remove(found)
        return None if found is None else found[1]

    def _put_back(self, place: tuple[int, int], session: Session) -> None:
        with self._lock:
            self._idle.append((place, session))
        self._drop()

    def _drop(self) -> None:
        """Close the sessions that were used longest ago, if there are too many."""
        with self._lock:
            surplus = max(0, len(self._idle) - self._most_idle)
            dropped, self._idle = self._idle[:surplus], self._idle[surplus:]
        for _, session in dropped:
            session.close()


def idle_bytes() -> int:
    """Return the bytes of the current device that sessions hold for later work."""
    return sum(session.idle_bytes() for session in sessions())


def total_bytes() -> int:
    """Return the bytes of the current device that sessions have taken."""
    return sum(session.total_bytes() for session in sessions())
