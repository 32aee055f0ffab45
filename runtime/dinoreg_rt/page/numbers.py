"""The measures of `report.json` in words, with their usual ranges."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from .markup import Html, tag


@dataclass(frozen=True)
class Measure:
    """One measure of a run's quality.

    Attributes:
        field: its name under ``quality``.
        name: its name on the page.
        digits: digits after the decimal point.
        usual: its range over right pairs of the evaluation, in words.
        meaning: what it measures.
        unit: unit, after the number.
    """

    field: str
    name: str
    digits: int
    usual: str
    meaning: str
    unit: str = ""


#: The measures by group. The usual ranges are those of labelled right pairs (docs/benchmarks.md).
MEASURES: dict[str, tuple[Measure, ...]] = {
    "Agreement of the images": (
        Measure(
            "feature_distance_before",
            "Feature distance, start",
            3,
            "2 to 4 for unrelated images",
            "mean squared difference of the features after the initial alignment",
        ),
        Measure(
            "feature_distance_after",
            "Feature distance, end",
            3,
            "below the start",
            "the same difference after the registration; lower is better",
        ),
        Measure(
            "mind_distance_before",
            "MIND-SSC difference, start",
            3,
            "",
            "mean squared difference of MIND-SSC, whatever features were matched",
        ),
        Measure(
            "mind_distance_after",
            "MIND-SSC difference, end",
            3,
            "36 to 77 % of the start",
            "lower is better",
        ),
        Measure(
            "information_before",
            "Mutual information, start",
            3,
            "",
            "of the intensities after the initial alignment",
            " nats",
        ),
        Measure(
            "information_after",
            "Mutual information, end",
            3,
            "at least 109 % of the start",
            "higher is better",
            " nats",
        ),
        Measure(
            "overlap_percent",
            "Overlap",
            1,
            "at least 42 %; less for a slab in a large image",
            "share of the fixed image with a match inside the moving image",
            " %",
        ),
        Measure(
            "alignment_similarity",
            "Similarity at the start",
            2,
            "at least 0.39",
            "similarity of both coarse images at the initial alignment; higher is better",
        ),
    ),
    "Mirror test": (
        Measure(
            "decoy_ratio",
            "Mirror ratio",
            3,
            "at most 0.98; near 1 for symmetric anatomy such as a brain",
            "misfit of the moving image divided by that of its best mirror image; from 1 on the "
            "mirror image matches as well",
        ),
        Measure(
            "turned_ratio",
            "Ratio, turned",
            3,
            "at most 0.93",
            "the same ratio for the images upside down and back to front",
        ),
        Measure(
            "sides_ratio",
            "Ratio, sides exchanged",
            3,
            "0.72 to 0.98 for brains",
            "the same ratio for the image with left and right exchanged",
        ),
        Measure(
            "symmetry",
            "Symmetry",
            2,
            "0.91 to 0.93 for brains, at most 0.87 for abdomens",
            "correlation of the fixed image with its own mirror image",
        ),
        Measure(
            "unrelated_ratio",
            "Remaining difference",
            2,
            "at most 0.56",
            "feature difference divided by that of unrelated images",
        ),
        Measure(
            "sides_in_doubt",
            "Sides in doubt",
            0,
            "no",
            "whether a header leaves open which side of its image is left",
        ),
    ),
    "Regularity of the mapping": (
        Measure(
            "folded_percent",
            "Folded voxels",
            4,
            "at most 0.3 %",
            "share of voxels where the mapping turns space inside out",
            " %",
        ),
        Measure(
            "jacobian_min",
            "Smallest Jacobian determinant",
            2,
            "above 0 without folds",
            "largest contraction; 0 or less is a fold",
        ),
        Measure(
            "jacobian_max",
            "Largest Jacobian determinant",
            2,
            "",
            "largest expansion",
        ),
        Measure(
            "sdlogj",
            "SDLogJ",
            3,
            "at most 0.71",
            "standard deviation of the logarithm of the Jacobian determinant",
        ),
        Measure(
            "inverse_consistency_mean_mm",
            "Inverse consistency, mean",
            2,
            "at most 1.8 mm",
            "distance between a point and where the mapping and then its inverse take it",
            " mm",
        ),
        Measure(
            "inverse_consistency_max_mm",
            "Inverse consistency, largest",
            2,
            "",
            "the largest such distance",
            " mm",
        ),
        Measure(
            "inverse_missed_percent",
            "Points missed by the inverse",
            4,
            "at most 0.01 %",
            "share of the moving image's points that the inverse misses by more than 0.1 mm",
            " %",
        ),
        Measure(
            "inverse_missed_max_mm",
            "Largest miss of the inverse",
            2,
            "",
            "the largest distance by which the inverse misses",
            " mm",
        ),
    ),
}


def lookup(report: Mapping[str, Any], path: str) -> Any:
    """Return the value at a path such as ``quality/sdlogj``; None where there is none."""
    found: Any = report
    for name in path.split("/"):
        if isinstance(found, list):
            found = found[int(name)]
        else:
            found = found.get(name) if isinstance(found, Mapping) else None
    return found


def shown(
    report: Mapping[str, Any], path: str, text: Callable[[Any], str], missing: str = "not measured"
) -> Html:
    """Return the value at a path as text, with the value as JSON and its path as attributes."""
    value = lookup(report, path)
    if value is None:
        return tag("span", missing, class_="missing")
    return tag("data", text(value), value=json.dumps(value), data_path=path)


def decimals(digits: int, unit: str = "") -> Callable[[Any], str]:
    """Return the function that writes a number with this many digits and a unit, or yes or no."""

    def write(value: Any) -> str:
        if isinstance(value, bool):
            return "yes" if value else "no"
        if not value:
            return f"0{unit}"
        text = f"{float(value):.{digits}f}"
        # A small number must not look like 0.
        if not float(text):
            text = f"{float(value):.1e}"
        return f"{text}{unit}".replace("-", "\N{MINUS SIGN}", 1) if value < 0 else f"{text}{unit}"

    return write


def day_and_time(value: str) -> str:
    """Return an ISO 8601 time as date and time to the minute, with its zone."""
    at = datetime.fromisoformat(value)
    zone = at.strftime("%z")
    return f"{at:%Y-%m-%d %H:%M} {'UTC' if zone in ('', '+0000') else zone}"


def seconds(milliseconds: Any) -> str:
    """Return a time in milliseconds as seconds."""
    return f"{float(milliseconds) / 1e3:.1f} s"
