"""The interactive slices and the 3D viewer: their HTML; `page.js` draws them."""

from __future__ import annotations

from collections.abc import Sequence

from .markup import Html, tag
from .sprites import Json

_MODES = (
    ("swipe", "Swipe"),
    ("checker", "Checkerboard"),
    ("flicker", "Flicker"),
    ("side", "Side by side"),
)
_MAPS = (
    ("grid", "displacement grid"),
    ("jacobian", "Jacobian and folds"),
    ("confidence", "confidence"),
    ("inverse", "inverse consistency"),
)
_KEYS = (
    (("\N{UPWARDS ARROW}", "\N{DOWNWARDS ARROW}"), "slice"),
    (("\N{LEFTWARDS ARROW}", "\N{RIGHTWARDS ARROW}"), "swipe"),
    (("Space",), "flicker"),
    (("1", "\N{EN DASH}", "4"), "mode"),
    (("B",), "before or after"),
    (("C",), "contours"),
    (("M",), "map"),
)


def slices_section(views: Json) -> Html:
    """Return the section with the three planes, their sliders and the choice of what is shown."""
    layers = views["planes"][0]["layers"]
    maps = [
        tag("option", name, value=value)
        for value, name in _MAPS
        if value == "grid" or value in layers
    ]
    missing = [name for value, name in _MAPS if value != "grid" and value not in layers]
    labelled = bool(views["planes"][0]["labels"])
    return tag(
        "section",
        tag("h2", "Fixed and moving image, slice by slice", id="slices"),
        tag(
            "div",
            _choice("mode", "Mode", _MODES, "swipe"),
            _choice("when", "Moving image", (("before", "before"), ("after", "after")), "after"),
            tag(
                "label",
                tag("input", type="checkbox", id="contours", checked=labelled),
                "contours of the labels" if labelled else "contours of the fixed image",
                class_="check",
            ),
            tag(
                "label",
                "Map ",
                tag("select", tag("option", "none", value="none"), *maps, id="map"),
                class_="check",
            ),
            tag("button", "Pause", type="button", id="play", hidden=True),
            class_="toolbar",
        ),
        tag("div", *(_plane(plane) for plane in views["planes"]), class_="planes", id="planes"),
        tag("div", class_="legend", id="legend", aria_live="polite"),
        _keys(),
        tag(
            "p",
            f"Maps that this run did not compute: {', '.join(missing)}.",
            class_="keys",
        )
        if missing
        else None,
        tag("noscript", tag("p", "The slices are drawn by a script, which is turned off.")),
        aria_labelledby="slices",
        id="compare",
    )


def _choice(name: str, title: str, options: Sequence[tuple[str, str]], chosen: str) -> Html:
    return tag(
        "fieldset",
        tag("legend", title),
        tag(
            "div",
            *(
                tag(
                    "label",
                    tag("input", type="radio", name=name, value=value, checked=value == chosen),
                    text,
                )
                for value, text in options
            ),
            class_="segments",
        ),
    )


def _plane(plane: Json) -> Html:
    name, count = plane["name"], len(plane["positions"])
    rows, columns = plane["size"]
    return tag(
        "figure",
        tag(
            "canvas",
            id=f"canvas-{name}",
            tabindex="0",
            role="img",
            width=columns,
            height=rows,
            aria_label=f"{name} slices; the up and down arrow keys change the slice",
        ),
        tag(
            "figcaption",
            tag("label", name, for_=f"slider-{name}"),
            tag(
                "input",
                type="range",
                id=f"slider-{name}",
                min="0",
                max=count - 1,
                value=count // 2,
                step="1",
            ),
            tag("output", id=f"position-{name}", for_=f"slider-{name}"),
        ),
        data_plane=name,
    )


def _keys() -> Html:
    parts: list[Html | str] = ["Keys (select a slice first): "]
    for number, (keys, what) in enumerate(_KEYS):
        parts.append(", " if number else "")
        parts += [tag("kbd", key) if key != "\N{EN DASH}" else key for key in keys]
        parts.append(f" {what}")
    return tag(
        "p", *parts, ". A click moves the cross in all planes, or the divider.", class_="keys"
    )


def viewer_section(version: str | None, note: str) -> Html:
    """Return the section of the 3D viewer.

    Args:
        version: version of NiiVue; None if the page holds no viewer.
        note: how the volumes were reduced.
    """
    if version is None:
        return tag(
            "section",
            tag("h2", "All slices in 3D", id="viewer-title"),
            tag(
                "p",
                "This page holds evenly spaced slices. With ",
                tag("code", "--report full"),
                " it also holds both volumes and the viewer NiiVue.",
            ),
            id="viewer",
            aria_labelledby="viewer-title",
        )
    return tag(
        "section",
        tag("h2", "All slices in 3D", id="viewer-title"),
        tag(
            "div",
            tag("button", "Open the 3D viewer", type="button", id="open-viewer", class_="primary"),
            tag("span", f"NiiVue {version}; {note}", class_="soft"),
            class_="row",
        ),
        tag(
            "p",
            "This browser has no WebGL 2, so the 3D viewer cannot run. The slices above show the "
            "same volumes.",
            id="no-webgl",
            hidden=True,
            role="alert",
        ),
        tag(
            "div",
            tag(
                "label",
                "fixed ",
                tag(
                    "input", type="range", id="opacity", min="0", max="1", step="0.02", value="0.5"
                ),
                " warped",
                class_="check",
            ),
            tag(
                "label",
                "View ",
                tag(
                    "select",
                    tag("option", "three planes and 3D", value="3"),
                    tag("option", "axial", value="0"),
                    tag("option", "coronal", value="1"),
                    tag("option", "sagittal", value="2"),
                    tag("option", "3D", value="4"),
                    id="slice-type",
                ),
                class_="check",
            ),
            class_="toolbar",
            id="viewer-tools",
            hidden=True,
        ),
        tag("div", tag("canvas", id="gl"), id="viewer-stage", hidden=True),
        id="viewer",
        aria_labelledby="viewer-title",
    )
