"""`CohortRow`: the outcome of one pair of a cohort, for its tables and its page."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class CohortRow:
    """One pair of a cohort.

    Attributes:
        pair: name of the pair.
        kind: group of the pair; empty without groups.
        folder: folder of its results, relative to that of the cohort; None without results.
        status: ``failed`` if it could not be registered or scored.
        trusted: whether its result should be trusted; None without a result.
        reasons: why it should not be.
        warnings: what to check.
        quality: fields of `RunQuality`; None where something was not measured.
        scores: `PairScores.means`, of what was scored.
        seconds: time from reading the pair to its last written file; None without a result.
        error: why it failed; empty otherwise.
    """

    pair: str
    kind: str
    folder: Path | None
    status: Literal["ok", "failed"]
    trusted: bool | None = None
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    quality: dict[str, float | None] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    seconds: float | None = None
    error: str = ""
