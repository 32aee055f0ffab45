"""What goes wrong inside the kernel library."""

from __future__ import annotations


class KernelError(RuntimeError):
    """The library refused a call or failed in it; the message says what came and was wanted."""


class KernelUnavailable(KernelError):  # noqa: N818 - the library or its device
    """The library or the device cannot be used here, whatever the call."""


class KernelCancelled(KernelError):  # noqa: N818 - a request to stop that was followed
    """The progress callback asked to stop."""
