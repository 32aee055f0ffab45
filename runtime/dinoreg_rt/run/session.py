"""`Session`: what the runs of one process share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ..io import image_parts

if TYPE_CHECKING:
    from ..registration.registrar import Registrar
    from ..registration.result import RegistrationResult

_Made = TypeVar("_Made")
#: The inputs that are often the same from run to run, by role.
_REPEATED = ("fixed", "fixed_mask")


class Session:
    """An open registrar and the fixed image that was read last, for runs one after the other.

    Args:
        registrar: keeps the encoder and the work on the fixed image (default: nothing is kept, and
            neither are images).
    """

    def __init__(self, registrar: Registrar | None = None) -> None:
        self._registrar = registrar
        self._read: dict[str, tuple[Any, Any]] = {}

    def register(self, fixed: Any, moving: Any, **more: Any) -> RegistrationResult:
        """Register as `dinoreg_rt.register` does."""
        if self._registrar is not None:
            return self._registrar.register(fixed, moving, **more)
        from ..registration.register import register

        return register(fixed, moving, **more)

    def read(self, orientation: str, role: str, path: Path, read: Callable[[Path], _Made]) -> _Made:
        """Return ``read(path)``, from memory where the same was read last in this role."""
        if self._registrar is None or role not in _REPEATED:
            return read(path)
        state = [orientation, str(path), *_state(path)]
        known, value = self._read.get(role, (None, None))
        if known != state:
            value = read(path)
            self._read[role] = state, value
        return value  # type: ignore[no-any-return]


def _state(path: Path) -> list[tuple[str, int, int, int]]:
    """Return name, inode, size and time of the files of an image, by which a change is noticed."""
    found = [(str(part), part.stat()) for part in image_parts(path) if part.exists()]
    return [(name, stat.st_ino, stat.st_size, stat.st_mtime_ns) for name, stat in found]
