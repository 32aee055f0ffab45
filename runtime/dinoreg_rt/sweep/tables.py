"""Results of a sweep: tables of candidates with intervals, and a plot of accuracy against time."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config.texts import text_of
from ..evaluate.cohort import GroupScores, summarise
from ..page.figures import new_figure
from .records import Record
from .space import Candidate

#: Heading of each metric. The first two are accuracies, of which the first that was scored decides.
METRICS = {
    "dice_after": "Dice",
    "tre_mm_after": "TRE mm",
    "hd95_mm_after": "HD95 mm",
    "folded_percent": "Folded %",
    "sdlogj": "SDLogJ",
    "cpu_s": "CPU s",
}
_LOWER_IS_BETTER = {"tre_mm_after"}


@dataclass(frozen=True)
class CandidateScores:
    """Scores of one candidate over the pairs.

    Attributes:
        number: number of the candidate, from 1, in the order of the sweep.
        candidate: values of the candidate.
        groups: scores of all pairs first, then of each kind.
        best: the candidate failed on no pair, and none is both more accurate and faster.
    """

    number: int
    candidate: Candidate
    groups: tuple[GroupScores, ...]
    best: bool = False

    def mean(self, metric: str) -> float:
        """Return a metric's mean over all pairs; NaN if it was not scored."""
        found = self.groups[0].metrics.get(metric)
        return math.nan if found is None else found.mean

    @property
    def complete(self) -> bool:
        """Whether every pair was scored; means over fewer pairs cannot be compared."""
        return self.groups[0].scored == self.groups[0].pairs


def score_candidates(records: Sequence[Record]) -> list[CandidateScores]:
    """Group records by candidate, with means, bootstrap intervals and the Pareto front."""
    grouped: dict[str, list[Record]] = {}
    for record in records:
        grouped.setdefault(json.dumps(record.candidate, sort_keys=True), []).append(record)
    scored = [
        CandidateScores(number, members[0].candidate, tuple(summarise(members)))
        for number, members in enumerate(grouped.values(), start=1)
    ]
    front = _pareto_front(scored, accuracy_metric(scored))
    return [replace(s, best=s.number in front) for s in scored]


def accuracy_metric(scored: Sequence[CandidateScores]) -> str:
    """Return the metric that compares candidates: Dice, or without labels the landmark error."""
    accuracies = list(METRICS)[:2]
    return next(
        (m for m in accuracies if any(m in s.groups[0].metrics for s in scored)), accuracies[0]
    )


def table_to_markdown(scored: Sequence[CandidateScores], records: Sequence[Record]) -> str:
    """Return tables for all pairs and for each kind, most accurate first, and the failures."""
    metric = accuracy_metric(scored)
    columns = [m for m in METRICS if any(m in s.groups[0].metrics for s in scored)]
    ordered = sorted(scored, key=lambda s: _loss(s, metric))
    lines = ["## All pairs", "", *_markdown_table(ordered, "all", columns)]
    for kind in [g.kind for g in scored[0].groups[1:]] if scored else []:
        lines += ["", f"## {kind}", "", *_markdown_table(ordered, kind, columns)]
    lines += [
        "",
        "Means over pairs with 95 % bootstrap intervals. * marks the Pareto front: no other "
        "candidate that was scored on every pair is both more accurate and faster.",
    ]
    failed = [r for r in records if r.status == "failed"]
    if failed:
        lines += ["", "## Failed", ""]
        lines += [f"- {r.pair}, {_settings(r.candidate)}: {r.message}" for r in failed]
    return "\n".join(lines) + "\n"


def table_to_csv(scored: Sequence[CandidateScores]) -> str:
    """Return CSV with one line for each candidate and kind; kind ``all`` covers every pair."""
    names = _names(scored)
    parts = [f"{m}{end}" for m in METRICS for end in ("", "_ci_low", "_ci_high")]
    text = io.StringIO()
    head = ["candidate", *names, "kind", "pairs", "scored", "on_front", *parts]
    writer = csv.DictWriter(text, head, restval="", lineterminator="\n")
    writer.writeheader()
    for one in scored:
        for group in one.groups:
            line: dict[str, Any] = {
                "candidate": one.number,
                **{n: text_of(one.candidate[n]) for n in names if n in one.candidate},
                "kind": group.kind,
                "pairs": group.pairs,
                "scored": group.scored,
                "on_front": int(one.best),
            }
            for metric, value in _shown(group).metrics.items():
                ends = (("", value.mean), ("_ci_low", value.low), ("_ci_high", value.high))
                line |= {f"{metric}{e}": f"{v:.6g}" for e, v in ends if not math.isnan(v)}
            writer.writerow(line)
    return text.getvalue()


def scores_to_dict(scored: Sequence[CandidateScores]) -> list[dict[str, Any]]:
    """Return the table for JSON."""
    return [
        {
            "candidate": one.number,
            "parameters": one.candidate,
            "on_front": one.best,
            "groups": [_shown(group).to_dict() for group in one.groups],
        }
        for one in scored
    ]


def draw_front(scored: Sequence[CandidateScores], path: Path) -> None:
    """Plot accuracy against CPU seconds into a PNG file, with the Pareto front as a line.

    Candidates are numbered as in the table; those that failed on some pair are hollow.
    """
    metric = accuracy_metric(scored)
    shown = [s for s in scored if not math.isnan(s.mean(metric) + s.mean("cpu_s"))]
    figure = new_figure(figsize=(8, 5), layout="constrained")
    ax = figure.add_subplot()
    for one in shown:
        value = one.groups[0].metrics[metric]
        at = (one.mean("cpu_s"), value.mean)
        if not math.isnan(value.low):
            ax.plot([at[0]] * 2, [value.low, value.high], color="#c5cad0", linewidth=1, zorder=1)
        colour = "#c2410c" if one.best else "#475569"
        face = colour if one.complete else "none"
        ax.scatter(*at, s=34, edgecolors=colour, facecolors=face, zorder=3)
        ax.annotate(str(one.number), at, xytext=(5, 3), textcoords="offset points", fontsize=8)
    front = sorted((s.mean("cpu_s"), s.mean(metric)) for s in shown if s.best)
    ax.plot(*zip(*front, strict=True) if front else ([], []), color="#c2410c", zorder=2)
    ax.set_xlabel("CPU seconds of a registration, mean over pairs")
    direction = "lower" if metric in _LOWER_IS_BETTER else "higher"
    ax.set_ylabel(f"{METRICS[metric]}, mean over pairs and 95 % interval ({direction} is better)")
    ax.grid(color="#e5e7eb")
    ax.set_axisbelow(True)
    figure.savefig(path, dpi=120)


def _pareto_front(scored: Sequence[CandidateScores], metric: str) -> set[int]:
    front, lowest = set(), math.inf
    comparable = [s for s in scored if s.complete and not math.isnan(s.mean(metric))]
    for one in sorted(comparable, key=lambda s: (s.mean("cpu_s"), _loss(s, metric))):
        if _loss(one, metric) < lowest:
            front.add(one.number)
            lowest = _loss(one, metric)
    return front


def _loss(scored: CandidateScores, metric: str) -> float:
    value = scored.mean(metric)
    if math.isnan(value):
        return math.inf
    return value if metric in _LOWER_IS_BETTER else -value


def _names(scored: Sequence[CandidateScores]) -> list[str]:
    return list(dict.fromkeys(name for one in scored for name in one.candidate))


def _settings(candidate: Candidate) -> str:
    return ", ".join(f"{n}={text_of(v)}" for n, v in candidate.items()) or "base configuration"


def _markdown_table(
    scored: Sequence[CandidateScores], kind: str, columns: Sequence[str]
) -> list[str]:
    names = _names(scored)
    head = ["#", *names, "pairs", *(METRICS[c] for c in columns)]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for one in scored:
        group = next((g for g in one.groups if g.kind == kind), None)
        if group is None:
            continue
        pairs = f"{group.scored}" + ("" if group.scored == group.pairs else f" of {group.pairs}")
        cells = [f"{one.number}{'*' if one.best else ''}"]
        cells += [text_of(one.candidate[n]) if n in one.candidate else "" for n in names]
        cells += [pairs, *(str(group.metrics.get(c, "-")) for c in columns)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _shown(group: GroupScores) -> GroupScores:
    return replace(group, metrics={n: v for n, v in group.metrics.items() if n in METRICS})
