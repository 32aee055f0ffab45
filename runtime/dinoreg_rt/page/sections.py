"""The sections of the report page, from the content of `report.json`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..geometry import centre_lps_mm
from ..types import AffineTransform, Geometry
from .markup import Html, tag
from .numbers import MEASURES, Measure, day_and_time, decimals, seconds, shown
from .words import ImageFacts, VerdictWords, private

Report = Mapping[str, Any]

_FEATURES = ("Feature distance", "quality/feature_distance_after", decimals(3), "lower is better")
_OVERLAP = ("Overlap", "quality/overlap_percent", decimals(1, " %"), "of the fixed image")
#: The numbers that say most: name, path in the report, form, and what to know.
_OF_A_FIELD = (
    _FEATURES,
    _OVERLAP,
    ("Folded voxels", "quality/folded_percent", decimals(4, " %"), "usual: at most 0.3 %"),
    ("SDLogJ", "quality/sdlogj", decimals(3), "usual: at most 0.71"),
    (
        "Inverse consistency",
        "quality/inverse_consistency_mean_mm",
        decimals(2, " mm"),
        "mean; usual: at most 1.8 mm",
    ),
)
_OF_A_TRANSFORM = (
    _FEATURES,
    _OVERLAP,
    ("Rotation", "transform/angle_deg", decimals(2, "\N{DEGREE SIGN}"), "about one axis"),
    ("Scale", "transform/scale", decimals(4), "1: sizes are kept"),
    ("Mutual information", "quality/information_after", decimals(3, " nats"), "higher is better"),
)

_SIGNS = {
    "trusted": "M9.2 16.6 4.9 12.3l1.5-1.5 2.8 2.8 8.3-8.3L19 6.8z",
    "warned": "M12 3 1.5 21h21zM11 10h2v5h-2zm0 6.5h2v2h-2z",
    "untrusted": "M7.8 2 2 7.8v8.4L7.8 22h8.4l5.8-5.8V7.8L16.2 2zM11 6.5h2v7h-2zm0 9h2v2h-2z",
}


def header(report: Report, images: tuple[ImageFacts, ImageFacts], verdict: VerdictWords) -> Html:
    """Return the title and the verdict with its reasons."""
    hide = private(report)
    fixed, moving = images
    reasons = [tag("li", tag("b", hide(reason))) for reason in report["trust"]["reasons"]]
    warnings = [tag("li", hide(warning)) for warning in report["warnings"]]
    version = shown(report, "versions/dinoreg-rt", str, "")
    when = shown(report, "started_at", day_and_time)
    sign = tag(
        "svg",
        tag("path", d=_SIGNS[verdict.kind], fill="currentColor", fill_rule="evenodd"),
        viewBox="0 0 24 24",
        class_="sign",
        aria_hidden="true",
    )
    banner = tag(
        "div",
        sign,
        tag(
            "div",
            tag("p", verdict.title, class_="title"),
            tag("p", verdict.summary),
            shown(report, "trust/verdict", lambda _: "", ""),
        ),
        tag("ul", *reasons, *warnings) if reasons or warnings else None,
        class_=f"verdict {verdict.kind}",
        role="status",
    )
    arrow = tag("span", "\N{RIGHTWARDS ARROW}", class_="arrow", aria_label="registered to")
    return tag(
        "header",
        tag(
            "div",
            tag("span", tag("b", "dinoreg-rt "), version, " \N{MIDDLE DOT} registration report"),
            tag("span", when),
            class_="brand",
        ),
        tag(
            "h1",
            tag("span", moving.name, class_="moving-name"),
            arrow,
            tag("span", fixed.name, class_="fixed-name"),
        ),
        banner,
    )


def overview(report: Report, images: tuple[ImageFacts, ImageFacts]) -> Html:
    """Return what was registered, and the numbers that matter most."""
    cards = [
        tag(
            "div",
            tag("h3", f"{role} image"),
            tag("p", image.name, class_=f"name {role.lower()}-name"),
            tag("p", image.modality or "modality unknown"),
            tag("p", f"{image.size} voxels", class_="soft"),
            tag("p", f"{image.spacing} mm", class_="soft"),
        )
        for role, image in zip(("Fixed", "Moving"), images, strict=True)
    ]
    device = shown(report, "configuration/device", lambda name: str(name).upper(), "")
    took = shown(report, "total_ms", seconds)
    features = report["encoding"]["model"] if report.get("encoding") else "MIND-SSC"
    run = tag(
        "div",
        tag("h3", "Run"),
        tag("p", shown(report, "started_at", day_and_time), class_="name"),
        tag("p", "took ", took, " on ", device),
        tag("p", f"features: {features}", class_="soft"),
        tag("p", "dinoreg-rt ", shown(report, "versions/dinoreg-rt", str, ""), class_="soft"),
    )
    return tag(
        "section",
        tag("h2", "What was registered", id="overview"),
        tag("div", *cards, run, class_="facts"),
        aria_labelledby="overview",
    )


def key_numbers(report: Report) -> Html:
    """Return the most important numbers, in large type."""
    measured = _OF_A_TRANSFORM if report.get("transform") else _OF_A_FIELD
    return tag(
        "dl",
        *(
            tag("div", tag("dt", name), tag("dd", shown(report, path, text), tag("small", note)))
            for name, path, text, note in measured
        ),
        class_="key-numbers",
    )


def numbers(report: Report) -> Html:
    """Return the table of all measures with their usual ranges."""
    head = tag(
        "thead",
        tag(
            "tr",
            tag("th", "Measure", scope="col"),
            tag("th", "This run", scope="col", class_="number"),
            tag("th", "Usual", scope="col"),
            tag("th", "Meaning", scope="col"),
        ),
    )
    tables = [
        tag(
            "table",
            tag("caption", group),
            head,
            tag("tbody", *(_row(report, measure) for measure in measures)),
            class_="numbers",
        )
        for group, measures in MEASURES.items()
    ]
    return tag(
        "section",
        tag("h2", "Numbers", id="numbers"),
        key_numbers(report),
        tag("div", *tables, class_="scroll"),
        tag(
            "p",
            "Usual: the range over labelled pairs that were registered correctly. A number outside "
            "that range is a reason to look, not a verdict.",
            class_="soft",
        ),
        aria_labelledby="numbers",
    )


def _row(report: Report, measure: Measure) -> Html:
    value = shown(report, f"quality/{measure.field}", decimals(measure.digits, measure.unit))
    return tag(
        "tr",
        tag("th", measure.name, scope="row"),
        tag("td", value, class_="number"),
        tag("td", measure.usual, class_="usual"),
        tag("td", measure.meaning, class_="soft"),
    )


def alignment(report: Report, initial: AffineTransform, fixed: Geometry) -> Html:
    """Return how the initial alignment was found, and the alignment itself."""
    hide = private(report)
    centre = centre_lps_mm(fixed)
    shift = initial.matrix @ centre + initial.translation_mm - centre
    left, scales, right = np.linalg.svd(initial.matrix)
    rotation = left @ right * np.sign(np.linalg.det(left @ right))
    angle = np.degrees(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1)))
    facts = [
        ("Shift at the centre", ", ".join(f"{v:+.1f}" for v in shift) + " mm (LPS)"),
        ("Rotation", f"{angle:.1f}\N{DEGREE SIGN}"),
        ("Scales", ", ".join(f"{v:.3f}" for v in scales)),
    ]
    measured = (
        ("Similarity", "alignment/similarity", decimals(2)),
        ("Confidence", "alignment/confidence", decimals(2)),
        ("Overlap of the bodies", "alignment/overlap", decimals(2)),
    )
    rows = [(name, shown(report, path, text, "not searched for")) for name, path, text in measured]
    found = report["choices"].get("initial alignment", "it was given by the user")
    matrix = np.column_stack([initial.matrix, initial.translation_mm])
    cells = [tag("tr", *(tag("td", f"{v:.4f}") for v in line)) for line in matrix]
    return tag(
        "section",
        tag("h2", "Initial alignment", id="alignment"),
        tag("p", hide(found[:1].upper() + found[1:]), "."),
        tag(
            "div",
            *(
                tag("div", tag("h3", name), tag("p", value, class_="name"))
                for name, value in [*facts, *rows]
            ),
            class_="facts",
        ),
        tag(
            "details",
            tag("summary", "Matrix from fixed to moving points, LPS mm"),
            tag("table", tag("tbody", *cells), class_="matrix"),
        ),
        aria_labelledby="alignment",
    )


def regions(report: Report) -> Html | None:
    """Return the regions of the body, those that match worst first, if the report lists them."""
    listed = report.get("regions") or []
    if not listed:
        return None

    def information(number: int) -> float:
        value = listed[number]["information"]
        return math.inf if value is None else float(value)

    columns = (
        ("Mutual information", "information", decimals(2, " nats")),
        ("Has a match", "matched_percent", decimals(0, " %")),
        ("Share of the body", "share_percent", decimals(0, " %")),
    )
    head = [tag("th", name, scope="col", class_="number") for name, _, _ in columns]
    rows = [
        tag(
            "tr",
            tag("th", shown(report, f"regions/{number}/place", str), scope="row"),
            *(
                tag("td", shown(report, f"regions/{number}/{field}", text), class_="number")
                for _, field, text in columns
            ),
        )
        for number in sorted(range(len(listed)), key=information)
    ]
    return tag(
        "section",
        tag("h2", "Where to look first", id="regions"),
        tag("p", "Regions of the body; those that match worst come first.", class_="soft"),
        tag(
            "table",
            tag("thead", tag("tr", tag("th", "Region", scope="col"), *head)),
            tag("tbody", *rows),
        ),
        aria_labelledby="regions",
    )


def footer() -> Html:
    """Return the last lines."""
    return tag(
        "footer",
        tag(
            "p",
            "The numbers are those of report.json. This page loads nothing from elsewhere. "
            "dinoreg-rt is research software and not a certified medical device.",
        ),
    )
