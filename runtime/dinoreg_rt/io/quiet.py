"""ITK without its warnings on stderr: what matters is checked and reported as an error."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class _Quiet:
    """ITK's switch is one for the process, and images are read on several threads."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.shown = True


_quiet = _Quiet()


@contextmanager
def quiet_itk() -> Iterator[None]:
    """No warnings of ITK for the length of the block."""
    import SimpleITK as sitk

    with _quiet.lock:
        if _quiet.users == 0:
            _quiet.shown = sitk.ProcessObject.GetGlobalWarningDisplay()
            sitk.ProcessObject.GlobalWarningDisplayOff()
        _quiet.users += 1
    try:
        yield
    finally:
        with _quiet.lock:
            _quiet.users -= 1
            if _quiet.users == 0:
                sitk.ProcessObject.SetGlobalWarningDisplay(_quiet.shown)
