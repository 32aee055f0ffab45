"""Tokens of images that were encoded before: one fixed image, many moving ones.

An entry is two files named by a hash of everything that its tokens depend on. Entries appear whole
or not at all, and the ones that were not used for longest make room for new ones.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..types import Array
from .pca import TokenMoments

#: Raised when tokens of the same inputs become other numbers: part of every key.
_VERSION = 1


def cache_folder() -> Path:
    """Where tokens are kept: ``DINOREG_CACHE``, else in the user's cache."""
    return Path(os.environ.get("DINOREG_CACHE") or Path.home() / ".cache" / "dinoreg" / "tokens")


def cache_key(**parts: Any) -> str:
    """Name of an entry: sha256 of everything that decides about the tokens, as JSON."""
    text = json.dumps({"version": _VERSION} | parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class TokenCache:
    """Entries in one folder, at most `limit_bytes` of them.

    Attributes:
        folder: made when something is stored.
        limit_bytes: an entry that is larger than this alone is not stored.
    """

    folder: Path
    limit_bytes: int

    def load(self, key: str, shape: tuple[int, int, int, int]) -> tuple[Array, TokenMoments] | None:
        """Tokens (memory-mapped) and moments of an entry; None if there is none of that shape.

        What cannot be read is no entry: it is taken away and made anew.
        """
        tokens_file, moments_file = self._files(key)
        if not (tokens_file.exists() and moments_file.exists()):
            return None
        try:
            tokens = np.load(tokens_file, mmap_mode="r", allow_pickle=False)
            # Opened here: NumPy leaves a file open that turns out to be no archive.
            with moments_file.open("rb") as stream, np.load(stream, allow_pickle=False) as stored:
                moments = TokenMoments(int(stored["count"]), stored["mean"], stored["scatter"])
            usable = tokens.shape == shape and tokens.dtype == np.float16
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            usable = False
        if not usable:
            self._remove(key)
            return None
        for file in (tokens_file, moments_file):
            with contextlib.suppress(OSError):
                file.touch()
        return tokens, moments

    def store(self, key: str, tokens: Array, moments: TokenMoments) -> bool:
        """Keep an entry; False where it does not fit the limit or the disk. Never an error."""
        size = tokens.nbytes + moments.scatter.nbytes
        if size > self.limit_bytes:
            return False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make_room(size)
            tokens_file, moments_file = self._files(key)
            self._write(tokens_file, lambda stream: np.save(stream, tokens, allow_pickle=False))
            # The second file makes the entry: it comes last.
            self._write(
                moments_file,
                lambda stream: np.savez(
                    stream, count=moments.count, mean=moments.mean, scatter=moments.scatter
                ),
            )
        except OSError:
            return False
        return True

    def _files(self, key: str) -> tuple[Path, Path]:
        return self.folder / f"{key}.npy", self.folder / f"{key}.npz"

    def _write(self, file: Path, write: Callable[[Any], None]) -> None:
        handle, name = tempfile.mkstemp(prefix=".", dir=self.folder)
        try:
            with os.fdopen(handle, "wb") as stream:
                write(stream)
            Path(name).replace(file)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise

    def _remove(self, key: str) -> None:
        for file in self._files(key):
            with contextlib.suppress(OSError):
                file.unlink()

    def _make_room(self, size: int) -> None:
        entries: dict[str, tuple[float, int]] = {}
        for file in self.folder.glob("*.np[yz]"):
            with contextlib.suppress(OSError):  # another process may have taken it away
                stat = file.stat()
                used, bytes_ = entries.get(file.stem, (0.0, 0))
                entries[file.stem] = (max(used, stat.st_mtime), bytes_ + stat.st_size)
        total = sum(bytes_ for _, bytes_ in entries.values())
        for key in sorted(entries, key=lambda k: entries[k][0]):
            if total + size <= self.limit_bytes:
                return
            self._remove(key)
            total -= entries[key][1]
