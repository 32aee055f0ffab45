"""Whether a registration should be trusted: a verdict from what a run knows about itself.

Every limit is a constant here, with the values that were measured on both sides of it
(docs/report.md has the table). A measure that does not exist (NaN) gives no reason.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from .types import RunQuality

#: A mirror image that fits as well shows that the match means nothing. Right pairs from `auto`: at
#: most 0.955 (MR with CT); wrong ones: at least 0.984.
DECOY_RATIO = 0.97
#: Right pairs: at most 0.56; brain with abdomen: 0.55 to 0.65.
UNRELATED_RATIO = 0.62
#: Right pairs: at most 0.3 %.
FOLDED_PERCENT = 2.0
#: Right pairs: at most 0.71.
SDLOGJ = 1.0
#: Right pairs: at most 1.8 mm.
INVERSE_CONSISTENCY_MM = 4.0
#: Right pairs: at least 50 %; an abdomen with a brain: 22 and 25 %.
OVERLAP_PERCENT = 35.0
#: Mean squared feature difference of images that are the same but for rounding.
PERFECT = 1e-6


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
    reasons = tuple([*_match_reasons(quality), *_field_reasons(quality)])
    return Trust("untrusted" if reasons else "trusted", reasons)


def _match_reasons(quality: RunQuality) -> list[str]:
    found = []
    if not math.isfinite(quality.similarity_after):
        found.append("the similarity is not a number: the images share no usable voxels")
    elif quality.similarity_after >= quality.similarity_before > PERFECT:
        found.append("the images do not match better than before the registration")
    if quality.decoy_ratio >= DECOY_RATIO:
        found.append(
            "a mirror image of the moving image matches about as well as the image itself "
            f"(ratio {quality.decoy_ratio:.3f}, limit {DECOY_RATIO:g}): another region or organ, "
            "another orientation, or left and right exchanged"
        )
    if quality.unrelated_ratio > UNRELATED_RATIO:
        found.append(
            f"what is left of the difference is {quality.unrelated_ratio:.0%} of that of "
            f"unrelated images (limit {UNRELATED_RATIO:.0%})"
        )
    if quality.overlap_percent < OVERLAP_PERCENT:
        found.append(
            f"only {quality.overlap_percent:.0f} % of the fixed image found a match inside the "
            f"moving image (limit {OVERLAP_PERCENT:g} %)"
        )
    return found


def _field_reasons(quality: RunQuality) -> list[str]:
    found = []
    for value, limit, text in (
        (quality.folded_percent, FOLDED_PERCENT, "{:.2f} % of the voxels are folded"),
        (quality.sdlogj, SDLOGJ, "volumes change by a factor of exp({:.2f}) on average"),
        (
            quality.inverse_consistency_mean_mm,
            INVERSE_CONSISTENCY_MM,
            "mapping and inverse disagree by {:.1f} mm on average",
        ),
    ):
        if value > limit:
            found.append(f"{text.format(value)} (limit {limit:g})")
    return found
