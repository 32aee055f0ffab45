"""Folders of the user's own: where models, engines and tokens are kept unless it is said."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import InputError


def user_folder(variable: str, name: str) -> Path:
    """The folder that an environment variable names, else ``.cache/dinoreg/NAME`` at home.

    Without a home it is an error: in a temporary folder, which everybody writes to, somebody else
    could have put there what is read here.

    Raises:
        InputError: the variable is not set, and nobody knows the user's home.
    """
    given = os.environ.get(variable)
    if given:
        return Path(given)
    try:
        home = Path.home()
    except RuntimeError as error:  # as in a container that runs for a user it does not know
        raise InputError(
            f"{variable} is not set, and this user has no home directory (HOME is not set either); "
            f"set HOME, or {variable} to a folder"
        ) from error
    return home / ".cache" / "dinoreg" / name
