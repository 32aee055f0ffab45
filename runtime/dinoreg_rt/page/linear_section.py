"""The section on the transform of a linear registration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .markup import Html, tag
from .numbers import decimals, shown


def linear_section(report: Mapping[str, Any]) -> Html | None:
    """Return the transform in numbers; None if a field was refined."""
    if not report.get("transform"):
        return None
    rotation, shift, scales = (
        _row(report, name, digits, unit)
        for name, digits, unit in (
            ("rotation_deg", 2, "\N{DEGREE SIGN}"),
            ("translation_mm", 2, " mm"),
            ("scales", 4, ""),
        )
    )
    facts = (
        ("Rotation about x, y, z", rotation),
        ("Shift at the centre, x, y, z", shift),
        ("Scales", scales),
    )
    return tag(
        "section",
        tag("h2", "Transform", id="transform"),
        tag(
            "p",
            "The result is a ",
            shown(report, "transform/model", str),
            " transform from fixed to moving points, LPS, about the centre ",
            *_row(report, "centre_mm", 1, " mm"),
            ".",
        ),
        tag(
            "div",
            *(
                tag("div", tag("h3", name), tag("p", *value, class_="name"))
                for name, value in facts
            ),
            class_="facts",
        ),
        tag("table", tag("tbody", *_matrix(report)), class_="matrix"),
        aria_labelledby="transform",
    )


def _row(report: Mapping[str, Any], name: str, digits: int, unit: str) -> list[Html | str]:
    """Return three numbers with commas between them."""
    first, *others = (
        shown(report, f"transform/{name}/{axis}", decimals(digits, unit)) for axis in range(3)
    )
    return [first, *(part for other in others for part in (", ", other))]


def _matrix(report: Mapping[str, Any]) -> list[Html]:
    """Return the rows of the matrix."""
    places = [[f"transform/matrix/{row}/{column}" for column in range(3)] for row in range(3)]
    cells = [[tag("td", shown(report, path, decimals(6))) for path in row] for row in places]
    return [tag("tr", *row) for row in cells]
