"""Tokens of fixed images that stay on their GPU for further moving images."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

from ..device.choice import Device
from ..types import Array

#: The most images whose tokens are kept, and the share of a GPU's memory that they may take.
_MOST_IMAGES, _SHARE = 4, 1 / 8


class KeptTokens:
    """The tokens of the fixed images that were registered to last, by their names in the cache.

    The names hold the hash of the image's voxels and all that the tokens depend on, so a changed
    image is never mistaken for an earlier one. Only images on the host are kept: hashing one on a
    GPU would download it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Tokens, with the event after which they are complete.
        self._kept: OrderedDict[tuple[str, str], tuple[Array, Any]] = OrderedDict()

    def find(self, key: str, device: Device) -> Array | None:
        """Return the tokens of a name on a device; later work on the current stream waits."""
        name = (device.name, key)
        with self._lock:
            if name not in self._kept:
                return None
            self._kept.move_to_end(name)
            tokens, filled = self._kept[name]
        device.xp.cuda.get_current_stream().wait_event(filled)
        return tokens

    def keep(self, key: str, tokens: Array, device: Device, budget_bytes: int | None) -> None:
        """Keep finite tokens of the current stream; the least recently used ones are dropped.

        Args:
            key: their name in the cache.
            tokens: (n, rows, columns, C) on `device`.
            device: a CUDA device.
            budget_bytes: limit on the device's memory; None: all of it.
        """
        with device.xp.cuda.Device(device.index) as place:
            total = int(place.mem_info[1])
        most = int(min(total, budget_bytes or total) * _SHARE)
        if tokens.nbytes > most:
            return
        filled = device.xp.cuda.Event(disable_timing=True)
        filled.record()
        with self._lock:
            self._kept[device.name, key] = tokens, filled
            self._kept.move_to_end((device.name, key))
            while len(self._kept) > _MOST_IMAGES or self._held() > most:
                self._kept.popitem(last=False)

    def clear(self) -> bool:
        """Drop all tokens; return whether there were any."""
        with self._lock:
            held = bool(self._kept)
            self._kept.clear()
        return held

    def _held(self) -> int:
        return sum(tokens.nbytes for tokens, _ in self._kept.values())
