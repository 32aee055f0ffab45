"""Both images small enough to try every position: some 10 mm cells with MIND-SSC and the body.

All of it lives on the host, whatever the device: tens of thousands of cells, and decisions after
each step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

import dinoreg_kernels

from ..device.choice import Device
from ..geometry import compose_affines, corners_lps_mm, shifted_grid
from ..images.body import body_mask, bounding_box, find_body, implausible
from ..images.intensity import window
from ..images.pair import Pair, PairImage, side_by_side
from ..images.resample import resample_volume, weight_on
from ..types import AffineTransform, Array, FloatArray, Geometry, Volume

#: Voxels of the coarse image along each axis of a cell.
POOL = 2
#: Used channels of MIND-SSC; the stored ones are padded.
CHANNELS = 12
_STORED_CHANNELS = 16
#: Cells are not larger: organs must still show. Smaller ones where the images are small.
_LARGEST_CELL_MM = 12.0
_CELLS_ACROSS = 24
#: Cells of a whole image at most; what is larger gets larger cells.
_MOST_CELLS = 150_000
#: Air that is kept around the body, in cells: the silhouette needs it.
_MARGIN_CELLS = 3


@dataclass(frozen=True, eq=False)
class CoarseImage:
    """An image on `POOL` voxels per cell, around its body.

    Attributes:
        image: windowed intensities 0..1.
        seen: share of each voxel inside the field of view and the user's mask, 0..1.
        body: the same, inside the body.
        cells: lattice of the cells, cubes along the fixed image's axes.
        doubt: why the body cannot serve as a mask; None where it can.
    """

    image: Volume
    seen: Array
    body: Array
    cells: Geometry
    doubt: str | None

    def mask(self) -> Volume:
        """The body with a margin, 0 or 1; outside its box nothing is body."""
        grid = self.image.geometry
        return Volume(body_mask(self.body > 0.5, grid.spacing_mm[0]), grid)


@dataclass(frozen=True, eq=False)
class CellFeatures:
    """A coarse image as the cells of some lattice see it.

    Attributes:
        mind: (d, h, w, stored) float16, `CHANNELS` of them used.
        weight: (d, h, w) float32, 0 outside the body and where it is flat.
        body: (d, h, w) float32, share of each cell in the body.
        seen: (d, h, w) float32, share of each cell in the field of view.
    """

    mind: Array
    weight: Array
    body: Array
    seen: Array

    def part(self, box: tuple[slice, slice, slice]) -> CellFeatures:
        """The cells of a box."""
        return CellFeatures(self.mind[box], self.weight[box], self.body[box], self.seen[box])


@dataclass(frozen=True, eq=False)
class View:
    """What the fixed cells see of the moving image through a position.

    Attributes:
        cells: the fixed cells that the moving image can reach.
        box: where they are among all.
        margin: in cells.
        features: of the moving image, on `cells` and the margin around them.
    """

    cells: Geometry
    box: tuple[slice, slice, slice]
    margin: int
    features: CellFeatures


def coarse_pair(pair: Pair, device: Device) -> tuple[CoarseImage, CoarseImage]:
    """Fixed and moving image on cells of one size, along the axes of the fixed image."""
    fixed, moving = (image.volume.geometry for image in pair)
    size = cell_size_mm(fixed, moving)
    first, second = side_by_side(
        lambda image, host: coarse_image(image, fixed.direction, size, host), pair, device
    )
    return first, second


def cell_size_mm(fixed: Geometry, moving: Geometry) -> float:
    """Edge of a cell for a pair of images."""
    boxes = [np.multiply(g.shape_xyz, g.spacing_mm) for g in (fixed, moving)]
    size = min(_LARGEST_CELL_MM, *(float(box.max()) / _CELLS_ACROSS for box in boxes))
    return max(size, *(math.cbrt(float(box.prod()) / _MOST_CELLS) for box in boxes))


def coarse_image(scan: PairImage, axes: FloatArray, cell_mm: float, device: Device) -> CoarseImage:
    """`scan` where its header puts it, on cells along `axes`.

    Args:
        scan: the image.
        axes: 3x3, columns are the grid's LPS directions.
        cell_mm: edge of a cell.
        device: the host.
    """
    volume, here = scan.volume, AffineTransform.identity()
    cells = _covering_lattice(volume.geometry, axes, cell_mm)
    grid = fine_grid(cells)
    # Beyond the image is air here, unlike where voxels are matched: that fields of view end alike
    # is a hint. With borders that go on, one of seven MR-CT pairs was aligned elsewhere.
    image = resample_volume(volume, grid, here, device, outside=scan.lowest)
    image = window(image, *scan.window)
    seen = weight_on(grid, volume, None, here, device)
    if scan.mask is not None:
        seen = seen * weight_on(grid, volume, scan.mask, here, device)
    body = find_body(image, seen)
    doubt = implausible(body, seen)
    if not body.any():  # nothing stands out: all that is seen counts
        body = seen > 0
    by_cell = body.reshape([part for n in cells.shape_zyx for part in (n, POOL)]).any((1, 3, 5))
    box = bounding_box(by_cell, _MARGIN_CELLS)
    cells = shifted_grid(cells, _starts(box), _sizes(box))
    fine = tuple(slice(POOL * b.start, POOL * b.stop) for b in box)
    seen = np.ascontiguousarray(seen[fine])
    return CoarseImage(
        Volume(np.ascontiguousarray(image[fine]), fine_grid(cells)),
        seen,
        np.where(body[fine], seen, np.float32(0)),
        cells,
        doubt,
    )


def cell_features(
    coarse: CoarseImage, cells: Geometry, affine: AffineTransform, device: Device
) -> CellFeatures:
    """What the grid `cells` sees of `coarse` through `affine` (its points to the image's)."""
    air = float(coarse.image.array.min())
    image = resample_volume(coarse.image, fine_grid(cells), affine, device, outside=air)
    structure = np.empty(cells.shape_zyx, np.float32)
    mind = dinoreg_kernels.mind_ssc(
        image,
        radius=(1, 1, 1),
        dilation=(2, 2, 2),
        pool=(POOL,) * 3,
        channels=_STORED_CHANNELS,
        structure=structure,
        threads=device.threads,
    )
    body = weight_on(cells, coarse.image, coarse.body, affine, device)
    seen = weight_on(cells, coarse.image, coarse.seen, affine, device)
    return CellFeatures(mind, structure * body, body, seen)


def scaled_lattice(cells: Geometry, scale: float) -> tuple[Geometry, AffineTransform]:
    """A lattice that covers `cells` when it is made `scale` times larger, and that map."""
    shape = tuple(max(1, math.ceil(n / scale - 1e-6)) for n in cells.shape_zyx)
    first = cells.direction @ (np.asarray(shape[::-1], np.float64) - 1) / 2 * cells.spacing_mm[0]
    lattice = Geometry(
        (shape[0], shape[1], shape[2]), cells.spacing_mm, tuple(-first), cells.direction
    )
    middle = corners_lps_mm(cells).mean(axis=0)
    return lattice, AffineTransform(scale * np.eye(3), middle)


def shifted(affine: AffineTransform, shift_mm: FloatArray) -> AffineTransform:
    """`affine` after a shift of its points."""
    return compose_affines(affine, AffineTransform(np.eye(3), shift_mm))


def fine_grid(cells: Geometry) -> Geometry:
    """The `POOL` voxels per cell of a lattice."""
    cell_mm = cells.spacing_mm[0]
    offset = cells.direction @ np.full(3, (POOL - 1) / (2 * POOL) * cell_mm)
    z, y, x = (n * POOL for n in cells.shape_zyx)
    origin = tuple(np.asarray(cells.origin_mm) - offset)
    return Geometry((z, y, x), (cell_mm / POOL,) * 3, origin, cells.direction)


def _covering_lattice(grid: Geometry, axes: FloatArray, cell_mm: float) -> Geometry:
    corners = corners_lps_mm(grid) @ axes
    lower, upper = corners.min(axis=0), corners.max(axis=0)
    x, y, z = (max(1, math.ceil(n / cell_mm - 1e-6)) for n in upper - lower)
    first = (lower + upper) / 2 - (np.array([x, y, z]) - 1) / 2 * cell_mm
    return Geometry((z, y, x), (cell_mm,) * 3, tuple(axes @ first), axes)


def _starts(box: tuple[slice, slice, slice]) -> tuple[int, int, int]:
    return (box[0].start, box[1].start, box[2].start)


def _sizes(box: tuple[slice, slice, slice]) -> tuple[int, int, int]:
    z, y, x = (b.stop - b.start for b in box)
    return (z, y, x)
