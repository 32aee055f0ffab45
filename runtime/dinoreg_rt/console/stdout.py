"""Results on stdout, which may be closed or full: that is an error, not a traceback."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import rich_click as click

from ..errors import OutputError


def print_result(text: str, *, written: Path | None = None) -> None:
    """Print what was asked for, `text` with its line ends.

    Args:
        text: the result.
        written: file or folder that the command has written already, for the message.

    Raises:
        OutputError: stdout is closed, or cannot take it.
        BrokenPipeError: nobody reads it any more.
    """
    if sys.stdout is None:
        raise OutputError(_message("it is closed", written))
    try:
        click.echo(text, nl=False)
    except BrokenPipeError:
        raise
    except OSError as error:
        discard_unwritable()
        raise OutputError(_message(error.strerror or str(error), written)) from error


def discard_unwritable() -> None:
    """Forget what stdout could not take: Python tries again at the exit, and changes its code."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _message(reason: str, written: Path | None) -> str:
    files = f"; the files are there: {written}" if written is not None else ""
    return f"stdout: the result cannot be printed: {reason}; send it to another place{files}"
