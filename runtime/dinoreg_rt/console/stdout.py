"""Results on stdout. If it is closed or full, that is an error message and not a traceback."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import rich_click as click

from ..errors import OutputError


def print_result(text: str, *, written: Path | None = None) -> None:
    """Print a result on stdout.

    Args:
        text: the result, including its line ends.
        written: file or folder that the command has already written, for the error message.

    Raises:
        OutputError: stdout is closed or cannot take the text.
        BrokenPipeError: the reader of the pipe is gone.
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
    """Discard what stdout could not take; Python would retry at exit and change the exit code."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _message(reason: str, written: Path | None) -> str:
    files = f"; the files were written to {written}" if written is not None else ""
    return f"stdout: the result cannot be printed: {reason}; redirect it elsewhere{files}"
