"""The origin of a result: command, decisions, parameters, files, and a text for a paper."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from .markup import Html, tag
from .methods import methods
from .numbers import decimals, shown
from .words import ImageFacts, base_name, plain, private

Report = Mapping[str, Any]


def repetition(report: Report) -> Html:
    """Return the command, parameters, decisions and versions."""
    hide = private(report)
    parameters = [
        tag(
            "div",
            tag("dt", name),
            tag("dd", shown(report, f"configuration/{name}", plain, "\N{EN DASH}")),
        )
        for name in report["configuration"]
    ]
    choices = [
        tag("tr", tag("th", topic, scope="row"), tag("td", hide(reason)))
        for topic, reason in report["choices"].items()
    ]
    times = [
        tag(
            "tr",
            tag("th", stage, scope="row"),
            tag("td", shown(report, f"timings_ms/{stage}", decimals(0, " ms")), class_="number"),
        )
        for stage in report["timings_ms"]
    ]
    return tag(
        "section",
        tag("h2", "Repeat this run", id="repeat"),
        tag("pre", tag("code", command_line(report), id="command")),
        tag(
            "div",
            tag("button", "Copy the command", type="button", data_copy="command"),
            tag(
                "span",
                "Folders are left out, as they may name a patient; report.json has the whole line.",
                class_="soft",
            ),
            class_="row",
        ),
        tag(
            "details",
            tag("summary", "What was decided, and why"),
            tag("table", tag("tbody", *choices)),
        ),
        tag(
            "details", tag("summary", "All parameters"), tag("dl", *parameters, class_="parameters")
        ),
        tag(
            "details", tag("summary", "Times"), tag("table", tag("tbody", *times), class_="matrix")
        ),
        tag("details", tag("summary", "Files and versions"), *_files(report)),
        aria_labelledby="repeat",
    )


def _files(report: Report) -> list[Html]:
    inputs = [
        tag(
            "tr",
            tag("th", role, scope="row"),
            tag("td", base_name(one["path"])),
            tag("td", shown(report, f"inputs/{role}/sha256", str), class_="hash"),
        )
        for role, one in report["inputs"].items()
    ]
    outputs = [
        tag(
            "tr",
            tag("th", name, scope="row"),
            tag("td", f"{one['bytes'] / 1e6:.1f} MB"),
            tag("td", shown(report, f"outputs/{name}/sha256", str), class_="hash"),
        )
        for name, one in report["outputs"].items()
    ]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return [
        tag("table", tag("caption", "Inputs, SHA-256"), tag("tbody", *inputs)),
        tag("table", tag("caption", "Outputs, SHA-256"), tag("tbody", *outputs)),
        tag("p", versions, class_="soft"),
    ]


def command_line(report: Report) -> str:
    """Return the command without the folders of its paths."""
    words = []
    for word in report["command"]:
        option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        shorter = base_name(value) if "/" in value or "?" in value else value
        words.append(shlex.quote(f"{option}{equals}{shorter}"))
    return " ".join(words)


def methods_section(report: Report, images: tuple[ImageFacts, ImageFacts]) -> Html:
    """Return the paragraph for a paper."""
    text, references = methods(report, (images[0].modality, images[1].modality))
    cited = [
        tag("li", one.text, " ", tag("a", one.link, href=one.link, rel="noreferrer"))
        for one in references
    ]
    return tag(
        "section",
        tag("h2", "For the methods section", id="methods"),
        tag(
            "div",
            tag("p", text, class_="quote"),
            tag("ol", *cited, class_="references"),
            id="methods-text",
        ),
        tag("button", "Copy text and references", type="button", data_copy="methods-text"),
        aria_labelledby="methods",
    )
