"""`index.html` of a cohort: order, links, thumbnails, and nothing from a file becomes markup."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pages import NASTY, Elements, make_result, make_volume
from PIL import Image

from dinoreg_rt.page.cohort_page import write_cohort_page
from dinoreg_rt.page.cohort_rows import CohortRow
from dinoreg_rt.page.picture import draw_picture
from dinoreg_rt.page.stacks import cut_stacks
from dinoreg_rt.page.words import without_folders


@dataclass(frozen=True)
class Row(CohortRow):
    pair: str = "one"
    kind: str = "MR-CT"
    folder: Path | None = None
    status: Literal["ok", "failed"] = "ok"
    trusted: bool | None = True
    quality: dict[str, float | None] = field(default_factory=lambda: {"folded_percent": 0.01})
    scores: dict[str, float] = field(default_factory=lambda: {"dice_after": 0.8})
    seconds: float | None = 2.5


def cohort(tmp_path: Path, *rows: Row) -> Elements:
    write_cohort_page(tmp_path / "index.html", rows)
    return Elements((tmp_path / "index.html").read_text("utf-8"))


def test_a_cohort_lists_the_doubtful_first(tmp_path: Path) -> None:
    page = cohort(
        tmp_path,
        Row("fine"),
        Row("warned", warnings=("look",)),
        Row("wrong", trusted=False, reasons=("a mirror image matches",)),
        Row("broken", status="failed", trusted=None, error="no such file", quality={}, scores={}),
        Row("unknown", trusted=None, scores={"dice_after": float("nan")}),
    )
    order = [one["data-kind"] for one in page.of("tr") if "data-kind" in one]
    assert order == ["failed", "untrusted", "unknown", "warned", "trusted"]
    assert "no such file" in page.words
    assert "a mirror image matches" in page.words
    assert "5 pairs" in page.words


def test_a_cohort_links_to_the_reports(tmp_path: Path) -> None:
    fixed = make_volume("f")
    result = make_result(fixed, fixed)
    folder = tmp_path / "a b#1"
    folder.mkdir()
    (folder / "report.html").write_text("x")
    draw_picture(result, fixed, fixed, cut_stacks(result, fixed, fixed), folder / "qc.png")
    page = cohort(tmp_path, Row(NASTY, folder=Path("a b#1")), Row("bare", folder=Path("none")))
    assert [a["href"] for a in page.of("a") if a.get("class") != "skip"] == [
        "a%20b%231/report.html"
    ]
    (image,) = page.of("img")
    assert (image["src"] or "").startswith("data:image/jpeg;base64,")
    assert NASTY in page.words
    assert len(page.of("script")) == 1
    with Image.open(folder / "qc.png") as picture:
        left, top, right, bottom = (int(n) for n in picture.info["part"].split())
        assert 0 < left < right < picture.width
        assert 0 < top < bottom < picture.height


def test_a_cohort_survives_broken_pictures(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "qc.png").write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    assert not cohort(tmp_path, Row(folder=Path("a"))).of("img")
    assert "0 pairs" in cohort(tmp_path).words


def test_messages_name_files_without_their_folders() -> None:
    said = "/data/doe_jane/mr.nii.gz: no such file; in 'doe_jane/ct.mha' and /data/doe_jane/dicom"
    assert without_folders(said) == "mr.nii.gz: no such file; in 'ct.mha' and dicom"
    assert without_folders("left and/or right, 0.5 mm/voxel") == "left and/or right, 0.5 mm/voxel"
