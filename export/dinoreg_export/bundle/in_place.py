"""A bundle's folder takes its place at the end, and nothing but a bundle makes room for it."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dinoreg_rt.bundle.manifest import MANIFEST_NAME, read_manifest
from dinoreg_rt.errors import InputError, OutputError
from dinoreg_rt.io.staging import own_prefix, remove_abandoned

_TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)


@contextmanager
def staged(folder: Path, *, force: bool, reads: Sequence[Path] = ()) -> Iterator[Path]:
    """A hidden folder that takes the place of `folder` when the block ends, or is gone.

    Args:
        folder: the bundle; a link to a folder stays a link.
        force: replace a bundle that holds nothing but its own files.
        reads: files that are needed, and so must not lie in `folder`.

    Raises:
        OutputError: `folder` is in the way, or cannot be written.
    """
    target = _resolved(folder)
    try:
        _check_reads(target, folder, reads)
        _check_free(target, folder, force=force)
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target)
        work = Path(tempfile.mkdtemp(prefix=own_prefix(f".{target.name}."), dir=target.parent))
        try:
            yield work
            work.chmod(0o755)
            _put_in_place(work, target, folder, force=force)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror or error}") from error


def _put_in_place(work: Path, target: Path, folder: Path, *, force: bool) -> None:
    """Rename. Minutes have passed since the first look: what is there now is looked at."""
    if not force:
        _check_free(target, folder, force=False)
        _rename(work, target, folder)
        return
    old = None
    try:
        if os.path.lexists(target):
            old = Path(tempfile.mkdtemp(prefix=own_prefix(_replaced(target)), dir=target.parent))
            target.rename(old)  # where nobody writes into it while it is checked
            _check_free(old, folder, force=True)
        _rename(work, target, folder)
    except BaseException:
        if old is not None:
            _take_back(old, target)
        raise
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _rename(work: Path, target: Path, folder: Path) -> None:
    try:
        work.rename(target)  # fails where anything but an empty folder is
    except OSError as error:
        if error.errno not in _TAKEN:
            raise
        raise OutputError(
            f"{folder}: something appeared there while the bundle was made; name another folder"
        ) from error


def _take_back(old: Path, target: Path) -> None:
    if os.path.lexists(target):
        old.rmdir()  # empty, where the folder was not moved
    else:
        old.rename(target)


def _check_free(target: Path, folder: Path, *, force: bool) -> None:
    """Stop where something is that must stay.

    Args:
        target: what is looked at.
        folder: what the user calls it.
        force: a bundle may be replaced.
    """
    if not os.path.lexists(target):
        return
    if not (target / MANIFEST_NAME).is_file():
        raise OutputError(f"{folder}: exists and is no bundle; name another folder")
    if not force:
        raise OutputError(f"{folder}: a bundle is there already; --force replaces it")
    try:
        own = {MANIFEST_NAME, *(file.name for file in read_manifest(target).files)}
    except (InputError, UnicodeDecodeError) as error:
        raise OutputError(
            f"{folder}: its {MANIFEST_NAME} cannot be read, so that it is not known what belongs "
            "to the bundle; remove the folder yourself or name another"
        ) from error
    for path in sorted(target.iterdir()):
        if path.name not in own or (path.is_dir() and not path.is_symlink()):
            raise OutputError(
                f"{folder}: '{path.name}' in it is no file of the bundle, and --force would "
                "delete it; move it away or name another folder"
            )


def _check_reads(target: Path, folder: Path, reads: Sequence[Path]) -> None:
    for path in reads:
        for place in (path.resolve(), path.parent.resolve() / path.name):
            if place.is_relative_to(target):
                raise OutputError(
                    f"{folder}: holds {path}, which is read for this bundle; name another folder"
                )


def _remove_abandoned(target: Path) -> None:
    """What exports of this name have left that were killed."""
    remove_abandoned(target.parent, f".{target.name}.")
    if (target / MANIFEST_NAME).is_file():  # else the replaced one may be all that there is
        remove_abandoned(target.parent, _replaced(target))


def _replaced(target: Path) -> str:
    return f".{target.name}.replaced."


def _resolved(folder: Path) -> Path:
    try:
        return folder.resolve()
    except (OSError, RuntimeError) as error:  # the second of a loop, before Python 3.13
        raise OutputError(f"{folder}: leads nowhere: {error}; name another folder") from error
