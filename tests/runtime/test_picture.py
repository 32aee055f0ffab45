"""`qc.png` for any kind of image."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pages import make_result, make_volume
from PIL import Image

from dinoreg_rt.page.contours import contour_levels, outline
from dinoreg_rt.page.picture import _numbers, draw_picture
from dinoreg_rt.page.stacks import cut_stacks
from dinoreg_rt.registration.result import RegistrationResult
from dinoreg_rt.types import LabelMap, Volume


def test_levels_separate_three_tissues() -> None:
    rng = np.random.default_rng(0)
    shades = rng.choice([0, 60, 140, 220], size=(4, 30, 30)) + rng.integers(-9, 9, (4, 30, 30))
    low, high = contour_levels([np.clip(shades, 0, 255).astype(np.uint8)])
    assert 66 < low < 135
    assert 145 < high < 215
    assert contour_levels([np.zeros((2, 3, 3), np.uint8)]) != []


def test_an_outline_is_the_rim_of_a_mask() -> None:
    mask = np.zeros((6, 6), bool)
    mask[1:5, 1:5] = True
    rim = outline(mask)
    assert rim.sum() == 12
    assert not rim[2:4, 2:4].any()


def draw(result: RegistrationResult, image: Volume, path: Path, **labels: LabelMap) -> None:
    draw_picture(result, image, image, cut_stacks(result, image, image, labels), path)


@pytest.mark.parametrize("shape", [(9, 11, 13), (2, 40, 30), (30, 2, 5), (1, 1, 1)])
@pytest.mark.parametrize("kind", ["noise", "constant", "elsewhere"])
def test_draws(tmp_path: Path, shape: tuple[int, int, int], kind: str) -> None:
    rng = np.random.default_rng(0)
    values = np.ones(shape) if kind == "constant" else rng.random(shape)
    fixed = replace(make_volume("f", shape), array=(values * 300).astype(np.float32))
    vectors = rng.normal(scale=4.0, size=(*shape, 3)).astype(np.float32)  # folds
    if kind == "elsewhere":
        vectors += 1e4
    result = make_result(fixed, fixed)
    result = replace(result, displacement=replace(result.displacement, vectors_mm=vectors))
    labels = LabelMap(rng.integers(0, 3, shape).astype(np.int32), fixed.geometry)
    draw(result, fixed, tmp_path / "plain.png")
    draw(result, fixed, tmp_path / "labels.png", organs=labels)
    for name in ("plain.png", "labels.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.size[0] == 1640
            assert picture.size[1] < 1400
            assert picture.format == "PNG"


def test_a_linear_result_has_its_own_headline(tmp_path: Path) -> None:
    image = make_volume("f")
    made = make_result(image, image)
    quality = replace(made.quality, feature_distance_before=float("nan"))
    config = made.config.changed(transform="affine", confidence=False)
    result = replace(made, quality=quality, config=config, affine=made.initial)
    assert "affine transform" in _numbers(result)
    assert "rotation 0.00" in _numbers(result)
    assert "nan" not in _numbers(result)
    draw(result, image, tmp_path / "linear.png")


def test_contours_are_those_of_the_labels_if_there_are_any(tmp_path: Path) -> None:
    fixed = make_volume("f")
    result = make_result(fixed, fixed)
    ball = LabelMap((fixed.array > 60).astype(np.int32), fixed.geometry)
    draw(result, fixed, tmp_path / "plain.png")
    draw(result, fixed, tmp_path / "labels.png", ball=ball)
    colours = {}
    for name in ("plain", "labels"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            left, top, right, bottom = (int(n) for n in picture.info["part"].split())
            panel = np.asarray(picture.convert("RGB"), int)[top:bottom, left:right]
        colours[name] = {tuple(c) for c in panel.reshape(-1, 3) if c.max() - c.min() > 40}
    # The letters of the axes have a colour as well, the same in both.
    assert colours["plain"] - colours["labels"]
    assert colours["labels"] - colours["plain"]


def test_same_picture_twice(tmp_path: Path) -> None:
    image = make_volume("f")
    for name in ("a.png", "b.png"):
        draw(make_result(image, image), image, tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_the_picture_needs_no_matplotlib() -> None:
    """Importing it would take longer than drawing."""
    code = (
        "import sys; import dinoreg_rt.page.picture, dinoreg_rt.page.report_page;"
        "from dinoreg_rt.page.canvas import _font; _font(12);"
        "assert 'matplotlib' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_matplotlib_is_quiet_without_a_home(tmp_path: Path) -> None:
    """It warns if its folders cannot be written, even with --quiet."""
    code = "from dinoreg_rt.page.figures import new_figure; new_figure(figsize=(1, 1))"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "MPLCONFIGDIR": "/proc/x", "HOME": "/proc/x"},
    )
    assert ended.stderr == ""
