"""Files and folders that appear whole or not at all.

They are written under a hidden name beside their destination and renamed at the end, so a reader
sees the old content or the new one. An exception, Ctrl-C, SIGTERM or SIGHUP removes the hidden
files. What a killed process (SIGKILL, a crash) leaves behind is removed by a later writer
(`hidden.py`).
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from ..console.interruption import STOPPING, signals_as_exceptions
from ..errors import OutputError
from .hidden import LOCK, hidden_file, hidden_folder, hidden_place, in_use, remove_abandoned
from .paths import HIDDEN, check_link, final_path, output_error, output_errors

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)


@contextmanager
def staged_folder(
    directory: str | os.PathLike[str], obsolete: Callable[[], Iterable[str]] = tuple
) -> Iterator[Path]:
    """Collect the files of one run and move them into `directory` together at the end.

    Args:
        directory: the output folder; it is created, and removed again if the run fails.
        obsolete: called at the end; returns the names of files in `directory` to remove as the new
            ones appear. Files that are replaced stay.

    Yields:
        A hidden folder on the same file system. Its files replace those of the same names in
        `directory` when the block ends without an exception.

    Raises:
        OutputError: the folder cannot be created, the disk is full, or something is in the way.
    """
    target = Path(directory)
    with signals_as_exceptions():
        created = _make_folder(target)
        hidden = ExitStack()
        with output_errors(target):
            staging = hidden.enter_context(hidden_folder(target))
        try:
            yield staging
            _move_into_place(staging, target, list(obsolete()))
            created = []
        except OSError as error:
            if error.errno in _DISK_ERRORS:
                raise output_error(target, error) from error
            raise
        finally:
            with _uninterrupted():
                hidden.close()
                _remove_empty(created)


@contextmanager
def staged_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write one output file whole or not at all, with the guarantees of `staged_folder`.

    Yields:
        A path with the same name in a hidden folder; it replaces `path` when the block ends.

    Raises:
        OutputError: as `staged_folder`.
    """
    target = Path(path)
    if target.is_dir():
        raise OutputError(f"{final_path(target)}: is a folder; give the name of a file")
    with staged_folder(target.parent) as staging:
        yield staging / target.name


@contextmanager
def whole_file(path: Path, mode: int) -> Iterator[IO[bytes]]:
    """Open a file that replaces `path`, with the permissions `mode`, when the block ends.

    For stores that several processes write: it does not touch signal handlers.

    Raises:
        OSError: the file cannot be written; `path` is then as it was before.
    """
    remove_abandoned(path.parent, HIDDEN)
    handle, partial = hidden_file(path.parent)
    try:
        with os.fdopen(handle, "wb") as stream, in_use(handle):
            yield stream
        partial.chmod(mode)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def whole_folder(
    target: Path, check: Callable[[Path], None], taken: str, *, replace: bool
) -> Iterator[Path]:
    """Write a folder that takes the place of `target` when the block ends without an exception.

    Args:
        target: the folder, with links resolved.
        check: raises an `OutputError` if what lies at the given path must stay. It is asked at the
            beginning and again at the end, where a folder to be replaced has been moved aside.
        taken: the error message if something appears at `target` at the last moment.
        replace: an existing folder that passes `check` is replaced.

    Raises:
        OutputError: something is in the way.
        OSError: the folder cannot be written.
    """
    check(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(target):  # otherwise the one that was moved aside may be the only one left
        remove_abandoned(target.parent, f".{target.name}.replaced.")
    with hidden_folder(target.parent, f".{target.name}.") as work:
        yield work
        (work / LOCK).unlink()
        work.chmod(0o755)
        if replace:
            _replace(work, target, check, taken)
        else:
            check(target)
            _rename(work, target, taken)


def _replace(work: Path, target: Path, check: Callable[[Path], None], taken: str) -> None:
    old = None
    try:
        if os.path.lexists(target):
            old = hidden_place(target.parent, f".{target.name}.replaced.")
            target.rename(old)  # nobody writes into it there while it is checked
            os.utime(old)  # however old it is, it is not abandoned
            check(old)
        _rename(work, target, taken)
    except BaseException:
        if old is not None and os.path.lexists(target):
            old.rmdir()  # empty, because the folder was not moved
        elif old is not None:
            old.rename(target)
        raise
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _rename(work: Path, target: Path, taken: str) -> None:
    try:
        work.rename(target)  # fails unless `target` is missing or an empty folder
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
        raise OutputError(taken) from error


def _move_into_place(staging: Path, target: Path, obsolete: list[str]) -> None:
    # The report comes last: it says that the files beside it are complete, also to a reader of a
    # folder whose writer was killed between two renames.
    files = [p for p in staging.rglob("*") if not p.is_dir() and p != staging / LOCK]
    files.sort(key=lambda path: (path.name == "report.json", path))
    destinations = [target / p.relative_to(staging) for p in files]
    for destination in destinations:
        if destination.is_dir():
            raise OutputError(
                f"{final_path(destination)}: a folder of this name is in the way; remove it or "
                "name another output folder"
            )
    # Finishing a few renames is faster than undoing them.
    with _uninterrupted(), output_errors(target):
        for file, destination in zip(files, destinations, strict=True):
            destination.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, destination)
        for name in obsolete:
            if target / name not in destinations:
                (target / name).unlink(missing_ok=True)


def _make_folder(target: Path) -> list[Path]:
    """Create `target` and return the folders that did not exist before, innermost first."""
    check_link(target)
    missing = [p for p in (target, *target.parents) if not p.exists()]
    try:
        target.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise OutputError(
            f"{final_path(target)}: a file is in the way; remove it or name another output folder"
        ) from error
    except OSError as error:
        _remove_empty(missing)
        raise output_error(target, error) from error
    return missing


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:  # never created, or in use by someone else
            return


@contextmanager
def _uninterrupted() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = (signal.SIGINT, *STOPPING)
    previous = [signal.signal(s, signal.SIG_IGN) for s in signals]
    try:
        yield
    finally:
        for s, handler in zip(signals, previous, strict=True):
            signal.signal(s, handler)
