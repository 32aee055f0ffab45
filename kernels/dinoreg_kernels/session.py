"""Work that is queued again and again on a CUDA device, recorded as graphs and launched at once."""

from __future__ import annotations

import ctypes
import hashlib
import threading
import weakref
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from . import _library, _structs
from ._arrays import recording
from ._errors import KernelNotRecorded

T = TypeVar("T")


@dataclass(frozen=True)
class SessionCounts:
    """How often the work of a session was queued.

    Attributes:
        as_it_is: it ran without being recorded.
        recorded: it was recorded and launched as one graph.
        updated: of these, only the parameters of a graph that was kept were set.
        lost: it could not be recorded.
    """

    as_it_is: int
    recorded: int
    updated: int
    lost: int


class Session:
    """Records work as CUDA graphs, which are kept; see ``dr_session`` in dinoreg.h.

    Work is a function that queues kernels on CuPy's current stream, those of this package and those
    of CuPy. On a blocking stream, such as the default one, it runs without being recorded. So does
    it on any other stream the first time, which loads kernels and lets the pool of memory grow.
    From the second time on, all its kernels are launched at once when it returns; if they are the
    same ones in the same order, only their parameters are set. The results do not depend on this.

    Within recorded work nothing may wait for the device, read a value or upload one, and cuBLAS and
    cuSOLVER are not available; CUDA or CuPy raise an error. Arrays that it takes from outside must
    outlive it. Progress is not reported.

    The memory of the work comes from the session's own pool. Within recorded work, memory that
    is released is used again although the kernels that use it have not run yet. Meanwhile no other
    thread may give such memory back to the device, as a thread that exhausts the default pool does.

    A session is used by one thread at a time, on one device, and best on one stream: memory
    released on a stream is used again only there.

    Args:
        graphs: largest number of graphs that are kept, those used last, 1..1024.

    Raises:
        KernelError: `graphs` is out of range.
    """

    def __init__(self, graphs: int = 64) -> None:
        import cupy

        self._graphs = _Graphs(graphs)
        self._pool = cupy.cuda.MemoryPool(_new_memory)
        self._recording = threading.Lock()
        with _live_lock:
            _live.add(self)

    @contextmanager
    def memory(self) -> Iterator[None]:
        """Take this thread's new arrays from the session's pool for the block."""
        import cupy

        with cupy.cuda.using_allocator(self._pool.malloc):
            yield

    def run(self, key: Hashable, work: Callable[[], T]) -> T:
        """Call `work` and launch what it queues.

        If something cannot be recorded, because the pool has to grow or a kernel to be loaded,
        nothing has run; then `work` is called again without being recorded. The same happens after
        an exception in `work`. Its second call must therefore give the same result: `work` must not
        read what it has overwritten of arrays from outside, and must keep no arrays but those that
        it returns.

        Args:
            key: which work it is, such as the shapes and options that decide which kernels are
                queued. A wrong key costs time and nothing else.
            work: the function.

        Returns:
            What `work` returns, on the device, where it may still be running.
        """
        with self.memory():
            done, result = self._attempt(_number(key), work)
            return result if done else work()

    def counts(self) -> SessionCounts:
        """Return how often work was recorded so far."""
        return self._graphs.counts()

    def idle_bytes(self) -> int:
        """Return the bytes of the current device that the session holds for later work."""
        return int(self._pool.free_bytes())

    def total_bytes(self) -> int:
        """Return the bytes of the current device that the session has taken."""
        return int(self._pool.total_bytes())

    def release(self) -> None:
        """Give memory held for later work back to the device, unless work is being recorded."""
        if self._recording.acquire(blocking=False):
            try:
                self._pool.free_all_blocks()
            finally:
                self._recording.release()

    def close(self) -> None:
        """Drop graphs and memory; launches that are still running are completed."""
        self._graphs.close()
        self.release()

    def _attempt(self, key: int, work: Callable[[], T]) -> tuple[bool, Any]:
        """Return whether the work was queued, and its result."""
        with self._recording:  # from the beginning: release() must not come in between
            if self._graphs.begin(key):
                return self._recorded(work)
        try:
            result = work()
        except BaseException:
            self._graphs.abandon()
            raise
        self._graphs.end()
        return True, result

    def _recorded(self, work: Callable[[], T]) -> tuple[bool, Any]:
        try:
            with recording() as events:
                result = work()
        except Exception:  # of the recording, or of the work, which raises it again
            self._graphs.abandon()
            return False, None
        except BaseException:
            self._graphs.abandon()
            raise
        try:
            self._graphs.end()
        except KernelNotRecorded:
            return False, None
        for event in events:
            event.record()
        return True, result


#: All sessions that exist.
_live: weakref.WeakSet[Session] = weakref.WeakSet()
_live_lock = threading.Lock()


def sessions() -> list[Session]:
    """Return all sessions that exist, whose memory is not in CuPy's default pool."""
    with _live_lock:
        return list(_live)


def release_idle_memory() -> None:
    """Give memory back to the current device that CuPy's default pool and sessions do not use."""
    import cupy

    # What recorded work has released lies in the pools of its sessions, which keep it meanwhile.
    cupy.get_default_memory_pool().free_all_blocks()
    for session in sessions():
        session.release()


def _new_memory(size: int) -> Any:
    """Return new memory for the pool; where there is none, other pools give up theirs."""
    from cupy.cuda import Memory, MemoryPointer

    try:
        return MemoryPointer(Memory(size), 0)
    except Exception as error:
        if "cudaErrorMemoryAllocation" not in str(error):
            raise
    release_idle_memory()
    return MemoryPointer(Memory(size), 0)


def _number(key: Hashable) -> int:
    """Return 64 bits that stand for a key."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=8).digest(), "little")


class _Graphs:
    """A ``dr_session`` on CuPy's current stream."""

    def __init__(self, graphs: int) -> None:
        library, handle = _library.library(), ctypes.c_void_p()
        _library.check("dr_session_create", library.dr_session_create(graphs, ctypes.byref(handle)))
        self._handle = handle
        self._destroy = weakref.finalize(self, library.dr_session_destroy, handle)

    def close(self) -> None:
        """Drop all graphs; then nothing can begin any more."""
        self._destroy()
        self._handle = ctypes.c_void_p()

    def begin(self, key: int) -> bool:
        """Begin; return whether what follows is recorded instead of being run at once."""
        import cupy

        library, execution = _library.library(), _structs.Execution(device=1)
        execution.stream = cupy.cuda.get_current_stream().ptr
        status = library.dr_session_begin(self._handle, ctypes.byref(execution), key)
        _library.check("dr_session_begin", status)
        return bool(library.dr_session_recording(self._handle))

    def end(self) -> None:
        """Launch what was recorded."""
        _library.check("dr_session_end", _library.library().dr_session_end(self._handle))

    def abandon(self) -> None:
        """End without launching."""
        _library.check(
            "dr_session_abandon", _library.library().dr_session_abandon(self._handle, None)
        )

    def counts(self) -> SessionCounts:
        """Return how often work was recorded so far."""
        found = _structs.SessionCounts()
        status = _library.library().dr_session_count(self._handle, ctypes.byref(found))
        _library.check("dr_session_count", status)
        return SessionCounts(found.as_it_is, found.recorded, found.updated, found.lost)
