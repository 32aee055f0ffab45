"""The rules of the verdict on trust: the limits of each measure, and the sentences beyond them.

All limits are in one table, with the values measured on both sides of them (more in
docs/report.md). A measure that was not taken (NaN) gives no reason.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass

from ..fields.solve import INVERSE_MISS_MM
from ..summaries import RunQuality

#: Images with at most this mean squared feature difference are nearly the same and cannot match
#: better. It is 2 to 4 for unrelated images, at least 0.3 for right pairs after a registration, and
#: at most 0.002 for images with themselves.
_SAME = 0.1
#: The same limit for the difference after a coarse search over that of unrelated images. Right
#: pairs reach at least 0.09.
_SAME_RATIO = 0.09
#: Fixed images that correlate better than this with their own mirror image are nearly symmetric:
#: brains 0.91 to 0.93 (one of thick oblique slices 0.79), abdomens and a heart at most 0.87.
_SYMMETRIC = 0.89
#: Limit of the ratio to mirror images in general.
_MIRRORED = 0.992
#: Ratio to mirror images below which the match is clear.
_CLEAR = 0.9
#: Limit of the ratio to the image with exchanged sides where the fixed image is nearly symmetric.
_EXCHANGED = 1.15
#: Limit of the same ratio, whether symmetric or not, where a header leaves the sides open.
_SIDES_IN_DOUBT = 0.95
#: Difference of MIND-SSC in percent of the first from which the result should not be used.
_MIND_WORSE = 110.0
#: Ratio below which the sides are right nevertheless.
_CERTAIN = 0.1


@dataclass(frozen=True)
class Rule:
    """The limits of one measure of quality.

    Attributes:
        measure: function that returns the measure; NaN gives no verdict.
        warn: limit from which the result deserves a look; None for never.
        refuse: limit from which the result should not be used.
        text: what is wrong, with {} for the measure.
        unit: unit of measure and limit: " %", " mm" or nothing.
        advice: what the cause may be, or what to do; or a function that returns it.
        beyond: comparison; the limits themselves pass (gt, lt) or do not (ge, le).
    """

    measure: Callable[[RunQuality], float]
    warn: float | None
    refuse: float
    text: str
    unit: str = ""
    advice: str | Callable[[RunQuality], str] = ""
    beyond: Callable[[float, float], bool] = operator.gt

    def refuses(self, quality: RunQuality) -> bool:
        """Return whether the result should not be used."""
        return self.beyond(self.measure(quality), self.refuse)

    def warns(self, quality: RunQuality) -> bool:
        """Return whether the result deserves a look but may be used."""
        noticed = self.warn is not None and self.beyond(self.measure(quality), self.warn)
        return noticed and not self.refuses(quality)

    def sentence(self, quality: RunQuality, limit: float | None) -> str:
        """Return what is wrong, with the limit that was passed and the advice."""
        if limit is None or "{}" not in self.text:
            return self.text
        found = self.text.format(f"{self.measure(quality):.3g}{self.unit}")
        advice = self.advice if isinstance(self.advice, str) else self.advice(quality)
        return f"{found} (limit {limit:g}{self.unit}){advice}"


def _shares_nothing(quality: RunQuality) -> float:
    return 0.0 if math.isfinite(quality.feature_distance_after) else 1.0


def _gain(quality: RunQuality) -> float:
    """Return the drop in feature distance; NaN for images that are nearly the same."""
    same = quality.feature_distance_after <= _SAME and not quality.unrelated_ratio > _SAME_RATIO
    return math.nan if same else quality.feature_distance_before - quality.feature_distance_after


def _mirror_ratio(quality: RunQuality) -> float:
    """Return the ratio that counts; exchanged sides of a nearly symmetric image do not."""
    return quality.turned_ratio if quality.symmetry > _SYMMETRIC else quality.decoy_ratio


def _sides_ratio(quality: RunQuality) -> float:
    """Return the ratio to the image with exchanged sides; NaN where `_mirror_ratio` has it."""
    return quality.sides_ratio if quality.symmetry > _SYMMETRIC else math.nan


def _mind_percent(quality: RunQuality) -> float:
    """Return the final difference of MIND-SSC in percent of the first; NaN if nearly none."""
    before, after = quality.mind_distance_before, quality.mind_distance_after
    if after <= _SAME or math.isnan(before):
        return math.nan
    percent = 100 * after / before if before > 0 else math.inf
    # A linear registration may end where it started, which is no reason to doubt it.
    linear = math.isnan(quality.feature_distance_before)
    return math.nan if linear and percent < _MIND_WORSE else percent


def _information_percent(quality: RunQuality) -> float:
    before, after = quality.information_before, quality.information_after
    return 100 * after / before if before > 0 else math.nan


def _what_headers_say(quality: RunQuality) -> str:
    if quality.sides_in_doubt:
        return "; a header leaves open which side is left"
    return "; the headers of both files name the sides, so one of them may be wrong"


def _of_another_orientation(quality: RunQuality) -> str:
    causes = ": another region or organ, another orientation, or left and right exchanged"
    return causes + (_what_headers_say(quality) if quality.sides_ratio >= _MIRRORED else "")


def _is_clear(quality: RunQuality) -> bool:
    """Return whether the mirror images match so much worse that a small overlap suffices."""
    return _mirror_ratio(quality) < _CLEAR


def _overlap_rule(measure: Callable[[RunQuality], float], refuse: float) -> Rule:
    return Rule(
        measure,
        warn=50.0,
        refuse=refuse,
        text="only {} of the fixed image has a match inside the moving image",
        unit=" %",
        advice="; this may be right if the moving image shows only a small part of it, otherwise "
        "try another --initial",
        beyond=operator.lt,
    )


def _lacks_mirror_images(quality: RunQuality) -> float:
    searched = not math.isnan(quality.unrelated_ratio)
    return 1.0 if searched and math.isnan(quality.decoy_ratio) else 0.0


RULES = (
    Rule(
        _shares_nothing,
        warn=None,
        refuse=0.0,
        text="the feature distance is not a number: the images share no usable voxels",
    ),
    Rule(
        _gain,
        warn=None,
        refuse=0.0,
        text="the images do not match better than before the registration",
        beyond=operator.le,
    ),
    # This holds whatever was matched. Right pairs reach 36 to 77 %. Random features reach 118 to
    # 121 % where they lose the organs (Dice 0.1 instead of 0.6), and 97 % where the refinement
    # repairs their field. Images that are aligned from the start gain nothing: phantoms reached
    # 103 %.
    Rule(
        _mind_percent,
        warn=100.0,
        refuse=_MIND_WORSE,
        text="the difference of MIND-SSC is still {} of that before the registration",
        unit=" %",
        advice=": the features that were matched may mean nothing for these images",
        beyond=operator.ge,
    ),
    # Right pairs reach at least 109 %, the phantoms 88 %; the same random features 54 and 70 %.
    Rule(
        _information_percent,
        warn=90.0,
        refuse=80.0,
        text="the mutual information of the images is {} of what it was before the registration",
        unit=" %",
        advice=": the features that were matched may mean nothing for these images",
        beyond=operator.lt,
    ),
    # A mirror image that fits as well shows that the match means nothing. Right pairs reach at most
    # 0.981 from `auto` and 0.989 from given starts, except for one with 1.039. With exchanged sides
    # they reach at least 0.995, except for three with 0.83, 0.971 and 0.979, and an oblique brain.
    Rule(
        _mirror_ratio,
        warn=None,
        refuse=_MIRRORED,
        text="a mirror image of the moving image matches about as well as the image itself, with a "
        "ratio of {}",
        advice=_of_another_orientation,
        beyond=operator.ge,
    ),
    # Right pairs reach at most 0.93 from `auto`, and 0.91 from given starts, except for the one
    # above with 0.984.
    Rule(
        lambda quality: quality.turned_ratio if _mirror_ratio(quality) < _MIRRORED else math.nan,
        warn=None,
        refuse=0.97,
        text="the moving image upside down or back to front matches about as well as the image "
        "itself, with a ratio of {}",
        advice=": another region or organ, or another orientation",
        beyond=operator.ge,
    ),
    # Right pairs of brains reach 0.72 to 0.98, with exchanged sides 0.91 to 1.08, and an image with
    # its own mirror image at least 1.30.
    Rule(
        _sides_ratio,
        warn=None,
        refuse=_EXCHANGED,
        text="the moving image with left and right exchanged matches better than the image itself, "
        "with a ratio of {}",
        advice=_what_headers_say,
        beyond=operator.ge,
    ),
    # Headers that name the sides make exchanged sides unlikely beforehand. Otherwise both cases are
    # equally likely, and the images must tell them apart.
    Rule(
        lambda quality: quality.sides_ratio if quality.sides_in_doubt else math.nan,
        warn=None,
        refuse=_SIDES_IN_DOUBT,
        text="a header leaves open which side is left, and the moving image with left and right "
        "exchanged matches nearly as well as the image itself, with a ratio of {}",
        advice="; set the orientation in the header",
        beyond=operator.ge,
    ),
    # Only a very low ratio of sides, as of an image with itself, settles it: two of eleven pairs
    # with exchanged sides had 0.35.
    Rule(
        lambda quality: (
            quality.symmetry if _CERTAIN <= _sides_ratio(quality) < _EXCHANGED else math.nan
        ),
        warn=_SYMMETRIC,
        refuse=math.inf,
        text="left and right cannot be told apart by the images: the fixed image is nearly "
        "symmetric, with a correlation of {} with its own mirror image",
        advice=lambda quality: (
            _what_headers_say(quality)
            if quality.sides_in_doubt
            else "; the result rests on the sides that the headers of both files name"
        ),
    ),
    Rule(
        _lacks_mirror_images,
        warn=None,
        refuse=0.0,
        text="the moving image is too small to be compared with its mirror images",
    ),
    # Right pairs reach at most 56 %, other organs and regions up to 63 %.
    Rule(
        lambda quality: 100 * quality.unrelated_ratio,
        warn=None,
        refuse=62.0,
        text="the remaining feature difference is {} of that of unrelated images",
        unit=" %",
    ),
    # Both ratios are slightly raised for different organs that deform into each other. Right pairs
    # reach at most 1.486 from `auto` and 1.517 from given starts, except for the one above with
    # 1.541.
    Rule(
        lambda quality: _mirror_ratio(quality) + quality.unrelated_ratio,
        warn=None,
        refuse=1.52,
        text="a mirror image of the moving image matches nearly as well, and the remaining "
        "difference is close to that of unrelated images: the two ratios add up to {}",
        advice=": another region or organ, or left and right exchanged",
    ),
    # Right pairs reach at least 0.386, other organs and regions 0.18 to 0.46.
    Rule(
        lambda quality: quality.alignment_similarity,
        warn=0.37,
        refuse=0.345,
        text="the similarity at the best position found is only {}",
        advice="; try another --initial, and check that both show the same part of the body",
        beyond=operator.lt,
    ),
    # Right pairs reach at least 42 %, but 24 % for an MR slab in a CT of the whole abdomen, whose
    # ratio is 0.77. With its slices shuffled that has 28 % and 0.96; an abdomen with a brain has 18
    # to 96 %.
    _overlap_rule(
        lambda quality: quality.overlap_percent if _is_clear(quality) else math.nan, 20.0
    ),
    _overlap_rule(
        lambda quality: math.nan if _is_clear(quality) else quality.overlap_percent, 35.0
    ),
    # Right pairs reach at most 0.3 %.
    Rule(
        lambda quality: quality.folded_percent,
        warn=0.1,
        refuse=2.0,
        text="{} of the voxels are folded",
        unit=" %",
        advice="; raise --smoothness or --fold-penalty",
    ),
    # Right pairs reach at most 0.71.
    Rule(
        lambda quality: quality.sdlogj,
        warn=None,
        refuse=1.0,
        text="the standard deviation of the logarithm of the change in volume is {}",
        advice="; raise --smoothness",
    ),
    # Right pairs reach at most 1.8 mm.
    Rule(
        lambda quality: quality.inverse_consistency_mean_mm,
        warn=None,
        refuse=4.0,
        text="the mapping and its inverse disagree by {} on average",
        unit=" mm",
    ),
    Rule(
        lambda quality: quality.inverse_missed_percent,
        warn=0.01,
        refuse=math.inf,
        text="the inverse misses {} of the moving image's points by more than "
        f"{INVERSE_MISS_MM:g} mm",
        unit=" %",
        advice=": the field folds there; raise --smoothness or --fold-penalty",
    ),
)
