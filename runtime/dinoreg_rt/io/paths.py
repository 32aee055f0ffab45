"""Checks of paths before the work begins, and errors of writing as `OutputError`."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import DinoregError, InputError, OutputError

#: The beginning of the names of hidden folders and files that are still being written.
HIDDEN = ".dinoreg-"


def check_name(path: str | os.PathLike[str], error_type: type[DinoregError] = InputError) -> None:
    """Require a path that is valid text (ITK aborts the process otherwise) and can be looked up.

    A missing file is not an error here.

    Raises:
        InputError: or `error_type`, if the path is not valid text, is too long, or lies in a folder
            that may not be entered.
    """
    text = os.fspath(path)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        shown = text.encode("utf-8", "backslashreplace").decode("utf-8")
        raise error_type(
            f"{shown}: its name is not valid text here (UTF-8?); rename it, or set the locale it "
            "was named in"
        ) from error
    try:
        os.stat(text)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise error_type(f"{text}: cannot be looked up: {error.strerror}") from error


def check_input(path: str | os.PathLike[str]) -> None:
    """Require a path that `check_name` accepts and that is not a FIFO, a socket or a device.

    Opening a FIFO waits for a writer, for ever if there is none, and images are read more than
    once. A missing file is not an error here.

    Raises:
        InputError: it is none of a file, a folder and a missing path.
    """
    check_name(path)
    file = Path(path)
    if file.exists() and not file.is_file() and not file.is_dir():
        raise InputError(
            f"{file}: is a FIFO, a socket or a device; give a regular file: save its content first"
        )


def check_outputs(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Require that the outputs can be written without overwriting an input.

    Args:
        outputs: files that will be written; they need not exist.
        inputs: files that will be read, or folders of a DICOM series.

    Raises:
        OutputError: a path that `check_name` refuses, a folder of the same name, or an output that
            is an input.
        InputError: an input that `check_input` refuses.
    """
    read = {}
    for path in inputs:
        check_input(path)
        if path.is_file():
            status = path.stat()
            read[status.st_dev, status.st_ino] = path
    for output in outputs:
        check_name(output, OutputError)
        if output.is_dir():
            raise OutputError(
                f"{output}: a folder of this name is in the way; remove it or name another output"
            )
        if not output.exists():
            continue
        status = output.stat()
        if (given := read.get((status.st_dev, status.st_ino))) is not None:
            raise OutputError(
                f"{output}: is an input ({given}) and would be overwritten; name another output"
            )


def check_writable(directory: str | os.PathLike[str]) -> None:
    """Require that `directory` can be created and written.

    Raises:
        OutputError: a file is in the way, permission is denied, or the file system is read-only.
    """
    check_name(directory, OutputError)
    check_link(Path(directory))
    existing = _nearest_existing(Path(directory))
    if not existing.is_dir():
        raise OutputError(f"{directory}: {existing} is a file; name another output folder")
    with output_errors(directory), tempfile.TemporaryFile(prefix=HIDDEN, dir=existing):
        pass


def check_free_space(directory: str | os.PathLike[str], bytes_needed: int) -> None:
    """Require room for the outputs on the file system of `directory`.

    Raises:
        OutputError: less than `bytes_needed` is free.
    """
    with output_errors(directory):
        usage = shutil.disk_usage(_nearest_existing(Path(directory)))
    # A file system that does not know its size reports 0.
    if usage.total and usage.free < bytes_needed:
        raise OutputError(
            f"{directory}: the outputs need at least {_megabytes(bytes_needed)} MB and "
            f"{_megabytes(usage.free)} MB are free; free some space or name another output folder"
        )


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.0f}" if size >= 1e7 else f"{size / 1e6:.2g}"


def check_link(target: Path) -> None:
    """Refuse a dangling link in a path: it is not a folder, and none can be created in its place.

    Raises:
        OutputError: `target` or a parent is a link to something that does not exist.
    """
    for path in (target, *target.parents):
        if path.is_symlink() and not path.exists():
            raise OutputError(
                f"{target}: {final_path(path)} is a link to {path.readlink()}, which does not "
                "exist; remove the link or name another output folder"
            )


def final_path(path: Path) -> Path:
    """Return `path` without hidden staging folders: the name that the user knows."""
    return Path(*[part for part in path.parts if not part.startswith(HIDDEN)])


@contextmanager
def output_errors(path: str | os.PathLike[str]) -> Iterator[None]:
    """Report every failure to write `path` as an `OutputError` that names it."""
    try:
        yield
    except OSError as error:
        raise output_error(Path(path), error) from error


def output_error(path: Path, error: OSError) -> OutputError:
    """Return the `OutputError` for a failure to write `path`."""
    return OutputError(
        f"{final_path(path)}: cannot be written: {_reason(error)}; check the free space and the "
        "permissions of this folder, or name another"
    )


def _reason(error: OSError) -> str:
    """Return the system's message, also where a library buried the error number in a text."""
    found = re.search(r"errno = (\d+)", str(error))
    number = error.errno or (int(found[1]) if found else None)
    if number is not None:
        return os.strerror(number)
    return (error.strerror or str(error)).removeprefix("Reason: ")


def _nearest_existing(path: Path) -> Path:
    absolute = path.absolute()
    return next(p for p in (absolute, *absolute.parents) if p.exists())
