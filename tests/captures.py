"""Captures of streams, as the stand-in for CuPy has them: what they refuse, keep and lose.

Captured work runs at once on the host, and on the same stream as on a device. What it made is
destroyed if the capture is lost, because on a device it would not have run.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter
from typing import Any

import numpy as np

from dinoreg_kernels import KernelError, KernelNotRecorded, SessionCounts


class CUDARuntimeError(RuntimeError):
    """`cupy.cuda.runtime.CUDARuntimeError`."""

    __module__ = "cupy_backends.cuda.api.runtime"


class Capture:
    """What is queued while a thread's stream is captured, and what CUDA and CuPy refuse then."""

    _local = threading.local()
    #: Violations, which real captures answer with an error or with wrong results.
    forbidden: list[str]
    #: What was launched on its own, by kind: calls of CuPy and of the library, and graphs.
    launches: Counter[str]

    def __init__(self) -> None:
        self.nodes: list[str] = []
        self.invalid = False
        #: Memory that was allocated meanwhile, by identity.
        self.made: dict[int, weakref.ref[np.ndarray]] = {}

    def lose(self) -> None:
        """Take back what has run here at once, but on a device would not have run at all."""
        for made in self.made.values():
            if (host := made()) is not None:
                host.reshape(-1).view(np.uint8)[...] = 0xFF

    @classmethod
    def current(cls) -> Capture | None:
        return cls._local.__dict__.get("capture")

    @classmethod
    def set_current(cls, capture: Capture | None) -> None:
        cls._local.capture = capture

    @classmethod
    def queue(cls, kind: str) -> None:
        """Note one launch, or that memory was taken from a pool, which launches nothing."""
        if (capture := cls.current()) is None:
            cls.launches[kind] += 1
        elif kind != "memory":
            capture.nodes.append(kind)

    @classmethod
    def forbid(cls, what: str) -> None:
        """Refuse something while the thread's stream is captured."""
        if (capture := cls.current()) is not None:
            capture.invalid = True
            cls.forbidden.append(what)
            raise CUDARuntimeError(f"cudaErrorStreamCaptureUnsupported: {what} in a capture")


class Graphs:
    """`dinoreg_kernels.session._Graphs`, as kernels/cuda/session.cuh does it."""

    def __init__(self, graphs: int) -> None:
        if not 1 <= graphs <= 1024:
            raise KernelError(f"dr_session_create: graphs = {graphs}; wanted 1..1024")
        self._most, self._kept = graphs, dict[int, list[str] | None]()
        self._counts, self.closed = Counter[str](), False

    def begin(self, key: int) -> bool:
        assert not self.closed
        assert Capture.current() is None
        self._key, self._stream = key, self._current_stream()
        recorded = key in self._kept and self._stream.non_blocking
        Capture.set_current(Capture() if recorded else None)
        return recorded

    def end(self) -> None:
        capture = self._ended()
        nodes = self._kept.pop(self._key, None)
        if capture is None:
            self._counts["as_it_is"] += 1
            while len(self._kept) >= self._most:
                del self._kept[next(iter(self._kept))]
            self._kept[self._key] = None
            return
        if capture.invalid:
            self._kept[self._key] = nodes
            self._counts["lost"] += 1
            capture.lose()
            raise KernelNotRecorded("cudaErrorStreamCaptureInvalidated")
        self._kept[self._key] = capture.nodes
        self._counts["recorded"] += 1
        self._counts["updated"] += nodes == capture.nodes
        Capture.queue("graph")

    def abandon(self) -> None:
        capture = self._ended()
        if capture is not None:
            self._counts["lost"] += capture.invalid
            capture.lose()

    def _ended(self) -> Capture | None:
        capture = Capture.current()
        Capture.set_current(None)
        assert self._stream is self._current_stream()
        return capture

    @staticmethod
    def _current_stream() -> Any:
        import cupy

        return cupy.cuda.get_current_stream()

    def counts(self) -> SessionCounts:
        names = ("as_it_is", "recorded", "updated", "lost")
        return SessionCounts(**{name: self._counts[name] for name in names})

    def close(self) -> None:
        self.closed = True
