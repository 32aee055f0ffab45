"""Transforms map points in SimpleITK as they do here, whoever wrote them."""

from __future__ import annotations

import struct
from pathlib import Path

import h5py
import numpy as np
import pytest
import SimpleITK as sitk
from phantoms import DIRECTIONS, rotation

from dinoreg_rt import io
from dinoreg_rt.errors import InputError, OutputError
from dinoreg_rt.geometry import index_to_lps
from dinoreg_rt.geometry import transform_points as transform_by_affine
from dinoreg_rt.types import AffineTransform, DisplacementField, Geometry

TOLERANCE_MM = 1e-4
SHAPE = (9, 14, 12)
POINTS = 1000


SPACINGS = {"isotropic": (2.0, 2.0, 2.0), "anisotropic": (1.25, 1.25, 7.7)}
AFFINE = AffineTransform(
    rotation(0.2, 0.1, -0.3) @ np.diag([1.1, 0.95, 1.02]), np.array([34.5, -120.25, 61.0])
)


def make_field(direction: str = "oblique", spacing: str = "anisotropic") -> DisplacementField:
    """Return displacements of 5 mm of noise."""
    grid = Geometry(SHAPE, SPACINGS[spacing], (-40.5, 77.0, -130.0), DIRECTIONS[direction])
    noise = np.random.default_rng(4).normal(scale=5, size=(*SHAPE, 3))
    return DisplacementField(noise.astype(np.float32), grid)


def points_inside(grid: Geometry, margin: float = 0.0) -> np.ndarray:
    """Draw random points between the outer voxel centres, or `margin` voxels beyond them."""
    upper = np.asarray(grid.shape_xyz) - 1
    index = np.random.default_rng(5).uniform(-margin, upper + margin, (POINTS, 3))
    return transform_by_affine(index_to_lps(grid), index)


def by_sitk(transform: sitk.Transform, points: np.ndarray) -> np.ndarray:
    return np.array([transform.TransformPoint(p) for p in points])


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("spacing", SPACINGS)
def test_all_written_forms_move_points_as_ours(
    tmp_path: Path, direction: str, spacing: str
) -> None:
    field = make_field(direction, spacing)
    points = points_inside(field.geometry)
    io.write_displacement(tmp_path / "u.nii.gz", field)
    io.write_composite_h5(tmp_path / "t.h5", AFFINE, field)
    image = sitk.ReadImage(str(tmp_path / "u.nii.gz"), sitk.sitkVectorFloat64)
    moved, whole = (io.transform_points(chain, points) for chain in ([field], [field, AFFINE]))
    theirs = {
        "u.nii.gz": (sitk.DisplacementFieldTransform(image), moved),
        "t.h5": (sitk.ReadTransform(str(tmp_path / "t.h5")), whole),
        "in memory": (io.composite_to_sitk(AFFINE, field), whole),
    }
    for name, (transform, ours) in theirs.items():
        assert np.abs(by_sitk(transform, points) - ours).max() < TOLERANCE_MM, name
    for name, ours in (("u.nii.gz", moved), ("t.h5", whole)):
        again = io.transform_points(io.read_transform(tmp_path / name), points)
        assert np.abs(again - ours).max() < TOLERANCE_MM, name


def test_composite_of_an_affine_alone(tmp_path: Path) -> None:
    io.write_composite_h5(tmp_path / "t.h5", AFFINE, None, make_field().geometry)
    assert np.allclose(io.read_initial(tmp_path / "t.h5").matrix, AFFINE.matrix, atol=1e-12)
    points = np.random.default_rng(9).normal(scale=100, size=(10, 3))
    theirs = by_sitk(sitk.ReadTransform(str(tmp_path / "t.h5")), points)
    np.testing.assert_allclose(theirs, transform_by_affine(AFFINE, points), atol=1e-9)


def own_grid(path: Path) -> Geometry | None:
    return io.read_own_grid(path, io.read_transform(path))


def test_own_grids(tmp_path: Path) -> None:
    field = make_field()
    fixed = Geometry((30, 31, 32), (0.7, 0.8, 2.1), (3.0, -4.0, 5.5), DIRECTIONS["oblique"])
    io.write_composite_h5(tmp_path / "ours.h5", AFFINE, field, fixed)
    stored = own_grid(tmp_path / "ours.h5")
    assert stored is not None
    assert stored.shape_zyx == fixed.shape_zyx
    assert (stored.spacing_mm, stored.origin_mm) == (fixed.spacing_mm, fixed.origin_mm)
    assert np.array_equal(stored.direction, fixed.direction)
    sitk.WriteTransform(io.composite_to_sitk(AFFINE, field), str(tmp_path / "theirs.h5"))
    io.write_displacement(tmp_path / "u.nii.gz", field)
    for name in ("theirs.h5", "u.nii.gz"):
        found = own_grid(tmp_path / name)
        assert found is not None
        assert found.shape_zyx == SHAPE, name
    io.write_affine(tmp_path / "a.tfm", AFFINE)
    assert own_grid(tmp_path / "a.tfm") is None


@pytest.mark.parametrize("numbers", [[1.0] * 17, [0.0] * 18, [np.nan] * 18, [1e9] * 18])
def test_a_damaged_grid_is_refused(tmp_path: Path, numbers: list[float]) -> None:
    io.write_composite_h5(tmp_path / "t.h5", AFFINE, make_field())
    with h5py.File(tmp_path / "t.h5", "a") as file:
        file["DinoregRT/FixedGrid"] = numbers
    with pytest.raises(InputError, match=r"t\.h5: .*(grid of its fixed image|spacing)"):
        own_grid(tmp_path / "t.h5")


def test_composite_is_the_affine_outside_the_grid(tmp_path: Path) -> None:
    field = make_field()
    io.write_composite_h5(tmp_path / "t.h5", AFFINE, field)
    far = np.array([[1000.0, -2000.0, 500.0]])
    expected = transform_by_affine(AFFINE, far)
    transform = sitk.ReadTransform(str(tmp_path / "t.h5"))
    np.testing.assert_allclose(by_sitk(transform, far), expected, atol=1e-9)
    np.testing.assert_allclose(
        io.transform_points(io.read_transform(tmp_path / "t.h5"), far), expected, atol=1e-9
    )
    np.testing.assert_array_equal(io.transform_points([field], far), far)


def test_layout_is_the_one_itk_writes(tmp_path: Path) -> None:
    field = make_field()
    io.write_composite_h5(tmp_path / "ours.h5", AFFINE, field)
    sitk.WriteTransform(io.composite_to_sitk(AFFINE, field), str(tmp_path / "theirs.h5"))
    with h5py.File(tmp_path / "ours.h5") as ours, h5py.File(tmp_path / "theirs.h5") as theirs:
        names: list[str] = []
        theirs["TransformGroup"].visit(names.append)
        for name in names:
            mine, its = ours["TransformGroup"][name], theirs["TransformGroup"][name]
            if not isinstance(its, h5py.Dataset):
                continue
            assert mine.shape == its.shape, name
            if name == "2/TransformType":
                assert mine[0] == its[0].replace(b"double", b"float")
            elif name.endswith("Type"):
                assert mine[0] == its[0]
            else:
                np.testing.assert_allclose(mine, its, rtol=1e-6, atol=1e-5)


def test_edge_of_the_grid_is_interpolated_as_in_itk() -> None:
    field = make_field()
    points = points_inside(field.geometry, margin=0.8)
    image = sitk.Cast(io.displacement_to_sitk(field), sitk.sitkVectorFloat64)
    theirs = by_sitk(sitk.DisplacementFieldTransform(image), points)
    np.testing.assert_allclose(io.transform_points([field], points), theirs, atol=1e-9)


@pytest.mark.parametrize("suffix", [".h5", ".tfm", ".hdf5", ".txt"])
def test_itk_composite_is_read_in_its_order(tmp_path: Path, suffix: str) -> None:
    field = make_field("RAS")
    euler = sitk.Euler3DTransform((5.0, -7.0, 9.0), 0.2, -0.1, 0.4, (1.0, 2.0, 3.0))
    affine = sitk.AffineTransform(3)
    affine.SetMatrix(AFFINE.matrix.ravel().tolist())
    affine.SetCenter((10.0, -20.0, 30.0))
    image = sitk.Cast(io.displacement_to_sitk(field), sitk.sitkVectorFloat64)
    inner = sitk.CompositeTransform([sitk.TranslationTransform(3, (3.0, 0.0, -2.0)), affine])
    composite = sitk.CompositeTransform([euler, sitk.DisplacementFieldTransform(image)])
    for part in (inner.GetNthTransform(0), inner.GetNthTransform(1)):
        composite.AddTransform(part)
    path = tmp_path / f"t{suffix}"
    sitk.WriteTransform(composite, str(path))
    points = points_inside(field.geometry)
    chain = io.read_transform(path)
    assert len(chain) == 4
    np.testing.assert_allclose(
        io.transform_points(chain, points), by_sitk(composite, points), atol=TOLERANCE_MM
    )


@pytest.mark.parametrize("suffix", [".tfm", ".txt", ".mat", ".h5", ".hdf5"])
def test_affine_round_trip(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    io.write_affine(path, AFFINE)
    back = io.read_initial(path)
    np.testing.assert_allclose(back.matrix, AFFINE.matrix, atol=1e-12)
    np.testing.assert_allclose(back.translation_mm, AFFINE.translation_mm, atol=1e-10)
    points = np.random.default_rng(6).uniform(-200, 200, (POINTS, 3))
    theirs = by_sitk(sitk.ReadTransform(str(path)), points)
    np.testing.assert_allclose(transform_by_affine(AFFINE, points), theirs, atol=1e-9)


def ants_mat(path: Path, precision: str = "double") -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Write a file like ANTs' `0GenericAffine.mat`: two matrices in MATLAB level 4 format."""
    matrix, offset, centre = AFFINE.matrix, np.array([4.0, -5.0, 6.0]), np.array([70.0, 8.0, -9.0])
    kind, code = ("d", 0) if precision == "double" else ("f", 10)
    content = b""
    for name, values in (
        (f"AffineTransform_{precision}_3_3", [*matrix.ravel(), *offset]),
        ("fixed", list(centre)),
    ):
        label = name.encode() + b"\0"
        content += struct.pack("<5i", code, len(values), 1, 0, len(label)) + label
        content += struct.pack(f"<{len(values)}{kind}", *values)
    path.write_bytes(content)
    return matrix, offset, centre


@pytest.mark.parametrize("precision", ["double", "float"])
def test_ants_affine_with_centre(tmp_path: Path, precision: str) -> None:
    path = tmp_path / "a0GenericAffine.mat"
    matrix, translation, centre = ants_mat(path, precision)
    affine = io.read_initial(path)
    points = np.random.default_rng(7).uniform(-200, 200, (10, 3))
    expected = (points - centre) @ matrix.T + centre + translation
    np.testing.assert_allclose(transform_by_affine(affine, points), expected, atol=1e-4)


def test_ants_text_transform(tmp_path: Path) -> None:
    numbers = " ".join(f"{v:.17g}" for v in [*AFFINE.matrix.ravel(), 1.0, 2.0, 3.0])
    (tmp_path / "a.txt").write_text(
        "#Insight Transform File V1.0\n#Transform 0\n"
        "Transform: MatrixOffsetTransformBase_double_3_3\n"
        f"Parameters: {numbers}\nFixedParameters: 10 20 30\n"
    )
    affine = io.read_initial(tmp_path / "a.txt")
    centre = np.array([[10.0, 20.0, 30.0]])
    np.testing.assert_allclose(
        transform_by_affine(affine, centre), centre + np.array([1, 2, 3]), atol=1e-9
    )


def test_composite_of_affines_is_an_initial_alignment(tmp_path: Path) -> None:
    shift = sitk.TranslationTransform(3, (10.0, 0.0, 0.0))
    turn = sitk.Euler3DTransform((0.0, 0.0, 0.0), 0.0, 0.0, 0.5)
    composite = sitk.CompositeTransform([shift, turn])  # the rotation is applied first
    for suffix in (".h5", ".tfm"):
        sitk.WriteTransform(composite, str(tmp_path / f"t{suffix}"))
        affine = io.read_initial(tmp_path / f"t{suffix}")
        points = np.random.default_rng(8).normal(size=(10, 3))
        np.testing.assert_allclose(
            transform_by_affine(affine, points), by_sitk(composite, points), atol=1e-9
        )


def test_initial_alignment_must_be_affine(tmp_path: Path) -> None:
    io.write_displacement(tmp_path / "u.nii.gz", make_field())
    with pytest.raises(InputError, match=r"holds a displacement field; an initial .* must be aff"):
        io.read_initial(tmp_path / "u.nii.gz")


@pytest.mark.parametrize("suffix", [".tfm", ".txt", ".mat", ".h5"])
def test_file_that_is_no_transform(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t{suffix}"
    path.write_bytes(b"nonsense\n" * 50)
    with pytest.raises(InputError, match=r"cannot be read as an? (ITK )?transform"):
        io.read_transform(path)


def test_missing_and_unknown_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        io.read_transform(tmp_path / "t.tfm")
    (tmp_path / "t.xml").write_text("x")
    with pytest.raises(InputError, match=r"unknown transform format '\.xml'; give \.tfm, \.txt"):
        io.read_transform(tmp_path / "t.xml")


def test_truncated_h5(tmp_path: Path) -> None:
    path = tmp_path / "t.h5"
    io.write_composite_h5(path, AFFINE, make_field())
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(InputError, match="truncated or damaged"):
        io.read_transform(path)


def test_h5_of_something_else(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "t.h5", "w") as file:
        file["data"] = [1, 2]
    with pytest.raises(InputError, match="holds no ITK transform"):
        io.read_transform(tmp_path / "t.h5")


@pytest.mark.parametrize("suffix", [".tfm", ".h5"])
def test_2d_transform(tmp_path: Path, suffix: str) -> None:
    sitk.WriteTransform(sitk.AffineTransform(2), str(tmp_path / f"t{suffix}"))
    with pytest.raises(InputError, match="3D"):
        io.read_transform(tmp_path / f"t{suffix}")


@pytest.mark.parametrize("suffix", [".tfm", ".h5"])
def test_bspline_is_refused(tmp_path: Path, suffix: str) -> None:
    image = sitk.Image([8, 8, 8], sitk.sitkFloat32)
    sitk.WriteTransform(
        sitk.BSplineTransformInitializer(image, [2] * 3), str(tmp_path / f"t{suffix}")
    )
    with pytest.raises(InputError, match=r"BSplineTransform; .* convert it into a displacement"):
        io.read_transform(tmp_path / f"t{suffix}")


def test_several_transforms_without_a_composite(tmp_path: Path) -> None:
    one = "Transform: TranslationTransform_double_3_3\nParameters: 1 2 3\nFixedParameters:\n"
    (tmp_path / "t.txt").write_text(f"#Insight Transform File V1.0\n#Transform 0\n{one}{one}")
    with pytest.raises(InputError, match="holds 2 transforms without a composite"):
        io.read_transform(tmp_path / "t.txt")


@pytest.mark.parametrize("suffix", [".tfm", ".h5"])
def test_singular_affine(tmp_path: Path, suffix: str) -> None:
    flat = AffineTransform(np.diag([1.0, 1.0, 1e-9]), np.zeros(3))
    with h5py.File(tmp_path / "t.h5", "w") as file:
        group = file.create_group("TransformGroup/0")
        group["TransformType"] = [b"AffineTransform_double_3_3"]
        group["TransformParameters"] = [*flat.matrix.ravel(), 0, 0, 0]
        group["TransformFixedParameters"] = [0.0, 0, 0]
    numbers = " ".join(str(v) for v in [*flat.matrix.ravel(), 0, 0, 0])
    (tmp_path / "t.tfm").write_text(
        "#Insight Transform File V1.0\n#Transform 0\nTransform: AffineTransform_double_3_3\n"
        f"Parameters: {numbers}\nFixedParameters: 0 0 0\n"
    )
    with pytest.raises(InputError, match=r"singular \(determinant 1e-09\)|singular"):
        io.read_initial(tmp_path / f"t{suffix}")


def test_unknown_output_format(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"cannot be written as '\.xml'"):
        io.write_affine(tmp_path / "a.xml", AFFINE)
