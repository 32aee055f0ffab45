"""`report.html` and `index.html`: the values, what they never show, and their sizes."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import NASTY, Elements, make_report, make_result, make_volume, write_page
from qualities import GOOD

from dinoreg_rt.page import niivue
from dinoreg_rt.page.layout import MOST_MAP_PIXELS, plane_layouts
from dinoreg_rt.page.maps import PlaneMaps
from dinoreg_rt.page.markup import asset, join, json_block, tag
from dinoreg_rt.page.numbers import MEASURES, decimals, lookup
from dinoreg_rt.page.provenance import command_line
from dinoreg_rt.page.report_page import FULL_BYTES, STATIC_BYTES, render_page
from dinoreg_rt.page.sprites import encode_views
from dinoreg_rt.page.stacks import SliceStack, cut_stacks
from dinoreg_rt.page.words import base_name, verdict_words
from dinoreg_rt.registration.result import RegistrationResult
from dinoreg_rt.summaries import RunQuality
from dinoreg_rt.types import AffineTransform, Geometry, Volume


def render(result: RegistrationResult, report: dict[str, Any], name: str = "f.nii.gz") -> str:
    fixed, moving = make_volume(name), make_volume(name)
    stacks = cut_stacks(result, fixed, moving)
    return render_page(report, result, (fixed, moving), stacks)


@pytest.fixture
def result() -> RegistrationResult:
    return make_result(make_volume("f"), make_volume("m"))


def test_values_are_those_of_the_report(tmp_path: Path) -> None:
    report = write_page(tmp_path / "page.html")
    shown = Elements((tmp_path / "page.html").read_text("utf-8")).of("data")
    paths = {str(one["data-path"]) for one in shown}
    for one in shown:
        value = lookup(report, str(one["data-path"]))
        assert json.loads(str(one["value"])) == value, one
    measured = {name for name, value in report["quality"].items() if value is not None}
    assert {f"quality/{name}" for name in measured} <= paths
    decided = {name for name, value in report["configuration"].items() if value is not None}
    assert {f"configuration/{name}" for name in decided} <= paths
    assert {"started_at", "total_ms", "trust/verdict", "versions/dinoreg-rt"} <= paths


def test_every_measure_is_in_the_table() -> None:
    listed = [measure.field for group in MEASURES.values() for measure in group]
    assert sorted(listed) == sorted(RunQuality.__dataclass_fields__)


def test_yes_and_no_are_words() -> None:
    assert [decimals(0)(value) for value in (True, False)] == ["yes", "no"]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0 %"), (0.00004, "4.0e-05 %"), (1.26, "1.3 %"), (-0.26, "\N{MINUS SIGN}0.3 %")],
)
def test_small_numbers_are_not_shown_as_none(value: float, text: str) -> None:
    assert decimals(1, " %")(value) == text


def test_verdict_and_reasons_come_first(result: RegistrationResult) -> None:
    bad = replace(result, quality=replace(result.quality, folded_percent=3.0, overlap_percent=40.0))
    report = make_report(bad, {"fixed": "f.nii.gz", "moving": "m.nii.gz"})
    words = Elements(render(bad, report)).words
    for said in [*report["trust"]["reasons"], *report["warnings"]]:
        assert said in words
        assert words.index(said) < words.index("What was registered")
    assert "Untrusted" in words


@pytest.mark.parametrize(
    ("verdict", "reasons", "warnings", "kind"),
    [
        ("untrusted", ["a"], ["b"], "untrusted"),
        ("trusted", [], ["b"], "warned"),
        ("trusted", [], [], "trusted"),
    ],
)
def test_words_of_the_verdict(verdict: str, reasons: Any, warnings: Any, kind: str) -> None:
    words = verdict_words(verdict, reasons, warnings, tested=True)
    assert words.kind == kind
    untested = verdict_words(verdict, reasons, warnings, tested=False)
    assert ("not tested" in untested.summary) == (kind != "untrusted")


def test_nothing_of_the_input_becomes_markup(result: RegistrationResult) -> None:
    nasty = replace(
        result,
        choices={NASTY: NASTY, "initial alignment": NASTY},
        plan_warnings=(f"{NASTY}: a doubt", "</script><script>alert(3)</script>"),
        versions={"dinoreg-rt": NASTY},
    )
    clean = render(result, make_report(result, {"fixed": "f", "moving": "m"}))
    report = make_report(nasty, {"fixed": NASTY, "moving": NASTY, f"labels_{NASTY}": NASTY})
    page = Elements(render(nasty, report, NASTY))
    assert len(page.of("script")) == len(Elements(clean).of("script"))
    assert not page.of("img")
    handlers = {key for _, attributes in page.found for key in attributes if key.startswith("on")}
    assert not handlers
    assert NASTY in page.words


def test_a_data_block_cannot_be_ended() -> None:
    content = {"name": "</script><!--<script>\N{LINE SEPARATOR}&"}
    text = str(json_block("x", content))
    assert text.count("<") == 2
    inner = re.fullmatch(r"<script [^>]*>(.*)</script>", text)
    assert inner is not None
    assert json.loads(inner[1]) == content


def test_text_is_escaped_once() -> None:
    assert str(tag("p", "a<b", tag("b", "&"), class_='"x"')) == (
        '<p class="&quot;x&quot;">a&lt;b<b>&amp;</b></p>'
    )
    assert str(join("<", tag("input", disabled=True, hidden=False))) == "&lt;<input disabled>"


def test_folders_are_not_shown(result: RegistrationResult) -> None:
    folder = "/clinic/DOE_JOHN_1970"
    moving = f"{folder}/series?series=1.2.840.99&EchoTime=4"
    paths = {"fixed": f"{folder}/ct.nii.gz", "moving": moving}
    said = f"{folder}/ct.nii.gz: the sform and the qform differ"
    start = {"initial alignment": f"read from {folder}/start.tfm"}
    doubtful = replace(result, plan_warnings=(said,), choices=start)
    report = make_report(doubtful, paths)
    report["configuration"]["initial"] = f"{folder}/start.tfm"
    report["command"] += ["--initial", f"{folder}/start.tfm", f"--labels={folder}/l.nii"]
    page = render(doubtful, report, paths["fixed"])
    words = re.sub(r'<script type="application/json".*?</script>', "", page, flags=re.DOTALL)
    assert "ct.nii.gz: the sform and the qform differ" in words
    visible = Elements(words).words
    assert "DOE_JOHN" not in visible
    assert "Read from start.tfm" in visible
    assert "1.2.840" not in words
    assert "--initial start.tfm --labels=l.nii" in visible


def test_command_can_be_pasted() -> None:
    report = {"command": ["dinoreg-rt", "run", "-f", "a b.nii", "--coupling", "0.1,0.2"]}
    assert command_line(report) == "dinoreg-rt run -f 'a b.nii' --coupling 0.1,0.2"
    assert base_name("/x/FOLDER?series=1.2") == "FOLDER"


def test_nothing_is_loaded(tmp_path: Path) -> None:
    write_page(tmp_path / "page.html", viewer=True)
    page = Elements((tmp_path / "page.html").read_text("utf-8"))
    for name, attributes in page.found:
        for key in ("src", "href", "srcset", "action", "data"):
            target = attributes.get(key) or ""
            assert name == "a" or target.startswith(("data:", "#")) or not target
        assert "style" not in attributes  # the policy would refuse it
    (policy,) = [m["content"] for m in page.of("meta") if "Policy" in (m.get("http-equiv") or "")]
    assert policy is not None
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert policy.count("'sha256-") == 3  # the style, the script, and NiiVue


def test_same_page_twice(result: RegistrationResult) -> None:
    report = make_report(result, {"fixed": "f", "moving": "m"})
    assert render(result, report) == render(result, report)


def test_maps_that_were_not_computed_are_named(result: RegistrationResult) -> None:
    plain = replace(result, inverse=None, confidence=None)
    report = make_report(plain, {"fixed": "f", "moving": "m"})
    assert "Maps that this run did not compute: confidence, inverse consistency" in render(
        plain, report
    )
    assert "did not compute" not in render(result, report)


def test_regions_are_listed_from_the_worst(result: RegistrationResult) -> None:
    report = make_report(result, {"fixed": "f", "moving": "m"})
    assert "Where to look first" not in render(result, report)
    found = {"upper left, back": 0.9, "lower right, front": None, "middle left, back": 0.2}
    report["regions"] = [
        {"place": place, "information": value, "matched_percent": 99.0, "share_percent": 10.5}
        for place, value in found.items()
    ]
    words = Elements(render(result, report)).words
    places = [words.index(place) for place in found]
    assert places[2] < places[0] < places[1]
    assert "0.20 nats" in words


def test_methods_name_what_was_done(result: RegistrationResult) -> None:
    words = Elements(render(result, make_report(result, {"fixed": "f", "moving": "m"}))).words
    assert "The moving CT image was registered to the fixed MR image with dinoreg-rt 0.1.0" in words
    assert "discrete search (spacing 6 mm" in words
    assert "30 iterations of Adam" in words
    assert "10.1007/978-3-642-40811-3_24" in words
    assert "maximised the local correlation" not in words  # no weight was decided
    weighted = replace(result, config=result.config.changed(correlation_weight=2.5))
    words = Elements(render(weighted, make_report(weighted, {"fixed": "f", "moving": "m"}))).words
    assert "The refinement also maximised the local correlation of the intensities." in words


def test_the_page_of_a_linear_registration_shows_its_transform() -> None:
    fixed, moving = make_volume("f"), make_volume("m")
    quality = replace(GOOD, feature_distance_before=float("nan"))
    made = make_result(fixed, moving)
    turned = AffineTransform(np.diag([1.1, 1.1, 1.1]), np.array([0.0, 0.0, 3.0]))
    config = made.config.changed(transform="similarity", confidence=False)
    alignment = {"similarity": 0.9, "confidence": 0.5, "overlap": 1.0}
    result = replace(made, quality=quality, config=config, affine=turned, alignment=alignment)
    report = make_report(result, {"fixed": "f", "moving": "m"})
    page = Elements(render(result, report))
    shown = {str(one["data-path"]): str(one["value"]) for one in page.of("data")}
    assert json.loads(shown["transform/scale"]) == report["transform"]["scale"] == 1.1
    for row in range(3):
        for column in range(3):
            value = report["transform"]["matrix"][row][column]
            assert json.loads(shown[f"transform/matrix/{row}/{column}"]) == value
    for said in ("within similarity transforms", "followed by similarity fits", "scales by 1.100"):
        assert said in page.words
    for unsaid in ("displacement field was found", "Adam", "folded in"):
        assert unsaid not in page.words


def noise_stacks(shape: tuple[int, int, int] = (400, 600, 600)) -> list[SliceStack]:
    """Stacks of the largest size whose pixels, labels and maps are all noise."""
    grid = Geometry(shape, (0.7, 0.7, 0.9), (0.0, 0.0, 0.0), np.eye(3))
    z, y, x = (slice(0, n) for n in shape)
    rng = np.random.default_rng(0)
    stacks = []
    for layout in plane_layouts(grid, (z, y, x)):
        size = layout.grid.shape_zyx
        voxels = tuple(len(axis) for axis in layout.voxels(MOST_MAP_PIXELS))
        small = layout.view(np.empty(voxels)).shape
        pixels = [rng.integers(0, 256, size).astype(np.uint8) for _ in range(3)]
        labels = [{"a": rng.integers(0, 99, size, np.int32)} for _ in range(2)]
        maps = PlaneMaps(
            rng.lognormal(size=small),
            rng.random(small) < 0.5,
            rng.normal(size=(size[0], 20, 20, 2)),
            rng.random(small),
            rng.random(small),
        )
        stacks.append(SliceStack(layout, pixels[0], pixels[1], pixels[2], maps, *labels))
    return stacks


def test_pages_of_noise_fit_their_limits() -> None:
    grid = Geometry((60, 80, 80), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3))
    noise = np.random.default_rng(0).random(grid.shape_zyx, np.float32)
    fixed = Volume(noise, grid, name="f")
    still = np.broadcast_to(np.zeros(3, np.float32), (*grid.shape_zyx, 3))
    result = make_result(make_volume("f"), make_volume("m"), warped=fixed)
    result = replace(result, displacement=replace(result.displacement, vectors_mm=still))
    report = make_report(result, {"fixed": "f", "moving": "m"})
    stacks = noise_stacks()
    static = render_page(report, result, (fixed, fixed), stacks)
    full = render_page(report, result, (fixed, fixed), stacks, viewer=True)
    assert 0.5 * STATIC_BYTES < len(static.encode()) <= STATIC_BYTES
    assert len(static) < len(full.encode()) <= FULL_BYTES


def test_volumes_of_the_viewer_are_reduced_until_they_fit() -> None:
    grid = Geometry((40, 50, 60), (1.0, 1.0, 2.0), (0.0, 0.0, 0.0), np.eye(3))
    noise = Volume(np.random.default_rng(0).random(grid.shape_zyx, np.float32), grid, name="f")
    result = make_result(make_volume("f"), make_volume("m"), warped=noise)
    ample = niivue.make_viewer(result, noise, noise, FULL_BYTES)
    most = len(ample.code) + 20_000
    viewer = niivue.make_viewer(result, noise, noise, most)
    assert ample.note == "both volumes at half the resolution"
    assert viewer.note == "both volumes at 1/3 of the resolution"
    assert len(viewer.code) + len(viewer.fixed) + len(viewer.warped) <= most
    volume = gzip.decompress(base64.b64decode(ample.fixed))
    assert volume[344:348] == b"n+1\0"
    assert np.frombuffer(volume, "<i2", 3, 42).tolist() == [30, 25, 20]
    assert len(volume) == 352 + 30 * 25 * 20


def test_a_page_of_a_plain_pair_keeps_its_quality() -> None:
    fixed = make_volume("f", (40, 120, 120))
    stacks = cut_stacks(make_result(fixed, fixed), fixed, fixed)
    views = encode_views(stacks, STATIC_BYTES)
    for stack, plane in zip(stacks, views["planes"], strict=True):
        layer = plane["layers"]["fixed"]
        assert (layer["height"], layer["width"]) == stack.fixed.shape[1:]
        assert layer["pitch"] % 8 == 0


def test_niivue_is_the_published_file() -> None:
    script = gzip.decompress(asset("assets/niivue/niivue.umd.js.gz"))
    assert hashlib.sha256(script).hexdigest() == niivue.SHA256
    assert f'"{niivue.VERSION}"' in script.decode("utf-8")
    assert b"BSD 2-Clause" in asset("assets/niivue/LICENSE")
    bundled = asset("assets/niivue/LICENSES-bundled.txt").decode("utf-8")
    for package in ("fflate", "gl-matrix", "nifti-reader-js", "zarrita"):
        assert f"======== {package} ========" in bundled
