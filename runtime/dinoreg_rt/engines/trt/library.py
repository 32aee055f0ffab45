"""TensorRT and TensorRT-RTX behind one interface.

Their Python modules are nearly the same; this module handles the differences. TensorRT 10.13 to 11
and TensorRT-RTX 1.4 or newer are supported.
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
#: Oldest supported versions. TensorRT before 10.13 miscompiles transformers with rotary positions.
_OLDEST: dict[Flavour, tuple[int, int]] = {"tensorrt": (10, 13), "tensorrt-rtx": (1, 4)}
_NEWEST_MAJOR: dict[Flavour, int] = {"tensorrt": 11, "tensorrt-rtx": 1}


@dataclass(frozen=True)
class Library:
    """An imported flavour of TensorRT.

    Attributes:
        module: the module ``tensorrt`` or ``tensorrt_rtx``.
        log: error messages of all objects made with `logger`.
    """

    flavour: Flavour
    module: Any
    logger: Any
    log: list[str] = field(default_factory=list)

    @property
    def version(self) -> str:
        """The module's version."""
        return str(self.module.__version__)

    @property
    def has_timing_cache(self) -> bool:
        """Whether kernels are timed at build time; RTX chooses them where the engine runs."""
        return self.flavour == "tensorrt"

    @property
    def has_runtime_cache(self) -> bool:
        """Whether kernels are compiled where the engine runs, and can be kept."""
        return self.flavour == "tensorrt-rtx"

    def network_flags(self) -> int:
        """Return the flags of a strongly typed network: all layers run in their ONNX precision."""
        flag = getattr(self.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        # A later release may drop the flag, since 11 has no weakly typed networks.
        return 0 if flag is None else 1 << int(flag)

    def complaint(self) -> str:
        """Return the last errors logged, for a message, and clear the log."""
        text = "; ".join(dict.fromkeys(self.log[-3:])) or "no reason was logged"
        self.log.clear()
        return text


def open_library(flavour: Flavour) -> Library:
    """Import one flavour of TensorRT.

    Raises:
        DeviceError: TensorRT is not installed, its libraries cannot be loaded, or its version is
            not supported.
    """
    name, extra = _MODULES[flavour]
    install = f"pip install 'dinoreg-rt[{extra}]'"
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        if getattr(error, "name", None) == name:
            raise DeviceError(f"{flavour} is not installed; {install}") from error
        raise DeviceError(
            f"{flavour} is installed but cannot be loaded ({error}); try {install} "
            "--force-reinstall; 'dinoreg-rt doctor' shows what is missing"
        ) from error
    except OSError as error:  # a missing shared library
        raise DeviceError(f"{flavour}: one of its libraries cannot be loaded ({error})") from error
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
    # Defined here, because the base class only exists once the module has been imported.
    class _Logger(module.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            if severity in (module.ILogger.Severity.INTERNAL_ERROR, module.ILogger.Severity.ERROR):
                log.append(" ".join(message.split()))

    return _Logger()
