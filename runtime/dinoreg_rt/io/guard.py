"""Errors that libraries raise inside a reader, as `InputError` with the name of the file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..errors import DinoregError, InputError


@contextmanager
def reader_errors(name: str, what: str) -> Iterator[None]:
    """Turn whatever a library raises for a damaged file into an `InputError`.

    A damaged file can make a library raise almost any exception. Our own errors and the lack of
    memory for a file that passed its checks are left as they are.

    Args:
        name: name of the file.
        what: the wanted content, such as ``an ITK transform``.
    """
    try:
        yield
    except (DinoregError, MemoryError):
        raise
    except Exception as error:
        text = str(error).strip()
        reason = text.splitlines()[-1][:200] if text else type(error).__name__
        raise InputError(
            f"{name}: cannot be read as {what}; it is truncated or damaged, or not of the format "
            f"that its name says ({reason})"
        ) from error


def parse_json(text: str | bytes) -> Any:
    """Parse JSON.

    Raises:
        ValueError: the text is not JSON, or is nested too deeply for Python.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its brackets are nested too deeply") from error
