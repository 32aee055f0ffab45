"""TensorRT and TensorRT-RTX behind one seam: which module, what its log said, which version.

Their Python interfaces are nearly the same. TensorRT 10.13 to 11 and TensorRT-RTX from 1.4 on are
supported; whatever differs between them is decided here.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from typing import Any, Literal

from ...errors import DeviceError

Flavour = Literal["tensorrt", "tensorrt-rtx"]
_MODULES: dict[Flavour, tuple[str, str]] = {
    "tensorrt": ("tensorrt", "tensorrt"),
    "tensorrt-rtx": ("tensorrt_rtx", "rtx"),
}
#: Before 10.13 TensorRT miscompiled transformers with rotary positions.
_OLDEST: dict[Flavour, tuple[int, int]] = {"tensorrt": (10, 13), "tensorrt-rtx": (1, 4)}
_NEWEST_MAJOR: dict[Flavour, int] = {"tensorrt": 11, "tensorrt-rtx": 1}


@dataclass(frozen=True)
class Library:
    """One flavour of TensorRT, imported.

    Attributes:
        flavour: which.
        module: ``tensorrt`` or ``tensorrt_rtx``.
        log: errors of everything that was made with `logger`.
    """

    flavour: Flavour
    module: Any
    logger: Any
    log: list[str] = field(default_factory=list)

    @property
    def version(self) -> str:
        """As the module gives it."""
        return str(self.module.__version__)

    @property
    def has_timing_cache(self) -> bool:
        """RTX chooses its kernels on the machine that runs the engine, and times none here."""
        return self.flavour == "tensorrt"

    def network_flags(self) -> int:
        """Strongly typed: no layer runs in another precision than its ONNX node says."""
        flag = getattr(self.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        # A later release may drop the flag, as 11 dropped weakly typed networks.
        return 0 if flag is None else 1 << int(flag)

    def complaint(self) -> str:
        """The last errors that were logged, for a message; forgets them."""
        text = "; ".join(dict.fromkeys(self.log[-3:])) or "no reason was logged"
        self.log.clear()
        return text


def open_library(flavour: Flavour) -> Library:
    """Import one flavour of TensorRT.

    Raises:
        DeviceError: not installed, its libraries cannot be loaded, or a version that is not known
            to compile vision transformers rightly.
    """
    name, extra = _MODULES[flavour]
    install = f"pip install 'dinoreg-rt[{extra}]'"
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        if getattr(error, "name", None) == name:
            raise DeviceError(f"{flavour} is not installed; {install}") from error
        raise DeviceError(
            f"{flavour} is installed but cannot be loaded ({error}); {install} --force-reinstall, "
            "and 'dinoreg-rt doctor' shows what is missing"
        ) from error
    except OSError as error:  # a shared library that is not there
        raise DeviceError(f"{flavour}: a library of it cannot be loaded ({error})") from error
    _check_version(flavour, str(module.__version__), install)
    log: list[str] = []
    return Library(flavour, module, _make_logger(module, log), log)


def _check_version(flavour: Flavour, version: str, install: str) -> None:
    major, minor = (int(part) for part in version.split(".")[:2])
    oldest, newest = _OLDEST[flavour], _NEWEST_MAJOR[flavour]
    if (major, minor) < oldest or major > newest:
        raise DeviceError(
            f"{flavour} {version} is not supported; wanted {oldest[0]}.{oldest[1]} to {newest}.x: "
            f"{install}"
        )


def _make_logger(module: Any, log: list[str]) -> Any:
    # Made here, because its base class exists only once the module has been imported.
    class _Logger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (module.ILogger.Severity.INTERNAL_ERROR, module.ILogger.Severity.ERROR):
                log.append(" ".join(message.split()))

    return _Logger()
