"""Points, tables, parameters and images whose content contradicts itself."""

from __future__ import annotations

import gzip
import json
import re
import struct
import time
from pathlib import Path

import numpy as np
import pytest

from dinoreg_rt import io
from dinoreg_rt.config.parameters import RegistrationConfig
from dinoreg_rt.errors import ConfigError, InputError
from dinoreg_rt.evaluate.tables import read_label_names
from dinoreg_rt.io.nifti_header import build_header
from dinoreg_rt.run.outputs import earlier_files
from dinoreg_rt.sweep.records import read_records
from dinoreg_rt.sweep.space import read_space
from dinoreg_rt.types import Geometry, Volume

DEEP = "[" * 100_000
GRID = Geometry((8, 8, 8), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3))
META = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    "Offset": "0 0 0",
    "ElementSpacing": "1 1 1",
    "DimSize": "4 4 4",
    "ElementType": "MET_UCHAR",
    "ElementDataFile": "LOCAL",
}


def markups(**control: object) -> str:
    node = {"coordinateSystem": "LPS", "controlPoints": [{"position": [1, 2, 3]} | control]}
    return json.dumps({"markups": [node]})


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.csv", f"x,y,z,label\n1,2,3,{'a' * 200_000}\n", "field larger than field limit"),
        ("p.fcsv", f"# CoordinateSystem = LPS\n{'a' * 200_000},1,2,3\n", "field larger than"),
        ("p.csv", "x,y,z\n1,2,1e300\n", "1e.300 mm; each must lie within 1e.06 mm"),
        ("p.csv", "x,y,z\n1,2,1e400\n", "NaN or Inf"),
        ("p.mrk.json", '{"markups": ' + DEEP, "nested too deeply"),
        ("p.mrk.json", markups().replace("[1,", "[1e400,"), "NaN or Inf"),
        ("p.mrk.json", markups().replace("[1,", f"[{'9' * 400},"), "OverflowError"),
        ("p.mrk.json", markups(position=[1, 2, 3, 4, 5, 6]), "1 does not have three coordinates"),
        ("p.mrk.json", markups(position=["1", 2, 3]), "a coordinate that is not a number"),
        ("p.mrk.json", markups(positionStatus="undefined"), "1 has the status 'undefined'"),
        ("p.mrk.json", '{"markups": [{"controlPoints": []}, {}]}', "one list"),
    ],
)
def test_points(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=f"{name}: .*{message}"):
        io.read_points(tmp_path / name)


def test_half_a_character_in_a_label_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "p.mrk.json").write_text(markups(label="\ud800"))
    points = io.read_points(tmp_path / "p.mrk.json")
    io.write_points(tmp_path / "p.csv", points)
    assert (tmp_path / "p.csv").read_text().splitlines()[1] == "1.000000,2.000000,3.000000,?"


@pytest.mark.parametrize("text", [DEEP, '{"1": [2]}', "[]", '{"a": "b"}', '{"1": 1' + "0" * 5000])
def test_label_names(tmp_path: Path, text: str) -> None:
    (tmp_path / "n.json").write_text(text)
    with pytest.raises(InputError, match=r"n\.json: is not a JSON object of label names"):
        read_label_names(tmp_path / "n.json")


def test_damaged_records_are_skipped(tmp_path: Path) -> None:
    good = {"key": "k", "pair": "p", "kind": "", "candidate": {}, "scores": {"dice": None}}
    bad = [good | change for change in ({"key": [1]}, {"scores": [1]}, {"cpu_s": "a"}, {"x": 1})]
    bad += [good | {"scores": {"dice": "a"}}, good | {"candidate": 1}, good | {"status": "?"}]
    lines = [json.dumps(one) for one in bad] + [DEEP, "5", "null", '{"key": 1e400}']
    (tmp_path / "r.jsonl").write_text("\n".join([*lines, json.dumps(good)]))
    records = read_records(tmp_path / "r.jsonl")
    assert list(records) == ["k"]
    assert np.isnan(records["k"].cpu_s)


@pytest.mark.parametrize("text", [DEEP, '{"outputs": {"../a": {}}}', '{"outputs": [1]}', "7"])
def test_a_damaged_report_lists_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "report.json").write_text(text)
    assert earlier_files(tmp_path, set()) == []


@pytest.mark.parametrize(
    "text", ["a = " + DEEP, f"threads = {'9' * 5000}", f"iterations = {'9' * 400}", "a = {"]
)
def test_parameters(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"c\.toml: "):
        RegistrationConfig.from_sources(file=tmp_path / "c.toml")


@pytest.mark.parametrize(
    "text", ["grid = 1", "random = [1]", "samples = inf", 'seed = "a"', f"samples = {'9' * 30}"]
)
def test_spaces(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"s\.toml: "):
        read_space(tmp_path / "s.toml", (), None, None)


def test_a_space_without_end(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text("samples = 1_000_000_000\n[random]\nsmoothness = [0.1, 0.2]\n")
    with pytest.raises(ConfigError, match="1000000000 candidates; at most"):
        read_space(tmp_path / "s.toml", (), None, None).candidates()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"NDims": "-1"}, "NDims = -1"),
        ({"NDims": "1000000"}, "NDims = 1000000"),
        ({"NDims": ""}, "NDims = "),
        ({"DimSize": "4 4"}, "3 whole numbers"),
        ({"DimSize": "4 4 -4"}, "3 whole numbers"),
        ({"DimSize": "100000 100000 100000"}, "announces voxels of 1000000000000000 bytes"),
        ({"ElementNumberOfChannels": "-3"}, "ElementNumberOfChannels"),
        ({"ElementType": "MET_STRING"}, "ElementType is MET_STRING"),
        ({"TransformMatrix": "1 0 0"}, "TransformMatrix needs 9 numbers"),
        ({"ElementSpacing": "1 1 nan"}, "ElementSpacing needs 3 numbers"),
        ({"CompressedData": "True", "CompressedDataSize": "-5"}, "CompressedDataSize is -5"),
        ({"CompressedData": "True", "DimSize": "9999 9999 9999"}, "announces voxels of"),
    ],
)
def test_metaimage(tmp_path: Path, changes: dict[str, str], message: str) -> None:
    fields = META | changes
    data = fields.pop("ElementDataFile")
    head = "".join(f"{key} = {value}\n" for key, value in fields.items())
    (tmp_path / "a.mha").write_bytes(f"{head}ElementDataFile = {data}\n".encode() + bytes(64))
    start = time.monotonic()
    with pytest.raises(InputError, match=rf"a\.mha: .*{message}"):
        io.read_volume(tmp_path / "a.mha")
    assert time.monotonic() - start < 5  # it took ten minutes


@pytest.mark.parametrize("first", ["NDims : -1\n", "NDims\n= -1\n"])
def test_metaimage_whose_header_names_a_field_twice(tmp_path: Path, first: str) -> None:
    head = "".join(f"{key} = {value}\n" for key, value in META.items())
    (tmp_path / "a.mha").write_bytes((first + head).encode() + bytes(range(64)))
    with pytest.raises(InputError, match="MetaImage header is damaged"):
        io.read_volume(tmp_path / "a.mha")


def test_metaimage_with_the_tags_of_a_dicom_series(tmp_path: Path) -> None:
    tags = "0008|0060 = MR\n0010|0010 = A^B: C=D\n0040|a160 = two\nlines\n0008|0060 = MR\n"
    head = tags + "".join(f"{key} = {value}\n" for key, value in META.items())
    (tmp_path / "a.mha").write_bytes(head.encode() + bytes(range(64)))
    assert io.read_volume(tmp_path / "a.mha").array.shape == (4, 4, 4)


def test_gzip_that_unpacks_to_far_more_than_its_header_says(tmp_path: Path) -> None:
    header = build_header(GRID, "uint8", 1) + bytes(4)
    with gzip.open(tmp_path / "a.nii.gz", "wb", compresslevel=1) as stream:
        stream.write(header + bytes(range(256)) * 2)
        for _ in range(64):
            stream.write(bytes(1 << 20))
    with pytest.raises(InputError, match="unpacks to far more than the 864 bytes"):
        io.read_volume(tmp_path / "a.nii.gz")


def test_gzip_too_short_for_what_its_header_says(tmp_path: Path) -> None:
    large = Geometry((4000, 4000, 4000), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3))
    with gzip.open(tmp_path / "a.nii.gz", "wb") as stream:
        stream.write(build_header(large, "float32", 1) + bytes(10_000))
    with pytest.raises(InputError, match=r"truncated file: .* announces 256000000352"):
        io.read_volume(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("line", ["sizes: " + "[" * 1000, "a" * 1001, "data file: " + "a" * 990])
def test_nrrd_with_a_long_field(tmp_path: Path, line: str) -> None:
    """ITK's reader would crash."""
    path = tmp_path / "a.nrrd"
    path.write_text(f"NRRD0004\ntype: float\n{line}\ndimension: 3\n\n")
    with pytest.raises(InputError, match=r"a\.nrrd: .*line 3 of its header has 1\d* characters"):
        io.read_volume(path)


def test_nrrd_with_a_long_remark(tmp_path: Path) -> None:
    path = tmp_path / "a.nrrd"
    remarks = f"# {'a' * 3000}\ncontent: {'b' * 3000}\nkey:={'c' * 3000}\n"
    grid = "dimension: 3\nsizes: 2 2 2\nspacings: 1 1 1\n"
    head = f"NRRD0004\n{remarks}type: uchar\n{grid}encoding: raw\n\n"
    path.write_bytes(head.encode() + bytes(range(8)))
    assert io.read_volume(path).array.max() == 7


NRRD = (
    "NRRD0005\ntype: float\ndimension: 3\nspace: left-posterior-superior\nsizes: 4 4 4\n"
    "space directions: (1,0,0) (0,1,0) (0,0,1)\nspace origin: (0,0,0)\nendian: little\n"
    "encoding: raw\n"
)


def write_nrrd(path: Path, header: str, components: int = 1) -> Path:
    voxels = np.arange(64 * components, dtype="<f4")
    path.write_bytes(header.encode() + b"\n" + voxels.tobytes())
    return path


def test_nrrd_whose_third_axis_is_time(tmp_path: Path) -> None:
    path = write_nrrd(tmp_path / "a.nrrd", NRRD + "kinds: domain domain time\n")
    with pytest.raises(InputError, match=r"a\.nrrd: is a time series \(kinds: domain domain time"):
        io.read_volume(path)


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
def test_nrrd_too_small_for_its_voxels(tmp_path: Path, encoding: str) -> None:
    """ITK takes the memory first: 120 GB here."""
    header = NRRD.replace("4 4 4", "600 500 100000").replace("raw", encoding)
    path = write_nrrd(tmp_path / "a.nrrd", header)
    with pytest.raises(InputError, match=r"announces 30000000000 voxels, but there are only \d+ b"):
        io.read_volume(path)


def test_nrrd_without_directions(tmp_path: Path) -> None:
    header = NRRD.replace("(1,0,0) (0,1,0) (0,0,1)", "none none none")
    notes = io.read_volume(write_nrrd(tmp_path / "a.nrrd", header)).geometry.notes
    assert any("states no voxel spacing; 1 mm was taken" in note for note in notes)


def test_measurement_frame_of_a_displacement(tmp_path: Path) -> None:
    header = NRRD.replace("dimension: 3", "dimension: 4").replace("sizes:", "sizes: 3")
    header = header.replace("directions:", "directions: none")
    header += "kinds: vector domain domain domain\nmeasurement frame: (0,1,0) (1,0,0) (0,0,1)\n"
    path = write_nrrd(tmp_path / "a.nrrd", header, components=3)
    (note,) = io.read_displacement(path).geometry.notes
    assert "has a measurement frame, (0,1,0) (1,0,0) (0,0,1); its vectors were taken" in note


@pytest.mark.parametrize("slope", [1e-38, -1e-17])
def test_nifti_factor_that_itk_ignores(tmp_path: Path, slope: float) -> None:
    path = tmp_path / "a.nii"
    io.write_volume(path, Volume(np.arange(512, dtype=np.float32).reshape(8, 8, 8), GRID))
    raw = bytearray(path.read_bytes())
    raw[112:116] = struct.pack("<f", slope)
    path.write_bytes(raw)
    with pytest.raises(InputError, match=r"a\.nii: scales its values by -?1e-\d\d \(scl_slope\)"):
        io.read_volume(path)


@pytest.mark.parametrize(("spacing", "size"), [(0.02, "0.16 x 0.16 x 0.16"), (900.0, "7.2e\\+03")])
def test_fields_of_view_that_no_patient_has(tmp_path: Path, spacing: float, size: str) -> None:
    grid = Geometry((8, 8, 8), (spacing,) * 3, (0.0, 0.0, 0.0), np.eye(3))
    path = tmp_path / "a.nii"
    io.write_volume(path, Volume(np.arange(512, dtype=np.float32).reshape(8, 8, 8), grid))
    for notes in (io.read_volume(path).geometry.notes, io.read_geometry(path).notes):
        assert re.search(rf"a\.nii: its field of view is {size}.* mm; are the lengths", notes[-1])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("TransformMatrix", "0 0 0 0 0 0 0 0 0", "singular or sheared direction matrix"),
        ("ElementSpacing", "0 1 1", "has a voxel spacing of 0"),
    ],
)
def test_metaimage_with_zeros(tmp_path: Path, field: str, value: str, message: str) -> None:
    header = "".join(f"{key} = {text}\n" for key, text in (META | {field: value}).items())
    (tmp_path / "a.mha").write_bytes(header.encode() + bytes(range(64)))
    with pytest.raises(InputError, match=message):
        io.read_volume(tmp_path / "a.mha")
