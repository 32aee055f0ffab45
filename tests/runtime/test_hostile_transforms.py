"""Transform files whose numbers contradict each other, in a process with limits.

ITK ends the process, or takes memory without a limit, for most of the text files here.
"""

from __future__ import annotations

import resource
import struct
from pathlib import Path

import h5py
import numpy as np
import pytest
import SimpleITK as sitk

from dinoreg_rt import io
from dinoreg_rt.errors import InputError

HEAD = "#Insight Transform File V1.0\n#Transform 0\n"
AFFINE = "1 0 0 0 1 0 0 0 1 0 0 0"
GRID = "4 5 6 0 0 0 1 1 1 1 0 0 0 1 0 0 0 1"
ELASTIX = '(Transform "EulerTransform")\n(TransformParameters 0 0 0 1 2 3)\n'
FLIRT = "1 0 0 5\n0 1 0 6\n0 0 1 7\n0 0 0 1\n"


def block(kind: str, parameters: str, fixed: str = "0 0 0") -> str:
    return f"Transform: {kind}_double_3_3\nParameters: {parameters}\nFixedParameters: {fixed}\n"


TEXTS = {
    "no parameters": (block("Euler3DTransform", ""), "Euler3DTransform has 0 parameters"),
    "no lines": ("Transform: Euler3DTransform_double_3_3\n", "has 0 parameters and 0 fixed"),
    "nothing": ("", "no line 'Transform:'"),
    "an empty composite": (block("CompositeTransform", "", ""), "an empty composite"),
    "inf": (block("AffineTransform", AFFINE.replace("1", "inf", 1)), "holds NaN or Inf"),
    "nan": (block("Euler3DTransform", "nan 0 0 0 0 0"), "holds NaN or Inf"),
    "nan centre": (block("AffineTransform", AFFINE, "0 nan 0"), "hold NaN or Inf"),
    "inf grid": (block("DisplacementFieldTransform", "1", GRID.replace("4", "inf")), "NaN or Inf"),
    "1e15 voxels": (
        block("DisplacementFieldTransform", "1 2 3", GRID.replace("4 5 6", "100000 100000 100000")),
        "100000 x 100000 x 100000 voxels; whole numbers from 1 to 32768",
    ),
    "too few vectors": (block("DisplacementFieldTransform", "1 2 3", GRID), "360 are needed"),
    "no grid": (block("DisplacementFieldTransform", "1 2 3", ""), "0 numbers, and 18 are needed"),
    "1e200": (
        block("AffineTransform", AFFINE.replace("1", "1e200", 1)),
        "each must lie within 1e.06 mm of 0",
    ),
    "a word": (block("AffineTransform", AFFINE.replace("1", "one", 1)), "could not convert"),
    "elastix": (ELASTIX, "parameter file of elastix.*ITKTransformOutputFileNameExtension"),
    "FSL": (FLIRT, "4 x 4 matrix in text, as FSL's FLIRT.*c3d_affine_tool -ref FIXED"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_text(tmp_path: Path, case: str) -> None:
    body, message = TEXTS[case]
    file = tmp_path / "t.tfm"
    file.write_text(body if case in ("elastix", "FSL") else HEAD + body)
    with pytest.raises(InputError, match=f"t.tfm: .*{message}"):
        io.read_initial(file)


@pytest.mark.parametrize("text", [ELASTIX, FLIRT])
def test_another_program_s_file_under_the_name_of_mat(tmp_path: Path, text: str) -> None:
    (tmp_path / "t.mat").write_text(text)
    with pytest.raises(InputError, match=r"is a (parameter file of elastix|4 x 4 matrix in text)"):
        io.read_initial(tmp_path / "t.mat")


@pytest.mark.parametrize(
    ("rows", "columns"), [(1 << 30, 1), (1, 1 << 30), (-12, 1), (1 << 15, 1 << 15), (12, 0), (0, 0)]
)
def test_mat_that_announces_more_than_it_holds(tmp_path: Path, rows: int, columns: int) -> None:
    """ITK took 9.9 GB for 200 bytes."""
    name = b"AffineTransform_double_3_3\0"
    content = struct.pack("<5i", 0, rows, columns, 0, len(name)) + name + bytes(96)
    (tmp_path / "t.mat").write_bytes(content)
    with pytest.raises(InputError, match=r"t\.mat: cannot be read as a transform"):
        io.read_initial(tmp_path / "t.mat")


def hdf5(path: Path, case: str) -> None:
    with h5py.File(path, "w") as file:
        group = file.create_group("TransformGroup")
        if case == "empty":
            return
        if case == "member is a number":
            group["0"] = 1.0
            return
        one = group.create_group("0")
        kind: object = [b"AffineTransform_double_3_3"]
        numbers: object = [*np.eye(3).ravel(), 0, 0, 0]
        if case == "no type":
            return
        if case == "empty composite":
            one["TransformType"] = [b"CompositeTransform_double_3_3"]
            return
        if case == "empty type":
            one.create_dataset("TransformType", (0,), dtype=h5py.string_dtype())
        else:
            one["TransformType"] = 5 if case == "number as type" else kind
        if case == "parameters are a group":
            one.create_group("TransformParameters")
        elif case == "parameters are texts":
            one["TransformParameters"] = [b"1"] * 12
        elif case == "parameters elsewhere":
            one["TransformParameters"] = h5py.ExternalLink("/dev/zero", "x")
        elif case == "1e15 parameters":
            one.create_dataset("TransformParameters", (10**15,), "f8", chunks=(1024,))
        else:
            one["TransformParameters"] = 1.0 if case == "scalar" else numbers
        fixed = one.create_dataset("TransformFixedParameters", (3,), "f8")
        fixed[:] = np.nan if case == "nan centre" else 0


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("empty", "holds no transform"),
        ("empty composite", "an empty composite"),
        ("member is a number", "0 is not a group"),
        ("no type", "TransformType"),
        ("empty type", "is not one string"),
        ("number as type", "is not one string"),
        ("parameters are a group", "TransformParameters is not a dataset"),
        ("parameters are texts", "is not a vector of numbers"),
        ("parameters elsewhere", "is a link, possibly into another file"),
        ("1e15 parameters", "announces 1000000000000000 numbers and holds 0 bytes"),
        ("scalar", "is not a vector of numbers"),
        ("nan centre", "hold NaN or Inf"),
    ],
)
def test_hdf5(tmp_path: Path, case: str, message: str) -> None:
    hdf5(tmp_path / "t.h5", case)
    with pytest.raises(InputError, match=rf"t\.h5: .*{message}"):
        io.read_initial(tmp_path / "t.h5")


def test_hdf5_with_a_type_of_two_gigabytes(tmp_path: Path) -> None:
    """HDF5 takes memory for the announced length of a string before it looks for the string."""
    hdf5(tmp_path / "t.h5", "good")
    with h5py.File(tmp_path / "t.h5") as file:
        offset = file["TransformGroup/0/TransformType"].id.get_offset()
    raw = bytearray((tmp_path / "t.h5").read_bytes())
    struct.pack_into("<I", raw, offset, 0x7FFFFFFF)
    (tmp_path / "t.h5").write_bytes(raw)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=r"t\.h5: .*TransformType is longer than any name"):
        io.read_initial(tmp_path / "t.h5")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


KINDS = {
    "Euler3DTransform": "0.1 -0.2 0.3 4 5 6",
    "VersorRigid3DTransform": "0.1 -0.2 0.3 4 5 6",
    "Similarity3DTransform": "0.1 -0.2 0.3 4 5 6 1.1",
    "ScaleVersor3DTransform": "0.1 -0.2 0.3 4 5 6 1.1 0.9 1",
    "ScaleSkewVersor3DTransform": "0.1 -0.2 0.3 4 5 6 1.1 0.9 1 0 0.1 0 0 0 0",
    "ComposeScaleSkewVersor3DTransform": "0.1 -0.2 0.3 4 5 6 1.1 0.9 1 0 0.1 0",
    "TranslationTransform": "4 5 6",
    "ScaleTransform": "1.1 0.9 1.2",
    "AffineTransform": "1 0.1 0 0 0.9 0 0.2 0 1 4 5 6",
    "MatrixOffsetTransformBase": "1 0.1 0 0 0.9 0 0.2 0 1 4 5 6",
    "QuaternionRigidTransform": "0.1 0.2 0.3 0.927 4 5 6",
    "VersorTransform": "0.1 -0.2 0.3",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", [".tfm", ".h5"])
def test_linear_kinds_move_points_as_in_itk(tmp_path: Path, kind: str, suffix: str) -> None:
    file = tmp_path / "t.tfm"
    fixed = "" if kind == "TranslationTransform" else "7 8 9"
    # SimpleITK reads some kinds in a composite alone.
    file.write_text(HEAD + block("CompositeTransform", "", "") + block(kind, KINDS[kind], fixed))
    theirs = sitk.ReadTransform(str(file))
    file.write_text(HEAD + block(kind, KINDS[kind], fixed))
    points = np.random.default_rng(0).uniform(-100, 100, (10, 3))
    expected = [theirs.TransformPoint(p) for p in points.tolist()]
    if suffix == ".h5":
        file = tmp_path / "t.h5"
        with h5py.File(file, "w") as stream:
            group = stream.create_group("TransformGroup/0")
            group["TransformType"] = [f"{kind}_double_3_3".encode()]
            group["TransformParameters"] = np.array(KINDS[kind].split(), float)
            group["TransformFixedParameters"] = np.array(fixed.split(), float)
    found = io.transform_points(io.read_transform(file), points)
    np.testing.assert_allclose(found, expected, atol=1e-9)
