"""NIfTI headers with two placements, none, or others than ITK reads; NIfTI-2 and pairs of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from phantoms import rotation

from dinoreg_rt import io
from dinoreg_rt.choices import OrientationChoice
from dinoreg_rt.errors import InputError
from dinoreg_rt.io.nifti_layouts import NIFTI1, NIFTI2, Layout
from dinoreg_rt.types import Geometry, LabelMap, Volume

SHAPE = (16, 20, 24)
SPACING = (1.5, 2.0, 2.5)
#: RAS; the same in LPS has the origin (30, -20, 10) and the axes (-1, -1, 1).
ROWS = ((1.5, 0, 0, -30), (0, 2, 0, 20), (0, 0, 2.5, 10))
SFORM = Geometry(SHAPE, SPACING, (30, -20, 10), np.diag([-1.0, -1, 1]))
#: Turned by 20 degrees about z, and moved.
HALF = np.deg2rad(10)
TURNED = {"quatern": (0, 0, np.sin(HALF)), "qoffset": (5, -7, 40)}
C, S = np.cos(2 * HALF), np.sin(2 * HALF)
QFORM = Geometry(SHAPE, SPACING, (-5, 7, 40), np.array([[-C, S, 0], [-S, -C, 0], [0, 0, 1]]))
VOXELS = np.random.default_rng(0).integers(-1000, 1000, SHAPE).astype(np.int16)


def header(layout: Layout = NIFTI1, magic: bytes = b"n+1", **changed: Any) -> bytes:
    """A header with the same placement in both forms, but for what is changed."""
    start = 0 if magic.startswith(b"ni") else layout.first_voxel
    fields: dict[str, Any] = {
        "sizeof_hdr": layout.size,
        "dim": (3, *SHAPE[::-1], 1, 1, 1, 1),
        "datatype": 4,
        "bitpix": 16,
        "pixdim": (1, *SPACING, 0, 0, 0, 0),
        "vox_offset": start,
        "scl_slope": 1,
        "xyzt_units": 2,
        "qform_code": 1,
        "sform_code": 1,
        "qoffset": [row[3] for row in ROWS],
        "srow_x": ROWS[0],
        "srow_y": ROWS[1],
        "srow_z": ROWS[2],
        "magic": magic,
    }
    raw = bytearray(start or layout.size)
    for name, value in (fields | changed).items():
        layout.write(raw, "<", name, *(value if isinstance(value, tuple | list) else (value,)))
    return bytes(raw)


def write(path: Path, **changed: Any) -> Path:
    path.write_bytes(header(**changed) + VOXELS.tobytes())
    return path


@pytest.fixture
def nii(tmp_path: Path) -> Path:
    return tmp_path / "a.nii"


def read(path: Path, orientation: OrientationChoice = "auto") -> Volume:
    volume = io.read_volume(path, orientation=orientation)
    assert np.array_equal(volume.array, VOXELS)
    return volume


def assert_lies_as(volume: Volume | LabelMap, wanted: Geometry) -> None:
    grid = volume.geometry
    assert np.allclose(grid.spacing_mm, wanted.spacing_mm, atol=1e-6)
    assert np.allclose(grid.origin_mm, wanted.origin_mm, atol=1e-5)
    assert np.allclose(grid.direction, wanted.direction, atol=1e-6)


def test_forms_that_agree_are_read_as_itk_does_without_a_word(nii: Path) -> None:
    import SimpleITK as sitk

    write(nii)
    volume, itk = read(nii), sitk.ReadImage(str(nii))
    assert volume.geometry.notes == ()
    assert volume.geometry.origin_mm == itk.GetOrigin()
    assert volume.geometry.spacing_mm == itk.GetSpacing()
    assert volume.geometry.direction.ravel().tolist() == list(itk.GetDirection())


@pytest.mark.parametrize("codes", [(2, 1), (4, 1), (1, 1), (1, 2)])
@pytest.mark.parametrize("choice", ["auto", "sform", "qform"])
def test_the_sform_counts_unless_the_qform_is_chosen(
    nii: Path, codes: tuple[int, int], choice: OrientationChoice
) -> None:
    write(nii, sform_code=codes[0], qform_code=codes[1], **TURNED)
    volume = read(nii, choice)
    assert_lies_as(volume, QFORM if choice == "qform" else SFORM)
    (note,) = volume.geometry.notes
    taken, other = ("qform", "sform") if choice == "qform" else ("sform", "qform")
    assert f"the {taken} (code" in note
    assert f"its {other} (code" in note
    assert "up to 53.78 mm away" in note  # computed from both matrices at the far corner
    assert "turned by 20 degrees" in note
    assert "--orientation" in note


def test_labels_geometries_and_fields_choose_alike(nii: Path) -> None:
    raw = header(sform_code=2, **TURNED) + np.abs(VOXELS % 5).tobytes()
    nii.write_bytes(raw)
    assert_lies_as(io.read_labels(nii), SFORM)
    assert_lies_as(io.read_labels(nii, orientation="qform"), QFORM)
    assert io.read_labels(nii).geometry.notes
    grid = io.read_geometry(nii, orientation="qform")
    assert np.allclose(grid.origin_mm, QFORM.origin_mm)
    assert grid.notes


def test_only_one_form_is_taken_whatever_is_chosen(nii: Path) -> None:
    write(nii, qform_code=0, **TURNED)
    assert_lies_as(read(nii, "qform"), SFORM)
    write(nii, sform_code=0, **TURNED)
    assert_lies_as(read(nii, "sform"), QFORM)
    assert read(nii).geometry.notes == ()


def test_a_sheared_sform_yields_to_the_qform(nii: Path) -> None:
    sheared = {"srow_x": (1.5, 0.3, 0, -30)}
    write(nii, **sheared)
    volume = read(nii)
    assert_lies_as(volume, SFORM)  # as the qform says
    assert "the qform (code 1) was taken; its sform (code 1) is sheared" in volume.geometry.notes[0]
    assert "up to 5.85 mm away" in volume.geometry.notes[0]
    with pytest.raises(InputError, match=r"its sform is sheared .*by --orientation qform"):
        read(nii, "sform")
    write(nii, qform_code=0, **sheared)
    with pytest.raises(InputError, match="sheared"):
        read(nii)


@pytest.mark.parametrize("code", [1, 2])
@pytest.mark.parametrize("row", [(0, 0, 0, 0), (np.nan, 0, 0, 0), (np.inf, 0, 0, 0), (0, 2, 0, 1)])
def test_a_singular_sform_yields_to_the_qform(nii: Path, row: tuple[float, ...], code: int) -> None:
    write(nii, sform_code=code, srow_x=row)
    assert_lies_as(read(nii), SFORM)
    assert len(read(nii).geometry.notes) == 1


@pytest.mark.parametrize("part", [0.9, np.nan, np.inf])
def test_a_quaternion_that_is_none(nii: Path, part: float) -> None:
    write(nii, quatern=(part, 0.9, 0.9))
    volume = read(nii)
    assert_lies_as(volume, SFORM)
    assert "a quaternion that is no rotation" in volume.geometry.notes[0]
    write(nii, quatern=(part, 0.9, 0.9), sform_code=0)
    with pytest.raises(InputError, match="its qform has a quaternion that is no rotation"):
        read(nii)


def test_no_form_at_all_is_said(nii: Path) -> None:
    write(nii, sform_code=0, qform_code=0)
    volume = read(nii)
    assert_lies_as(volume, Geometry(SHAPE, SPACING, (0, 0, 0), np.eye(3)))
    assert "sform and qform codes are both 0" in volume.geometry.notes[0]
    assert volume.geometry.sides_in_doubt


def test_forms_of_different_handedness_leave_the_sides_open(nii: Path) -> None:
    write(nii)
    assert not read(nii).geometry.sides_in_doubt
    header = nii.read_bytes()
    write(nii, pixdim=(-1, *SPACING, 0, 0, 0, 0))  # the factor of the quaternion's third axis
    assert header != nii.read_bytes()
    assert "axes a mirror image" in read(nii).geometry.notes[0]
    assert read(nii).geometry.sides_in_doubt
    for chosen in ("sform", "qform"):
        assert not read(nii, chosen).geometry.sides_in_doubt


def test_pixdim_against_the_sform(nii: Path) -> None:
    write(nii, pixdim=(1, 1, 1, 1, 0, 0, 0, 0), qform_code=0)
    volume = read(nii)
    assert_lies_as(volume, SFORM)
    assert "voxels of 1.5 x 2 x 2.5 mm, its pixdim says 1 x 1 x 1 mm" in volume.geometry.notes[0]
    write(nii, pixdim=(1, 1, 1, 1, 0, 0, 0, 0))
    assert_lies_as(read(nii), SFORM)
    assert "voxels of 1 x 1 x 1 instead of 1.5 x 2 x 2.5 mm" in read(nii).geometry.notes[0]
    assert np.allclose(read(nii, "qform").geometry.spacing_mm, 1)


@pytest.mark.parametrize("spacing", [-1.5, 0.0])
def test_pixdim_that_is_not_positive(nii: Path, spacing: float) -> None:
    write(nii, pixdim=(1, spacing, 2, 2.5, 0, 0, 0, 0))
    with pytest.raises(InputError, match=f"spacing of {spacing:g} x 2 x 2.5 mm; each must be pos"):
        read(nii)


@pytest.mark.parametrize(("code", "factor"), [(0, 1), (2, 1), (10, 1), (3, 1e-3), (1, 1e3)])
def test_units_are_converted_and_said(nii: Path, code: int, factor: float) -> None:
    scaled = np.array(ROWS) / (1e3 if factor == 1e3 else 1)
    stated = factor * scaled
    changed = {f"srow_{axis}": tuple(scaled[i]) for i, axis in enumerate("xyz")}
    pixdim = (1, *(scaled[i][i] for i in range(3)), 0, 0, 0, 0)
    write(nii, xyzt_units=code, pixdim=pixdim, qoffset=tuple(scaled[:, 3]), **changed)
    volume = read(nii)
    assert np.allclose(volume.geometry.spacing_mm, [stated[i][i] for i in range(3)])
    assert np.allclose(volume.geometry.origin_mm, stated[:, 3] * [-1, -1, 1])
    said = [note for note in volume.geometry.notes if "states its lengths in" in note]
    assert len(said) == (factor != 1)


def test_metres_that_are_none(nii: Path) -> None:
    write(nii, xyzt_units=1)
    with pytest.raises(InputError, match=r"1500 x 2000 x 2500 mm; .* states its lengths in metres"):
        read(nii)


@pytest.mark.parametrize("angle", [0, 1e-4, 1e-3, 3e-3, 0.01, 0.3])
@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, -1, 1), (-1, 1, 1), (1, -1, -1)])
def test_rounding_of_the_quaternion_is_no_conflict(
    tmp_path: Path, angle: float, flips: tuple[int, ...]
) -> None:
    """Near a half turn single precision turns an image by up to 0.04 degrees."""
    direction = rotation(angle, angle / 2, angle / 3) @ np.diag(flips)
    grid = Geometry((200, 250, 250), (2, 2, 3), (-250, -200, -300), direction)
    labels = np.zeros(grid.shape_zyx, np.int32)
    io.write_labels(tmp_path / "l.nii", LabelMap(labels, grid))
    found = io.read_geometry(tmp_path / "l.nii")
    assert found.notes == ()
    assert np.allclose(found.direction, direction, atol=1e-6)


@pytest.mark.parametrize("order", ["<", ">"])
def test_nifti2(tmp_path: Path, order: str) -> None:
    raw = bytearray(header(NIFTI2, b"n+2", sform_code=2, **TURNED))
    if order == ">":
        swapped = bytearray(len(raw))
        for name in NIFTI2.fields:
            NIFTI2.write(swapped, ">", name, *NIFTI2.read(bytes(raw), "<", name))
        raw = swapped
    path = tmp_path / "two.nii"
    path.write_bytes(bytes(raw) + VOXELS.astype(f"{order}i2").tobytes())
    volume = read(path)
    assert volume.pixel_type == "int16"
    assert_lies_as(volume, SFORM)
    assert len(volume.geometry.notes) == 1
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"truncated file: \d+ bytes, but its header announces"):
        read(path)


def test_nifti2_scaled_vectors_and_gzip(tmp_path: Path) -> None:
    import gzip

    raw = header(NIFTI2, b"n+2", scl_slope=0.5, scl_inter=3) + VOXELS.tobytes()
    (tmp_path / "two.nii.gz").write_bytes(gzip.compress(raw))
    assert np.allclose(io.read_volume(tmp_path / "two.nii.gz").array, VOXELS * 0.5 + 3)
    field = np.random.default_rng(1).normal(size=(3, *SHAPE)).astype(np.float32)
    dim = (5, *SHAPE[::-1], 1, 3, 1, 1)
    changed = {"dim": dim, "intent_code": 1007, "datatype": 16, "bitpix": 32}
    (tmp_path / "field.nii").write_bytes(header(NIFTI2, b"n+2", **changed) + field.tobytes())
    vectors = io.read_displacement(tmp_path / "field.nii").vectors_mm
    assert np.array_equal(vectors, np.moveaxis(field, 0, -1))


@pytest.mark.parametrize(("layout", "magic"), [(NIFTI1, b"ni1"), (NIFTI2, b"ni2")])
def test_pairs_of_header_and_voxels(tmp_path: Path, layout: Layout, magic: bytes) -> None:
    (tmp_path / "p.hdr").write_bytes(header(layout, magic, sform_code=4, **TURNED))
    (tmp_path / "p.img").write_bytes(VOXELS.tobytes())
    for name in ("p.hdr", "p.img"):
        assert_lies_as(read(tmp_path / name), SFORM)
    (tmp_path / "p.img").write_bytes(VOXELS.tobytes()[:-2])
    with pytest.raises(InputError, match=r"truncated file: 15358 bytes, .* announces 15360"):
        read(tmp_path / "p.hdr")
    (tmp_path / "p.img").unlink()
    with pytest.raises(InputError, match=r"p\.img is missing; a \.hdr file and its \.img"):
        read(tmp_path / "p.hdr")


def test_headers_in_the_wrong_file(tmp_path: Path) -> None:
    write(tmp_path / "a.nii", magic=b"ni1", vox_offset=352)
    with pytest.raises(InputError, match=r"belongs in a file that ends in \.hdr"):
        io.read_volume(tmp_path / "a.nii")
    write(tmp_path / "a.hdr")
    (tmp_path / "a.img").write_bytes(VOXELS.tobytes())
    with pytest.raises(InputError, match=r"belongs in a file that ends in \.nii"):
        io.read_volume(tmp_path / "a.img")
    write(tmp_path / "a.nii", magic=b"")
    with pytest.raises(InputError, match=r"Analyze 7\.5, which does not say which side is left"):
        io.read_volume(tmp_path / "a.nii")
    wide = header(NIFTI2, b"n+2", dim=(3, 40000, 2, 2, 1, 1, 1, 1))
    (tmp_path / "w.nii").write_bytes(wide + bytes(2 * 160000))
    with pytest.raises(InputError, match="more than 32767 voxels"):
        io.read_volume(tmp_path / "w.nii")
