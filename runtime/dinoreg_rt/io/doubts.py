"""What an image's header leaves in doubt about its grid."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from ..types import Geometry


class HeaderDoubts(NamedTuple):
    """What a header leaves in doubt.

    Attributes:
        notes: one sentence for each doubt, as in `Geometry.notes`.
        sides: it leaves open which side of the image is left, as in `Geometry.sides_in_doubt`.
    """

    notes: tuple[str, ...] = ()
    sides: bool = False

    def of(self, geometry: Geometry) -> Geometry:
        """Return the geometry with these doubts."""
        return replace(geometry, notes=self.notes, sides_in_doubt=self.sides)
