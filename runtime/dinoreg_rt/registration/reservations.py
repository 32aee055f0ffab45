"""GPU memory of the registrations that run at the same time in this process.

Each registration is planned as if it ran alone, so that its result does not depend on the others,
and begins when those that run leave the memory that was predicted for it.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ..device.choice import Device


@dataclass(frozen=True)
class Claim:
    """The memory that one registration needs.

    Attributes:
        bytes: bytes at its peak, without the encoder's engine.
        engine: what registrations with the same engine have in common; None without one.
        engine_bytes: bytes of the engine, which they share.
    """

    bytes: int
    engine: Hashable = None
    engine_bytes: int = 0


class Reservations:
    """The claims of running registrations, by the index of their device."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running: defaultdict[int, list[Claim]] = defaultdict(list)
        self._capacity: dict[int, int] = {}

    def capacity(self, device: Device, measure: Callable[[], int]) -> int:
        """Return the bytes that all registrations together may use: as measured when none ran."""
        with self._changed:
            if not self._running[device.index] or device.index not in self._capacity:
                self._capacity[device.index] = measure()
            return self._capacity[device.index]

    @contextmanager
    def claimed(self, device: Device, claim: Claim, waiting: Callable[[], None]) -> Iterator[None]:
        """Hold a claim during the block, which begins once there is room or nothing else runs.

        Args:
            device: a CUDA device.
            claim: the memory.
            waiting: called several times a second while there is no room; may raise to give up.
        """
        while not self._taken(device.index, claim):
            waiting()
        try:
            yield
        finally:
            with self._changed:
                self._running[device.index].remove(claim)
                self._changed.notify_all()

    def _taken(self, index: int, claim: Claim) -> bool:
        """Take a claim; False, after a short wait, if there is no room for it."""
        with self._changed:
            running = self._running[index]
            if running and _together([*running, claim]) > self._capacity.get(index, 0):
                self._changed.wait(0.05)
                return False
            running.append(claim)
            return True


def _together(claims: list[Claim]) -> int:
    engines = {claim.engine: claim.engine_bytes for claim in claims}
    return sum(claim.bytes for claim in claims) + sum(engines.values())


#: The reservations of this process.
RESERVATIONS = Reservations()
