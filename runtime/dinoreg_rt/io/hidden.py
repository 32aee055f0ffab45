"""Hidden folders and files of a run, and the removal of those that a killed run left.

While a run is alive, it holds a lock (flock) on each of them and touches it every ten minutes. A
leftover is removed if nobody holds its lock and it has not been touched for an hour. Process ids
would not do: in containers that share a folder, one number can stand for several processes.
"""

from __future__ import annotations

import fcntl
import glob
import math
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .paths import HIDDEN

#: The file in a hidden folder that its run has locked.
LOCK = ".lock"
_SCRATCH = "dinoreg-scratch-"
_SUFFIX = ".part"
_HEARTBEAT_S = 600.0
#: Time without a touch after which a leftover is removed if its lock is free, and on file systems
#: that do not support locks.
_ABANDONED_S = 3_600.0
_ABANDONED_WITHOUT_LOCK_S = 86_400.0


@contextmanager
def hidden_folder(parent: Path, prefix: str = HIDDEN) -> Iterator[Path]:
    """Create a folder in `parent` for the duration of the block, and remove abandoned ones.

    Yields:
        The folder, which holds the file `LOCK`.

    Raises:
        OSError: the folder cannot be created.
    """
    remove_abandoned(parent, prefix)
    folder = hidden_place(parent, prefix)
    try:
        with (folder / LOCK).open("wb") as lock, in_use(lock.fileno()):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Create a hidden folder in the folder for temporary files (``TMPDIR``)."""
    with hidden_folder(Path(tempfile.gettempdir()), _SCRATCH) as folder:
        yield folder


def hidden_place(parent: Path, prefix: str) -> Path:
    """Create an empty folder without a lock, which `remove_abandoned` removes after a day."""
    return Path(tempfile.mkdtemp(_SUFFIX, prefix, parent))


def hidden_file(parent: Path, prefix: str = HIDDEN) -> tuple[int, Path]:
    """Create a file for `in_use`; return its descriptor and its path."""
    handle, name = tempfile.mkstemp(_SUFFIX, prefix, parent)
    return handle, Path(name)


@contextmanager
def in_use(descriptor: int) -> Iterator[None]:
    """Lock an open file until it is closed, and touch it every ten minutes during the block."""
    with suppress(OSError):  # the file system does not support locks
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    ended = threading.Event()

    def touch() -> None:
        while not ended.wait(_HEARTBEAT_S):
            with suppress(OSError):
                os.utime(descriptor)

    heartbeat = threading.Thread(target=touch, name="dinoreg-lock", daemon=True)
    heartbeat.start()
    try:
        yield
    finally:
        ended.set()
        heartbeat.join()  # the number of a closed descriptor may be given to another file


def remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove from `parent` what killed runs left under hidden names that begin with `prefix`."""
    for path in parent.glob(f"{glob.escape(prefix)}*{_SUFFIX}"):
        chosen = path.name.removeprefix(prefix).removesuffix(_SUFFIX)
        if re.fullmatch("[a-z0-9_]{8}", chosen):  # by mkdtemp or mkstemp
            with suppress(OSError):  # another run has just removed it, or it is another user's
                _remove_if_abandoned(path)


def _remove_if_abandoned(path: Path) -> None:
    if not path.is_dir() or path.is_symlink():
        with _unless_in_use(path):
            path.unlink()
    elif (path / LOCK).exists():
        with _unless_in_use(path / LOCK):
            shutil.rmtree(path, ignore_errors=True)
    elif _age_s(path) > _ABANDONED_WITHOUT_LOCK_S:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _unless_in_use(lock: Path) -> Iterator[None]:
    """Hold the lock during the block.

    Raises:
        OSError: a run uses it, or may be about to.
    """
    if _age_s(lock) < _ABANDONED_S:  # its run may be about to lock it
        raise BlockingIOError
    descriptor = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if _age_s(lock) < _limit_s(descriptor):
            raise BlockingIOError
        yield
    finally:
        os.close(descriptor)


def _limit_s(descriptor: int) -> float:
    """Try to lock, and return the time without a touch after which a leftover is removed."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return math.inf
    except OSError:
        return _ABANDONED_WITHOUT_LOCK_S
    return _ABANDONED_S


def _age_s(path: Path) -> float:
    return time.time() - path.lstat().st_mtime
