"""`dinoreg-rt probe`: its table, its JSON and the options it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from encoders import write_bundle
from phantoms import Body, centres_of, make_grid, make_phantom

from dinoreg_rt.commands.main import cli
from dinoreg_rt.io import read_volume, write_labels, write_volume
from dinoreg_rt.types import LabelMap

pytest.importorskip("onnx", reason="makes a small ONNX encoder: onnx is not installed")
pytest.importorskip("onnxruntime", reason="runs it: ONNX Runtime is not installed")


@pytest.fixture(autouse=True)
def bundle(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DINOREG_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("DINOREG_CACHE", str(tmp_path / "cache"))
    return write_bundle(tmp_path / "models" / "gabor", [(96, 112)])


@pytest.fixture
def files(tmp_path) -> dict[str, Path]:
    """A pair with three organs, which are parts of the body along x."""
    grid = make_grid((20, 24, 28), (3.0, 3.0, 4.0))
    phantom = make_phantom(grid, grid, peak_mm=3.0)
    points = centres_of(grid)
    labels = np.where(Body().inside(points), np.digitize(points[..., 0], [-12, 12]) + 1, 0)
    paths = {name: tmp_path / f"{name}.nii.gz" for name in ("fixed", "moving", "labels")}
    write_volume(paths["fixed"], phantom.fixed)
    write_volume(paths["moving"], phantom.moving)
    write_labels(paths["labels"], LabelMap(labels.astype(np.int32), grid))
    return paths


def probe(files: dict[str, Path], *words: object, labels: bool = True) -> Result:
    both = ("--fixed-labels", files["labels"], "--moving-labels", files["labels"])
    given = ("probe", "gabor", "-f", files["fixed"], "-m", files["moving"], "--threads", 1,
             "--initial", "none", "--components", 8, "--slice-stride", 8,
             *(both if labels else ()), *words)  # fmt: skip
    return CliRunner().invoke(cli, [str(word) for word in given])


def test_the_last_row_of_the_table_is_the_best(files) -> None:
    result = probe(files)
    assert result.exit_code == 0, result.stderr
    head, *rows, last = result.stdout.splitlines()
    assert head.split() == ["features", "centre", "scale", "same", "label", "consistent"]
    assert len(rows) == 13
    assert any(row.startswith(" MIND-SSC") for row in rows)
    means = [float(row.split()[-2]) for row in rows]
    assert means == sorted(means)
    assert last.startswith("same label: mean of 3 labels, by chance 0.")
    assert "the best row is the last" in last


def test_json(files) -> None:
    result = probe(files, "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert set(found) == {"rows", "chance_of", "tokens", "warnings"}
    assert set(found["chance_of"]) == {"1", "2", "3"}
    mind, first, *others = found["rows"]
    assert (mind["features"], mind["token_centre"], mind["token_scale"]) == ("MIND-SSC", None, None)
    assert (first["features"], first["token_centre"]) == ("final", "none")
    assert len(others) == 11
    assert first["same_label"] == pytest.approx(np.mean(list(first["same_label_of"].values())))
    chance = np.mean(list(found["chance_of"].values()))
    assert chance + 0.1 < first["same_label"] <= 1
    # Every eighth of the 20 slices and the last one, except empty ones.
    assert found["tokens"] == [n * 24 * 28 for n in (4, 4)] or min(found["tokens"]) > 100


def test_what_the_images_leave_open_is_a_warning(files) -> None:
    volume = read_volume(files["fixed"])
    low, high = np.percentile(volume.array, [40, 95])
    write_volume(files["fixed"], replace(volume, array=np.clip(volume.array, low, high)))
    result = probe(files, "--json", labels=False)
    assert "--fixed-modality ct or mr" in json.loads(result.stdout)["warnings"][0]
    assert "warning: the fixed image is taken for" in result.stderr


def test_without_labels(files) -> None:
    result = probe(files, labels=False)
    assert result.exit_code == 0, result.stderr
    head, *rows = result.stdout.splitlines()
    assert head.split() == ["features", "centre", "scale", "consistent"]
    shares = [float(row.split()[-1]) for row in rows]
    assert len(shares) == 13
    assert shares == sorted(shares)
    found = json.loads(probe(files, "--json", labels=False).stdout)
    assert found["chance_of"] == {}
    assert {row["same_label"] for row in found["rows"]} == {None}


def test_what_is_refused(files, tmp_path) -> None:
    one = probe(files, "--fixed-labels", files["labels"], labels=False)
    assert one.exit_code == 2
    assert "give both --fixed-labels and --moving-labels, or neither" in one.stderr
    named_twice = probe(files, "--encoder", "gabor")
    assert named_twice.exit_code == 2
    assert "give the encoder as the command's argument" in named_twice.stderr
    lacking = probe(files, "--layers", "5")
    assert lacking.exit_code == 4
    assert "--layers 5" in lacking.stderr
    at_a_depth = probe(files, "--encoder-depth", "0.5")
    assert at_a_depth.exit_code == 4
    assert "gabor is a bundle" in at_a_depth.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("--search-features", "mind"),
        ("--token-centre", "none"),
        ("--iterations", "3"),
        ("--mind-weight", "1"),
        ("--inverse",),
    ],
)
def test_options_of_a_registration_are_unknown(files, words) -> None:
    result = probe(files, *words)
    assert result.exit_code == 2
    assert f"No such option '{words[0]}'" in result.stderr
