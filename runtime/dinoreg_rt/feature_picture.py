"""`features.png`: what the solver compared. The same tissue should have the same colour in both.

The first three directions in which the features of both images vary together are red, green and
blue; places that say nothing are dark.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .encoder.moments import TokenMoments
from .encoder.pca import fit_basis
from .encoder.planes import PLANES, upright, upright_view
from .figures import new_figure
from .geometry import centre_lps_mm, lps_to_index, transform_points
from .result import KeptFeatures
from .types import FloatArray

_INK, _PAPER = "#e8e6e3", "#111315"
_DPI, _WIDTH_IN = 100, 11.0
_COLOURS = 3


def draw_features(features: KeptFeatures, path: Path) -> None:
    """Draw both feature volumes into the PNG file `path`: a row each, axial to sagittal."""
    colours = joint_colours(features)
    geometries = (features.fixed_geometry, features.moving_geometry)
    figure = new_figure(figsize=(_WIDTH_IN, 0.7 * _WIDTH_IN), facecolor=_PAPER)
    grid = figure.add_gridspec(2, 3, wspace=0.04, hspace=0.06)
    grid.update(left=0.06, right=0.98, top=0.93, bottom=0.03)
    middle = centre_lps_mm(features.fixed_geometry)
    for row, (role, colour, geometry) in enumerate(
        zip(("fixed", "moving"), colours, geometries, strict=True)
    ):
        for column, plane in enumerate(PLANES):
            ax = figure.add_subplot(grid[row, column])
            stack = upright(geometry, plane)
            index = transform_points(lps_to_index(stack), middle[None])[0][2]
            picture = upright_view(colour, geometry, plane)
            picture = picture[int(np.clip(round(index), 0, len(picture) - 1))]
            ax.imshow(picture, aspect=stack.spacing_mm[1] / stack.spacing_mm[0])
            ax.set_xticks([])
            ax.set_yticks([])
            if row == 0:
                ax.set_title(plane, color=_INK, fontsize=10)
            if column == 0:
                ax.set_ylabel(role, color=_INK, fontsize=10)
    figure.savefig(path, dpi=_DPI, facecolor=_PAPER)


def joint_colours(features: KeptFeatures) -> tuple[FloatArray, FloatArray]:
    """(d, h, w, 3) in 0..1 for each image: one basis and one scale for both."""
    volumes = (features.fixed, features.moving)
    known = (features.fixed_weight > 0, features.moving_weight > 0)
    moments = [TokenMoments.of(v[k]) for v, k in zip(volumes, known, strict=True)]
    basis = fit_basis(moments, _COLOURS)
    first, second = ((volume - basis.mean) @ basis.components.T for volume in volumes)
    told = np.concatenate([first[known[0]], second[known[1]]])
    low, high = np.percentile(told, (2, 98), axis=0)
    span = np.maximum(high - low, np.finfo(np.float32).tiny)
    out = []
    for values, inside in ((first, known[0]), (second, known[1])):
        colour = np.clip((values - low) / span, 0, 1)
        out.append(np.where(inside[..., None], colour, 0.08))
    return out[0], out[1]
