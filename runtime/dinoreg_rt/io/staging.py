"""Outputs that appear whole or not at all.

Files are written into a hidden folder beside their destination and renamed at the end. An
exception, Ctrl-C, SIGTERM or SIGHUP removes that folder, so no half-written output is ever left
behind. What a killed process (SIGKILL, a crash) could not remove, the next run into the folder
does.
"""

from __future__ import annotations

import errno
import glob
import os
import platform
import re
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..console.interruption import STOPPING, signals_as_exceptions
from ..errors import OutputError
from .names import check_name

_PREFIX = ".dinoreg-"
#: A folder of another machine, whose processes cannot be seen, is left alone for so long.
_FOREIGN_AGE_S = 86_400.0
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


@contextmanager
def staged_folder(
    directory: str | os.PathLike[str], obsolete: Callable[[], Iterable[str]] = tuple
) -> Iterator[Path]:
    """Collect the files of one run and move them into `directory` together at the end.

    Args:
        directory: the output folder; it is created, and removed again if the run fails.
        obsolete: asked at the end for the names of files in `directory` that are removed as the new
            ones appear; those that are replaced stay.

    Yields:
        A hidden folder on the same file system. What lies in it when the block ends without an
        exception replaces the files of the same names in `directory`.

    Raises:
        OutputError: the folder cannot be made, the disk is full, something is in the way.
    """
    target = Path(directory)
    with signals_as_exceptions():
        created = _make_folder(target)
        with output_errors(target):
            remove_abandoned(target, _PREFIX)
            staging = Path(tempfile.mkdtemp(prefix=own_prefix(_PREFIX), dir=target))
        try:
            yield staging
            _move_into_place(staging, target, list(obsolete()))
            created = []
        except OSError as error:
            if error.errno in _DISK_ERRORS:
                raise _output_error(target, error) from error
            raise
        finally:
            with _uninterrupted():
                shutil.rmtree(staging, ignore_errors=True)
                _remove_empty(created)


@contextmanager
def staged_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Write one file whole or not at all.

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
def output_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Report every failure to write `path` as an `OutputError` that names it."""
    try:
        yield
    except OSError as error:
        raise _output_error(Path(path), error) from error


def final_path(path: Path) -> Path:
    """`path` without hidden staging folders: the name the user knows."""
    return Path(*[part for part in path.parts if not part.startswith(_PREFIX)])


def check_writable(directory: str | os.PathLike[str]) -> None:
    """Find out before the work begins whether `directory` can be made and written.

    Raises:
        OutputError: a file in the way, no permission, read-only file system.
    """
    check_name(directory, OutputError)
    _check_link(Path(directory))
    existing = _nearest_existing(Path(directory))
    if not existing.is_dir():
        raise OutputError(f"{directory}: {existing} is a file; name another output folder")
    with output_errors(directory), tempfile.TemporaryFile(prefix=_PREFIX, dir=existing):
        pass


def check_free_space(directory: str | os.PathLike[str], bytes_needed: int) -> None:
    """Find out before the work begins whether the outputs will fit on the disk.

    Raises:
        OutputError: less than `bytes_needed` is free on the file system of `directory`.
    """
    with output_errors(directory):
        usage = shutil.disk_usage(_nearest_existing(Path(directory)))
    free = usage.free
    if usage.total and free < bytes_needed:  # some file systems say 0 for they don't know
        raise OutputError(
            f"{directory}: the outputs need at least {bytes_needed / 1e6:.0f} MB and "
            f"{free / 1e6:.0f} MB are free; free some space or name another output folder"
        )


def _check_link(target: Path) -> None:
    """A link to nowhere is no folder, and none can be made in its place."""
    for path in (target, *target.parents):
        if path.is_symlink() and not path.exists():
            raise OutputError(
                f"{target}: {final_path(path)} is a link to {path.readlink()}, which does not "
                "exist; remove the link or name another output folder"
            )


def _move_into_place(staging: Path, target: Path, obsolete: list[str]) -> None:
    files = sorted(p for p in staging.rglob("*") if not p.is_dir())
    destinations = [target / p.relative_to(staging) for p in files]
    for destination in destinations:
        if destination.is_dir():
            raise OutputError(
                f"{final_path(destination)}: a folder of this name is in the way; remove it or "
                "name another output folder"
            )
    # A few renames: finishing them is faster than taking them back would be.
    with _uninterrupted(), output_errors(target):
        for file, destination in zip(files, destinations, strict=True):
            destination.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, destination)
        for name in obsolete:
            if target / name not in destinations:
                (target / name).unlink(missing_ok=True)


def _make_folder(target: Path) -> list[Path]:
    """Create `target`; returns the folders that did not exist before, innermost first."""
    _check_link(target)
    missing = [p for p in (target, *target.parents) if not p.exists()]
    try:
        target.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise OutputError(
            f"{final_path(target)}: a file is in the way; remove it or name another output folder"
        ) from error
    except OSError as error:
        _remove_empty(missing)
        raise _output_error(target, error) from error
    return missing


def remove_abandoned(parent: Path, prefix: str) -> None:
    """Remove folders in `parent`, named by `own_prefix`, whose process could not do so itself."""
    for folder in parent.glob(f"{glob.escape(prefix)}*"):
        found = re.fullmatch(r"(\w+)-(\d+)-\w+", folder.name.removeprefix(prefix))
        if found is None:
            continue
        try:
            age_s = time.time() - folder.stat().st_mtime
        except OSError:  # its process has just removed it
            continue
        host, pid = found.groups()
        if not _pid_exists(int(pid)) if host == _host() else age_s > _FOREIGN_AGE_S:
            shutil.rmtree(folder, ignore_errors=True)


def _pid_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # someone else's process
        return True
    return True


def own_prefix(prefix: str) -> str:
    """`prefix`, with the machine and the process: what a name of `remove_abandoned` begins with."""
    return f"{prefix}{_host()}-{os.getpid()}-"


def _host() -> str:
    return re.sub(r"\W", "_", platform.node())


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:  # not empty, or never made: someone else's business
            return


def _nearest_existing(path: Path) -> Path:
    absolute = path.absolute()
    return next(p for p in (absolute, *absolute.parents) if p.exists())


def _output_error(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{final_path(path)}: cannot be written: {_reason(error)}; check the free space and the "
        "permissions of this folder, or name another"
    )


def _reason(error: OSError) -> str:
    """What the system says: libraries put the number alone, or a dump around it, into a text."""
    found = re.search(r"errno = (\d+)", str(error))
    number = error.errno or (int(found[1]) if found else None)
    if number is not None:
        return os.strerror(number)
    return (error.strerror or str(error)).removeprefix("Reason: ")


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
