"""`qc.png`: a picture for visual quality control.

Each row is one plane, with three slices of the fixed and of the warped image side by side. The same
contours are drawn in both: those of the warped labels, or without labels those of the fixed image.
The last column shows the deformation of the middle slice, without the initial alignment. Of a
linear registration that is what its refinement has changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw

from ..registration.result import RegistrationResult
from ..types import Volume
from .canvas import Canvas, Rgb, enlarged
from .colours import FOLD, JACOBIAN, LABELS, jacobian_opacity, jacobian_shades
from .contours import contour_levels, outline
from .stacks import SliceStack
from .words import ImageFacts, image_facts, verdict_words

Stacks: TypeAlias = Sequence[SliceStack]

_INK, _PAPER, _FAINT = (236, 234, 230), (17, 19, 21), (150, 156, 163)
_WARPED_INK, _CONTOUR, _GRID = (255, 200, 120), (93, 220, 255), (255, 214, 110)
_LETTERS = (127, 224, 195)
_VERDICTS: dict[str, Rgb] = {
    "trusted": (38, 132, 88),
    "warned": (160, 108, 12),
    "untrusted": (200, 52, 56),
}
_WIDTH, _MARGIN, _GAP, _PAIR_GAP, _HEAD, _HIGHEST = 1640, 22, 18, 3, 132, 330
_SHARES = (0.27, 0.5, 0.73)
#: The ends of the LPS axes of columns and rows: left, right, top, bottom.
_ENDS = {"axial": "RLAP", "coronal": "RLSI", "sagittal": "APSI"}


def draw_picture(
    result: RegistrationResult, fixed: Volume, moving: Volume, stacks: Stacks, path: Path
) -> None:
    """Draw the slices of a registration into the PNG file `path`."""
    columns = 2 * len(_SHARES) + 1
    room = _WIDTH - 2 * _MARGIN - len(_SHARES) * (_GAP + _PAIR_GAP)
    scale = min(
        room / columns / max(stack.fixed.shape[2] for stack in stacks),
        _HIGHEST / max(stack.fixed.shape[1] for stack in stacks),
    )
    heights = [max(24, round(stack.fixed.shape[1] * scale)) for stack in stacks]
    canvas = Canvas(_WIDTH, _HEAD + sum(heights) + _GAP * len(stacks) + 8, _PAPER)
    _write_head(canvas, result, image_facts(result, fixed, moving))
    top, column = _HEAD, int(room / columns)
    levels = contour_levels([stack.fixed for stack in stacks])
    for stack, height in zip(stacks, heights, strict=True):
        size = (max(24, min(column, round(stack.fixed.shape[2] * scale))), height)
        _draw_row(canvas, stack, levels, size, top=top, column=column)
        top += height + _GAP
    last = "deformation" if result.affine is None else "refinement"
    _write_titles(canvas, column, round(stacks[0].fixed.shape[2] * scale), last)
    # The second pair of axial slices.
    left = _MARGIN + 2 * column + 2 * _PAIR_GAP + _GAP
    canvas.save(path, (left, _HEAD, left + 2 * column + _PAIR_GAP, _HEAD + heights[0]))


def _write_head(
    canvas: Canvas, result: RegistrationResult, images: tuple[ImageFacts, ImageFacts]
) -> None:
    verdict = verdict_words(
        result.trust.verdict, result.trust.reasons, result.warnings, tested=result.config.trust
    )
    right = canvas.badge((_MARGIN, 16), verdict.title, _VERDICTS[verdict.kind])
    # The first reason against an untrusted result says more than the number of reasons.
    said = [*result.trust.reasons[:1], verdict.summary][0]
    canvas.write((right + 14, 20), said, _INK, 16, most=_WIDTH - right - 2 * _MARGIN)
    for line, (role, image, ink) in enumerate(
        zip(("fixed", "moving"), images, (_INK, _WARPED_INK), strict=True)
    ):
        canvas.write(
            (_MARGIN, 56 + 21 * line), f"{role}   {image.line}", ink, 14, most=0.55 * _WIDTH
        )
    right_end = _WIDTH - _MARGIN
    canvas.write((right_end, 56), _numbers(result), _FAINT, 14, anchor="ra")
    legend = (
        "deformation: contraction \N{LEFTWARDS ARROW} red, blue \N{RIGHTWARDS ARROW} expansion, "
        "magenta: folds"
    )
    if result.affine is not None:
        legend = "refinement: how the transform differs from the initial alignment"
    canvas.write((right_end, 77), legend, _FAINT, 14, anchor="ra")


def _numbers(result: RegistrationResult) -> str:
    quality = result.quality
    linear = result.linear_summary()
    numbers: tuple[str, ...]
    if linear is not None:
        numbers = (
            f"{linear.model} transform",
            f"feature distance {quality.feature_distance_after:.3g}",
            f"rotation {linear.angle_deg:.2f}\N{DEGREE SIGN}",
            f"scale {linear.scale:.3f}",
        )
        return "  \N{MIDDLE DOT}  ".join(numbers)
    numbers = (
        f"feature distance {quality.feature_distance_before:.3g} \N{RIGHTWARDS ARROW} "
        f"{quality.feature_distance_after:.3g}",
        f"det J {quality.jacobian_min:.2f} to {quality.jacobian_max:.2f}",
        f"folded {quality.folded_percent:.3f} %",
        f"SDLogJ {quality.sdlogj:.2f}",
    )
    return "  \N{MIDDLE DOT}  ".join(numbers)


def _write_titles(canvas: Canvas, column: int, width: int, last: str) -> None:
    """Write what the columns show above the panels of the first row, which have this width."""
    left = _MARGIN
    for _ in _SHARES:
        middle = left + column
        canvas.write((middle - width / 2, _HEAD - 8), "fixed", _INK, 13, anchor="ms")
        warped = (middle + _PAIR_GAP + width / 2, _HEAD - 8)
        canvas.write(warped, "warped", _WARPED_INK, 13, anchor="ms")
        left += 2 * (column + _PAIR_GAP) + _GAP
    canvas.write((left + column / 2, _HEAD - 8), last, _INK, 13, anchor="ms")


def _draw_row(
    canvas: Canvas,
    stack: SliceStack,
    levels: Sequence[int],
    size: tuple[int, int],
    *,
    top: int,
    column: int,
) -> None:
    """Draw a plane; the panels of a pair stand side by side in the middle of two columns."""
    left, count = _MARGIN + column - size[0], len(stack.fixed)
    for share in _SHARES:
        k = min(count - 1, int(share * count))
        contours = _contours(stack, k, levels, size)
        position = f"{stack.layout.positions_mm[k]:+.0f} mm"
        for image in (stack.fixed, stack.after):
            panel = np.repeat(enlarged(image[k], size)[..., None], 3, axis=2)
            for edge, colour in contours:
                panel[edge] = (0.25 * panel[edge] + 0.75 * np.asarray(colour)).astype(np.uint8)
            canvas.paste(panel, (left, top))
            if image is stack.fixed:
                canvas.tag((left + 3, top + size[1] - 15), position, _INK)
                canvas.ends((left, top, *size), _ENDS[stack.layout.plane], _LETTERS)
            left += size[0] + _PAIR_GAP
        left += 2 * (column - size[0]) + _GAP
    left -= (column - size[0]) // 2
    canvas.paste(_deformation(stack, count // 2, size), (left, top))
    position = f"{stack.layout.plane} {stack.layout.positions_mm[count // 2]:+.0f} mm"
    canvas.tag((left + 3, top + size[1] - 15), position, _INK)


def _contours(
    stack: SliceStack, k: int, levels: Sequence[int], size: tuple[int, int]
) -> list[tuple[np.ndarray, Rgb]]:
    """Return the pixels of each contour in a slice, and its colour."""
    if not stack.labels_after:
        smooth = enlarged(stack.fixed[k], size, blur=1.4)
        return [(outline(smooth > level), _CONTOUR) for level in levels]
    found = []
    for labels in stack.labels_after.values():
        for value in np.unique(labels[k])[:64]:
            if value:
                mask = np.where(labels[k] == value, 255, 0).astype(np.uint8)
                found.append((outline(enlarged(mask, size) > 127), LABELS[value % len(LABELS)]))
    return found


def _deformation(stack: SliceStack, k: int, size: tuple[int, int]) -> np.ndarray:
    """Return the fixed image, the Jacobian and its folds in colour, and the bent grid."""
    shades = enlarged(jacobian_shades(stack.maps.jacobian[k]), size)
    opacity = jacobian_opacity(shades)[..., None]
    grey = enlarged(stack.fixed[k], size)[..., None]
    colours = (grey * (1 - opacity) + JACOBIAN[shades] * opacity).astype(np.uint8)
    folds = np.where(stack.maps.folds[k], 255, 0).astype(np.uint8)
    colours[enlarged(folds, size, smooth=False) > 0] = FOLD
    # Drawn at twice the size, so that the lines are smooth.
    lines = Image.new("L", (2 * size[0], 2 * size[1]))
    pen = ImageDraw.Draw(lines)
    _, height_mm, width_mm = (
        n * mm for n, mm in zip(stack.fixed.shape, stack.layout.grid.spacing_mm[::-1], strict=True)
    )
    nodes = (stack.maps.nodes_mm[k] * (2 * size[1] / height_mm, 2 * size[0] / width_mm))[..., ::-1]
    for line in [*nodes, *nodes.transpose(1, 0, 2)]:
        pen.line([(float(x), float(y)) for x, y in line], fill=190, width=2)
    ink = Image.new("RGB", size, _GRID)
    return np.asarray(
        Image.composite(ink, Image.fromarray(colours), lines.resize(size, Image.Resampling.BOX))
    )
