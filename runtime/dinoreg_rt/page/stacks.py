"""8-bit slices of a registration in anatomical orientation, for the picture and the page."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

import dinoreg_kernels

from ..device.choice import Device, choose_device
from ..fields.warp import warp_labels
from ..geometry import index_map, kernel_affine
from ..images.resample import antialiasing_samples
from ..registration.result import RegistrationResult
from ..types import AffineTransform, Array, LabelMap, Volume
from .layout import MOST_PIXELS, PlaneLayout, Window, content_box, plane_layouts
from .maps import PlaneMaps, plane_maps

Pixels: TypeAlias = NDArray[np.uint8]

#: Percentiles of the foreground that are shown as black and white, without Hounsfield units.
_PERCENTILES = (1.0, 99.5)
#: Approximate number of voxels from which they are taken.
_SAMPLE = 200_000


@dataclass(frozen=True, eq=False)
class SliceStack:
    """The slices of one plane; arrays are (slices, rows, columns).

    Attributes:
        layout: which slices and pixels these are.
        fixed: the fixed image, 0 to 255.
        before: the moving image after the initial alignment.
        after: the warped moving image.
        maps: Jacobian and further maps.
        labels_before: each label map after the initial alignment, by name.
        labels_after: each label map after the registration.
    """

    layout: PlaneLayout
    fixed: Pixels
    before: Pixels
    after: Pixels
    maps: PlaneMaps
    labels_before: dict[str, Array] = field(default_factory=dict)
    labels_after: dict[str, Array] = field(default_factory=dict)


def cut_stacks(
    result: RegistrationResult,
    fixed: Volume,
    moving: Volume,
    labels: Mapping[str, LabelMap] | None = None,
) -> list[SliceStack]:
    """Cut the slices of the three planes; all volumes must be on the CPU.

    Args:
        result: the registration.
        fixed: fixed image.
        moving: moving image.
        labels: label maps of the moving image, by name.
    """
    device = choose_device("cpu", result.config.threads)[0]
    windows = grey_windows(result, fixed, moving)
    layouts = plane_layouts(fixed.geometry, content_box(fixed, windows[0]))
    maps = plane_maps(result, layouts)
    stacks = []
    for layout, more in zip(layouts, maps, strict=True):
        shown = (
            _shades(_own_slices(fixed, layout, device), windows[0]),
            _shades(_sampled(moving, result.initial, layout, device), windows[1]),
            _shades(_own_slices(result.warped, layout, device), windows[1]),
        )
        warped = [
            {
                name: warp_labels(one, mapping, layout.grid, nearest=True, device=device).array
                for name, one in (labels or {}).items()
            }
            for mapping in (result.initial, result.displacement)
        ]
        stacks.append(SliceStack(layout, *shown, more, *warped))
    return stacks


def grey_windows(
    result: RegistrationResult, fixed: Volume, moving: Volume
) -> tuple[Window, Window]:
    """Return the intensities shown as black and white: the window of a CT, or percentiles."""
    low, high = result.config.ct_window_hu
    one, other = (
        _percentiles(volume) if water is None else (low + water, high + water)
        for volume, water in zip((fixed, moving), result.water, strict=True)
    )
    return one, other


def _percentiles(volume: Volume) -> Window:
    step = max(1, round((volume.array.size / _SAMPLE) ** (1 / 3)))
    # No thick slice is skipped.
    steps = (step if n > 4 * step else 1 for n in volume.array.shape)
    values = np.asarray(volume.array[tuple(slice(None, None, s) for s in steps)]).ravel()
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    content = values[values > values.min()]
    low, high = np.percentile(content if content.size else values, _PERCENTILES)
    return float(low), float(max(high, low + 1e-6))


def _own_slices(volume: Volume, layout: PlaneLayout, device: Device) -> Array:
    """Return the slices of an image on the fixed grid, its voxels themselves where these fit."""
    voxels = layout.voxels(MOST_PIXELS)
    if layout.view(np.empty([len(axis) for axis in voxels], np.bool_)).shape != (
        layout.grid.shape_zyx
    ):
        return _sampled(volume, AffineTransform.identity(), layout, device)
    return layout.view(volume.array[np.ix_(*voxels)])


def _sampled(volume: Volume, affine: AffineTransform, layout: PlaneLayout, device: Device) -> Array:
    """Sample `volume` through `affine`, antialiased within each slice; NaN outside."""
    matrix = kernel_affine(index_map(layout.grid, volume.geometry, affine))
    _, rows, columns = antialiasing_samples(matrix)
    return dinoreg_kernels.resample(
        np.ascontiguousarray(volume.array, np.float32),
        layout.grid.shape_zyx,
        matrix,
        samples=(1, rows, columns),
        outside=math.nan,
        threads=device.threads,
    )


def _shades(values: Array, window: Window) -> Pixels:
    """Return 8-bit values; black where there is no number."""
    low, high = window
    # fmax and fmin take the limit where there is no number.
    shades = np.fmin(np.fmax(np.asarray(values, np.float32), low), high)
    shades -= low
    shades *= 255 / (high - low)
    return np.ascontiguousarray(shades.astype(np.uint8))
