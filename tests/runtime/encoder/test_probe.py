"""The probe of an encoder on whole images, and a bundle's layers in a registration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from encoders import config, run, write_bundle
from phantoms import centres_of, make_grid, make_phantom

import dinoreg_rt
from dinoreg_rt.errors import ConfigError, InputError
from dinoreg_rt.evaluate.probe import MIND_ROW, ProbeResult, probe_images
from dinoreg_rt.types import LabelMap, Volume

pytest.importorskip("onnx", reason="makes a small ONNX encoder: onnx is not installed")
pytest.importorskip("onnxruntime", reason="runs it: ONNX Runtime is not installed")
pytestmark = pytest.mark.usefixtures("own_cache")
GRID = make_grid((16, 40, 48), (3.0, 3.0, 4.0))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "two"
    return write_bundle(folder, [(80, 96)], patch=4, layers=("3", "7"))


def organs(shift_mm: float = 0.0) -> tuple[Volume, LabelMap]:
    """Return four blocks in a row, each with its own grey, shifted along x."""
    points = centres_of(GRID) - (shift_mm, 0.0, 0.0)
    labels = np.digitize(points[..., 0], [-60, -30, 0, 30, 60]) % 5
    labels[np.abs(points[..., 1]) > 40] = 0
    values = np.array([0.0, 250.0, 500.0, 750.0, 1000.0], np.float32)[labels]
    return Volume(values, GRID), LabelMap(labels.astype(np.int32), GRID)


def probe(bundle: Path, *, labels: bool = True, same: bool = False, **more) -> ProbeResult:
    (fixed, of_fixed), (moving, of_moving) = organs(), organs(0.0 if same else 6.0)
    settings = config(bundle, **{"trust": False, "slice_stride": 5, "components": 8} | more)
    maps = (of_fixed, of_moving) if labels else None
    return probe_images(fixed, moving, maps, settings, lambda stage, fraction: None)


@pytest.fixture(scope="module")
def result(bundle) -> ProbeResult:
    """Probe both layers with labels and without the cache."""
    return probe(bundle, cache=False)


def test_visible_organs_are_found(result) -> None:
    assert list(result.chance) == [1, 2, 3, 4]
    assert max(result.chance.values()) < 0.4
    assert result.tokens == (4 * 20 * 24,) * 2
    mind, *rows = result.rows
    assert (mind.features, mind.centre, mind.scale) == (MIND_ROW, "", "")
    # Both layers and the two joined, each with every standardisation.
    assert [row.features for row in rows] == [n for n in ("3", "7", "3+7") for _ in range(12)]
    assert len({(row.features, row.centre, row.scale) for row in rows}) == 36
    plain = rows[0]
    assert (plain.centre, plain.scale) == ("none", "none")
    # Measured: 0.94; the rest lies at the borders.
    assert plain.mean > 0.85
    assert plain.mean == pytest.approx(np.mean(list(plain.found.values())))
    assert 0 < plain.consistent <= 1


def test_without_labels_only_the_consistent_share_is_reported(bundle, result) -> None:
    without = probe(bundle, labels=False, layers=("3",))
    assert without.chance == {}
    assert all(row.found == {} and row.mean is None for row in without.rows)
    assert [row.consistent for row in without.rows] == [r.consistent for r in result.rows[:13]]


def test_one_layer_of_several_with_the_same_bits_on_two_threads(bundle, result) -> None:
    """A chosen layer's rows are those of the whole table; the second run reads the cache."""
    one = probe(bundle, layers=("7",), threads=2)
    assert [row.features for row in one.rows] == [MIND_ROW] + ["7"] * 12
    assert one.rows[1:] == result.rows[13:25]
    assert probe(bundle, layers=("7",), threads=2) == one


def test_labels_with_nothing_in_common(bundle) -> None:
    fixed, labels = organs()
    other = LabelMap(np.where(labels.array > 0, labels.array + 10, 0).astype(np.int32), GRID)
    settings = config(bundle, slice_stride=8, components=8, trust=False)
    with pytest.raises(InputError, match="no label of the fixed image lies within 48 mm"):
        probe_images(fixed, fixed, (labels, other), settings, lambda stage, fraction: None)


def test_a_layer_that_the_bundle_lacks(bundle) -> None:
    with pytest.raises(ConfigError, match=r"--layers 5: .* holds tokens of layer 3, 7"):
        probe(bundle, layers=("5",))


def test_no_encoder_to_probe() -> None:
    fixed, _ = organs()
    settings = dinoreg_rt.RegistrationConfig(initial="none", trust=False)
    with pytest.raises(ConfigError, match="no encoder to probe"):
        probe_images(fixed, fixed, None, settings, lambda stage, fraction: None)


@pytest.mark.parametrize(
    "more",
    [
        {"layers": ("3",)},
        {"layers": ("7",), "position_components": 3, "token_centre": "smooth"},
        {"position_components": 2, "token_centre": "image", "token_scale": "length"},
    ],
)
def test_layers_and_position_through_a_registration(bundle, more) -> None:
    """The cache holds the tokens of all layers, whichever are compared."""
    grid = make_grid((12, 40, 48), (4.0, 2.0, 2.0))
    phantom = make_phantom(grid, grid, peak_mm=6.0)
    values = {"encoder": str(bundle), "threads": 1, "initial": "none", "device": "cpu"}
    values |= {"components": 8, "body_mask": "off", "trust": False, "correlation_weight": 0.0}

    first, again, fresh, every = (
        run(phantom, dinoreg_rt.RegistrationConfig(**values, **settings))
        for settings in (more, more, more | {"cache": False}, {})
    )
    cached = [r.encoding.planes[0].from_cache for r in (first, again, fresh, every)]
    assert cached == [(False, False), (True, True), (False, False), (True, True)]
    field = first.displacement.vectors_mm
    for other in (again, fresh):
        np.testing.assert_array_equal(other.displacement.vectors_mm, field)
    assert not np.array_equal(every.displacement.vectors_mm, field)
    assert np.isfinite(field).all()
    assert phantom.errors_mm(field).mean() < 0.6 * phantom.errors_mm(np.zeros(3)).mean()
