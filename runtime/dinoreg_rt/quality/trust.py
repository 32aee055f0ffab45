"""Whether a registration should be trusted: a verdict from what a run knows about itself.

Every limit stands in one table, with the values that were measured on both sides of it
(docs/report.md has more of them). A measure that nobody asked for (NaN) gives no reason.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ..fields.solve import INVERSE_MISS_MM
from ..types import RunQuality

#: Mean squared feature difference of images that are nearly the same: these cannot match better.
#: Of unrelated images it is 2 to 4, of right pairs after a registration at least 0.3; of images
#: with themselves at most 0.002.
_SAME = 0.1
#: And of what a coarse search leaves over what unrelated images leave. Right pairs: at least 0.09.
_SAME_RATIO = 0.09


@dataclass(frozen=True)
class Rule:
    """What a measure of quality may be.

    Attributes:
        measure: the number that is looked at; NaN says nothing.
        warn: from here on it deserves a look; None: it never does.
        refuse: from here on the result should not be used.
        text: what is wrong; {} stands for the measure.
        unit: what follows the measure and the limit: " %", " mm" or nothing.
        advice: what it may be, or what to do.
        beyond: the limits themselves are fine (gt, lt) or not (ge).
    """

    measure: Callable[[RunQuality], float]
    warn: float | None
    refuse: float
    text: str
    unit: str = ""
    advice: str = ""
    beyond: Callable[[float, float], bool] = operator.gt

    def refuses(self, quality: RunQuality) -> bool:
        """Whether the result should not be used."""
        return self.beyond(self.measure(quality), self.refuse)

    def warns(self, quality: RunQuality) -> bool:
        """Whether it deserves a look, and may be used."""
        noticed = self.warn is not None and self.beyond(self.measure(quality), self.warn)
        return noticed and not self.refuses(quality)

    def sentence(self, quality: RunQuality, limit: float | None) -> str:
        """What is wrong, with the limit that was passed and the advice."""
        if limit is None or "{}" not in self.text:
            return self.text
        found = self.text.format(f"{self.measure(quality):.3g}{self.unit}")
        return f"{found} (limit {limit:g}{self.unit}){self.advice}"


def _shares_nothing(quality: RunQuality) -> float:
    return 0.0 if math.isfinite(quality.feature_distance_after) else 1.0


def _gain(quality: RunQuality) -> float:
    """By how much the images match better than before; NaN where that cannot be asked for."""
    same = quality.feature_distance_after <= _SAME and not quality.unrelated_ratio > _SAME_RATIO
    return math.nan if same else quality.feature_distance_before - quality.feature_distance_after


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
    # A mirror image that fits as well shows that the match means nothing. Right pairs from `auto`:
    # at most 0.955 (MR with CT); mirrored ones: 0.974 and more, but 0.64 to 0.92 for four of 28.
    Rule(
        lambda quality: quality.decoy_ratio,
        warn=None,
        refuse=0.97,
        text="a mirror image of the moving image matches about as well as the image itself, with a "
        "ratio of {}",
        advice=": another region or organ, another orientation, or left and right exchanged",
        beyond=operator.ge,
    ),
    Rule(
        _lacks_mirror_images,
        warn=None,
        refuse=0.0,
        text="the moving image is too small to be compared with its mirror images",
    ),
    # Right pairs: at most 56 %; wrong ones: up to 71 %.
    Rule(
        lambda quality: 100 * quality.unrelated_ratio,
        warn=None,
        refuse=62.0,
        text="what is left of the difference is {} of that of unrelated images",
        unit=" %",
    ),
    # Both are a little high where organs differ that deform into each other. Right pairs: at most
    # 1.477; of 70 pairs of different organs four pass all other limits but the next, with 1.493 to
    # 1.574.
    Rule(
        lambda quality: quality.decoy_ratio + quality.unrelated_ratio,
        warn=None,
        refuse=1.5,
        text="a mirror image of the moving image matches nearly as well, and what is left of the "
        "difference is nearly that of unrelated images: both ratios sum to {}",
        advice=": another region or organ, or left and right exchanged",
    ),
    # Right pairs: at least 0.39; different organs: 0.15 to 0.42, the four above 0.17 to 0.33.
    Rule(
        lambda quality: quality.alignment_similarity,
        warn=0.36,
        refuse=0.3,
        text="at the best position that was found the images are alike only to {}",
        advice="; try another --initial, and check that both show the same part of the body",
        beyond=operator.lt,
    ),
    # Right pairs: at least 50 %, but 24 % for an MR slab in a CT of the whole abdomen; an abdomen
    # with a brain: 18 to 96 %.
    Rule(
        lambda quality: quality.overlap_percent,
        warn=50.0,
        refuse=35.0,
        text="only {} of the fixed image found a match inside the moving image",
        unit=" %",
        advice="; where that shows only a small part of it this may be right, else try another "
        "--initial",
        beyond=operator.lt,
    ),
    # Right pairs: at most 0.3 %.
    Rule(
        lambda quality: quality.folded_percent,
        warn=0.1,
        refuse=2.0,
        text="{} of the voxels are folded",
        unit=" %",
        advice="; raise --smoothness or --fold-penalty",
    ),
    # Right pairs: at most 0.71.
    Rule(
        lambda quality: quality.sdlogj,
        warn=None,
        refuse=1.0,
        text="the logarithm of the change in volume spreads by {}",
        advice="; raise --smoothness",
    ),
    # Right pairs: at most 1.8 mm.
    Rule(
        lambda quality: quality.inverse_consistency_mean_mm,
        warn=None,
        refuse=4.0,
        text="mapping and inverse disagree by {} on average",
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


@dataclass(frozen=True)
class Trust:
    """The verdict.

    Attributes:
        verdict: ``untrusted`` if there is any reason.
        reasons: what speaks against the registration, one sentence each.
    """

    verdict: Literal["trusted", "untrusted"]
    reasons: tuple[str, ...] = ()


def judge(quality: RunQuality) -> Trust:
    """The verdict on a run, and why."""
    reasons = tuple(rule.sentence(quality, rule.refuse) for rule in RULES if rule.refuses(quality))
    return Trust("untrusted" if reasons else "trusted", reasons)


def quality_warnings(quality: RunQuality) -> list[str]:
    """What deserves a look and does not speak against the use of the result."""
    return [rule.sentence(quality, rule.warn) for rule in RULES if rule.warns(quality)]
