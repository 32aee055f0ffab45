"""The pages in headless Chromium: what they draw, mouse and keyboard, and that they load nothing.

``DINOREG_SCREENSHOTS`` names a folder for screenshots.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import NO_WEBGL, WEBGL, Page, chromium, find_chromium
from pages import write_page

from dinoreg_rt.page.cohort_page import write_cohort_page
from dinoreg_rt.page.cohort_rows import CohortRow

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium is installed"),
]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    write_page(folder / "static.html")
    write_page(folder / "plain.html", labelled=False)
    write_page(folder / "full.html", viewer=True)
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with chromium(tmp_path_factory.mktemp("chromium"), *NO_WEBGL) as page:
        yield page


@pytest.fixture
def page(browser: Page, pages: Path) -> Iterator[Page]:
    """The static page; afterwards the console must be clean and nothing have been loaded."""
    browser.requests.clear()
    browser.messages.clear()
    browser.open(pages / "static.html")
    yield browser
    check_quiet(browser)


def check_quiet(page: Page) -> None:
    assert page.messages == []
    loaded = [url for url in page.requests if not url.startswith(("data:", "blob:", "file:"))]
    assert loaded == []
    assert len({url for url in page.requests if url.startswith("file:")}) == 1


def keep(page: Page, name: str) -> None:
    folder = os.environ.get("DINOREG_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(Path(folder) / f"{name}.png", whole=True)


def focus(page: Page, plane: str = "axial") -> None:
    page.evaluate(f"document.getElementById('canvas-{plane}').focus()")


def drawn(page: Page, plane: str = "axial") -> str:
    """A digest of what a plane shows."""
    return page.evaluate(f"document.getElementById('canvas-{plane}').toDataURL()")


def position(page: Page, plane: str = "axial") -> int:
    return int(page.evaluate(f"document.getElementById('slider-{plane}').value"))


def test_opens_quickly(browser: Page, pages: Path) -> None:
    browser.open(pages / "static.html")
    assert browser.open(pages / "static.html") < 3
    keep(browser, "static")


def test_arrows_change_the_slice(page: Page) -> None:
    focus(page)
    before, image = position(page), drawn(page)
    page.press("ArrowUp")
    assert position(page) == before + 1
    assert drawn(page) != image
    page.press("ArrowDown")
    assert position(page) == before
    assert drawn(page) == image
    label = page.evaluate("document.getElementById('position-axial').textContent")
    assert label.startswith(f"{before + 1}/")


def test_every_mode_and_map_shows_something_else(page: Page) -> None:
    focus(page)
    seen = []
    for key in "1234":
        page.press(key)
        if key == "3":
            page.press(" ")  # stops the flicker
        seen.append(drawn(page))
    page.press("1")
    for _ in range(4):
        page.press("m")
        seen.append(drawn(page))
    keep(page, "maps")
    page.press("m")
    page.press("b")
    seen.append(drawn(page))
    page.press("c")
    seen.append(drawn(page))
    page.press("ArrowLeft")
    seen.append(drawn(page))
    assert len(set(seen)) == len(seen)


def test_flicker_turns_by_itself_and_by_key(page: Page) -> None:
    focus(page)
    page.press("3")
    still = page.evaluate("state.playing === false")
    shows = page.evaluate("state.fixedTurn")
    if not still:
        page.wait(f"state.fixedTurn !== {str(shows).lower()}")
    page.press(" ")
    shows = page.evaluate("state.fixedTurn")
    page.press(" ")
    assert page.evaluate("state.fixedTurn") != shows


def test_a_click_moves_the_cross_in_all_planes(page: Page) -> None:
    focus(page)
    page.press("2")
    before = position(page, "coronal"), position(page, "sagittal")
    box = page.evaluate(
        "(() => { const b = document.getElementById('canvas-axial').getBoundingClientRect();"
        "return [b.left + 0.3 * b.width, b.top + 0.35 * b.height]; })()"
    )
    page.evaluate("window.scrollTo(0, 0)")
    for kind in ("mousePressed", "mouseReleased"):
        page.call(
            "Input.dispatchMouseEvent",
            **{"type": kind, "x": box[0], "y": box[1], "button": "left", "clickCount": 1},
        )
    page.settle()
    after = position(page, "coronal"), position(page, "sagittal")
    counts = [page.evaluate(f"planes[{i}].positions.length") for i in (1, 2)]
    assert after != before
    # The same share of the way along the rows and along the columns.
    assert abs(after[0] - 0.35 * counts[0]) <= 2
    assert abs(after[1] - 0.3 * counts[1]) <= 2


def test_contours_without_labels(browser: Page, pages: Path) -> None:
    browser.messages.clear()
    browser.open(pages / "plain.html")
    focus(browser)
    without = drawn(browser)
    browser.press("c")
    assert drawn(browser) != without
    assert browser.messages == []


def test_the_viewer_opens(pages: Path, tmp_path: Path) -> None:
    with chromium(tmp_path, *WEBGL) as page:
        page.open(pages / "full.html")
        assert page.evaluate("typeof window.niivue") == "undefined"
        page.evaluate("document.getElementById('open-viewer').click()")
        page.wait("document.body.dataset.viewer === 'open'")
        assert page.evaluate("Object.keys(window.niivue).includes('Niivue')")
        page.settle()
        keep(page, "viewer")
        check_quiet(page)


def test_without_webgl_the_page_says_so(browser: Page, pages: Path) -> None:
    browser.requests.clear()
    browser.messages.clear()
    browser.open(pages / "full.html")
    assert browser.evaluate("document.getElementById('no-webgl').hidden")
    browser.evaluate("document.getElementById('open-viewer').click()")
    browser.wait("!document.getElementById('no-webgl').hidden")
    assert browser.evaluate("document.getElementById('viewer-stage').hidden")
    focus(browser)
    before = position(browser)
    browser.press("ArrowUp")
    assert position(browser) == before + 1
    keep(browser, "no_webgl")
    check_quiet(browser)


def row(pair: str, *, trusted: bool = True, **more: Any) -> CohortRow:
    return CohortRow(pair, "MR-CT", None, "ok", trusted, **more)


def test_a_cohort_can_be_sorted_and_filtered(browser: Page, tmp_path: Path) -> None:
    rows = [
        row("a", scores={"dice_after": 0.9}),
        row("b", scores={"dice_after": 0.1}),
        row("c", trusted=False),
    ]
    write_cohort_page(tmp_path / "index.html", rows)
    browser.requests.clear()
    browser.messages.clear()
    browser.open(tmp_path / "index.html")
    names = "[...document.querySelectorAll('tbody tr:not([hidden]) th')].map(c => c.textContent)"
    assert browser.evaluate(names) == ["c", "a", "b"]
    dice = "[...document.querySelectorAll('thead button')].find(b => b.textContent === 'Dice')"
    browser.evaluate(f"{dice}.click()")
    assert browser.evaluate(names) == ["b", "a", "c"]
    browser.evaluate(f"{dice}.click()")
    assert browser.evaluate(names) == ["a", "b", "c"]
    browser.evaluate(
        "const k = document.getElementById('kind'); k.value = 'untrusted';"
        "k.dispatchEvent(new Event('change'))"
    )
    assert browser.evaluate(names) == ["c"]
    keep(browser, "cohort")
    check_quiet(browser)
