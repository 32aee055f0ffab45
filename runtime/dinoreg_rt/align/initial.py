"""Initial alignment: where the registration begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..config.image_parameters import LinearModel
from ..device.choice import Device
from ..geometry import centre_lps_mm, corners_lps_mm, index_to_lps, transform_points
from ..images.pair import Pair, side_by_side
from ..types import AffineTransform, Array, FloatArray, Volume
from .affine import improve
from .coarse import CoarseImage
from .match import evaluate, with_deformed
from .shifts import Candidate, Side, make_side, search_positions

#: Methods that look at both images.
SEARCHES = ("auto", "search", "affine")
#: Headers that are as good as so much of the best position found are believed: two states of one
#: person are not to be looked for elsewhere.
_HEADERS_SUFFICE = 0.97
#: Fits from headers that are believed. On the cine pair two of them lower HD95 from 10.1 to 9.1 mm
#: at the same Dice; a third changed nothing.
_HEADER_FITS = 2
#: They have to leave the match so good, or the headers stay as they are,
_KEEPS = 0.98
#: and to move the corners by more than so many cells: two states of one person are not to be moved
#: by what cells cannot tell.
_LEAST_MOVE_CELLS = 0.05
#: Headers where the moving image is as like as so much of the fixed image itself are not fitted:
#: the border, which one of the two sees with air around it, moved the same image by 1 mm. Two
#: phases of one heart reach 0.964.
_SAME = 0.999
#: Sizes of the moving image that are tried; the fit bridges what lies between.
_SCALES = (0.85, 1.0, 1.18)
#: Of the similarity as it is, beside the one after a quick match. On eight real pairs 0.35 to 1
#: chose equally well. The similarity alone lost 0.16 Dice on one, the quick match alone 0.7 on
#: another: it follows a position that covers more of the fixed body.
_SIMILARITY_WEIGHT = 0.7
#: So many of the positions found are compared by a quick match before any is fitted.
_COMPARED = 4
#: How many candidates go into each round of fitting.
_ROUNDS = (3, 2, 1)
#: A best candidate that is so much better than the next needs no competition.
_CLEAR = 1.6
#: Positions that differ by less, in cells, are the same one.
_SAME_CELLS = 2.0


@dataclass(frozen=True, eq=False)
class Alignment:
    """Where the registration begins.

    Attributes:
        transform: fixed points to moving points.
        method: how it was found, for people.
        similarity: of both images there, see `dinoreg_rt.align.shifts`; None if not looked at.
        confidence: 0..1, by what share the similarity of the next best other position is lower,
            0 if it is not; None if no other was looked at.
        overlap: share of the smaller body that the other covers, 0..1; None if not looked at.
    """

    transform: AffineTransform
    method: str
    similarity: float | None = None
    confidence: float | None = None
    overlap: float | None = None

    def numbers(self) -> dict[str, float]:
        """What is known of similarity, confidence and overlap."""
        named = (
            ("similarity", self.similarity),
            ("confidence", self.confidence),
            ("overlap", self.overlap),
        )
        return {name: value for name, value in named if value is not None}


def initial_alignment(pair: Pair, method: str, device: Device) -> Alignment:
    """Fixed points to moving points without a search: `search_alignment` is for the rest.

    Args:
        pair: fixed and moving image.
        method: ``none`` (positions as in the headers), ``centre`` (middles of the image boxes),
            ``moments`` (centres of mass of the windowed intensities inside the masks), or a
            transform file (``.tfm``, ``.h5``, ``.txt``, ANTs ``.mat``) that maps fixed points to
            moving points.
        device: the host.

    Raises:
        InputError: a transform file that cannot be read or is not affine.
    """
    if method == "none":
        return Alignment(AffineTransform.identity(), "none: positions as in the headers")
    if method == "centre":
        fixed, moving = (centre_lps_mm(image.volume.geometry) for image in pair)
        shift = moving - fixed
        return Alignment(_translation(shift), f"centre of the image boxes: {_text(shift)}")
    if method == "moments":
        fixed, moving = side_by_side(
            lambda image, _: centre_of_mass(image.volume, image.window, image.mask), pair, device
        )
        shift = moving - fixed
        return Alignment(_translation(shift), f"centres of mass: {_text(shift)}")
    from ..io import read_initial

    return Alignment(read_initial(Path(method)), f"from {method}")


def search_alignment(
    images: tuple[CoarseImage, CoarseImage], method: str, linear: LinearModel, device: Device
) -> Alignment:
    """The position to begin at, wherever the headers put both images.

    Args:
        images: fixed and moving image, coarse.
        method: ``search`` (the best of all shifts, and of three sizes unless `linear` is rigid),
            ``affine`` (followed by linear fits to discrete matches around the best shifts; how
            well the images match when they are deformed counts as well), or ``auto`` (the same,
            unless the headers are about as good, which then are where the fits begin).
        linear: model of the fits.
        device: the host.
    """
    fixed, moving = (make_side(image, device) for image in images)
    headers = evaluate(fixed, moving, AffineTransform.identity(), device)
    scales = (1.0,) if linear == "rigid" else _SCALES
    candidates = search_positions(fixed, moving, scales, device)
    if not candidates:
        return _fallback(fixed, moving)
    if method == "search":
        return _describe(candidates[0], candidates, fixed, "search over all shifts")
    best, others = _fit(fixed, moving, candidates, linear, device)
    highest = max(other.similarity for other in others)
    if method == "auto" and headers.similarity >= _HEADERS_SUFFICE * highest:
        start, fits = _fit_from_headers(fixed, moving, headers, linear, device)
        text = f"headers{fits}, because no other position is clearly better ({highest:.2f})"
        return _describe(start, others, fixed, text)
    text = f"search over all shifts, then {linear} fits; {_comparison(best, others, fixed)}"
    return _describe(best, others, fixed, text)


def _fit(
    fixed: Side,
    moving: Side,
    candidates: Sequence[Candidate],
    linear: LinearModel,
    device: Device,
) -> tuple[Candidate, list[Candidate]]:
    """The position to begin at, and every position that was looked at.

    What decides is how well the images match there, as they are and deformed: at the positions of
    the search, which says what is worth fitting, and again at the fits.
    """
    clear = len(candidates) < 2 or candidates[0].similarity > _CLEAR * candidates[1].similarity
    first = candidates[: 1 if clear else _COMPARED]

    def deformed(candidate: Candidate, host: Device) -> Candidate:
        return with_deformed(fixed, moving, candidate, host)

    def fit(candidate: Candidate, host: Device) -> Candidate | None:
        return _fitted(fixed, moving, candidate, linear, host)

    current = side_by_side(deformed, first, device)
    compared = list(current)
    for count in _ROUNDS:
        best = sorted(current, key=_prospect, reverse=True)[:count]
        current = [found for found in side_by_side(fit, best, device) if found is not None]
        compared += current
    return max(compared, key=_prospect), [*compared, *candidates[len(first) :]]


def _fitted(
    fixed: Side, moving: Side, candidate: Candidate, linear: LinearModel, device: Device
) -> Candidate | None:
    """The linear fit from a candidate that was looked at; None where too little matches."""
    if candidate.view is None:
        return None
    step = improve(fixed, candidate.view, candidate.transform, linear, device)
    if step is None:
        return None
    return with_deformed(fixed, moving, evaluate(fixed, moving, step, device), device)


def _fit_from_headers(
    fixed: Side, moving: Side, headers: Candidate, linear: LinearModel, device: Device
) -> tuple[Candidate, str]:
    """The last of some linear fits from good headers, or the headers; and what was done.

    The best prospect would not do here: cells of a centimetre do not tell a fit from its start,
    while the voxels that the registration looks at do.
    """
    itself = evaluate(fixed, fixed, headers.transform, device)
    if headers.similarity >= _SAME * itself.similarity:
        return headers, ""
    headers = with_deformed(fixed, moving, headers, device)
    current = headers
    for _ in range(_HEADER_FITS):
        found = _fitted(fixed, moving, current, linear, device)
        if found is None:
            break
        current = found
    moved = _distance_mm(headers, current, fixed) / fixed.coarse.cells.spacing_mm[0]
    if moved < _LEAST_MOVE_CELLS or _prospect(current) < _KEEPS * _prospect(headers):
        return headers, ""
    return current, f" and {linear} fits"


def _prospect(candidate: Candidate) -> float:
    """What decides between positions; see `_SIMILARITY_WEIGHT`."""
    return candidate.deformed + _SIMILARITY_WEIGHT * candidate.similarity


def _describe(chosen: Candidate, others: Sequence[Candidate], fixed: Side, text: str) -> Alignment:
    """The alignment with its confidence: how far the best other position stays behind."""
    rest = [other.similarity for other in _elsewhere(chosen, others, fixed)]
    confidence = 1 - max([0.0, *rest]) / max(chosen.similarity, 1e-6)
    confidence = float(np.clip(confidence, 0, 1))
    middle = centre_lps_mm(fixed.coarse.cells)
    shift = transform_points(chosen.transform, middle[None])[0] - middle
    method = (
        f"{text}: {_text(shift)} in the middle, alignment score {chosen.similarity:.2f}, "
        f"confidence {confidence:.2f}"
    )
    return Alignment(chosen.transform, method, chosen.similarity, confidence, chosen.overlap)


def _comparison(best: Candidate, others: Sequence[Candidate], fixed: Side) -> str:
    """Why this position, for people."""
    rest = [c.deformed for c in _elsewhere(best, others, fixed) if c.deformed > 0]
    text = f"the images match to {best.deformed:.2f} when deformed from there"
    return f"{text}, to {max(rest):.2f} from the next other position" if rest else text


def _elsewhere(chosen: Candidate, others: Sequence[Candidate], fixed: Side) -> list[Candidate]:
    """Those of `others` that are not the same position."""
    limit = _SAME_CELLS * fixed.coarse.cells.spacing_mm[0]
    return [other for other in others if _distance_mm(chosen, other, fixed) > limit]


def _distance_mm(one: Candidate, other: Candidate, fixed: Side) -> float:
    """Between two positions: mean over the corners of the fixed image."""
    corners = corners_lps_mm(fixed.coarse.cells)
    there = [transform_points(position.transform, corners) for position in (one, other)]
    return float(np.linalg.norm(there[0] - there[1], axis=1).mean())


def _fallback(fixed: Side, moving: Side) -> Alignment:
    shift = centre_lps_mm(moving.coarse.cells) - centre_lps_mm(fixed.coarse.cells)
    text = "middles of the bodies, because no position makes the images look alike"
    return Alignment(_translation(shift), f"{text}: {_text(shift)}", 0.0, 0.0, None)


def centre_of_mass(
    volume: Volume, window: tuple[float, float], mask: Array | None = None
) -> FloatArray:
    """LPS position of the centre of the windowed intensities, inside `mask` if there is one."""
    array = np.asarray(volume.array)
    low, high = window
    scaled = np.clip(array, low, high) - np.float32(low)
    if mask is not None:
        scaled *= mask != 0
    # Two sums over all voxels, not three: they are what the planning of a pair takes longest for.
    planes = scaled.sum(axis=(1, 2), dtype=np.float64)
    if planes.sum() <= 0:
        return centre_lps_mm(volume.geometry)
    summed = scaled.sum(axis=0, dtype=np.float64)
    rows, columns = summed.sum(axis=1), summed.sum(axis=0)
    index_xyz = [
        float(sums @ np.arange(sums.size)) / float(sums.sum()) for sums in (columns, rows, planes)
    ]
    return np.asarray(transform_points(index_to_lps(volume.geometry), np.array([index_xyz]))[0])


def _translation(shift_mm: FloatArray) -> AffineTransform:
    return AffineTransform(np.eye(3), shift_mm)


def _text(shift_mm: FloatArray) -> str:
    return "shift of ({:.1f}, {:.1f}, {:.1f}) mm, LPS".format(*shift_mm)
