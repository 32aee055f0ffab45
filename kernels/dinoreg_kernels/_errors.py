"""Errors of the kernel library."""

from __future__ import annotations


class KernelError(RuntimeError):
    """The library refused a call or failed in it; the message names what it got and wanted."""


class KernelUnavailable(KernelError):  # noqa: N818 - names what is unavailable
    """The library or the device cannot be used here, whatever the arguments."""


class KernelCancelled(KernelError):  # noqa: N818 - a request that was followed, not an error
    """The progress callback asked to stop."""


class KernelNotRecorded(KernelError):  # noqa: N818 - names what is missing
    """A session could not record what was queued; nothing of it has run."""
