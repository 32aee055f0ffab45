"""Slice stacks as images inside the page: JPEG for grey values, PNG for labels and folds.

All slices of a stack are one image, one below the other, so that a browser decodes it once.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..geometry import index_to_lps, invert_affine
from ..types import AffineTransform, Array, FloatArray
from .colours import FOLD, JACOBIAN, JACOBIAN_RANGE, LABELS, jacobian_shades
from .contours import contour_levels
from .stacks import SliceStack

#: What JSON can hold.
Json: TypeAlias = dict[str, Any]


class _Step(NamedTuple):
    """One way of encoding images: JPEG quality, divisor of the pixels per edge, and effort."""

    quality: int
    divisor: int = 1
    compact: bool = True


#: The ways of encoding that are tried, the best first. The first is also the quickest.
_STEPS = (
    _Step(82, compact=False),
    *(_Step(quality) for quality in (82, 74, 66, 57, 48, 39, 30)),
    *(_Step(quality, 2) for quality in (60, 40, 30)),
    *(_Step(30, divisor) for divisor in (4, 8)),
)
_IMAGES = ("fixed", "before", "after")
#: A JPEG block has 8 x 8 pixels and must not reach into the next slice.
_BLOCK = 8
#: Labels that one byte can tell apart.
_MOST_LABELS = 255
#: Distance that is shown as the brightest.
_INVERSE_TOP_MM = 2.0
#: The shades of unknown and smallest values in a map.
_UNKNOWN, _LEAST = 0, 24


def encode_views(stacks: Sequence[SliceStack], most_bytes: int) -> Json:
    """Return everything that the page's script draws, in at most `most_bytes` of base64.

    The quality of the images, then their size, is lowered until they fit; the smallest size that
    is tried is returned whatever it takes.
    """
    return {
        "planes": _fitting(stacks, most_bytes),
        "levels": contour_levels([stack.fixed for stack in stacks]),
        "jacobian_colours": _text(JACOBIAN.tobytes()),
        "jacobian_range": JACOBIAN_RANGE,
        "label_colours": LABELS.tolist(),
        "fold_colour": FOLD,
        "inverse_top_mm": _INVERSE_TOP_MM,
    }


def _fitting(stacks: Sequence[SliceStack], most_bytes: int) -> list[Json]:
    """Encode all planes in the first way that fits, or in the last."""
    frames: dict[int, list[Json]] = {}
    for step in _STEPS[:-1]:
        frame = frames.setdefault(step.divisor, [])
        frame += [_frame(stack, step.divisor) for stack in stacks[len(frame) :]]
        quick = step == _STEPS[0]
        if _length(frame) + (0 if quick else _estimate(stacks, step)) > most_bytes:
            continue
        planes = [_plane(stack, one, step) for stack, one in zip(stacks, frame, strict=True)]
        if _length(planes) <= most_bytes:
            return planes
    last = _STEPS[-1]
    return [_plane(stack, _frame(stack, last.divisor), last) for stack in stacks]


def _estimate(stacks: Sequence[SliceStack], step: _Step) -> float:
    """Estimate the size of the grey images from every fourth slice."""
    total = 0.0
    for stack in stacks:
        for name in _IMAGES:
            pixels = getattr(stack, name)
            part = pixels[1::4] if len(pixels) > 4 else pixels
            total += len(_jpeg(_smaller(part, step.divisor), step)) * len(pixels) / len(part)
    return total * 4 / 3


def _length(part: Any) -> int:
    """Return the number of characters of all strings in a structure."""
    if isinstance(part, str):
        return len(part)
    if isinstance(part, dict):
        return sum(_length(value) for value in part.values())
    return sum(_length(value) for value in part) if isinstance(part, list) else 0


def _plane(stack: SliceStack, frame: Json, step: _Step) -> Json:
    """Return a plane with its images."""
    images = {name: _grey(getattr(stack, name), step) for name in _IMAGES}
    return frame | {"layers": images | frame["layers"]}


def _frame(stack: SliceStack, divisor: int) -> Json:
    """Return the part of a plane that does not depend on the quality of its images."""
    grid, maps = stack.layout.grid, stack.maps
    to_lps = index_to_lps(grid)
    step = _Step(82, max(1, divisor // 2))
    folds = maps.folds[:, :: step.divisor, :: step.divisor]
    layers = {
        "jacobian": _grey(jacobian_shades(maps.jacobian), step),
        "folds": _sprite(folds, _png(folds), "png", folds.shape[1]),
    }
    if maps.confidence is not None:
        layers["confidence"] = _grey(_map_shades(maps.confidence, 1.0), step)
    if maps.inverse_mm is not None:
        layers["inverse"] = _grey(_map_shades(maps.inverse_mm, _INVERSE_TOP_MM), step)
    return {
        "name": stack.layout.plane,
        "positions": [round(v, 2) for v in stack.layout.positions_mm],
        "size": grid.shape_zyx[1:],
        "spacing": grid.spacing_mm[1::-1],
        "to_lps": _matrix(to_lps),
        "from_lps": _matrix(invert_affine(to_lps)),
        "layers": layers,
        "nodes": _nodes(maps.nodes_mm, stack),
        "labels": [
            {
                "name": name,
                **_labels(stack.labels_before[name], stack.labels_after[name], divisor),
            }
            for name in stack.labels_after
        ],
    }


def _grey(pixels: Array, step: _Step) -> Json:
    small = _smaller(pixels, step.divisor)
    return _sprite(small, _jpeg(small, step), "jpeg", _padded(small).shape[1])


def _matrix(affine: AffineTransform) -> list[list[float]]:
    rows = np.column_stack([affine.matrix, affine.translation_mm])
    return [[round(float(v), 6) for v in row] for row in rows]


def _map_shades(values: FloatArray, top: float) -> NDArray[np.uint8]:
    """Return shades of a map from 0 to `top`; the darkest are unknown."""
    shades = _LEAST + np.clip(values / top, 0, 1) * (255 - _LEAST)
    return np.where(np.isnan(shades), _UNKNOWN, np.nan_to_num(shades)).astype(np.uint8)


def _labels(before: Array, after: Array, divisor: int) -> Json:
    """Encode a label map as the numbers of its labels in ``values``, from 1 on."""
    both = {"before": np.maximum(before, 0), "after": np.maximum(after, 0)}
    seen = np.zeros(1 + max(int(labels.max(initial=0)) for labels in both.values()), np.bool_)
    for labels in both.values():
        seen[labels.ravel()] = True
    values = np.flatnonzero(seen[1:])[:_MOST_LABELS] + 1
    numbers = np.zeros(len(seen), np.uint8)
    numbers[values] = np.arange(1, len(values) + 1)
    found: Json = {"values": values.tolist()}
    for when, labels in both.items():
        pixels = numbers[labels[:, ::divisor, ::divisor]]
        found[when] = _sprite(pixels, _png(pixels), "png", pixels.shape[1])
    return found


def _nodes(nodes_mm: FloatArray, stack: SliceStack) -> Json:
    """Encode the grid's nodes as bytes: the displacement of each from its undisplaced place."""
    _, rows, columns, _ = nodes_mm.shape
    _, height, width = stack.layout.grid.shape_zyx
    extent = (height * stack.layout.grid.spacing_mm[1], width * stack.layout.grid.spacing_mm[0])
    rest = np.stack(
        np.meshgrid(
            (np.arange(rows) + 0.5) * extent[0] / rows,
            (np.arange(columns) + 0.5) * extent[1] / columns,
            indexing="ij",
        ),
        axis=-1,
    )
    offset = np.nan_to_num(nodes_mm - rest)
    unit = max(float(np.abs(offset).max()), 1e-6) / 127
    return {
        "rows": rows,
        "columns": columns,
        "unit_mm": unit,
        "offsets": _text((offset / unit).round().astype(np.int8).tobytes()),
    }


def _smaller(pixels: Array, divisor: int) -> Array:
    """Average blocks of pixels within each slice."""
    if divisor == 1:
        return pixels
    n, rows, columns = pixels.shape
    high, wide = math.ceil(rows / divisor) * divisor, math.ceil(columns / divisor) * divisor
    padded = np.pad(pixels, ((0, 0), (0, high - rows), (0, wide - columns)), mode="edge")
    blocks = padded.reshape(n, high // divisor, divisor, wide // divisor, divisor)
    return blocks.mean(axis=(2, 4)).round().astype(np.uint8)


def _sprite(pixels: Array, encoded: bytes, kind: str, pitch: int) -> Json:
    _, rows, columns = pixels.shape
    source = f"data:image/{kind};base64,{_text(encoded)}"
    return {"width": columns, "height": rows, "pitch": pitch, "src": source}


def _padded(pixels: Array) -> Array:
    return np.pad(pixels, ((0, 0), (0, -pixels.shape[1] % _BLOCK), (0, 0)), mode="edge")


def _strip(pixels: Array) -> Array:
    """Return all slices, one below the other."""
    return np.ascontiguousarray(pixels).reshape(-1, pixels.shape[2])


def _jpeg(pixels: Array, step: _Step) -> bytes:
    image = Image.fromarray(_strip(_padded(pixels)))
    care = {"optimize": True, "progressive": True} if step.compact else {}
    return _encoded(lambda file: image.save(file, "JPEG", quality=step.quality, **care))


def _png(pixels: Array) -> bytes:
    image = Image.fromarray(_strip(pixels))
    return _encoded(lambda file: image.save(file, "PNG", compress_level=6))


def _encoded(write: Callable[[BytesIO], None]) -> bytes:
    file = BytesIO()
    write(file)
    return file.getvalue()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
