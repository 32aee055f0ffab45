"""Kernels that TensorRT-RTX compiled on this machine, kept in a file beside the engine.

TensorRT-RTX compiles an engine's kernels where they run, in each process anew unless it is given
those of an earlier one.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...io.staging import whole_file


class RuntimeCache:
    """The kernels of one engine.

    Attributes:
        config: what an execution context of the engine is made from.
    """

    def __init__(self, engine: Any, strategy: Any, path: Path) -> None:
        """Read the kernels of earlier processes.

        TensorRT-RTX itself refuses those of another version, driver or GPU; they are compiled anew.

        Args:
            engine: an engine of TensorRT-RTX.
            strategy: how its contexts get their memory.
            path: the file, which need not exist.
        """
        self.config = engine.create_runtime_config()
        self.config.set_execution_context_allocation_strategy(strategy)
        self._cache, self._path, self._lock = (
            self.config.create_runtime_cache(),
            path,
            threading.Lock(),
        )
        self._stored = b""
        with suppress(OSError):
            self._stored = path.read_bytes()
            self._cache.deserialize(self._stored)
        self.config.set_runtime_cache(self._cache)

    def save(self) -> None:
        """Write the kernels if there are others than in the file; a full disk only costs time."""
        with self._lock, suppress(OSError):
            kernels = bytes(self._cache.serialize())
            if kernels != self._stored:
                with whole_file(self._path, 0o644) as stream:
                    stream.write(kernels)
                self._stored = kernels
