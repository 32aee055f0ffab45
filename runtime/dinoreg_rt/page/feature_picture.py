"""`features.png`: the features that the solver compared, with one colour for each tissue.

The rows show the fixed image, the moving image after the initial alignment, and the warped moving
image, all at the same points. Differences between the modalities are removed: each channel of each
image is standardised over the points that the result matches. Red, green and blue are the three
directions in which the features of matching points covary most. Each image has its own contrast in
them, and over both images all shades are equally frequent. The picture is dark where either image
has nothing to compare. All channels together agree less than these three directions.
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
#: Grey value of points that are not compared.
DARK = 0.08
#: Approximate number of points from which the colours are chosen; more make no visible difference.
_POINTS = 200_000


@dataclass(frozen=True, eq=False)
class FeatureView:
    """The pictures of one plane.

    Attributes:
        plane: name of the plane.
        pictures: one picture (rows, columns, 3), 0..1, for each of the three rows.
        aspect: ratio of a pixel's height to its width.
    """

    plane: Plane
    pictures: tuple[FloatArray, FloatArray, FloatArray]
    aspect: float


@dataclass(frozen=True, eq=False)
class Palette:
    """The map from features to colours.

    Attributes:
        means: mean features (C,) of the fixed and of the moving image.
        directions: for both images, the matrix (C, 3) that projects centred features.
        levels: increasing values (n, 3) that are shown at even steps from 0 to 1, so that all
            shades are equally frequent.
    """

    means: tuple[FloatArray, FloatArray]
    directions: tuple[FloatArray, FloatArray]
    levels: FloatArray

    def values(self, features: Array, image: int) -> FloatArray:
        """Project features (n, C) of an image (0 fixed, 1 moving) to (n, 3) with unit deviation."""
        return np.asarray((features - self.means[image]) @ self.directions[image])

    def colours(self, features: Array, image: int) -> FloatArray:
        """Return the colours (n, 3), 0..1, of features (n, C) of an image."""
        values, shades = self.values(features, image), np.linspace(0, 1, len(self.levels))
        each = zip(values.T, self.levels.T, strict=True)
        return np.stack([np.interp(v, levels, shades) for v, levels in each], axis=-1)


def draw_features(features: KeptFeatures, path: Path) -> None:
    """Draw three planes in three rows into the PNG file `path`; see the module's description."""
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
    # It shows no number: the directions depend on the result, so they do not measure its quality.
    headline = "colours: the three directions in which the features of both images agree best"
    figure.text(0.5, 0.965, headline, color=_INK, fontsize=11, ha="center")
    figure.savefig(path, dpi=_DPI, facecolor=_PAPER)


def choose_palette(features: KeptFeatures) -> Palette:
    """Choose the directions in which both images' features covary most at matching points.

    They are eigenvectors of the symmetric part of the cross-covariance of standardised features.
    """
    found = _matches(features, warped=True)
    if not len(found[0]):
        found = (np.zeros((1, _channels(features))),) * 2  # all pictures are dark
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
    values = np.concatenate([v / c for v, c in zip(shown, contrast, strict=True)])
    levels = np.percentile(values, np.linspace(1, 99, _SHADES), axis=0)
    one, other = (
        rows.T / scale[:, None] / gain for scale, gain in zip(scales, contrast, strict=True)
    )
    return Palette(means, (one, other), levels)


def feature_views(features: KeptFeatures, palette: Palette) -> list[FeatureView]:
    """Return three planes through the middle of the fixed image's compared points."""
    grid = features.fixed_geometry
    points = np.arange(np.prod(grid.shape_zyx), dtype=np.int64).reshape(grid.shape_zyx)
    middle = np.argwhere(features.fixed_weight > 0).mean(axis=0).round().astype(int)
    views = []
    for plane in PLANES:
        stack = upright_view(points, grid, plane)
        at = np.argwhere(stack == points[tuple(middle)])[0][0]
        spacing = upright(grid, plane).spacing_mm
        pictures = _pictures(features, palette, stack[at])
        views.append(FeatureView(plane, pictures, spacing[1] / spacing[0]))
    return views


def _pictures(
    features: KeptFeatures, palette: Palette, points: Array
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return the three rows at points (rows, columns), given as flat indices of the fixed grid."""
    flat = points.ravel()
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
    first, second, third = (c.reshape(*points.shape, _COLOURS) for c in shown)
    return first, second, third


def _matches(features: KeptFeatures, *, warped: bool) -> tuple[FloatArray, FloatArray]:
    """Return features (n, C) of the fixed image and of the nearest voxels of the moving image.

    The points are spread evenly over the fixed grid where both count, at most about `_POINTS`.
    """
    channels = _channels(features)
    flat = np.flatnonzero(features.fixed_weight.ravel() > 0)
    flat = flat[:: max(1, -(-len(flat) // _POINTS))]
    index = _moving_index(features, flat, warped=warped)
    known, nearest = _both_count(features, flat, index)
    fixed = features.fixed[..., :channels].reshape(-1, channels)[flat[known]]
    moving = features.moving[..., :channels].reshape(-1, channels)[nearest[known]]
    return fixed.astype(np.float64), moving.astype(np.float64)


def _moving_index(features: KeptFeatures, flat: Array, *, warped: bool) -> FloatArray:
    """Return indices (n, 3), z, y, x, in the moving grid for flat indices of the fixed grid."""
    grid = features.fixed_geometry
    index = np.stack(np.unravel_index(flat, grid.shape_zyx), axis=-1).astype(np.float64)
    if warped:
        index += features.displacement_mm.reshape(-1, 3)[flat] / grid.spacing_mm[::-1]
    return np.asarray(index - features.moving_offset_zyx)


def _both_count(features: KeptFeatures, flat: Array, index: FloatArray) -> tuple[Array, Array]:
    """Return where both images count, (n,), and flat indices of the nearest moving voxels."""
    shape = features.moving_weight.shape
    near = np.rint(index).astype(np.int64)
    inside = np.all((near >= 0) & (near < shape), axis=1)
    number = np.ravel_multi_index(tuple(near.T), shape, mode="clip")
    counts = (features.moving_weight.ravel()[number] > 0) & inside
    return counts & (features.fixed_weight.ravel()[flat] > 0), number


def _deviation(values: FloatArray) -> FloatArray:
    """Return standard deviations (C,), replaced by 1 where nothing varies."""
    found = values.std(axis=0)
    return np.where(found > 0, found, 1.0)


def _channels(features: KeptFeatures) -> int:
    """Return the number of channels shown: the encoder's if any, as MIND-SSC shows only edges."""
    return features.encoder_channels or features.fixed.shape[-1]
