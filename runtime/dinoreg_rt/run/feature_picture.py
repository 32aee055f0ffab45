"""`features.png`: what the solver compared. The same tissue should have one colour in all rows.

The rows are the fixed image, the moving image as initially aligned, and as the result warps it, all
at the same places. What differs between the modalities is taken out: of its features each image's
own mean is subtracted, and each channel is divided by its own standard deviation, over the places
that the result matches. Red, green and blue are the three directions in which the features of
matching places vary together most; each image has its own contrast in them, and over both every
shade is as frequent as any other. Where either image has nothing to compare the picture is dark.

How well the colours agree is written above, as their correlation at matching places. They are of
the directions that agree best: all channels together agree less.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..encoder.planes import PLANES, Plane, upright, upright_view
from ..geometry import sample_linear
from ..registration.result import KeptFeatures
from ..types import Array, FloatArray
from .figures import new_figure

_INK, _PAPER = "#e8e6e3", "#111315"
_DPI, _WIDTH_IN = 100, 11.0
_ROWS = ("fixed", "moving, initially aligned", "moving, warped")
_COLOURS, _SHADES = 3, 65
#: Grey of places that are not compared.
DARK = 0.08
#: Places from which the colours are chosen, about; more change nothing that can be seen.
_PLACES = 200_000


@dataclass(frozen=True, eq=False)
class FeatureView:
    """One plane.

    Attributes:
        plane: its name.
        pictures: for each of the three rows (rows, columns, 3) in 0..1.
        aspect: height of a pixel by its width.
    """

    plane: Plane
    pictures: tuple[FloatArray, FloatArray, FloatArray]
    aspect: float


@dataclass(frozen=True, eq=False)
class Palette:
    """How features become colours.

    Attributes:
        means: (C,) of the fixed and of the moving image.
        directions: (C, 3) of both, by which centred features are multiplied.
        levels: (n, 3) values, growing, that are shown at even steps from 0 to 1: each shade is as
            frequent as any other.
    """

    means: tuple[FloatArray, FloatArray]
    directions: tuple[FloatArray, FloatArray]
    levels: FloatArray

    def values(self, features: Array, image: int) -> FloatArray:
        """(n, 3) of features (n, C) of an image: 0 is fixed, 1 moving; unit deviation."""
        return np.asarray((features - self.means[image]) @ self.directions[image])

    def colours(self, features: Array, image: int) -> FloatArray:
        """The same in 0..1."""
        values, shades = self.values(features, image), np.linspace(0, 1, len(self.levels))
        each = zip(values.T, self.levels.T, strict=True)
        return np.stack([np.interp(v, levels, shades) for v, levels in each], axis=-1)


def draw_features(features: KeptFeatures, path: Path) -> None:
    """Draw three planes in three rows, see above, into the PNG file `path`."""
    figure = new_figure(figsize=(_WIDTH_IN, 1.03 * _WIDTH_IN), facecolor=_PAPER)
    grid = figure.add_gridspec(len(_ROWS), len(PLANES), wspace=0.04, hspace=0.06)
    grid.update(left=0.05, right=0.98, top=0.92, bottom=0.02)
    palette = choose_palette(features)
    for column, view in enumerate(feature_views(features, palette)):
        for row, (name, picture) in enumerate(zip(_ROWS, view.pictures, strict=True)):
            ax = figure.add_subplot(grid[row, column])
            ax.imshow(picture, aspect=view.aspect)
            ax.set_xticks([])
            ax.set_yticks([])
            if row == 0:
                ax.set_title(view.plane, color=_INK, fontsize=10)
            if column == 0:
                ax.set_ylabel(name, color=_INK, fontsize=10)
    # No measure of quality: the directions are chosen by the result itself.
    headline = "colours: the three directions in which the features of both images agree best"
    figure.text(0.5, 0.965, headline, color=_INK, fontsize=11, ha="center")
    figure.savefig(path, dpi=_DPI, facecolor=_PAPER)


def choose_palette(features: KeptFeatures) -> Palette:
    """The directions in which both images' features vary together most at matching places.

    Eigenvectors of the symmetric part of the cross-covariance of standardised features.
    """
    found = _matches(features, warped=True)
    if not len(found[0]):
        found = (np.zeros((1, _channels(features))),) * 2  # a picture without colours
    means = (found[0].mean(axis=0), found[1].mean(axis=0))
    scales = (_deviation(found[0]), _deviation(found[1]))
    fixed, moving = ((f - m) / s for f, m, s in zip(found, means, scales, strict=True))
    together = fixed.T @ moving
    _, vectors = np.linalg.eigh(together + together.T)
    rows = vectors.T[::-1][:_COLOURS]
    largest = np.abs(rows).argmax(axis=1)[:, None]
    rows = rows * np.sign(np.take_along_axis(rows, largest, axis=1))
    shown = (fixed @ rows.T, moving @ rows.T)
    contrast = (_deviation(shown[0]), _deviation(shown[1]))
    told = np.concatenate([v / c for v, c in zip(shown, contrast, strict=True)])
    levels = np.percentile(told, np.linspace(1, 99, _SHADES), axis=0)
    one, other = (
        rows.T / scale[:, None] / gain for scale, gain in zip(scales, contrast, strict=True)
    )
    return Palette(means, (one, other), levels)


def feature_views(features: KeptFeatures, palette: Palette) -> list[FeatureView]:
    """Three planes through the middle of the fixed image's compared places."""
    grid = features.fixed_geometry
    places = np.arange(np.prod(grid.shape_zyx), dtype=np.int64).reshape(grid.shape_zyx)
    middle = np.argwhere(features.fixed_weight > 0).mean(axis=0).round().astype(int)
    views = []
    for plane in PLANES:
        stack = upright_view(places, grid, plane)
        at = np.argwhere(stack == places[tuple(middle)])[0][0]
        spacing = upright(grid, plane).spacing_mm
        pictures = _pictures(features, palette, stack[at])
        views.append(FeatureView(plane, pictures, spacing[1] / spacing[0]))
    return views


def _pictures(
    features: KeptFeatures, palette: Palette, places: Array
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """The three rows at places (rows, columns) of the fixed grid, numbered in its order."""
    flat = places.ravel()
    channels = _channels(features)
    fixed = features.fixed[..., :channels].reshape(-1, channels)[flat].astype(np.float32)
    colours, known = [palette.colours(fixed, 0)], []
    for warped in (False, True):
        index = _moving_index(features, flat, warped=warped)
        moving = sample_linear(features.moving[..., :channels], index[:, ::-1], 0.0)
        colours.append(palette.colours(moving, 1))
        known.append(_both_count(features, flat, index)[0])
    shown = [
        np.where(k[:, None], np.pad(c, ((0, 0), (0, _COLOURS - c.shape[1]))), DARK)
        for c, k in zip(colours, (known[1], *known), strict=True)
    ]
    first, second, third = (c.reshape(*places.shape, _COLOURS) for c in shown)
    return first, second, third


def _matches(features: KeptFeatures, *, warped: bool) -> tuple[FloatArray, FloatArray]:
    """(n, C) features of the fixed image and of the nearest voxels of the moving one.

    Of about `_PLACES` places at most where both count, evenly over the fixed grid.
    """
    channels = _channels(features)
    flat = np.flatnonzero(features.fixed_weight.ravel() > 0)
    flat = flat[:: max(1, -(-len(flat) // _PLACES))]
    index = _moving_index(features, flat, warped=warped)
    known, nearest = _both_count(features, flat, index)
    fixed = features.fixed[..., :channels].reshape(-1, channels)[flat[known]]
    moving = features.moving[..., :channels].reshape(-1, channels)[nearest[known]]
    return fixed.astype(np.float64), moving.astype(np.float64)


def _moving_index(features: KeptFeatures, flat: Array, *, warped: bool) -> FloatArray:
    """(n, 3) indices (z, y, x) in the moving grid of places of the fixed one."""
    grid = features.fixed_geometry
    index = np.stack(np.unravel_index(flat, grid.shape_zyx), axis=-1).astype(np.float64)
    if warped:
        index += features.displacement_mm.reshape(-1, 3)[flat] / grid.spacing_mm[::-1]
    return np.asarray(index - features.moving_offset_zyx)


def _both_count(features: KeptFeatures, flat: Array, index: FloatArray) -> tuple[Array, Array]:
    """(n,) where both images are compared, and the numbers of the nearest moving voxels."""
    shape = features.moving_weight.shape
    near = np.rint(index).astype(np.int64)
    inside = np.all((near >= 0) & (near < shape), axis=1)
    number = np.ravel_multi_index(tuple(near.T), shape, mode="clip")
    counts = (features.moving_weight.ravel()[number] > 0) & inside
    return counts & (features.fixed_weight.ravel()[flat] > 0), number


def _deviation(values: FloatArray) -> FloatArray:
    """(C,) standard deviations; 1 where nothing varies."""
    found = values.std(axis=0)
    return np.where(found > 0, found, 1.0)


def _channels(features: KeptFeatures) -> int:
    """The encoder's where there is an encoder: MIND-SSC beside it shows edges, not tissues."""
    return features.encoder_channels or features.fixed.shape[-1]
