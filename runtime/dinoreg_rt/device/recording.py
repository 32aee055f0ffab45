"""Sessions of the kernels, in which stages are recorded as CUDA graphs, and turns on the device."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from dinoreg_kernels import Session, sessions

from .choice import Device

#: Sessions that are lent at the moment.
_lent: set[Session] = set()
#: In its attribute `turns`, the turns for which this thread will wait.
_local = threading.local()
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
        _lent.add(session)
        try:
            yield session
        finally:
            _lent.discard(session)
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


class Turns:
    """Lets a limited number of threads work on a device at a time; a turn is a ``with`` block.

    Args:
        most: the limit.
    """

    def __init__(self, most: int) -> None:
        self._most, self._taken = most, 0
        self._free = threading.Condition()

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Note for the block, until it takes a turn, that this thread plans work for one."""
        _local.turns = self
        try:
            yield
        finally:
            _local.turns = None

    def all_taken(self) -> bool:
        """Return whether the next turn begins when another one ends."""
        return self._taken == self._most

    def __enter__(self) -> None:
        with self._free:
            self._free.wait_for(lambda: not self.all_taken())
            self._taken += 1
        _local.turns = None

    def __exit__(self, *_: object) -> None:
        with self._free:
            self._taken -= 1
            self._free.notify()


def idle_bytes() -> int:
    """Return the bytes of the current device that sessions hold for later work.

    If this thread plans work that will begin when another turn ends, the memory in use there is
    included: that of the session that uses least, because any of them may end.
    """
    turns: Turns | None = getattr(_local, "turns", None)
    ending = [0]
    if turns is not None and turns.all_taken():
        ending = [s.total_bytes() - s.idle_bytes() for s in list(_lent)] or ending
    return sum(session.idle_bytes() for session in sessions()) + min(ending)


def total_bytes() -> int:
    """Return the bytes of the current device that sessions have taken."""
    return sum(session.total_bytes() for session in sessions())
