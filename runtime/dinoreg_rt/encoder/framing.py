"""The part of each slice that the encoder is shown, and its position in the encoder's input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..config.feature_parameters import SliceScale
from ..geometry import compose_affines, index_to_lps, lps_to_index, shifted_grid, transform_points
from ..images.pair import PairImage
from ..types import Geometry, Volume
from .planes import Plane, upright

#: Part of a slice in voxels: first row, end of rows, first column, end of columns.
Box = tuple[int, int, int, int]
#: Height and width in mm.
Extent = tuple[float, float]


@dataclass(frozen=True)
class Frame:
    """The position of a slice in the encoder's picture.

    Attributes:
        margins: numbers of tokens above, below, left and right of the slice.
        box: the part of the slice that is shown; None for all of it.
    """

    margins: tuple[int, int, int, int] = (0, 0, 0, 0)
    box: Box | None = None

    def shown(self, stack: Geometry) -> Geometry:
        """Return the grid of the shown part of an upright stack (slice, row, column)."""
        if self.box is None:
            return stack
        top, bottom, left, right = self.box
        shape = (stack.shape_zyx[0], bottom - top, right - left)
        return shifted_grid(stack, (0, top, left), shape)

    @property
    def index(self) -> tuple[slice, slice, slice]:
        """Index of the shown part in an array (slice, row, column)."""
        if self.box is None:
            return slice(None), slice(None), slice(None)
        top, bottom, left, right = self.box
        return slice(None), slice(top, bottom), slice(left, right)


def evenly_padded(padding: int) -> Frame:
    """Return the frame that shows a whole slice with `padding` tokens at each edge."""
    return Frame((padding, padding, padding, padding))


def shown_boxes(
    pair: Sequence[PairImage], plane: Plane, scale: SliceScale
) -> list[tuple[Box | None, Extent]]:
    """Return the part of each image's slices that is shown, and its size in mm.

    With the scale ``body`` it is the box around the body, if the image has one; else all of it.
    """
    found = []
    for image in pair:
        stack = upright(image.volume.geometry, plane)
        body = image.body if scale == "body" else None
        box = None if body is None else _body_box(body, stack)
        _, rows, columns = Frame(box=box).shown(stack).shape_zyx
        found.append((box, (rows * stack.spacing_mm[1], columns * stack.spacing_mm[0])))
    return found


def picture_extent(extents: Sequence[Extent], scale: SliceScale) -> Extent:
    """Return the height and width in mm that the encoder's picture should hold.

    With the scale ``fit`` these are the fixed image's, to which the moving image is stretched.
    """
    if scale == "fit":
        return extents[0]
    return max(height for height, _ in extents), max(width for _, width in extents)


def frames_of(
    shown: Sequence[tuple[Box | None, Extent]],
    picture: Extent,
    grid: tuple[int, int],
    padding: int,
    scale: SliceScale,
) -> list[Frame]:
    """Place the slices of each image in the encoder's picture.

    With the scale ``fit`` every slice fills the picture, whatever its size. Otherwise a token is a
    square of the same size in mm for both images, the smallest with which both fit; each slice is
    centred and takes a whole number of tokens, which changes its size by at most half a token.

    Args:
        shown: the result of `shown_boxes`.
        picture: the result of `picture_extent`.
        grid: rows and columns of tokens in the encoder's picture.
        padding: number of tokens kept free at each edge.
        scale: as in the configuration.
    """
    if scale == "fit":
        return [evenly_padded(padding) for _ in shown]
    room = tuple(tokens - 2 * padding for tokens in grid)
    token_mm = max(extent / tokens for extent, tokens in zip(picture, room, strict=True))
    frames = []
    for box, extent in shown:
        spare = [
            tokens - min(tokens, max(1, round(length / token_mm)))
            for length, tokens in zip(extent, room, strict=True)
        ]
        above, left = spare[0] // 2 + padding, spare[1] // 2 + padding
        below, right = spare[0] - spare[0] // 2 + padding, spare[1] - spare[1] // 2 + padding
        frames.append(Frame((above, below, left, right), box))
    return frames


def _body_box(body: Volume, stack: Geometry) -> Box | None:
    """Return the rows and columns of an upright stack that the body reaches; None if none."""
    inside_zyx = np.argwhere(body.array > 0)
    if len(inside_zyx) == 0:
        return None
    to_stack = compose_affines(lps_to_index(stack), index_to_lps(body.geometry))
    index = transform_points(to_stack, inside_zyx[:, ::-1].astype(np.float64))
    reach = np.abs(to_stack.matrix).sum(axis=1) / 2  # from a body voxel's centre to its corners
    lower = np.floor(index.min(axis=0) - reach + 0.5).astype(int)
    upper = np.ceil(index.max(axis=0) + reach + 0.5).astype(int)
    columns, rows = stack.shape_xyz[:2]
    top, left = max(0, int(lower[1])), max(0, int(lower[0]))
    bottom, right = min(rows, int(upper[1])), min(columns, int(upper[0]))
    return (top, bottom, left, right) if top < bottom and left < right else None
