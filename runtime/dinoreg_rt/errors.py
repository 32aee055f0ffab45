"""The errors that dinoreg-rt reports to users, each with its exit code for the command line.

A message names what came, what was wanted and what to do.
"""

from __future__ import annotations


class DinoregError(Exception):
    """Base class of all errors that dinoreg-rt reports; the command line returns `exit_code`."""

    exit_code = 1


class InputError(DinoregError):
    """A file, image, mask, label map or transform that cannot be used as it is."""

    exit_code = 3


class ConfigError(DinoregError):
    """An unknown or impossible parameter, preset or combination."""

    exit_code = 4


class DeviceError(DinoregError):
    """A device, engine or library that was requested and is not available."""

    exit_code = 5


class ResourceError(DinoregError):
    """Not enough memory for the work; reported before the work begins wherever possible."""

    exit_code = 6


class OutputError(DinoregError):
    """An output that cannot be written: no permission, disk full, path in the way."""

    exit_code = 7


class RegistrationError(DinoregError):
    """Images that cannot be registered as requested: no overlap, empty mask, diverged solve."""

    exit_code = 8


#: Words in the errors of libraries that have no exception type for a lack of memory. The last is
#: the dynamic loader's.
_WANT_OF_MEMORY = (
    "bad_alloc",
    "bad allocation",
    "allocate memory",
    "failed to allocate",
    "out of memory",
    "failed to map segment",
)


def is_for_want_of_memory(error: BaseException) -> bool:
    """Return whether an exception was raised because the host has too little memory."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(words in text for words in _WANT_OF_MEMORY)


#: Exit code of a run whose results were written but should not be trusted. Not an exception.
UNTRUSTED_EXIT_CODE = 9

#: The meaning of each exit code, as shown by `--help`; 2 is click's own.
EXIT_CODES: dict[int, str] = {
    0: "success",
    1: "unexpected error",
    2: "wrong usage of the command line",
    3: "an input cannot be read or used",
    4: "a parameter, preset or configuration file is wrong",
    5: "a requested device or library is not available on this machine",
    6: "not enough memory",
    7: "an output cannot be written",
    8: "the images cannot be registered as asked",
    9: "the results were written but should not be trusted",
    129: "hung up (SIGHUP: the terminal was closed)",
    130: "interrupted (Ctrl-C)",
    143: "terminated (SIGTERM)",
}
