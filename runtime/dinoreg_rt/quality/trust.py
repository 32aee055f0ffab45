"""Whether to trust a registration: a verdict from what a run measures of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..summaries import RunQuality
from .rules import RULES


@dataclass(frozen=True)
class Trust:
    """The verdict on a run.

    Attributes:
        verdict: ``untrusted`` if there is any reason.
        reasons: one sentence for each reason against the registration.
    """

    verdict: Literal["trusted", "untrusted"]
    reasons: tuple[str, ...] = ()


def judge(quality: RunQuality) -> Trust:
    """Return the verdict on a run, with its reasons."""
    reasons = tuple(rule.sentence(quality, rule.refuse) for rule in RULES if rule.refuses(quality))
    return Trust("untrusted" if reasons else "trusted", reasons)


def quality_warnings(quality: RunQuality) -> list[str]:
    """Return what deserves a look but does not rule out using the result."""
    return [rule.sentence(quality, rule.warn) for rule in RULES if rule.warns(quality)]
