"""Intermediate results of one fixed image, kept for further moving images.

In a cohort many moving images are often registered to one fixed image. Its intensity window,
coarse image and features are then the same each time. Everything is kept under the hash of the
voxels, not under a name or an object, so a changed image is never mistaken for an earlier one, and
a result from memory has the bits of one that is computed again.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import numpy as np

from ..config.parameters import RegistrationConfig
from ..io.arrays import device_of
from ..io.hashes import content_hash
from ..types import Array, Geometry, Volume

_Made = TypeVar("_Made")
#: Parameters that do not change what is kept.
_WITHOUT_EFFECT = {"initial", "threads", "inverse", "confidence", "cache", "cache_gb"}


class Kept:
    """Intermediate results of one fixed image, one of each name; without a hash it keeps nothing.

    Attributes:
        sha256: `content_hash` of the image; empty if nothing is kept.
    """

    def __init__(self, sha256: str = "") -> None:
        self.sha256 = sha256
        self._made: dict[str, tuple[Hashable, Any]] = {}
        self._lock = threading.Lock()

    def once(self, name: str, key: Hashable, make: Callable[[], _Made]) -> _Made:
        """Return the result of `make`, from memory if `name` was last made with the same `key`."""
        if not self.sha256:
            return make()
        with self._lock:
            known = self._made.get(name)
        if known is not None and known[0] == key:
            return known[1]  # type: ignore[no-any-return]
        made = make()
        with self._lock:
            self._made[name] = key, made
        return made


#: Keeps nothing.
NOTHING_KEPT = Kept()


class FixedWork:
    """Keeps the intermediate results of the fixed image that was registered to last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._key: Hashable = None
        self._kept = NOTHING_KEPT

    def of(self, fixed: Volume, mask: Array | None, config: RegistrationConfig) -> Kept:
        """Return what is kept of a fixed image; that of another image is dropped.

        Args:
            fixed: the image; nothing is kept of one that is not on the host.
            mask: (D, H, W), nonzero where it counts; None: everywhere.
            config: the configuration of the registration.
        """
        if device_of(fixed.array) != "cpu":
            return NOTHING_KEPT
        sha256 = content_hash(fixed)
        masked = "" if mask is None else _sha256(mask)
        parameters = config.model_dump_json(exclude=_WITHOUT_EFFECT)
        read_as = (fixed.name, fixed.pixel_type, fixed.modality_hint, fixed.notes)
        key = (sha256, masked, read_as, fixed.geometry.notes, parameters)
        with self._lock:
            if key != self._key:
                self._key, self._kept = key, Kept(sha256)
            return self._kept


def _sha256(mask: Array) -> str:
    return hashlib.sha256(np.ascontiguousarray(mask).data.cast("B")).hexdigest()


def grid_key(grid: Geometry) -> Hashable:
    """Return a value by which equal grids are recognised."""
    return grid.shape_zyx, grid.spacing_mm, grid.origin_mm, grid.direction.tobytes()
