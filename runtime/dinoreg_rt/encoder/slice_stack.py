"""The slices of a volume as an encoder sees them, cut a few at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import dinoreg_kernels

from ..bundle.manifest import Graph, Normalisation
from ..device.choice import Device
from ..geometry import (
    coarsened_grid,
    compose_affines,
    corners_lps_mm,
    index_map,
    kernel_affine,
    lps_to_index,
    reshaped_grid,
    shifted_grid,
    transform_points,
)
from ..images.moving_grids import Region
from ..images.resample import antialiasing_samples
from ..types import Array, FloatArray, Geometry, Volume
from .framing import Frame
from .planes import Plane, upright, upright_view

_WHOLE = Frame()


@dataclass(frozen=True, eq=False)
class SliceStack:
    """The slices of a volume that are encoded, and the grids of their pixels and tokens.

    Attributes:
        volume: the image.
        window: the intensities shown as 0 and 1.
        plane: the plane in which the volume is cut.
        pixels: grid of the pixels of all slices at the encoder's size, (slices, height, width),
            margins included.
        tokens: grid of the tokens of all slices, (slices, rows, columns), without the margins.
        needed: the first and the last slice that can meet the other image.
        encoded: indices of the slices that go through the encoder, in rising order.
        empty: indices of the slices left out because they are empty.
        frame: the position of the slices in the encoder's picture.
    """

    volume: Volume
    window: tuple[float, float]
    plane: Plane
    pixels: Geometry
    tokens: Geometry
    needed: tuple[int, int]
    encoded: tuple[int, ...]
    empty: tuple[int, ...]
    frame: Frame = _WHOLE

    @property
    def positions_mm(self) -> FloatArray:
        """Position (n,) of each encoded slice along the stack."""
        return np.asarray(self.encoded) * self.tokens.spacing_mm[2]

    def batch(self, start: int, count: int, norm: Normalisation, device: Device) -> Array:
        """Cut the pixels (n, 3, height, width) float32 of up to `count` slices from `start` on.

        Pixels are windowed, antialiased where slices become smaller, and normalised; a slice
        uses only its own voxels. Margins have the value of the window's dark end in every
        image, because a repeated border would draw streaks. The volume should be on `device`, or it
        is uploaded for every batch.
        """
        image = device.xp.asarray(self.volume.array, np.float32)
        own = upright(self.volume.geometry, self.plane)
        _, rows, columns = antialiasing_samples(kernel_affine(index_map(self.pixels, own)))
        height, width = self.pixels.shape_zyx[1:]
        top, bottom, left, right = self._margin_pixels
        cut = dinoreg_kernels.cut_slices(
            upright_view(image, self.volume.geometry, self.plane)[self.frame.index],
            self.encoded[start : start + count],
            (height - top - bottom, width - left - right),
            window=self.window,
            mean=norm.mean,
            std=norm.std,
            samples=(rows, columns),
            threads=device.threads,
        )
        if not any(self.frame.margins):
            return cut
        black = device.upload(-np.asarray(norm.mean) / np.asarray(norm.std), np.float32)
        picture = device.xp.empty((*cut.shape[:2], height, width), np.float32)
        picture[...] = black[:, None, None]
        picture[..., top : height - bottom, left : width - right] = cut
        return picture

    def inner(self, tokens: Array) -> Array:
        """Return the tokens (..., rows, columns, C) of a slice without those of its margins."""
        top, bottom, left, right = self.frame.margins
        rows, columns = tokens.shape[-3:-1]
        if not any(self.frame.margins):
            return tokens
        return tokens[..., top : rows - bottom, left : columns - right, :]

    @property
    def _margin_pixels(self) -> tuple[int, int, int, int]:
        """The frame's margins in pixels."""
        top, bottom, left, right = self.frame.margins
        patch = self.pixels.shape_zyx[1] // (self.tokens.shape_zyx[1] + top + bottom)
        return top * patch, bottom * patch, left * patch, right * patch


@dataclass(frozen=True, eq=False)
class PlaneStacks:
    """The slices of both images in one plane.

    Attributes:
        plane: the plane's name.
        graph: the bundle's graph for slices of this shape.
        stacks: slices of the fixed and of the moving image.
        weight: weight of this plane's features; the weights of all planes sum to 1.
    """

    plane: Plane
    graph: Graph
    stacks: tuple[SliceStack, SliceStack]
    weight: float


def plan_slices(
    volume: Volume,
    window: tuple[float, float],
    plane: Plane,
    size: tuple[int, int],
    patch: int,
    stride: int,
    region: Region | None = None,
    frame: Frame = _WHOLE,
) -> SliceStack:
    """Decide which slices of a volume are encoded, and lay out their pixels and tokens.

    Every `stride`-th slice and the last one are candidates. Of those, the ones that `region`
    reaches into and the nearest one on either side are encoded, so features in the region are
    interpolated between the same slices as without it. Empty slices are left out.

    The shown part of a slice is scaled to the encoder's size, less the frame's margins. The grids
    record the true pixel sizes, so features land at their true positions.

    Args:
        volume: the image.
        window: the intensities shown as 0 and 1.
        plane: the plane in which the volume is cut.
        size: height and width of the encoder's input.
        patch: side of a token in pixels.
        stride: distance between encoded slices, in slices.
        region: the part of the volume that counts (default: all of it).
        frame: the part of the slices that is shown, and its position in the encoder's picture.
    """
    stack = upright(volume.geometry, plane)
    count = stack.shape_zyx[0]
    margins = [patch * tokens for tokens in frame.margins]
    top, bottom, left, right = margins
    shape = (count, size[0] - top - bottom, size[1] - left - right)
    inner = reshaped_grid(frame.shown(stack), shape)
    slices = upright_view(volume.array, volume.geometry, plane)[frame.index]
    wanted = sorted({*range(0, count, stride), count - 1})
    empty = tuple(i for i in wanted if not bool((slices[i] > window[0]).any()))
    needed = (0, count - 1) if region is None else _slices_of(region, stack)
    return SliceStack(
        volume=volume,
        window=window,
        plane=plane,
        pixels=shifted_grid(inner, (0, -top, -left), (count, *size)) if any(margins) else inner,
        tokens=coarsened_grid(inner, (1, patch, patch)),
        needed=needed,
        encoded=_around(tuple(i for i in wanted if i not in empty), needed),
        empty=empty,
        frame=frame,
    )


def _slices_of(region: Region, stack: Geometry) -> tuple[int, int]:
    """Return the first and last slice that linear interpolation in a region uses."""
    to_index = compose_affines(lps_to_index(stack), region.affine)
    along = transform_points(to_index, corners_lps_mm(region.grid))[:, 2]
    last = stack.shape_zyx[0] - 1
    # Rounding must not drop a slice that the region's edge just touches.
    lower, upper = np.floor(along.min() - 1e-3), np.ceil(along.max() + 1e-3)
    return int(np.clip(lower, 0, last)), int(np.clip(upper, 0, last))


def _around(slices: tuple[int, ...], needed: tuple[int, int]) -> tuple[int, ...]:
    """Return the slices within `needed`, and the nearest one on either side of it."""
    first = max((i for i in slices if i <= needed[0]), default=0)
    last = min((i for i in slices if i >= needed[1]), default=needed[1])
    return tuple(i for i in slices if first <= i <= last)
