"""ONNX Runtime, as both packages import it: it tells nobody that it runs."""

from __future__ import annotations

import os
from typing import Any

_SWITCH = "ORT_DISABLE_TELEMETRY"


def import_onnxruntime() -> Any:
    """The module, with its telemetry off.

    From 1.29 on the official Linux wheels write a device number, and events for their maker, under
    the user's home (seen with 1.32). They read the switch when they are imported, and no more: what
    the host program has imported before stays as the host program wanted it. A value that the user
    has set is left alone.

    Raises:
        ImportError: it is not installed.
    """
    if _SWITCH in os.environ:
        import onnxruntime

        return onnxruntime
    os.environ[_SWITCH] = "1"
    try:
        import onnxruntime
    finally:
        os.environ.pop(_SWITCH, None)  # another thread may have been here
    return onnxruntime
