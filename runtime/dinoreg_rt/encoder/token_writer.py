"""Entries of the token cache, written in the background: no registration waits for the disk.

An entry takes its tokens from the device or from memory while later work goes on. Tokens that are
still being written count as cached. Callers that need them on disk call `TokenWriter.wait`, as
`EncoderPool.close` and ``dinoreg-rt run`` do; the interpreter waits for them at its end.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..device.choice import Device
from ..device.pinned import download_in_parts
from ..device.streams import idle_stream
from ..io.arrays import device_of
from ..types import Array
from .cache import TokenCache
from .tokens import PatchTokens


@dataclass(frozen=True, eq=False)
class _Entry:
    """The tokens of one image on their way to the cache.

    Attributes:
        filled: event after which the tokens are complete; None for tokens on the host.
        within: makes the CUDA context of the registration current.
    """

    cache: TokenCache
    key: str
    tokens: Array
    total: Array | None
    device: Device
    filled: Any
    within: Callable[[], AbstractContextManager[Any]]

    def store(self) -> None:
        """Store the tokens if they are finite; the registration reports those that are not."""
        with self.within(), self.device.active():
            if self.total is not None and not np.isfinite(self._on_host(self.total)):
                return
            parts: Iterator[Array] = iter(self.tokens)
            if device_of(self.tokens) != "cpu":
                parts = download_in_parts(self.tokens, self.filled, self.device)
            self.cache.store(self.key, self.tokens.shape, parts)

    def _on_host(self, total: Any) -> Any:
        if isinstance(total, np.ndarray | np.generic):
            return total
        with idle_stream(self.device, "copies") as stream:
            stream.wait_event(self.filled)
            return total.get(stream=stream)


class TokenWriter:
    """Writes entries one after another in one thread."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._changed = threading.Condition()
        self._entries: dict[tuple[Path, str], _Entry] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="token cache")

    def after_fork(self) -> None:
        """Start anew in a forked process, where the thread does not exist.

        The entries are the parent's; their device arrays must not be freed here.
        """
        self._of_parent = self._entries
        self._start()

    def write(
        self,
        cache: TokenCache,
        key: str,
        tokens: PatchTokens,
        device: Device,
        most_bytes: int,
        within: Callable[[], AbstractContextManager[Any]],
    ) -> bool:
        """Queue an entry; its tokens may still be computed on the current stream.

        Args:
            cache: the cache.
            key: name of the entry.
            tokens: the tokens, which must not change.
            device: device of the registration.
            most_bytes: bytes that waiting entries may hold together; a single one may hold more.
            within: makes the CUDA context of the registration current.

        Returns:
            Whether the entry will be written. It is dropped if too much is waiting, or if the
            interpreter is shutting down.
        """
        filled = None
        if device.kind == "cuda":
            filled = device.xp.cuda.Event(disable_timing=True)
            filled.record()
        name = (cache.folder, key)
        entry = _Entry(cache, key, tokens.tokens, tokens.total, device, filled, within)
        with self._changed:
            if name in self._entries:
                return True
            held = sum(e.tokens.nbytes for e in self._entries.values())
            if held and held + entry.tokens.nbytes > most_bytes:
                return False
            self._entries[name] = entry
            try:
                self._thread.submit(self._store, name)
            except RuntimeError:
                del self._entries[name]
                return False
        return True

    def find(self, cache: TokenCache, key: str, device: Device) -> Array | None:
        """Return the tokens of an entry that is being written; later work here waits for them."""
        with self._changed:
            entry = self._entries.get((cache.folder, key))
        if entry is None or device_of(entry.tokens) not in ("cpu", device.name):
            return None
        if entry.filled is not None and device.kind == "cuda":
            device.xp.cuda.get_current_stream().wait_event(entry.filled)
        return entry.tokens

    def wait(self) -> bool:
        """Wait until everything queued so far, in all threads, is written.

        Returns:
            Whether there was anything to wait for.
        """
        with self._changed:
            waited = bool(self._entries)
            while self._entries:
                self._changed.wait()
        return waited

    def _store(self, name: tuple[Path, str]) -> None:
        try:
            self._entries[name].store()
        except BaseException as error:
            reason = str(error) or type(error).__name__
            warnings.warn(
                f"the tokens of an image could not be cached: {reason}", RuntimeWarning, 1
            )
        finally:
            with self._changed:
                del self._entries[name]
                self._changed.notify_all()


#: The writer of this process. At its end the interpreter waits for the thread.
WRITER = TokenWriter()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=WRITER.after_fork)
