"""The errors a user can meet, each with the exit code of the command line.

A message names what came, what was wanted and what to do. Exceptions, never ``assert``.
"""

from __future__ import annotations


class DinoregError(Exception):
    """Anything that dinoreg-rt reports itself. `exit_code` is what the command line returns."""

    exit_code = 1


class InputError(DinoregError):
    """A file, image, mask, label map or transform that cannot be used as it is."""

    exit_code = 3


class ConfigError(DinoregError):
    """An unknown or impossible parameter, preset or combination."""

    exit_code = 4


class DeviceError(DinoregError):
    """A device, engine or library that was asked for and cannot be had."""

    exit_code = 5


class ResourceError(DinoregError):
    """Not enough memory for the work; found before the work begins wherever possible."""

    exit_code = 6


class OutputError(DinoregError):
    """An output that cannot be written: no permission, disk full, path in the way."""

    exit_code = 7


class RegistrationError(DinoregError):
    """The images cannot be registered as asked: no overlap, empty mask, diverged solve."""

    exit_code = 8


#: What libraries say that have no type of their own for it; the last, of a library that is loaded.
_WANT_OF_MEMORY = (
    "bad_alloc",
    "bad allocation",
    "allocate memory",
    "failed to allocate",
    "out of memory",
    "failed to map segment",
)


def is_for_want_of_memory(error: BaseException) -> bool:
    """Whether something was raised because the host has too little memory."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in _WANT_OF_MEMORY)


#: Of a run whose results were written but should not be trusted: no error, so no exception.
UNTRUSTED_EXIT_CODE = 9

#: What every code means, for `--help` and the README (2 is click's own code for wrong usage).
EXIT_CODES: dict[int, str] = {
    0: "success",
    1: "unexpected error",
    2: "wrong usage of the command line",
    3: "an input cannot be read or used",
    4: "a parameter, preset or configuration file is wrong",
    5: "a device or library was asked for that this machine cannot provide",
    6: "not enough memory",
    7: "an output cannot be written",
    8: "the images cannot be registered as asked",
    9: "the registration should not be trusted; its results were written",
    129: "hung up (SIGHUP: its terminal was closed)",
    130: "interrupted (Ctrl-C)",
    143: "terminated (SIGTERM)",
}
