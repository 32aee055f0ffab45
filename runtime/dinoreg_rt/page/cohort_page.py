"""`index.html`: all pairs of a cohort in one table, the doubtful ones first."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image, UnidentifiedImageError

from ..io.staging import staged_file
from ..registration.result_files import PAGE, PICTURE, REPORT
from .canvas import PART
from .cohort_rows import CohortRow
from .markup import Html, document, join, tag
from .numbers import MEASURES, decimals
from .words import without_folders

#: The measures of quality that the table shows.
_SHOWN = ("overlap_percent", "folded_percent", "sdlogj", "inverse_consistency_mean_mm")
_KINDS = ("failed", "untrusted", "unknown", "warned", "trusted")
_TITLES = {
    "failed": "Failed",
    "untrusted": "Untrusted",
    "unknown": "No verdict",
    "warned": "Trusted, with warnings",
    "trusted": "Trusted",
}
#: The scores that the table shows, with their titles; `cohort.csv` has all.
_SCORES = {"dice_after": "Dice", "hd95_mm_after": "HD95, mm", "tre_mm_after": "Landmarks, mm"}
_THUMBNAIL = (240, 140)


def write_cohort_page(path: Path, rows: Sequence[CohortRow]) -> None:
    """Write the page of a cohort, with links to and thumbnails from the rows' folders.

    Args:
        path: file to write, such as ``out/index.html``.
        rows: the pairs.

    Raises:
        OSError: the file cannot be written.
    """
    with staged_file(path) as staged:
        staged.write_text(render_cohort(rows, path.parent), encoding="utf-8")


def render_cohort(rows: Sequence[CohortRow], folder: Path) -> str:
    """Return the page as HTML, with thumbnails of the results in `folder`."""
    ordered = sorted(rows, key=lambda row: (_KINDS.index(_kind(row)), row.pair))
    scores = [name for name in _SCORES if any(name in row.scores for row in ordered)]
    body = join(
        tag(
            "header",
            tag("div", tag("span", tag("b", "dinoreg-rt"), " cohort"), class_="brand"),
            tag("h1", f"{len(ordered)} pairs" if len(ordered) != 1 else "1 pair"),
        ),
        tag(
            "main",
            tag("section", _summary(ordered), aria_label="Summary"),
            tag("section", _filter(), _table(ordered, scores, folder), aria_label="Pairs"),
            id="content",
        ),
    )
    blocks = {"title": join("Cohort"), "body": body, "data": join()}
    return document("page.html", scripts=("cohort.js",), blocks=blocks)


def _kind(row: CohortRow) -> str:
    if row.status != "ok":
        return "failed"
    if row.trusted is None:
        return "unknown"
    if not row.trusted:
        return "untrusted"
    return "warned" if row.warnings else "trusted"


def _summary(rows: Sequence[CohortRow]) -> Html:
    kinds = [_kind(row) for row in rows]
    tiles = [
        tag("div", tag("dt", _TITLES[kind]), tag("dd", kinds.count(kind)))
        for kind in reversed(_KINDS)
        if kind in kinds or kind in ("trusted", "untrusted", "failed")
    ]
    return tag("dl", *tiles, class_="key-numbers")


def _filter() -> Html:
    options = [tag("option", _TITLES[kind], value=kind) for kind in _KINDS]
    return tag(
        "div",
        tag("label", "Search ", tag("input", type="search", id="search"), class_="check"),
        tag(
            "label",
            "Verdict ",
            tag("select", tag("option", "all", value=""), *options, id="kind"),
            class_="check",
        ),
        tag("span", id="count", class_="soft", aria_live="polite"),
        class_="toolbar",
    )


def _table(rows: Sequence[CohortRow], scores: Sequence[str], folder: Path) -> Html:
    measures = [m for group in MEASURES.values() for m in group if m.field in _SHOWN]
    titles = [*(_SCORES[name] for name in scores), *(m.name for m in measures)]
    names = ["Pair", "Verdict", "Kind", *titles, "Seconds"]
    head = [
        tag(
            "th",
            tag("button", name, type="button"),
            scope="col",
            aria_sort="ascending" if name == "Verdict" else None,
        )
        for name in names
    ]
    lines = [_line(row, scores, folder) for row in rows]
    return tag(
        "div",
        tag(
            "table",
            tag("thead", tag("tr", tag("th", "Slices", scope="col"), *head)),
            tag("tbody", *lines),
            class_="sortable",
            id="pairs",
        ),
        class_="scroll",
    )


def _line(row: CohortRow, scores: Sequence[str], folder: Path) -> Html:
    kind = _kind(row)
    said = [row.error] if row.error else [*row.reasons, *row.warnings]
    cells = [
        tag("td", _thumbnail(row, folder)),
        tag("th", _link(row, folder), scope="row", data_sort=row.pair),
        tag(
            "td",
            tag("span", _TITLES[kind], class_=f"pill {kind}"),
            *(tag("div", text, class_="soft") for text in map(without_folders, said[:3])),
            data_sort=_KINDS.index(kind),
        ),
        tag("td", row.kind, data_sort=row.kind),
        *(_number(row.scores.get(name), decimals(3)) for name in scores),
        *(
            _number(row.quality.get(measure.field), decimals(measure.digits, measure.unit))
            for group in MEASURES.values()
            for measure in group
            if measure.field in _SHOWN
        ),
        _number(row.seconds, decimals(1)),
    ]
    return tag("tr", *cells, data_kind=kind)


def _number(value: Any, text: Any) -> Html:
    if not isinstance(value, int | float) or value != value:
        return tag("td", "\N{EN DASH}", class_="number missing", data_sort="")
    return tag("td", text(value), class_="number", data_sort=value)


def _link(row: CohortRow, folder: Path) -> Html | str:
    """Return the pair's name, as a link to the best of its reports that exists."""
    if row.folder is None:
        return row.pair
    files = (PAGE, PICTURE, REPORT)
    found = next((name for name in files if (folder / row.folder / name).is_file()), None)
    if found is None:
        return row.pair
    return tag("a", row.pair, href=quote((row.folder / found).as_posix()))


def _thumbnail(row: CohortRow, folder: Path) -> Html | None:
    """Return the thumbnail of `qc.png`; None without a picture."""
    if row.folder is None:
        return None
    try:
        with Image.open(folder / row.folder / PICTURE, formats=["PNG"]) as picture:
            part = [int(n) for n in str(picture.info.get(PART, "")).split()]
            whole = picture.convert("RGB")
    except (OSError, ValueError, UnidentifiedImageError, Image.DecompressionBombError):
        return None
    small = whole.crop((part[0], part[1], part[2], part[3])) if len(part) == 4 else whole
    small.thumbnail(_THUMBNAIL)
    file = BytesIO()
    small.save(file, "JPEG", quality=65)
    source = f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
    return tag(
        "img", src=source, alt=f"slices of {row.pair}", width=small.width, height=small.height
    )
