"""Chains of transforms on images and labels, against SimpleITK."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from phantoms import rotation
from scipy import ndimage

from dinoreg_rt.errors import InputError
from dinoreg_rt.fields.warp import chain_to_displacement, warp_labels, warp_volume
from dinoreg_rt.geometry import centre_lps_mm, resampled_grid, shifted_grid
from dinoreg_rt.io import composite_to_sitk, displacement_to_sitk, labels_to_sitk, volume_to_sitk
from dinoreg_rt.types import AffineTransform, DisplacementField, Geometry, LabelMap, Volume

OBLIQUE = rotation(np.deg2rad(35), 0, np.deg2rad(20))
FIXED = Geometry((10, 13, 15), (1.5, 2.0, 3.0), (-20.0, 11.0, 100.0), OBLIQUE)
# Rotated about z, with its centre near that of FIXED.
MOVING = Geometry((12, 11, 17), (1.6, 2.2, 2.5), (2.0, 27.5, 104.2), np.diag([-1.0, -1.0, 1.0]))
COARSE = resampled_grid(FIXED, (3.0, 4.0, 6.0))
LARGER = shifted_grid(FIXED, (-3, -2, -4), (16, 17, 23))


def make_turn() -> AffineTransform:
    """Return a rotation about the centre of `FIXED`."""
    turn, centre = OBLIQUE @ OBLIQUE, centre_lps_mm(FIXED)
    return AffineTransform(turn, centre - turn @ centre + np.array([1.0, -2.0, 3.0]))


def make_field(grid: Geometry, size_mm: float, seed: int = 0) -> DisplacementField:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(scale=size_mm, size=(*grid.shape_zyx, 3))
    return DisplacementField(vectors.astype(np.float32), grid)


def make_labels(grid: Geometry, seed: int = 1) -> LabelMap:
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=grid.shape_zyx), 1)
    return LabelMap(np.digitize(noise, [-0.1, 0, 0.1]).astype(np.int32), grid)


def make_volume(grid: Geometry) -> Volume:
    values = 100 * np.random.default_rng(2).random(grid.shape_zyx, np.float32)
    return Volume(ndimage.gaussian_filter(values, 1), grid)


def itk_chain(chain: tuple[AffineTransform | DisplacementField, ...]) -> sitk.CompositeTransform:
    composite = sitk.CompositeTransform(3)
    for step in reversed(chain):
        if isinstance(step, AffineTransform):
            affine = sitk.AffineTransform(3)
            affine.SetMatrix(step.matrix.ravel().tolist())
            affine.SetTranslation(step.translation_mm.tolist())
            composite.AddTransform(affine)
        else:
            field = sitk.Cast(displacement_to_sitk(step), sitk.sitkVectorFloat64)
            composite.AddTransform(sitk.DisplacementFieldTransform(field))
    return composite


def itk_warp(
    image: sitk.Image, chain: tuple[AffineTransform | DisplacementField, ...], grid: Geometry, how
) -> np.ndarray:
    like = volume_to_sitk(Volume(np.zeros(grid.shape_zyx, np.float32), grid))
    return sitk.GetArrayFromImage(sitk.Resample(image, like, itk_chain(chain), how, 0))


CHAINS = {
    "nothing": (),
    "affine": (make_turn(),),
    "field on the grid": (make_field(FIXED, 3.0),),
    "coarse field": (make_field(COARSE, 3.0),),
    "field, affine": (make_field(FIXED, 3.0), make_turn()),
    "affine, coarse field": (
        AffineTransform(np.eye(3), np.array([1, 2, 3.0])),
        make_field(LARGER, 2.0),
    ),
    "two fields": (make_field(FIXED, 2.0), make_field(LARGER, 2.0, 5)),
}


@pytest.mark.parametrize("grid", [FIXED, LARGER], ids=["its grid", "beyond the field"])
@pytest.mark.parametrize("name", CHAINS)
def test_equals_simpleitk(name: str, grid: Geometry) -> None:
    chain, volume, labels = CHAINS[name], make_volume(MOVING), make_labels(MOVING)
    expected = itk_warp(volume_to_sitk(volume), chain, grid, sitk.sitkLinear)
    difference = np.abs(warp_volume(volume, chain, grid).array - expected)
    # A point exactly on the border of the image or of a field may fall on either side.
    assert np.mean(difference > 2e-3) < 2e-3
    for nearest, how in ((True, sitk.sitkNearestNeighbor), (False, sitk.sitkLabelLinear)):
        found = warp_labels(labels, chain, grid, nearest=nearest).array
        assert np.mean(found != itk_warp(labels_to_sitk(labels), chain, grid, how)) < 2e-3
        assert len(np.unique(found)) == 4


def test_a_composite_equals_its_displacement() -> None:
    field, labels = make_field(FIXED, 2.0), make_labels(MOVING)
    composite = composite_to_sitk(make_turn(), field)
    like = volume_to_sitk(Volume(np.zeros(FIXED.shape_zyx, np.float32), FIXED))
    expected = sitk.Resample(labels_to_sitk(labels), like, composite, sitk.sitkLabelLinear, 0)
    whole = chain_to_displacement((field, make_turn()), FIXED)
    found = warp_labels(labels, whole).array
    assert np.mean(found != sitk.GetArrayFromImage(expected)) < 2e-3


@pytest.mark.parametrize("name", CHAINS)
def test_chain_and_its_one_displacement_give_the_same(name: str) -> None:
    whole = chain_to_displacement(CHAINS[name], FIXED)
    volume = make_volume(MOVING)
    difference = warp_volume(volume, whole).array - warp_volume(volume, CHAINS[name], FIXED).array
    assert np.mean(np.abs(difference) > 1e-3) < 2e-3


def test_nan_goes_outside_and_not_further() -> None:
    labels, volume, field = make_labels(FIXED), make_volume(FIXED), make_field(FIXED, 0.0)
    field.vectors_mm[2, 3, 4] = np.nan
    expected, values = labels.array.copy(), volume.array.copy()
    expected[2, 3, 4] = values[2, 3, 4] = 0
    np.testing.assert_array_equal(warp_labels(labels, field, nearest=True).array, expected)
    np.testing.assert_allclose(warp_volume(volume, field).array, values, rtol=1e-5)


def test_outside_is_air_on_a_ct() -> None:
    volume = make_volume(FIXED)
    volume.array[0, 0, 0] = -1000
    far = AffineTransform(np.eye(3), np.array([1e4, 0, 0]))
    assert (warp_volume(volume, far, FIXED).array == -1000).all()


def test_a_chain_has_no_grid_of_its_own() -> None:
    with pytest.raises(InputError, match="give `grid`"):
        warp_volume(make_volume(FIXED), (make_field(FIXED, 1.0),))
