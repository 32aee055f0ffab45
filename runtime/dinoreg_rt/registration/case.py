"""`Case`: the inputs of one registration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..io import as_mask, as_volume, as_weights
from ..types import Array, Volume

if TYPE_CHECKING:
    from ..io import ImageLike, LabelsLike


@dataclass(frozen=True, eq=False)
class Case:
    """Two images, masks and weights, read and checked.

    Attributes:
        fixed: the fixed image.
        moving: the moving image, which is deformed.
        fixed_mask: (D, H, W) on the fixed grid, nonzero where the image counts; None: everywhere.
        moving_mask: the same on the moving grid.
        weights: (D, H, W) float32, weight of each voxel of the fixed grid; None: 1 everywhere.
    """

    fixed: Volume
    moving: Volume
    fixed_mask: Array | None = None
    moving_mask: Array | None = None
    weights: Array | None = None

    @classmethod
    def of(
        cls,
        fixed: ImageLike,
        moving: ImageLike,
        *,
        fixed_mask: LabelsLike | None = None,
        moving_mask: LabelsLike | None = None,
        weights: ImageLike | None = None,
    ) -> Case:
        """Read and check the inputs; the arguments are those of `dinoreg_rt.register`.

        Raises:
            InputError: an image cannot be used, or a mask or the weights lie on another grid.
        """
        one, other = as_volume(fixed), as_volume(moving)
        return cls(
            fixed=one,
            moving=other,
            fixed_mask=None if fixed_mask is None else as_mask(fixed_mask, one.geometry, "fixed"),
            moving_mask=(
                None if moving_mask is None else as_mask(moving_mask, other.geometry, "moving")
            ),
            weights=None if weights is None else as_weights(weights, one.geometry),
        )
