"""Writing a bundle into its final folder, where only another bundle may be replaced."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dinoreg_rt.bundle.manifest import MANIFEST_NAME, read_manifest
from dinoreg_rt.errors import InputError, OutputError
from dinoreg_rt.io.staging import whole_folder


@contextmanager
def staged(folder: Path, *, force: bool, reads: Sequence[Path] = ()) -> Iterator[Path]:
    """Write a bundle that takes the place of `folder` when the block ends without an exception.

    Args:
        folder: the bundle; a link to a folder stays a link.
        force: replace a bundle that holds nothing but its own files.
        reads: files that are read meanwhile and therefore must not lie in `folder`.

    Yields:
        A hidden folder beside `folder`.

    Raises:
        OutputError: something is in the way, or `folder` cannot be written.
    """
    target = _resolved(folder)
    taken = f"{folder}: something appeared there while the bundle was made; name another folder"
    try:
        _check_reads(target, folder, reads)
        with whole_folder(
            target, lambda path: _check_free(path, folder, force=force), taken, replace=force
        ) as work:
            yield work
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written: {error.strerror or error}") from error


def _check_free(target: Path, folder: Path, *, force: bool) -> None:
    """Require that `target` is free, or holds a bundle that may be replaced.

    Args:
        target: the path to examine.
        folder: the name that the user gave.
        force: a bundle may be replaced.
    """
    if not os.path.lexists(target):
        return
    if not (target / MANIFEST_NAME).is_file():
        raise OutputError(f"{folder}: exists and is not a bundle; name another folder")
    if not force:
        raise OutputError(f"{folder}: a bundle is there already; --force replaces it")
    try:
        own = {MANIFEST_NAME, *(file.name for file in read_manifest(target).files)}
    except (InputError, UnicodeDecodeError) as error:
        raise OutputError(
            f"{folder}: its {MANIFEST_NAME} cannot be read, so the bundle's own files are "
            "unknown; remove the folder yourself or name another"
        ) from error
    for path in sorted(target.iterdir()):
        if path.name not in own or (path.is_dir() and not path.is_symlink()):
            raise OutputError(
                f"{folder}: '{path.name}' in it is not a file of the bundle, and --force would "
                "delete it; move it away or name another folder"
            )


def _check_reads(target: Path, folder: Path, reads: Sequence[Path]) -> None:
    for path in reads:
        for place in (path.resolve(), path.parent.resolve() / path.name):
            if place.is_relative_to(target):
                raise OutputError(
                    f"{folder}: holds {path}, which is read for this bundle; name another folder"
                )


def _resolved(folder: Path) -> Path:
    try:
        return folder.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: a loop of links, before Python 3.13
        raise OutputError(f"{folder}: cannot be resolved: {error}; name another folder") from error
