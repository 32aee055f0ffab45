"""The import of ONNX Runtime for both packages, with its telemetry off."""

from __future__ import annotations

import os
from typing import Any

_SWITCH = "ORT_DISABLE_TELEMETRY"


def import_onnxruntime() -> Any:
    """Import ONNX Runtime with its telemetry off.

    The official Linux wheels since 1.29 write a device ID, and events for their vendor, under the
    user's home (seen with 1.32). They read the switch only at import, so a module that the host
    program has imported before keeps that program's choice. The user's own setting is respected.

    Raises:
        ImportError: ONNX Runtime is not installed.
    """
    if _SWITCH in os.environ:
        import onnxruntime

        return onnxruntime
    os.environ[_SWITCH] = "1"
    try:
        import onnxruntime
    finally:
        os.environ.pop(_SWITCH, None)  # another thread may have removed it
    return onnxruntime
