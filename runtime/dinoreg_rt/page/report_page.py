"""`report.html`: a run on one page that needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..registration.result import RegistrationResult
from ..types import Volume
from . import niivue
from .linear_section import linear_section
from .markup import document, join, json_block, tag
from .provenance import methods_section, repetition
from .sections import alignment, footer, header, numbers, overview, regions
from .sprites import encode_views
from .stacks import SliceStack
from .view_section import slices_section, viewer_section
from .words import image_facts, verdict_words

#: The parts of the page's script, in order.
SCRIPTS = ("layers.js", "drawing.js", "viewer.js", "page.js")
#: Largest size of the page without and with the viewer.
STATIC_BYTES, FULL_BYTES = 1_500_000, 5_000_000


def render_page(
    report: Mapping[str, Any],
    result: RegistrationResult,
    images: tuple[Volume, Volume],
    stacks: Sequence[SliceStack],
    *,
    viewer: bool = False,
) -> str:
    """Return the page as HTML.

    Args:
        report: the content of `report.json`; the page shows its values themselves.
        result: the registration.
        images: fixed and moving image.
        stacks: the slices of the three planes.
        viewer: whether to include NiiVue and both volumes.
    """
    facts = image_facts(result, *images)
    trust = report["trust"]
    verdict = verdict_words(
        trust["verdict"],
        trust["reasons"],
        report["warnings"],
        tested=report["configuration"]["trust"],
    )

    def page(views: dict[str, Any]) -> str:
        main = tag(
            "main",
            overview(report, facts),
            slices_section(views),
            regions(report),
            numbers(report),
            linear_section(report),
            alignment(report, result.initial, images[0].geometry),
            viewer_section(niivue.VERSION if shown else None, shown.note if shown else ""),
            repetition(report),
            methods_section(report, facts),
            id="content",
        )
        data = [json_block("views", views)]
        if shown:
            volumes = {"code": shown.code, "fixed": shown.fixed, "warped": shown.warped}
            data.append(json_block("viewer-data", volumes))
        blocks = {
            "title": join(f"{facts[1].name} \N{RIGHTWARDS ARROW} {facts[0].name}"),
            "body": join(header(report, facts, verdict), main, footer()),
            "data": join(*data),
        }
        return document(
            "page.html",
            scripts=SCRIPTS,
            blocks=blocks,
            allowed=(shown.script,) if shown else (),
        )

    shown: niivue.Viewer | None = None
    # The words come first; what they leave of the limit is for the images.
    empty = page(encode_views([], 0) | {"planes": [_no_plane()]})
    views = encode_views(stacks, STATIC_BYTES - len(empty.encode("utf-8")) - 8_000)
    if viewer:
        used = len(page(views).encode("utf-8"))
        shown = niivue.make_viewer(result, *images, FULL_BYTES - used - 4_000)
    return page(views)


def _no_plane() -> dict[str, Any]:
    return {"name": "axial", "positions": [0.0], "size": [1, 1], "layers": {}, "labels": []}
