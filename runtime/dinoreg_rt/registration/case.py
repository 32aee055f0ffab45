"""`Case`: the inputs of one registration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..config.parameters import RegistrationConfig
from ..errors import InputError
from ..images.fixed_work import NOTHING_KEPT, Kept
from ..io import as_mask, as_volume, as_weights
from ..types import AffineTransform, Array, Volume

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
        initial: the initial alignment, from fixed to moving points; None: the configuration says
            how it is found.
        kept: what is kept of the fixed image for the next registration.
    """

    fixed: Volume
    moving: Volume
    fixed_mask: Array | None = None
    moving_mask: Array | None = None
    weights: Array | None = None
    initial: AffineTransform | None = None
    kept: Kept = NOTHING_KEPT

    @classmethod
    def of(
        cls,
        fixed: ImageLike,
        moving: ImageLike,
        config: RegistrationConfig,
        *,
        fixed_mask: LabelsLike | None = None,
        moving_mask: LabelsLike | None = None,
        weights: ImageLike | None = None,
        initial: AffineTransform | None = None,
    ) -> Case:
        """Read and check the inputs; the arguments are those of `dinoreg_rt.register`.

        Raises:
            InputError: an image cannot be used, a mask or the weights lie on another grid, or
                `initial` is no `AffineTransform`.
        """
        if not isinstance(initial, AffineTransform | None):
            raise InputError(
                f"initial is a {type(initial).__name__}; wanted an AffineTransform from fixed to "
                "moving points; a method or a file belongs in the configuration"
            )
        orientation = config.orientation
        one = as_volume(fixed, orientation=orientation)
        other = as_volume(moving, orientation=orientation)
        masks = [
            None if mask is None else as_mask(mask, image.geometry, role, orientation=orientation)
            for mask, image, role in ((fixed_mask, one, "fixed"), (moving_mask, other, "moving"))
        ]
        weight = None
        if weights is not None:
            weight = as_weights(weights, one.geometry, orientation=orientation)
        return cls(
            fixed=one,
            moving=other,
            fixed_mask=masks[0],
            moving_mask=masks[1],
            weights=weight,
            initial=initial,
        )
