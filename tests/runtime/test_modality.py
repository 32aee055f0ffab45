"""Modality, scale and padding of the shipped scans, changed as files from elsewhere are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from dinoreg_rt import io
from dinoreg_rt.config.parameters import RegistrationConfig
from dinoreg_rt.device.choice import Device
from dinoreg_rt.errors import InputError
from dinoreg_rt.images.histogram import sample_values
from dinoreg_rt.images.modality import Detection, detect_modality
from dinoreg_rt.images.pair import PairImage, examine
from dinoreg_rt.types import Volume

HOST = Device("cpu", threads=1)
DATA = Path(__file__).parents[1] / "data"
Change = Callable[[np.ndarray], np.ndarray]


@cache
def scan(name: str) -> Volume:
    return io.read_volume(DATA / f"{name}.nii.gz")


def changed(name: str, change: Change) -> Volume:
    volume = scan(name)
    return replace(volume, array=change(np.asarray(volume.array)).astype(np.float32))


def detected(name: str, change: Change) -> Detection:
    return detect_modality(changed(name, change))


def examined(name: str, change: Change, **config: str) -> tuple[PairImage, tuple[str, ...]]:
    image, found = examine(
        "moving", changed(name, change), None, RegistrationConfig.model_validate(config), HOST
    )
    return image, found.warnings


def padded(value: float, change: Change = lambda a: a) -> Change:
    """Outside the circle that a CT reconstructs."""

    def pad(array: np.ndarray) -> np.ndarray:
        y, x = np.mgrid[-1 : 1 : array.shape[1] * 1j, -1 : 1 : array.shape[2] * 1j]
        return np.where(x**2 + y**2 > 1, value, change(array))

    return pad


def unsigned(array: np.ndarray) -> np.ndarray:
    return np.clip(array + 1024, 0, 4095)


def grey_levels(low: float, high: float) -> Change:
    return lambda array: np.rint(255 * np.clip((array - low) / (high - low), 0, 1))


def metal(value: float) -> Change:
    def add(array: np.ndarray) -> np.ndarray:
        array = array.copy()
        array[10:20, 40:44, 50:54] = value
        return array

    return add


def noisy(array: np.ndarray) -> np.ndarray:
    return array + np.random.default_rng(1).normal(0, 50, array.shape)


def standardised(array: np.ndarray) -> np.ndarray:
    return (array - array.mean()) / array.std()


def unchanged(array: np.ndarray) -> np.ndarray:
    return array


CT_IN_HU = {
    "unchanged": unchanged,
    "clipped at -1000": lambda a: np.clip(a, -1000, 400),
    "clipped at -125": lambda a: np.clip(a, -125, 275),
    "clipped at -200": lambda a: np.clip(a, -200, 300),
    "padding -2000": padded(-2000),
    "padding -3024": padded(-3024),
    "padding -32768": padded(-32768),
    "padding 63536": padded(63536),
    "metal 3071": metal(3071),
    "metal 30000": metal(30000),
    "noise of 50 HU": noisy,
}


@pytest.mark.parametrize("change", CT_IN_HU.values(), ids=CT_IN_HU)
def test_ct_in_hounsfield_units(change: Change) -> None:
    image, warnings = examined("abdomen/ct", change)
    assert (image.modality, image.window, image.water) == ("ct", (-125.0, 225.0), 0.0)
    assert warnings == ()


@pytest.mark.parametrize("value", [-2000, -3024, -32768, 63536])
def test_padding_counts_as_air(value: float) -> None:
    image, findings = examine(
        "fixed", changed("abdomen/ct", padded(value)), None, RegistrationConfig(), HOST
    )
    assert image.padded
    assert findings.modality.endswith(f"{value} is padding and counts as air")
    scanned = padded(np.nan)(np.asarray(scan("abdomen/ct").array))
    assert image.lowest == np.nanmin(scanned)
    np.testing.assert_array_equal(image.volume.array, np.nan_to_num(scanned, nan=image.lowest))


@pytest.mark.parametrize(
    "change",
    [unsigned, padded(63536, unsigned), padded(-2000, unsigned), padded(-976, lambda a: a + 1024)],
)
def test_ct_without_its_offset_has_a_shifted_window(change: Change) -> None:
    image, warnings = examined("abdomen/ct", change)
    assert (image.modality, image.window, image.water) == ("ct", (899.0, 1249.0), 1024.0)
    assert warnings == ()
    told, warnings = examined("abdomen/ct", change, moving_modality="ct")
    assert (told.window, warnings) == (image.window, ())


def test_clipped_ct_without_its_offset_is_open() -> None:
    image, warnings = examined("abdomen/ct", lambda a: np.clip(a, -125, 275) + 1024)
    assert (image.modality, image.window) == ("ct", (899.0, 1249.0))
    assert "no air near 24: give --moving-modality ct or mr" in warnings[0]


@pytest.mark.parametrize("extent", [(-1000, 1000), (-1024, 3071), (-500, 1000)])
def test_exported_ct_with_air_is_recognised_but_open(extent: tuple[float, float]) -> None:
    image, warnings = examined("abdomen/ct", grey_levels(*extent))
    assert (image.modality, image.water) == ("ct", None)
    assert "its scale in HU is unknown: give --moving-modality ct or mr" in warnings[0]
    low, high = ((v / 255 * (extent[1] - extent[0]) + extent[0]) for v in image.window)
    # Between air and fat, and in bone.
    assert -450 < low < -120
    assert 100 < high < 700


@pytest.mark.parametrize("extent", [(-160, 240), (-125, 275), (-200, 300)])
def test_windowed_export_is_open(extent: tuple[float, float]) -> None:
    """Its own range serves as the window, whatever the modality."""
    for change in (grey_levels(*extent), lambda a: grey_levels(*extent)(a) / 255):
        image, warnings = examined("abdomen/ct", change)
        assert image.modality == "mr"
        assert "as in a CT that was exported with an intensity window" in warnings[0]
        assert "--moving-modality ct or mr" in warnings[0]
        told, warnings = examined("abdomen/ct", change, moving_modality="ct")
        assert (told.modality, told.window) == ("ct", image.window)
        assert "are not HU" in warnings[0]


@pytest.mark.parametrize("change", [standardised, lambda a: 2.0 * a + 2048])
def test_ct_in_another_unit_is_open(change: Change) -> None:
    image, warnings = examined("abdomen/ct", change)
    assert image.modality == "mr"
    assert "as far apart as on a CT, though not in HU: give --moving-modality" in warnings[0]


def test_standardised_window_is_open() -> None:
    """As neural networks take it: clipped, then divided by the standard deviation."""
    window = lambda a: standardised(np.clip(a, -160, 240))  # noqa: E731
    image, warnings = examined("abdomen/ct", window)
    assert image.modality == "mr"
    assert "exported with an intensity window: give --moving-modality ct or mr" in warnings[0]
    told, warnings = examined("abdomen/ct", window, moving_modality="ct")
    assert told.modality == "ct"
    assert told.window[1] - told.window[0] < 10
    assert "are not HU" in warnings[0]


def test_negative_numbers_stored_as_unsigned_are_refused() -> None:
    with pytest.raises(InputError, match="subtract 65536"):
        detected("abdomen/ct", lambda a: np.where(a < 0, a + 65536, a))


def spline(name: str) -> Volume:
    """As resampled elsewhere, with ringing down to -470."""
    array = np.asarray(scan(name).array, np.float32)
    image = sitk.GetImageFromArray(array * np.float32(3000 / np.percentile(array[array > 0], 99)))
    shift = sitk.TranslationTransform(3, (0.4, 0.3, 0.35))
    resampled = sitk.Resample(image, image, shift, sitk.sitkBSpline)
    return replace(scan(name), array=sitk.GetArrayFromImage(resampled))


@pytest.mark.parametrize("name", ["brain/fixed_t1", "brain/moving_t1"])
def test_ringing_is_no_ct(name: str) -> None:
    volume = spline(name)
    assert volume.array.min() < -400
    image, findings = examine("fixed", volume, None, RegistrationConfig(), HOST)
    assert (image.modality, findings.warnings) == ("mr", ())
    low, high = image.window
    # The background, 0, stays far below the limit of tissue, a tenth of the window.
    assert -0.02 * high < low < 0


MR = {
    "unchanged": unchanged,
    "other units": lambda a: a * 2.43,
    "0 to 4095": lambda a: a * (4095 / a.max()),
    "tissue at 1070": lambda a: a * (1070 / np.percentile(a, 90)),
    "z-scored": standardised,
    "-1 to 1": lambda a: a / a.max() * 2 - 1,
    "8 bits": lambda a: np.rint(a.clip(0) * (255 / a.max())),
    "padding -2000": padded(-2000),
    "padding -1000": padded(-1000),
    "padding 32767": padded(32767),
}


@pytest.mark.parametrize("name", ["abdomen/mr", "brain/fixed_t1", "brain/moving_t1"])
@pytest.mark.parametrize("change", MR.values(), ids=MR)
def test_mr(name: str, change: Change) -> None:
    image, warnings = examined(name, change)
    assert (image.modality, warnings) == ("mr", ())
    if "padding" in next(key for key, value in MR.items() if value is change):
        assert image.lowest == min(scan(name).array.min(), image.lowest)
        assert image.window[0] == scan(name).array.min()
        assert image.window[1] == pytest.approx(examined(name, unchanged)[0].window[1], rel=0.1)


@pytest.mark.parametrize("name", ["abdomen/mr", "brain/fixed_t1", "brain/moving_t1"])
@pytest.mark.parametrize("change", [lambda a: 300 * standardised(a), lambda a: a - 1024.0])
def test_mr_with_many_negative_values_is_open(name: str, change: Change) -> None:
    image, warnings = examined(name, change)
    assert image.modality == "mr"
    assert "% of the values are below -100: give --moving-modality ct or mr" in warnings[0]


@pytest.mark.parametrize("name", ["abdomen/ct", "abdomen/mr", "brain/fixed_t1"])
def test_inverted_grey_levels_are_reported(name: str) -> None:
    found = detected(name, lambda a: a.max() - a)
    assert "MONOCHROME1" in found.doubt


def test_narrow_clip_is_open() -> None:
    image, warnings = examined("abdomen/ct", lambda a: np.clip(a, -50, 150))
    assert (image.modality, image.window[0]) == ("mr", -50.0)
    assert "as in a CT clipped there: give --moving-modality ct or mr" in warnings[0]
    told, warnings = examined("abdomen/ct", lambda a: np.clip(a, -50, 150), moving_modality="ct")
    assert (told.window, warnings) == ((-125.0, 225.0), ())


def test_the_sample_visits_every_column() -> None:
    values, _ = sample_values(np.broadcast_to(np.arange(500.0), (40, 50, 500)))
    assert np.unique(values).size == 500
    assert 50_000 < values.size <= 100_000


def test_cropped_inside_the_body() -> None:
    part = np.ascontiguousarray(scan("abdomen/ct").array[:, 40:65, 45:75])
    found = detect_modality(replace(scan("abdomen/ct"), array=part))
    assert (found.modality, found.water) == ("ct", 0.0)
    assert found.doubt == "there is no air near -1000"


def test_the_users_choice_comes_first() -> None:
    ct, mr = scan("abdomen/ct"), scan("abdomen/mr")
    assert detect_modality(ct, "mr") == Detection("mr", "mr, as asked")
    assert detect_modality(ct, "ct") == Detection("ct", "ct, as asked", water=0.0)
    found = detect_modality(replace(ct, array=ct.array.clip(0)), "ct")
    assert (found.water, found.doubt) == (0.0, "no value is negative, as air and fat are in HU")
    assert detect_modality(replace(mr, modality_hint="ct"), "mr").reason == "mr, as asked"


def test_the_dicom_header_comes_second() -> None:
    mr = scan("abdomen/mr")
    inverted = replace(changed("abdomen/mr", lambda a: a.max() - a), modality_hint="mr")
    assert "MONOCHROME1" in detect_modality(inverted).doubt
    known = detect_modality(replace(mr, modality_hint="mr"))
    assert known == Detection("mr", "mr, as the DICOM header says")
    ct = replace(changed("abdomen/ct", unsigned), modality_hint="ct")
    found = detect_modality(ct)
    assert (found.reason, found.sure) == ("ct, as the DICOM header says; water is at 1024", True)
