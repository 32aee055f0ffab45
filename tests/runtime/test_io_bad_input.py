"""Every unusable input is refused with a message that says what to do."""

from __future__ import annotations

import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from dinoreg_rt import io
from dinoreg_rt.errors import InputError, OutputError
from dinoreg_rt.types import AffineTransform, DisplacementField, Geometry, LabelMap, Volume

SHAPE = (12, 13, 14)
GRID = Geometry(SHAPE, (1.0, 2.0, 3.0), (10.0, 20.0, 30.0), np.eye(3))
NAN = float("nan")


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(2).normal(size=shape).astype(np.float32)


@pytest.fixture
def nii(tmp_path: Path) -> Path:
    io.write_volume(tmp_path / "good.nii", Volume(noise(*SHAPE), GRID))
    return tmp_path / "good.nii"


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    io.write_volume(tmp_path / "a.nii.gz", Volume(noise(*SHAPE), GRID))
    return tmp_path / "a.nii.gz"


def patched(path: Path, *edits: tuple[Any, ...]) -> Path:
    """Copy a NIfTI file with some header fields (offset, struct format, values) replaced."""
    raw = bytearray(path.read_bytes())
    for offset, form, *values in edits:
        struct.pack_into(form, raw, offset, *values)
    copy = path.with_name("patched.nii")
    copy.write_bytes(raw)
    return copy


def refuse(path: Path | str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        io.read_volume(path)


def test_missing_file(tmp_path: Path) -> None:
    refuse(tmp_path / "no.nii.gz", "no.nii.gz: no such file or folder")


def test_unknown_format(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    refuse(tmp_path / "a.jpg", r"unknown image format '\.jpg'; .*folder of a DICOM series")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha", ".mhd"])
@pytest.mark.parametrize("content", [b"", b"nonsense " * 100])
def test_file_that_is_no_image(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    refuse(path, r"truncated|corrupt|not a NIfTI file|cannot be read as an image|is missing")


def test_truncated_gzip(packed: Path) -> None:
    raw = packed.read_bytes()
    packed.write_bytes(raw[: len(raw) // 2])
    refuse(packed, r"a\.nii\.gz: truncated gzip file: it ends too early; copy or download")


def test_corrupt_gzip(packed: Path) -> None:
    raw = bytearray(packed.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    packed.write_bytes(raw)
    refuse(packed, r"a\.nii\.gz: corrupt gzip file")


def test_gzip_that_is_none(tmp_path: Path, nii: Path) -> None:
    shutil.copy(nii, tmp_path / "plain.nii.gz")
    refuse(tmp_path / "plain.nii.gz", r"is not compressed; rename it to end in \.nii$")
    (tmp_path / "plain.nii.gz").write_bytes(b"nothing of the kind")
    refuse(tmp_path / "plain.nii.gz", "corrupt gzip file")


def test_gzip_that_says_it_is_none(packed: Path) -> None:
    plain = packed.rename(packed.with_name("a.nii"))
    refuse(plain, r"is compressed by gzip; rename it to end in \.nii\.gz")


@pytest.mark.parametrize("tail", [b"x", b"hello", b"hello" * 1000])
def test_gzip_with_other_bytes_behind(packed: Path, tail: bytes) -> None:
    raw = packed.read_bytes()
    packed.write_bytes(raw + tail)
    refuse(packed, r"a\.nii\.gz: other bytes follow its gzip data")
    packed.write_bytes(raw + bytes(100))  # padding is allowed
    assert io.read_volume(packed).array.shape == SHAPE


def test_name_that_is_no_text(tmp_path: Path, packed: Path) -> None:
    """ITK aborts the process if it is given one."""
    for name in ("\udcfc.nii.gz", "\udcfc.nii", "\udcfc.tfm"):
        shutil.copy(packed, tmp_path / name)
        read = io.read_transform if name.endswith("tfm") else io.read_volume
        with pytest.raises(InputError, match=r"\\udcfc\..*: its name is not valid text"):
            read(tmp_path / name)
    for suffix in (".nrrd", ".nii"):
        with pytest.raises(OutputError, match="not valid text"):
            io.write_volume(tmp_path / f"\udcfc{suffix}", Volume(noise(*SHAPE), GRID))
    with pytest.raises(OutputError, match="not valid text"):
        io.write_affine(tmp_path / "\udcfc.mat", AffineTransform.identity())


def test_name_that_is_too_long(tmp_path: Path) -> None:
    for read in (io.read_volume, io.read_transform):
        with pytest.raises(InputError, match="cannot be looked up: File name too long"):
            read(tmp_path / ("a" * 300 + ".nii"))


def test_no_unpacked_file_is_left(
    tmp_path: Path, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    io.read_volume(packed)
    packed.write_bytes(packed.read_bytes()[:-9])
    refuse(packed, "truncated gzip")
    assert list(scratch.iterdir()) == []


def test_truncated_nii(nii: Path) -> None:
    nii.write_bytes(nii.read_bytes()[:-4])
    refuse(nii, r"truncated file: \d+ bytes, but its header announces \d+")


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_truncated_nrrd_and_mha(tmp_path: Path, suffix: str, compressed: bool) -> None:
    path = tmp_path / f"a{suffix}"
    sitk.WriteImage(sitk.GetImageFromArray(noise(*SHAPE)), str(path), compressed)
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) * 2 // 3])
    refuse(path, "truncated file|cannot be read as an image; it is damaged")


@pytest.mark.parametrize("name", ["a.mha", "a.mhd"])
@pytest.mark.parametrize("kind", [sitk.sitkUInt8, sitk.sitkInt16, sitk.sitkFloat64])
def test_truncated_metaimage_says_so(tmp_path: Path, name: str, kind: int) -> None:
    image = sitk.Cast(sitk.GetImageFromArray(noise(*SHAPE) * 10 + 50), kind)
    sitk.WriteImage(image, str(tmp_path / name))
    assert io.read_volume(tmp_path / name).array.shape == SHAPE
    data = tmp_path / ("a.mha" if name == "a.mha" else "a.raw")
    data.write_bytes(data.read_bytes()[:-1])
    refuse(tmp_path / name, r"a\.mh.: truncated file: (\d+) bytes, but its header announces")


@pytest.mark.parametrize("offset", [NAN, float("inf"), -1e9, 0.0, 348.0])
def test_voxels_that_begin_nowhere(nii: Path, offset: float) -> None:
    """ITK would read other voxels, or none."""
    wanted = r"voxels begin at byte \S+ \(vox_offset\); 352 or more is needed"
    refuse(patched(nii, (108, "<f", offset)), wanted)


def test_voxels_beyond_the_end(nii: Path) -> None:
    refuse(patched(nii, (108, "<f", 1e6)), "truncated file")


@pytest.mark.parametrize("bits", [0, 8, -32])
def test_bits_of_a_voxel_follow_from_its_type(nii: Path, bits: int) -> None:
    """ITK ignores the field as well."""
    expected = io.read_volume(nii).array
    path = patched(nii, (72, "<h", bits))
    np.testing.assert_array_equal(io.read_volume(path).array, expected)
    path.write_bytes(path.read_bytes()[:-4])
    refuse(path, "truncated file")


def test_values_of_a_grid_do_not_matter(tmp_path: Path, nii: Path) -> None:
    values = noise(*SHAPE)
    values[0, 0, 0] = NAN
    io.write_volume(tmp_path / "nan.nii.gz", Volume(values, GRID))
    refuse(tmp_path / "nan.nii.gz", "holds 1 NaN")
    io.write_volume(tmp_path / "constant.nii", Volume(np.full(SHAPE, 7.0), GRID))
    vectors = DisplacementField(np.zeros((*SHAPE, 3), np.float32), GRID)
    io.write_displacement(tmp_path / "vectors.nii.gz", vectors)
    for name in ("nan.nii.gz", "constant.nii", "vectors.nii.gz"):
        assert io.read_geometry(tmp_path / name).shape_zyx == SHAPE


def test_constant_image_where_it_is_only_warped(tmp_path: Path) -> None:
    io.write_volume(tmp_path / "zero.nii.gz", Volume(np.zeros(SHAPE), GRID))
    refuse(tmp_path / "zero.nii.gz", "every voxel is 0")
    assert not io.read_volume(tmp_path / "zero.nii.gz", constant=True).array.any()
    io.write_volume(tmp_path / "nan.nrrd", Volume(np.full(SHAPE, NAN), GRID))
    with pytest.raises(InputError, match="holds 2184 NaN"):
        io.read_volume(tmp_path / "nan.nrrd", constant=True)


def test_weights_may_all_be_the_same(tmp_path: Path) -> None:
    io.write_volume(tmp_path / "ones.nii.gz", Volume(np.ones(SHAPE), GRID))
    assert io.as_weights(tmp_path / "ones.nii.gz", GRID).min() == 1


def test_corrupt_compressed_mha(tmp_path: Path) -> None:
    path = tmp_path / "a.mha"
    sitk.WriteImage(sitk.GetImageFromArray(noise(*SHAPE)), str(path), True)
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(raw)
    refuse(path, "corrupt file: its pixels do not unpack|truncated file")


def test_mhd_without_its_data(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(noise(*SHAPE)), str(tmp_path / "a.mhd"))
    (tmp_path / "a.raw").unlink()
    refuse(tmp_path / "a.mhd", r"its data file a\.raw is missing")


def test_2d(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(noise(12, 13)), str(tmp_path / "a.nii.gz"))
    refuse(tmp_path / "a.nii.gz", r"is 2D \(13 x 12\); a 3D volume is needed")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_4d(tmp_path: Path, suffix: str) -> None:
    series = sitk.JoinSeries([sitk.GetImageFromArray(noise(*SHAPE))] * 3)
    sitk.WriteImage(series, str(tmp_path / f"a{suffix}"))
    refuse(tmp_path / f"a{suffix}", r"is 4D \(14 x 13 x 12 x 3\); .* extract one time point")


def test_one_voxel_axis(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(noise(1, 13, 14)), str(tmp_path / "a.nrrd"))
    refuse(tmp_path / "a.nrrd", r"an axis of one voxel \(14 x 13 x 1\)")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_nan_and_inf_are_counted(tmp_path: Path, suffix: str, bad: float) -> None:
    array = noise(*SHAPE)
    array.flat[:7] = bad
    io.write_volume(tmp_path / f"a{suffix}", Volume(array, GRID))
    refuse(tmp_path / f"a{suffix}", r"holds 7 NaN or Inf value")


def test_float64_beyond_float32(tmp_path: Path) -> None:
    array = noise(*SHAPE).astype(np.float64)
    array.flat[0] = 1e300
    with pytest.raises(InputError, match="holds 1 NaN or Inf"):
        io.as_volume((array, GRID))


def test_constant_image(tmp_path: Path) -> None:
    io.write_volume(tmp_path / "a.nii.gz", Volume(np.full(SHAPE, 3, np.float32), GRID))
    refuse(tmp_path / "a.nii.gz", "every voxel is 3: there is nothing to align")


def test_complex_pixels(tmp_path: Path) -> None:
    image = sitk.Image([14, 13, 12], sitk.sitkComplexFloat32)
    sitk.WriteImage(image, str(tmp_path / "a.nii.gz"))
    refuse(tmp_path / "a.nii.gz", "complex pixels; real ones are needed")
    with pytest.raises(InputError, match="complex pixels"):
        io.as_volume((noise(*SHAPE).astype(np.complex64), GRID))


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_rgb_pixels(tmp_path: Path, suffix: str) -> None:
    image = sitk.Image([14, 13, 12], sitk.sitkVectorUInt8, 3)
    sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
    refuse(tmp_path / f"a{suffix}", r"3 values per voxel \(RGB or vector\); one is needed")


@pytest.mark.parametrize("spacing", [0.0, -2.0, NAN])
def test_spacing_that_is_not_positive(nii: Path, spacing: float) -> None:
    path = patched(nii, (84, "<f", spacing))
    refuse(path, f"voxel spacing of 1 x {spacing:g} x 3 mm; each must be positive")


@pytest.mark.parametrize("spacing", [1e-5, 5e3])
def test_absurd_spacing(nii: Path, spacing: float) -> None:
    path = patched(nii, (84, "<f", spacing), (252, "<hh", 0, 0))
    refuse(path, r"voxel spacing of 1 x .* x 3 mm; each must lie between 0\.001 and 1000 mm")


@pytest.mark.parametrize("value", [0.0, -1.0, NAN, 1e4])
def test_absurd_spacing_in_memory(value: float) -> None:
    geometry = Geometry(SHAPE, (1.0, value, 1.0), (0.0, 0.0, 0.0), np.eye(3))
    with pytest.raises(InputError, match="each must lie between"):
        io.as_volume((noise(*SHAPE), geometry))


@pytest.mark.parametrize(
    "rows", [[1, 0, 0, 0] * 3, [1, 0.5, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]], ids=["singular", "sheared"]
)
def test_singular_or_sheared_nifti(nii: Path, rows: list[float]) -> None:
    path = patched(nii, (252, "<hh", 0, 1), (280, "<12f", *rows))
    refuse(path, "singular or sheared direction matrix")


def test_singular_and_sheared_in_memory() -> None:
    singular, sheared, slightly = np.diag([1.0, 1.0, 0.0]), np.eye(3), np.eye(3)
    sheared[0, 1], slightly[0, 1] = 0.1, 5e-4
    for direction, match in ((singular, r"determinant 0"), (sheared, "not perpendicular")):
        with pytest.raises(InputError, match=match):
            io.as_volume((noise(*SHAPE), Geometry(SHAPE, (1, 1, 1), (0, 0, 0), direction)))
    io.as_volume((noise(*SHAPE), Geometry(SHAPE, (1, 1, 1), (0, 0, 0), slightly)))


def test_origin_that_is_no_number() -> None:
    with pytest.raises(InputError, match="origin or direction holds NaN"):
        io.as_volume((noise(*SHAPE), Geometry(SHAPE, (1, 1, 1), (0, NAN, 0), np.eye(3))))


def test_array_of_another_shape() -> None:
    with pytest.raises(InputError, match=r"shape \(2, 3, 4\) \(z, y, x\) but its geometry"):
        io.as_volume((noise(2, 3, 4), GRID))


def test_thing_that_is_no_image() -> None:
    with pytest.raises(InputError, match="cannot use a list as an image; give a path"):
        io.as_volume([1, 2, 3])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="cannot use a dict as labels"):
        io.as_labels({})  # type: ignore[arg-type]
    with pytest.raises(InputError, match="pixels of type"):
        io.as_volume((np.full(SHAPE, "a"), GRID))


def test_empty_mask(tmp_path: Path) -> None:
    io.write_labels(tmp_path / "m.nii.gz", LabelMap(np.zeros(SHAPE, np.int32), GRID))
    with pytest.raises(InputError, match=r"m\.nii\.gz: the moving mask is empty"):
        io.read_mask(tmp_path / "m.nii.gz", GRID, "moving")


@pytest.mark.parametrize(
    "other",
    [
        Geometry((11, 13, 14), GRID.spacing_mm, GRID.origin_mm, np.eye(3)),
        Geometry(SHAPE, (1.0, 2.0, 3.1), GRID.origin_mm, np.eye(3)),
        Geometry(SHAPE, GRID.spacing_mm, (10.0, 20.0, 31.0), np.eye(3)),
        Geometry(SHAPE, GRID.spacing_mm, GRID.origin_mm, np.diag([1.0, -1.0, 1.0])),
    ],
    ids=["shape", "spacing", "origin", "direction"],
)
def test_mask_on_another_grid(tmp_path: Path, other: Geometry) -> None:
    io.write_labels(tmp_path / "m.nii.gz", LabelMap(np.ones(other.shape_zyx, np.int32), other))
    match = (
        r"fixed mask must lie on the fixed image's grid; the mask has .* voxels of .*, the image"
    )
    with pytest.raises(InputError, match=match):
        io.read_mask(tmp_path / "m.nii.gz", GRID, "fixed")


def test_labels_that_are_no_whole_numbers(tmp_path: Path) -> None:
    array = np.ones(SHAPE, np.float32)
    array.flat[:5] = 0.5
    io.write_volume(tmp_path / "l.nii.gz", Volume(array, GRID))
    with pytest.raises(InputError, match=r"5 voxels are not whole numbers; .* threshold it"):
        io.read_labels(tmp_path / "l.nii.gz")


def parcellation(count: int) -> np.ndarray:
    """Return an image of `count` different values, from 0 up in steps of 14."""
    return (np.arange(np.prod(SHAPE)) % count * 14).reshape(SHAPE)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (parcellation(400) - 1024, "holds negative values \\(down to -1024\\)"),
        (parcellation(1001), "more than 1000 different values, from 0 to 14000"),
        (parcellation(1001).astype(np.float32), "more than 1000 different values"),
    ],
)
def test_images_are_no_labels(tmp_path: Path, values: np.ndarray, message: str) -> None:
    image, path = sitk.GetImageFromArray(values.astype(np.float64)), tmp_path / "l.nrrd"
    sitk.WriteImage(sitk.Cast(image, sitk.sitkInt16), str(path))
    for labels in (path, (values, GRID), LabelMap(values, GRID)):
        with pytest.raises(InputError, match=message) as refused:
            io.as_labels(labels)
        assert "a label map holds whole numbers from 0 (background) up" in str(refused.value)


def test_a_parcellation_has_hundreds_of_labels() -> None:
    array = parcellation(1000)
    assert io.as_labels((array, GRID)).array.max() == array.max() > 10_000


def test_a_mask_may_be_an_image() -> None:
    """A skull-stripped image is a mask of its nonzero voxels."""
    array = parcellation(1500) - 14
    np.testing.assert_array_equal(io.as_mask((array, GRID), GRID, "fixed"), array != 0)


def test_labels_beyond_32_bits() -> None:
    with pytest.raises(InputError, match="labels beyond 32 bits"):
        io.as_labels((np.full(SHAPE, 1 << 40), GRID))


def test_scalar_image_as_displacement(nii: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has 1 value\(s\) per voxel; a displacement field has 3"):
        io.read_displacement(nii)
    with pytest.raises(InputError, match="a displacement field is one image file"):
        io.read_displacement(tmp_path)


def test_displacement_with_nan(tmp_path: Path) -> None:
    vectors = noise(*SHAPE, 3)
    vectors.flat[:2] = np.nan
    image = sitk.GetImageFromArray(vectors, isVector=True)
    sitk.WriteImage(image, str(tmp_path / "u.nii.gz"))
    with pytest.raises(InputError, match="holds 2 NaN or Inf"):
        io.read_displacement(tmp_path / "u.nii.gz")
