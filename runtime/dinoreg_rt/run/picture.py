"""`qc.png`: a picture for visual quality control.

Each of three planes through the middle of the fixed image's content has four views: a checkerboard
of fixed and moving image after the initial alignment and after the registration, the displacement
as a bent grid, and its Jacobian determinant. The last two exclude the initial alignment and so show
the deformation alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from ..registration.result import RegistrationResult
from ..types import FloatArray, Volume
from .figures import new_figure
from .slices import PlaneSlices, extract_planes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_Window: TypeAlias = tuple[float, float]

#: The two ends of each LPS axis, negative first.
_ENDS = (("R", "L"), ("A", "P"), ("I", "S"))
_TITLES = ("after initial alignment", "after registration", "displacement", "Jacobian determinant")
_INK, _PAPER, _FAINT = "#e8e6e3", "#111315", "#8d9399"
_FIXED_TINT, _MOVING_TINT = (0.80, 0.93, 1.0), (1.0, 0.86, 0.66)
_FOLD_COLOUR = "#ff2bd6"
_LETTERS = "#7fe0c3"
_TILES = 7
_WIDTH_IN, _DPI = 11.0, 100
_JACOBIAN_RANGE = 4.0


@dataclass(frozen=True)
class _GreyScale:
    """Intensity windows of both images, and the value at which the fixed image's content begins."""

    fixed: _Window
    moving: _Window
    outline: float


def draw_picture(result: RegistrationResult, fixed: Volume, moving: Volume, path: Path) -> None:
    """Draw `result` into the PNG file `path`; all volumes must be on the CPU."""
    planes = extract_planes(result, fixed, moving)
    figure = _compose(planes, _headline(result), _grey_scale(result, planes))
    figure.savefig(path, dpi=_DPI, facecolor=_PAPER, pil_kwargs={"compress_level": 3})


def _headline(result: RegistrationResult) -> str:
    quality = result.quality
    if (linear := result.linear_summary()) is not None:
        shift = ", ".join(f"{mm:.2f}" for mm in linear.translation_mm)
        return (
            f"{linear.model}   \N{MIDDLE DOT}   rotation {linear.angle_deg:.2f}\N{DEGREE SIGN}"
            f"   \N{MIDDLE DOT}   shift ({shift}) mm, LPS"
            f"   \N{MIDDLE DOT}   scale {linear.scale:.4f}"
            f"   \N{MIDDLE DOT}   feature distance {quality.feature_distance_after:.3g}"
        )
    return (
        f"feature distance {quality.feature_distance_before:.3g} \N{RIGHTWARDS ARROW} "
        f"{quality.feature_distance_after:.3g}"
        f"   \N{MIDDLE DOT}   folded {quality.folded_percent:.3f} %"
        f"   \N{MIDDLE DOT}   det J {quality.jacobian_min:.2f} to {quality.jacobian_max:.2f}"
        f"   \N{MIDDLE DOT}   SDLogJ {quality.sdlogj:.3f}"
        f"   \N{MIDDLE DOT}   inverse consistency {quality.inverse_consistency_mean_mm:.2f} mm"
    )


def _compose(planes: list[PlaneSlices], headline: str, scale: _GreyScale) -> Figure:
    sizes = [_size_mm(plane) for plane in planes]
    column_in = (_WIDTH_IN - 0.9) / 4
    in_per_mm = column_in / max(width for _, width in sizes)  # one scale in all planes
    heights = [max(in_per_mm * height, 0.2 * column_in) for height, _ in sizes]
    total = sum(heights) + 1.25
    figure = new_figure(figsize=(_WIDTH_IN, total), facecolor=_PAPER)
    left, right = 0.2 / _WIDTH_IN, 1 - 0.6 / _WIDTH_IN
    grid = figure.add_gridspec(3, 4, height_ratios=heights, wspace=0.04, hspace=0.06)
    grid.update(left=left, right=right, top=1 - 0.9 / total, bottom=0.12 / total)
    figure.text(left, 1 - 0.22 / total, headline, color=_INK, fontsize=10, va="center")
    _add_legend(figure, left, 1 - 0.46 / total)
    for row, plane in enumerate(planes):
        axes = [figure.add_subplot(grid[row, column]) for column in range(4)]
        image = _draw_plane(axes, plane, scale)
        if row == 0:
            for ax, title in zip(axes, _TITLES, strict=True):
                ax.set_title(title, color=_INK, fontsize=10, pad=5)
    _add_colour_bar(figure, image)
    return figure


def _draw_plane(axes: list[Axes], plane: PlaneSlices, scale: _GreyScale) -> Any:
    fixed = _normalise(plane.fixed, scale.fixed)
    for ax, moving in zip(axes[:2], (plane.before, plane.after), strict=True):
        board = _checkerboard(fixed, _normalise(moving, scale.moving), plane.spacing_mm)
        _show(ax, plane, board)
    _show(axes[2], plane, np.repeat((fixed * 0.6)[..., None], 3, axis=2))
    _draw_grid(axes[2], plane)
    image = _draw_jacobian(axes[3], plane)
    _draw_outline(axes[3], plane, scale.outline)
    _label(axes[0], plane)
    return image


def _size_mm(plane: PlaneSlices) -> tuple[float, float]:
    rows, columns = plane.fixed.shape
    return rows * plane.spacing_mm[0], columns * plane.spacing_mm[1]


def _centres_mm(plane: PlaneSlices) -> tuple[FloatArray, FloatArray]:
    """Return the positions of the pixel centres along rows and along columns."""
    rows, columns = (np.arange(n, dtype=np.float64) + 0.5 for n in plane.fixed.shape)
    return rows * plane.spacing_mm[0], columns * plane.spacing_mm[1]


def _show(ax: Axes, plane: PlaneSlices, pixels: FloatArray, **settings: Any) -> Any:
    """Show `pixels` in mm, in the orientation that radiologists expect."""
    height, width = _size_mm(plane)
    # Posterior is at the bottom of an axial slice, superior at the top of the others.
    downwards = plane.row_axis == 1
    image = ax.imshow(
        pixels,
        extent=(0, width, height, 0) if downwards else (0, width, 0, height),
        origin="upper" if downwards else "lower",
        interpolation="nearest" if pixels.ndim == 2 else "auto",
        **settings,
    )
    ax.set_xticks([])
    ax.set_yticks([])
    ax.set_facecolor(_PAPER)
    for spine in ax.spines.values():
        spine.set_visible(False)
    return image


def _grey_scale(result: RegistrationResult, planes: list[PlaneSlices]) -> _GreyScale:
    config = result.config
    fixed = _percentiles([plane.fixed for plane in planes])
    moving = _percentiles([p.before for p in planes] + [p.after for p in planes])
    low, high = config.ct_window_hu
    # On an MR a little above the noise; on a CT between air and fat.
    outline = fixed[0] + 0.08 * (fixed[1] - fixed[0])
    fixed_water, moving_water = result.water
    if fixed_water is not None:
        fixed, outline = (low + fixed_water, high + fixed_water), fixed_water - 400.0
    if moving_water is not None:
        moving = low + moving_water, high + moving_water
    return _GreyScale(fixed=fixed, moving=moving, outline=outline)


def _percentiles(slices: list[FloatArray]) -> _Window:
    """Return the 1st and 99th percentile of the foreground."""
    values = np.concatenate([s[np.isfinite(s)] for s in slices])
    if values.size == 0:
        return 0.0, 1.0
    content = values[values > values.min()]
    low, high = np.percentile(content if content.size else values, (1, 99))
    return float(low), float(max(high, low + 1e-6))


def _normalise(values: FloatArray, window: _Window) -> FloatArray:
    low, high = window
    return np.clip((values - low) / (high - low), 0, 1)


def _checkerboard(
    fixed: FloatArray, moving: FloatArray, spacing_mm: tuple[float, float]
) -> FloatArray:
    """Return tiles of both images, each in its own tint: (rows, columns, 3)."""
    rows, columns = fixed.shape
    tile_mm = max(rows * spacing_mm[0], columns * spacing_mm[1]) / _TILES
    row_tile = (np.arange(rows) * spacing_mm[0] / tile_mm).astype(int)
    column_tile = (np.arange(columns) * spacing_mm[1] / tile_mm).astype(int)
    takes_moving = (row_tile[:, None] + column_tile[None]) % 2 == 1
    missing = takes_moving & ~np.isfinite(moving)
    grey = np.where(takes_moving, np.nan_to_num(moving), fixed)[..., None]
    board = grey * np.where(takes_moving[..., None], _MOVING_TINT, _FIXED_TINT)
    board[missing] = (0.13, 0.10, 0.06)
    return board


def _draw_grid(ax: Axes, plane: PlaneSlices) -> None:
    from matplotlib.collections import LineCollection

    height, width = _size_mm(plane)
    row_mm, column_mm = _centres_mm(plane)
    nodes = np.stack(
        [column_mm[None] + plane.offset_mm[..., 1], row_mm[:, None] + plane.offset_mm[..., 0]], -1
    )
    step_mm = max(height, width) / 26
    row_step = max(1, round(step_mm / plane.spacing_mm[0]))
    column_step = max(1, round(step_mm / plane.spacing_mm[1]))
    lines = [*nodes[row_step // 2 :: row_step]]
    lines += [nodes[:, c] for c in range(column_step // 2, len(column_mm), column_step)]
    ax.add_collection(
        LineCollection(lines, colors="#ffd166", linewidths=0.6, alpha=0.9), autolim=False
    )


def _draw_outline(ax: Axes, plane: PlaneSlices, level: float) -> None:
    """Outline the fixed image's content, to tell folds in the body from folds outside."""
    inside = plane.fixed > level
    if not inside.any() or inside.all():
        return
    row_mm, column_mm = _centres_mm(plane)
    ax.contour(column_mm, row_mm, inside, levels=[0.5], colors="#3a3f44", linewidths=0.6)


def _draw_jacobian(ax: Axes, plane: PlaneSlices) -> Any:
    from matplotlib.colors import LogNorm, to_rgba

    floor = 1 / _JACOBIAN_RANGE
    norm = LogNorm(floor, _JACOBIAN_RANGE)
    image = _show(ax, plane, np.maximum(plane.jacobian, floor), cmap="RdBu", norm=norm)
    folded = plane.jacobian <= 0
    if folded.any():
        marks = np.zeros((*folded.shape, 4))
        marks[folded] = to_rgba(_FOLD_COLOUR)
        _show(ax, plane, marks)
    return image


def _label(ax: Axes, plane: PlaneSlices) -> None:
    """Write the name of the plane and the ends of its axes."""
    left, right = _ENDS[plane.column_axis]
    low, high = _ENDS[plane.row_axis]
    top, bottom = (low, high) if plane.row_axis == 1 else (high, low)
    back = {"facecolor": _PAPER, "alpha": 0.6, "pad": 1.0, "linewidth": 0}
    common: dict[str, Any] = {"transform": ax.transAxes, "bbox": back, "fontweight": "bold"}
    for x, ha, letter in ((0.01, "left", left), (0.99, "right", right)):
        ax.text(x, 0.5, letter, color=_LETTERS, fontsize=9, ha=ha, va="center", **common)
    for y, va, letter in ((0.99, "top", top), (0.01, "bottom", bottom)):
        ax.text(0.5, y, letter, color=_LETTERS, fontsize=9, ha="center", va=va, **common)
    common["fontweight"] = "normal"
    name = f"{plane.name} {plane.position_mm:+.0f} mm"
    ax.text(0.01, 0.99, name, color=_INK, fontsize=7.5, ha="left", va="top", **common)


def _add_colour_bar(figure: Figure, image: Any) -> None:
    bar_axes = figure.add_axes((1 - 0.5 / _WIDTH_IN, 0.25, 0.11 / _WIDTH_IN, 0.45))
    bar = figure.colorbar(image, cax=bar_axes, ticks=[0.25, 0.5, 1, 2, 4])
    bar.ax.set_yticklabels(
        ["\N{VULGAR FRACTION ONE QUARTER}", "\N{VULGAR FRACTION ONE HALF}", *"124"]
    )
    bar.ax.minorticks_off()
    bar.ax.tick_params(colors=_INK, labelsize=8, length=0, pad=3)
    bar.outline.set_visible(False)


def _add_legend(figure: Figure, x: float, y: float) -> None:
    """Write coloured words; a legend of matplotlib would cost a layout pass."""
    entries = (("fixed", _FIXED_TINT), ("moving", _MOVING_TINT), ("folded", _FOLD_COLOUR))
    for (text, colour), offset_in in zip(entries, (0.0, 0.6, 1.35), strict=True):
        at, mark = x + offset_in / _WIDTH_IN, f"\N{BLACK SQUARE} {text}"
        figure.text(at, y, mark, color=colour, fontsize=9, va="center")
    note = "displacement and Jacobian exclude the initial alignment"
    figure.text(x + 2.3 / _WIDTH_IN, y, note, color=_FAINT, fontsize=9, va="center")
