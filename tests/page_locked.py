"""Page-locked memory, as the stand-in for CuPy has it: when copies end, and who frees it."""

from __future__ import annotations

import ctypes
import weakref
from types import SimpleNamespace
from typing import Any

import numpy as np
from happens_before import HappensBefore


class _Block(bytearray):
    """`cupy.cuda.PinnedMemoryPointer`."""


class PageLocked:
    """Page-locked memory, as CuPy's pool keeps it, with the copies into it that have not ended.

    Attributes:
        made: sizes of the blocks that were allocated anew.
    """

    def __init__(self, order: HappensBefore) -> None:
        self.made: list[int] = []
        self._order = order
        self._free: list[int] = []
        self._used: dict[int, int] = {}  # address -> size
        self._copying: dict[int, int] = {}  # address -> stream of the copy

    def allocate(self, size: int) -> _Block:
        size = 1 << max(9, (size - 1).bit_length())
        if size in self._free:
            self._free.remove(size)
        else:
            self.made.append(size)
        block = _Block(size)
        memory = np.frombuffer(block, np.uint8)
        memory.fill(0x7F)  # what it held before
        address = memory.ctypes.data
        self._used[address] = size
        weakref.finalize(block, self._let_go, address)
        return block

    def kind(self, address: int) -> SimpleNamespace:
        """`cupy.cuda.runtime.pointerGetAttributes`: host memory, or memory unknown to CUDA."""
        inside = any(begin <= address < begin + size for begin, size in self._used.items())
        return SimpleNamespace(type=1 if inside else 0)

    def copy(self, source: Any, out: np.ndarray, stream: int) -> None:
        """Queue a copy: until the host has waited for it, `out` holds nothing of use."""
        address = out.ctypes.data
        assert out.flags.c_contiguous
        assert (out.dtype, out.shape) == (source.dtype, source.shape)
        inside = (b <= address and address + out.nbytes <= b + s for b, s in self._used.items())
        assert any(inside), "CuPy would make the host wait for a copy to pageable memory"
        values = np.ascontiguousarray(source.host).tobytes()  # it may change later
        out.view(np.uint8).fill(0xFF)  # not finite in every floating type
        self._copying[address] = stream

        def end() -> None:
            if self._copying.pop(address, None) is not None:
                ctypes.memmove(address, values, len(values))

        self._order.copy_to_host(stream, end)

    def _let_go(self, address: int) -> None:
        size = self._used.pop(address)
        for target in [t for t in self._copying if address <= t < address + size]:
            stream = self._copying.pop(target)
            self._order.races.append(f"page-locked memory freed, written on {stream:#x}")
        self._free.append(size)
