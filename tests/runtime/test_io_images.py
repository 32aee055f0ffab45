"""Images, labels, masks and displacements through files and SimpleITK."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import phantoms
import pytest
import SimpleITK as sitk
from phantoms import rotation

from dinoreg_rt import io
from dinoreg_rt.errors import InputError, OutputError
from dinoreg_rt.geometry import same_grid
from dinoreg_rt.io.nifti import cast_pixels
from dinoreg_rt.types import DisplacementField, Geometry, LabelMap, Volume

SHAPE = (5, 6, 7)
SPACING = (0.8, 1.5, 7.7)


#: Direction matrices in LPS, named by where the index axes point, as in nibabel.
DIRECTIONS = phantoms.DIRECTIONS | {
    "oblique_left_handed": rotation(0.3, -0.5, 1.1) @ np.diag([1.0, 1.0, -1.0]),
    "nearly_180": rotation(np.pi - 1e-4, 2e-4, 0.1),
    "sagittal": np.array([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]),
}


def grid(direction: str = "LPS") -> Geometry:
    return Geometry(SHAPE, SPACING, (-91.25, 126.5, -720.125), DIRECTIONS[direction])


def random_array(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_volume_comes_back_on_its_grid(tmp_path: Path, direction: str, suffix: str) -> None:
    volume = Volume(random_array(*SHAPE), grid(direction))
    path = tmp_path / f"image{suffix}"
    io.write_volume(path, volume)
    back = io.read_volume(path)
    np.testing.assert_array_equal(back.array, volume.array)
    assert same_grid(back.geometry, volume.geometry, 1e-4)
    assert (back.pixel_type, back.name) == ("float32", str(path))


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_displacement_reads_the_same_in_simpleitk(
    tmp_path: Path, direction: str, suffix: str
) -> None:
    field = DisplacementField(random_array(*SHAPE, 3), grid(direction))
    path = tmp_path / f"displacement{suffix}"
    io.write_displacement(path, field)
    image = sitk.ReadImage(str(path))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image), field.vectors_mm)
    np.testing.assert_allclose(image.GetDirection(), field.geometry.direction.ravel(), atol=1e-6)
    np.testing.assert_allclose(image.GetOrigin(), field.geometry.origin_mm, atol=1e-4)
    np.testing.assert_allclose(image.GetSpacing(), SPACING, rtol=1e-6)
    back = io.read_displacement(path)
    np.testing.assert_array_equal(back.vectors_mm, field.vectors_mm)
    assert same_grid(back.geometry, field.geometry, 1e-4)


def test_nifti_matches_what_simpleitk_writes(tmp_path: Path) -> None:
    volume = Volume(random_array(*SHAPE), grid("oblique"))
    io.write_volume(tmp_path / "ours.nii.gz", volume)
    sitk.WriteImage(io.volume_to_sitk(volume), str(tmp_path / "theirs.nii.gz"))
    ours, theirs = (io.read_volume(tmp_path / f"{n}.nii.gz") for n in ("ours", "theirs"))
    np.testing.assert_array_equal(ours.array, theirs.array)
    assert same_grid(ours.geometry, theirs.geometry, 1e-5)


def test_same_bytes_every_time(tmp_path: Path) -> None:
    field = DisplacementField(
        random_array(40, 64, 64, 3), Geometry((40, 64, 64), (1, 1, 1), (0, 0, 0), np.eye(3))
    )
    for name in ("a", "b"):
        io.write_displacement(tmp_path / f"{name}.nii.gz", field)
    assert (tmp_path / "a.nii.gz").read_bytes() == (tmp_path / "b.nii.gz").read_bytes()


@pytest.mark.parametrize("pixel_type", ["uint8", "int8", "int16", "uint16", "int32", "uint32"])
def test_integers_are_rounded_and_clipped(tmp_path: Path, pixel_type: str) -> None:
    array = np.zeros(SHAPE, np.float32)
    array.flat[:4] = 1.6, 2.4, 1e12, -1e12
    io.write_volume(tmp_path / "image.nii.gz", Volume(array, grid(), pixel_type))
    image = sitk.ReadImage(str(tmp_path / "image.nii.gz"))
    limits = np.iinfo(pixel_type)
    voxels = sitk.GetArrayFromImage(image)
    assert voxels.dtype == pixel_type
    assert voxels.ravel()[:4].tolist() == [2, 2, limits.max, limits.min]
    assert io.read_volume(tmp_path / "image.nii.gz").pixel_type == pixel_type


@pytest.mark.parametrize("pixel_type", ["int64", "uint64"])
def test_64_bit_integers_do_not_overflow(pixel_type: str) -> None:
    limits = np.iinfo(pixel_type)
    low, high = cast_pixels(np.array([-1e30, 1e30], np.float32), np.dtype(pixel_type))
    assert low == limits.min
    assert limits.max - 2048 <= high <= limits.max


def test_labels_and_mask(tmp_path: Path) -> None:
    array = np.zeros(SHAPE, np.int32)
    array[1:3, 2:4, 3:5] = 300
    labels = LabelMap(array, grid("oblique"), "int16")
    io.write_labels(tmp_path / "labels.nii.gz", labels)
    back = io.read_labels(tmp_path / "labels.nii.gz")
    np.testing.assert_array_equal(back.array, array)
    assert (back.array.dtype, back.pixel_type) == (np.int32, "int16")
    mask = io.read_mask(tmp_path / "labels.nii.gz", grid("oblique"), "fixed")
    assert mask.dtype == np.float32
    np.testing.assert_array_equal(mask, array != 0)


def test_whole_numbers_stored_as_floats_are_labels() -> None:
    image = sitk.Cast(sitk.GetImageFromArray(np.arange(210).reshape(SHAPE)), sitk.sitkFloat64)
    labels = io.labels_from_sitk(image)
    assert labels.pixel_type == "uint8"
    assert labels.array.max() == 209


def test_rescaled_nifti_is_read_in_real_values(tmp_path: Path) -> None:
    io.write_volume(tmp_path / "a.nii", Volume(random_array(*SHAPE) * 100, grid(), "int16"))
    plain = io.read_volume(tmp_path / "a.nii").array
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[112:120] = np.array([0.5, -7], "<f4").tobytes()
    (tmp_path / "b.nii").write_bytes(raw)
    np.testing.assert_allclose(io.read_volume(tmp_path / "b.nii").array, plain * 0.5 - 7)


def test_nifti_without_any_orientation_is_accepted(tmp_path: Path) -> None:
    io.write_volume(tmp_path / "a.nii", Volume(random_array(*SHAPE), grid()))
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[252:256] = bytes(4)
    (tmp_path / "a.nii").write_bytes(raw)
    volume = io.read_volume(tmp_path / "a.nii")
    np.testing.assert_allclose(volume.geometry.spacing_mm, SPACING, rtol=1e-6)


def test_one_time_point_is_a_volume(tmp_path: Path) -> None:
    array = random_array(1, *SHAPE)
    image = sitk.JoinSeries([sitk.GetImageFromArray(array[0])])
    assert image.GetDimension() == 4
    for suffix in (".nii.gz", ".nrrd", ".mha"):
        sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
        np.testing.assert_array_equal(io.read_volume(tmp_path / f"a{suffix}").array, array[0])


def test_mhd_with_its_data_beside_it(tmp_path: Path) -> None:
    array = random_array(*SHAPE)
    for compressed in (False, True):
        sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "a.mhd"), compressed)
        np.testing.assert_array_equal(io.read_volume(tmp_path / "a.mhd").array, array)


def test_everything_that_can_be_an_image(tmp_path: Path) -> None:
    volume = Volume(random_array(*SHAPE), grid("oblique"))
    io.write_volume(tmp_path / "a.nii.gz", volume)
    given = [
        tmp_path / "a.nii.gz",
        str(tmp_path / "a.nii.gz"),
        volume,
        io.volume_to_sitk(volume),
        (volume.array.astype(np.float64), volume.geometry),
    ]
    for image in given:
        back = io.as_volume(image)
        assert back.array.dtype == np.float32
        np.testing.assert_array_equal(back.array, volume.array)
        assert same_grid(back.geometry, volume.geometry, 1e-4)


def test_everything_that_can_be_a_mask(tmp_path: Path) -> None:
    array = np.zeros(SHAPE, np.uint8)
    array[2] = 1
    labels = LabelMap(array.astype(np.int32), grid())
    io.write_labels(tmp_path / "a.nrrd", labels)
    given = [tmp_path / "a.nrrd", labels, io.labels_to_sitk(labels), (array == 1, grid())]
    for mask in given:
        np.testing.assert_array_equal(io.as_mask(mask, grid(), "moving"), array)


def test_simpleitk_round_trip() -> None:
    volume = Volume(random_array(*SHAPE), grid("oblique"))
    back = io.volume_from_sitk(io.volume_to_sitk(volume))
    np.testing.assert_array_equal(back.array, volume.array)
    assert same_grid(back.geometry, volume.geometry, 1e-9)
    field = DisplacementField(random_array(*SHAPE, 3), grid("RAS"))
    back_field = io.displacement_from_sitk(io.displacement_to_sitk(field))
    np.testing.assert_array_equal(back_field.vectors_mm, field.vectors_mm)


def test_the_volume_shares_the_images_memory_until_that_is_changed() -> None:
    image = sitk.GetImageFromArray(random_array(*SHAPE))
    address = sitk.GetArrayViewFromImage(image).ctypes.data
    volume = io.volume_from_sitk(image)
    assert volume.array.ctypes.data == address
    assert not volume.array.flags.writeable
    before = volume.array.copy()
    image[0, 0, 0] = 77.0
    image += 1
    np.testing.assert_array_equal(volume.array, before)
    part = volume.array[1:]
    del image, volume
    used_again = [np.full(before.shape, 5, np.float32) for _ in range(20)]
    np.testing.assert_array_equal(part, before[1:])
    assert len(used_again) == 20


def test_vectors_marked_as_ras_displacements_are_turned(tmp_path: Path) -> None:
    """NIfTI intent 1006 means RAS components, which ITK converts to LPS."""
    field = DisplacementField(random_array(*SHAPE, 3), grid())
    io.write_displacement(tmp_path / "a.nii", field)
    raw = bytearray((tmp_path / "a.nii").read_bytes())
    raw[68:70] = np.array(1006, "<i2").tobytes()
    (tmp_path / "a.nii").write_bytes(raw)
    back = io.read_displacement(tmp_path / "a.nii")
    np.testing.assert_array_equal(back.vectors_mm, field.vectors_mm * [-1, -1, 1])


def test_geometry_alone(tmp_path: Path) -> None:
    io.write_volume(tmp_path / "constant.nii.gz", Volume(np.zeros(SHAPE, np.float32), grid("LAS")))
    assert same_grid(io.read_geometry(tmp_path / "constant.nii.gz"), grid("LAS"), 1e-4)


def test_unknown_output_format(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot be written as '\.tif'; use \.nii\.gz"):
        io.write_volume(tmp_path / "a.tif", Volume(random_array(*SHAPE), grid()))


@pytest.mark.parametrize("name", ["brain/fixed", "brain/moving", "abdomen/mr", "abdomen/ct"])
def test_sample_data(name: str) -> None:
    data = Path(__file__).parents[1] / "data"
    image = "_t1" if name.startswith("brain") else ""
    volume = io.read_volume(data / f"{name}{image}.nii.gz")
    labels = io.read_labels(data / f"{name}_labels.nii.gz")
    assert same_grid(volume.geometry, labels.geometry)
    assert np.unique(labels.array).size > 12


def test_a_volume_that_was_changed_is_examined_again(tmp_path: Path) -> None:
    io.write_volume(tmp_path / "a.nii", Volume(random_array(*SHAPE), grid(), "int16"))
    volume = io.read_volume(tmp_path / "a.nii")
    with pytest.raises(ValueError, match="read-only"):
        volume.array[0, 0, 0] = np.nan
    volume.array.flags.writeable = True
    volume.array[0, 0, 0] = np.nan
    with pytest.raises(InputError, match="holds 1 NaN"):
        io.as_volume(volume)
