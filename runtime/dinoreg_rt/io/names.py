"""Names of files: which can be used at all, and which outputs would overwrite an input."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import DinoregError, InputError, OutputError


def check_name(path: str | os.PathLike[str], error_type: type[DinoregError] = InputError) -> None:
    """Require a name that is text, for ITK ends the process at others, and that can be looked up.

    Raises:
        InputError: or `error_type`: the name is not valid text, too long, or in a folder that may
            not be entered. That there is no such file is no error here.
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


def check_outputs(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Find out before the work begins whether files can be put where they shall go.

    Args:
        outputs: files that will be written; they need not exist.
        inputs: files that are read, or folders of a series, which nothing overwrites.

    Raises:
        OutputError: a name as of `check_name`, a folder of the same name, or an output that is an
            input.
        InputError: the name of an input, as of `check_name`.
    """
    read = {}
    for path in inputs:
        check_name(path)
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
