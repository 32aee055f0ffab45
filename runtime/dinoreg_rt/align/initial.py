"""The initial alignment, where the registration starts: given, or found by search and fits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..config.image_parameters import INITIAL_METHODS, LinearModel
from ..device.choice import Device
from ..device.unread import Unread, read_all, read_arrays
from ..errors import InputError
from ..geometry import centre_lps_mm, corners_lps_mm, transform_points
from ..images.pair import Pair, side_by_side
from ..types import AffineTransform, Array, FloatArray
from .affine import fit_matches, matches
from .centres import centre_of_image
from .coarse import CoarseImage, View
from .match import evaluate, examine, with_deformed
from .shifts import Candidate, search_positions
from .sides import Side, make_sides
from .turns import turned_poses

#: Methods that compare the two images.
SEARCHES = ("auto", "search", "affine")
#: The headers are trusted if their similarity reaches this share of the best one found, so that two
#: scans of the same person stay where they are.
_HEADERS_SUFFICE = 0.97
#: Number of fits that start from trusted headers. On the cine pair two fits lower HD95 from 10.1
#: to 9.1 mm at the same Dice; a third changed nothing.
_HEADER_FITS = 2
#: Least share of the headers' score that these fits must keep; otherwise the headers stay.
_KEEPS = 0.98
#: Least mean shift of the corners by these fits, in cells; otherwise the headers stay: two scans of
#: the same person should not be moved by less than cells can resolve.
_LEAST_MOVE_CELLS = 0.05
#: Headers are not fitted where the similarity reaches this share of the fixed image's similarity to
#: itself: the border, which one of the two sees with air around it, moved identical images by 1 mm.
#: Two phases of one heart reach 0.964.
_SAME = 0.999
#: Scales of the moving image that are tried; the fit bridges the gaps between them.
_SCALES = (0.85, 1.0, 1.18)
#: Weight of the plain similarity beside the similarity after a quick match. On eight real pairs
#: 0.35 to 1 chose equally well. The plain similarity alone lost 0.16 Dice on one pair, the quick
#: match alone 0.7 on another: it prefers a position that covers more of the fixed body.
_SIMILARITY_WEIGHT = 0.7
#: Number of positions compared by a quick match before any of them is fitted.
_COMPARED = 4
#: Number of candidates in each round of fitting.
_ROUNDS = (3, 2, 1)
#: A candidate whose similarity exceeds the next one's by this factor is examined alone.
_CLEAR = 1.6
#: Positions closer than this, in cells, count as the same.
_SAME_CELLS = 2.0


@dataclass(frozen=True, eq=False)
class Alignment:
    """The position from which the registration starts.

    Attributes:
        transform: map from fixed points to moving points.
        method: how it was found, in words.
        similarity: similarity of the images there, see `dinoreg_rt.align.sides`; None if not
            measured.
        confidence: share by which the similarity of the best other position is lower, 0..1;
            None if no other position was examined.
        overlap: share of the smaller body that the other one covers, 0..1; None if not measured.
    """

    transform: AffineTransform
    method: str
    similarity: float | None = None
    confidence: float | None = None
    overlap: float | None = None

    def numbers(self) -> dict[str, float]:
        """Return similarity, confidence and overlap, without those that are None."""
        named = (
            ("similarity", self.similarity),
            ("confidence", self.confidence),
            ("overlap", self.overlap),
        )
        return {name: value for name, value in named if value is not None}


def initial_alignment(pair: Pair, method: str, device: Device) -> Alignment:
    """Return an initial alignment that takes no search; see also `search_alignment`.

    Args:
        pair: fixed and moving image.
        method: ``none`` (positions from the headers), ``centre`` (centres of the image boxes),
            ``moments`` (centres of mass of the windowed intensities inside the masks), or a
            transform file (``.tfm``, ``.h5``, ``.txt``, ANTs ``.mat``) that maps fixed points to
            moving points.
        device: device of the images.

    Raises:
        InputError: the transform file cannot be read or is not affine.
    """
    if method == "none":
        return Alignment(AffineTransform.identity(), "none: positions as in the headers")
    if method == "centre":
        fixed, moving = (centre_lps_mm(image.volume.geometry) for image in pair)
        shift = moving - fixed
        return Alignment(_translation(shift), f"centre of the image boxes: {_text(shift)}")
    if method == "moments":
        fixed, moving = side_by_side(centre_of_image, pair, device)
        shift = moving - fixed
        return Alignment(_translation(shift), f"centres of mass: {_text(shift)}")
    from ..io import read_initial

    if not os.path.exists(method):  # unlike Path.exists, false for a name that is too long
        raise InputError(
            f"--initial {method}: is neither {', '.join(INITIAL_METHODS[:-1])} or "
            f"{INITIAL_METHODS[-1]}, nor an existing file; give one of them"
        )
    return Alignment(read_initial(Path(method)), f"from {method}")


def search_alignment(
    images: tuple[CoarseImage, CoarseImage],
    method: str,
    linear: LinearModel,
    device: Device,
    *,
    turns: bool = False,
) -> Alignment:
    """Find the position to start from, wherever the headers place the images.

    Args:
        images: fixed and moving image, coarse.
        method: ``search`` (the best of all shifts, at three scales unless `linear` is rigid),
            ``affine`` (the best shifts, followed by linear fits to discrete matches; how well the
            images match once deformed counts as well), or ``auto`` (the same, but with fits that
            start from the headers if these are about as good).
        linear: model of the fits.
        device: device of the images.
        turns: also search in rotated poses of the moving image, see `dinoreg_rt.align.turns`.
    """
    fixed, moving = make_sides(images, device)
    scales = (1.0,) if linear == "rigid" else _SCALES
    poses = [scale * np.eye(3) for scale in scales]
    if turns:
        poses += turned_poses(fixed, moving, device)
    first: list[Unread[Any]] = [
        evaluate(fixed, moving, AffineTransform.identity(), device),
        search_positions(fixed, moving, poses, device),
    ]
    headers, candidates = read_all(first, device)
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
    """Return the position to start from and every position that was examined.

    The choice depends on how well the images match there, both as they are and deformed: first at
    the positions from the search, to select which to fit, then again at the fits.
    """
    clear = len(candidates) < 2 or candidates[0].similarity > _CLEAR * candidates[1].similarity
    first = candidates[: 1 if clear else _COMPARED]

    def deformed(candidate: Candidate, share: Device) -> Unread[Candidate]:
        return with_deformed(fixed, moving, candidate, share)

    current = read_all(side_by_side(deformed, first, device), device)
    compared = list(current)
    for count in _ROUNDS:
        best = sorted(current, key=_score, reverse=True)[:count]
        current = _fitted(fixed, moving, best, linear, device)
        compared += current
    return max(compared, key=_score), [*compared, *candidates[len(first) :]]


def _fitted(
    fixed: Side,
    moving: Side,
    candidates: Sequence[Candidate],
    linear: LinearModel,
    device: Device,
) -> list[Candidate]:
    """Return the linear fits from examined candidates, but for those where too little matches."""
    starts = [(one.view, one.transform) for one in candidates if one.view is not None]
    queued = side_by_side(lambda start, share: matches(fixed, start[0], share), starts, device)
    found = zip(read_arrays(queued, device), starts, strict=True)

    def fit(one: tuple[Array, tuple[View, AffineTransform]], _: Device) -> AffineTransform | None:
        return fit_matches(one[0], fixed, *one[1], linear)

    fits = [fit for fit in side_by_side(fit, list(found), device.host) if fit is not None]
    return read_all(
        side_by_side(lambda fit, share: examine(fixed, moving, fit, share), fits, device), device
    )


def _fit_from_headers(
    fixed: Side, moving: Side, headers: Candidate, linear: LinearModel, device: Device
) -> tuple[Candidate, str]:
    """Return the last of several fits from good headers, or the headers, and a note on which it is.

    The best score cannot decide here: cells of a centimetre do not distinguish a fit from its
    start, but the voxels that the registration compares do.
    """
    itself = evaluate(fixed, fixed, headers.transform, device)
    deformed = with_deformed(fixed, moving, headers, device)
    same, examined = read_all([itself, deformed], device)
    if headers.similarity >= _SAME * same.similarity:
        return headers, ""
    headers = current = examined
    for _ in range(_HEADER_FITS):
        found = _fitted(fixed, moving, [current], linear, device)
        if not found:
            break
        current = found[0]
    moved = _distance_mm(headers, current, fixed) / fixed.coarse.cells.spacing_mm[0]
    if moved < _LEAST_MOVE_CELLS or _score(current) < _KEEPS * _score(headers):
        return headers, ""
    return current, f" and {linear} fits"


def _score(candidate: Candidate) -> float:
    """Return the number that decides between positions; see `_SIMILARITY_WEIGHT`."""
    return candidate.deformed + _SIMILARITY_WEIGHT * candidate.similarity


def _describe(chosen: Candidate, others: Sequence[Candidate], fixed: Side, text: str) -> Alignment:
    """Return the alignment with its confidence: the lead over the best other position."""
    rest = [other.similarity for other in _elsewhere(chosen, others, fixed)]
    confidence = 1 - max([0.0, *rest]) / max(chosen.similarity, 1e-6)
    confidence = float(np.clip(confidence, 0, 1))
    middle = centre_lps_mm(fixed.coarse.cells)
    shift = transform_points(chosen.transform, middle[None])[0] - middle
    method = (
        f"{text}: {_text(shift)} at the centre, alignment score {chosen.similarity:.2f}, "
        f"confidence {confidence:.2f}"
    )
    return Alignment(chosen.transform, method, chosen.similarity, confidence, chosen.overlap)


def _comparison(best: Candidate, others: Sequence[Candidate], fixed: Side) -> str:
    """Explain the choice of a position in words."""
    rest = [c.deformed for c in _elsewhere(best, others, fixed) if c.deformed > 0]
    text = f"similarity when deformed from there {best.deformed:.2f}"
    return f"{text}, from the best other position {max(rest):.2f}" if rest else text


def _elsewhere(chosen: Candidate, others: Sequence[Candidate], fixed: Side) -> list[Candidate]:
    """Return those of `others` that are a different position."""
    limit = _SAME_CELLS * fixed.coarse.cells.spacing_mm[0]
    return [other for other in others if _distance_mm(chosen, other, fixed) > limit]


def _distance_mm(one: Candidate, other: Candidate, fixed: Side) -> float:
    """Return the mean distance of two positions over the corners of the fixed image."""
    corners = corners_lps_mm(fixed.coarse.cells)
    there = [transform_points(position.transform, corners) for position in (one, other)]
    return float(np.linalg.norm(there[0] - there[1], axis=1).mean())


def _fallback(fixed: Side, moving: Side) -> Alignment:
    shift = centre_lps_mm(moving.coarse.cells) - centre_lps_mm(fixed.coarse.cells)
    text = "centres of the bodies, because the images are similar at no position"
    return Alignment(_translation(shift), f"{text}: {_text(shift)}", 0.0, 0.0, None)


def _translation(shift_mm: FloatArray) -> AffineTransform:
    return AffineTransform(np.eye(3), shift_mm)


def _text(shift_mm: FloatArray) -> str:
    return "shift of ({:.1f}, {:.1f}, {:.1f}) mm, LPS".format(*shift_mm)
