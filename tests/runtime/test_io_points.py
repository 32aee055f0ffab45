"""Landmark files in their frames."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dinoreg_rt import io
from dinoreg_rt.errors import InputError, OutputError

LPS = np.array([[1.5, -2.25, 3.0], [-40.0, 50.5, -600.125]])
RAS = LPS * [-1, -1, 1]


def csv_text(points: np.ndarray, header: str = "x,y,z,label\n", sep: str = ",") -> str:
    rows = [sep.join([*(f"{v}" for v in p), f"P{i}"]) for i, p in enumerate(points)]
    return header + "\n".join(rows) + "\n"


def markups(points: np.ndarray, system: str | None) -> dict:
    controls = [
        {"id": str(i), "label": f"P{i}", "position": p, "locked": False}
        for i, p in enumerate(points.tolist())
    ]
    node = {"type": "Fiducial", "coordinateUnits": "mm", "controlPoints": controls, "extra": 5}
    return {"markups": [node | ({"coordinateSystem": system} if system else {})]}


def fcsv_text(points: np.ndarray, system: str | None) -> str:
    head = "# Markups fiducial file version = 4.10\n"
    head += f"# CoordinateSystem = {system}\n" if system else ""
    head += "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"
    rows = [f"v_{i},{x},{y},{z},0,0,0,1,1,1,0,P{i},,\n" for i, (x, y, z) in enumerate(points)]
    return head + "".join(rows)


def read(tmp_path: Path, name: str, text: str, **options) -> io.PointSet:
    (tmp_path / name).write_text(text, "utf-8")
    return io.read_points(tmp_path / name, **options)


def frames() -> list:
    return [
        pytest.param("p.csv", csv_text(LPS), {}, id="csv"),
        pytest.param("p.csv", csv_text(RAS), {"frame": "ras"}, id="csv-ras"),
        pytest.param(
            "p.csv", csv_text(LPS, "").replace(",P0", "").replace(",P1", ""), {}, id="bare"
        ),
        pytest.param("p.csv", csv_text(LPS, "X; Y ;Z;Label\n", ";"), {}, id="csv-semicolon"),
        pytest.param("p.CSV", "\ufeff" + csv_text(LPS), {}, id="csv-bom"),
        pytest.param("p.mrk.json", json.dumps(markups(LPS, "LPS")), {}, id="mrk-lps"),
        pytest.param("p.mrk.json", json.dumps(markups(RAS, "RAS")), {}, id="mrk-ras"),
        pytest.param("p.mrk.json", json.dumps(markups(LPS, None)), {}, id="mrk-default"),
        pytest.param("p.fcsv", fcsv_text(LPS, "LPS"), {}, id="fcsv-lps"),
        pytest.param("p.fcsv", fcsv_text(RAS, "RAS"), {}, id="fcsv-ras"),
        pytest.param("p.fcsv", fcsv_text(LPS, "1"), {}, id="fcsv-1"),
        pytest.param("p.fcsv", fcsv_text(RAS, "0"), {}, id="fcsv-0"),
    ]


@pytest.mark.parametrize(("name", "text", "options"), frames())
def test_all_become_lps(tmp_path: Path, name: str, text: str, options: dict) -> None:
    points = read(tmp_path, name, text, **options)
    np.testing.assert_allclose(points.points_lps_mm, LPS)
    assert points.points_lps_mm.dtype == np.float64
    assert points.labels in (("P0", "P1"), ("1", "2"))


@pytest.mark.parametrize(("name", "text", "options"), frames())
def test_written_in_the_frame_they_came_in(
    tmp_path: Path, name: str, text: str, options: dict
) -> None:
    points = read(tmp_path, name, text, **options)
    moved = points.with_points(points.points_lps_mm + np.array([10.0, 20.0, 30.0]))
    out = tmp_path / "out" / name
    io.write_points(out, moved)
    back = io.read_points(out, **options)
    np.testing.assert_allclose(back.points_lps_mm, moved.points_lps_mm, atol=1e-6)
    assert (back.frame, back.labels) == (points.frame, points.labels)


@pytest.mark.parametrize("target", ["o.csv", "o.mrk.json", "o.fcsv"])
@pytest.mark.parametrize(("name", "text", "options"), frames())
def test_any_format_becomes_any_other(
    tmp_path: Path, name: str, text: str, options: dict, target: str
) -> None:
    points = read(tmp_path, name, text, **options)
    io.write_points(tmp_path / target, points)
    back = io.read_points(tmp_path / target, frame=points.frame)
    np.testing.assert_allclose(back.points_lps_mm, LPS, atol=1e-6)
    assert (back.frame, back.labels) == (points.frame, points.labels)


def test_other_columns_of_a_csv_are_kept(tmp_path: Path) -> None:
    points = read(tmp_path, "p.csv", "name,z,y,x,score\na,3,2,1,0.5\nb,6,5,4,\n")
    np.testing.assert_array_equal(points.points_lps_mm, [[1, 2, 3], [4, 5, 6]])
    assert points.labels == ("a", "b")
    io.write_points(tmp_path / "o.csv", points.with_points(points.points_lps_mm + 0.5))
    assert (tmp_path / "o.csv").read_text() == (
        "name,z,y,x,score\na,3.500000,2.500000,1.500000,0.5\nb,6.500000,5.500000,4.500000,\n"
    )


def test_the_rest_of_a_markups_file_is_kept(tmp_path: Path) -> None:
    document = markups(RAS, "RAS")
    points = read(tmp_path, "p.mrk.json", json.dumps(document))
    io.write_points(tmp_path / "o.mrk.json", points)
    assert json.loads((tmp_path / "o.mrk.json").read_text()) == document


def bad() -> list:
    two = markups(LPS, "LPS")
    two["markups"] *= 2
    inches = markups(LPS, "LPS")
    inches["markups"][0]["coordinateUnits"] = "in"
    texts, six = markups(LPS, "LPS"), markups(np.hstack([LPS, LPS]), "LPS")
    texts["markups"][0]["controlPoints"][0]["position"] = ["1_000", "2", "3"]
    unplaced = markups(LPS, "LPS")
    del unplaced["markups"][0]["controlPoints"][0]["position"]
    cases = [
        ("p.csv", "", "holds no points"),
        ("p.csv", "x,y,z\n", "holds no points"),
        ("p.csv", "a,b,c\n1,2,3\n", "names the columns a, b, c; x, y and z are needed"),
        ("p.csv", "x,y,z\n1,2,here\n", "point 1 needs three numbers x, y, z but has: 1, 2, here"),
        ("p.csv", "1,2\n", "point 1 needs three numbers"),
        ("p.csv", "1,2,nan\n", "a coordinate is NaN or Inf"),
        (
            "p.csv",
            "7,1,2,3\n",
            "has 4 columns and no header, so that 7, 1, 2 would be read as x, y",
        ),
        ("p.csv", "1,2,3\n4,5,6,P1\n", "has 4 columns and no header, so that 4, 5, 6 would"),
        ("p.csv", "x,y,z,X\n1,2,3,4\n", "names more than once: x; only the first of each"),
        ("p.csv", "x,y,z\n1,2,3,4\n", "point 1 has 4 fields, but the header names 3 columns"),
        ("p.csv", "1_000,2,3\n", "point 1 needs three numbers x, y, z but has: 1_000, 2, 3"),
        ("p.csv", "x,y,z\n1,2,3\n1,2_0,3\n", "point 2 needs three numbers .* 1, 2_0, 3"),
        ("p.fcsv", fcsv_text(LPS, "LPS").replace("1.5", "1_5"), "point 1 needs three numbers"),
        ("p.mrk.json", json.dumps(texts), "with one list of placed control points"),
        ("p.mrk.json", json.dumps(six), "with one list of placed control points"),
        ("p.fcsv", fcsv_text(LPS, None), r"coordinate system \(none\); LPS or RAS is needed"),
        ("p.fcsv", fcsv_text(LPS, "IJK"), "coordinate system IJK; LPS or RAS"),
        ("p.fcsv", fcsv_text(LPS[:0], "LPS"), "holds no points"),
        ("p.mrk.json", "{", "is not a 3D Slicer markups file"),
        ("p.mrk.json", "{}", "is not a 3D Slicer markups file"),
        ("p.mrk.json", "[]", "is not a 3D Slicer markups file"),
        ("p.mrk.json", json.dumps(two), "with one list of placed control points"),
        ("p.mrk.json", json.dumps(unplaced), "with one list of placed control points"),
        ("p.mrk.json", json.dumps(inches), "LPS in in; LPS or RAS in mm is needed"),
        ("p.mrk.json", json.dumps(markups(LPS, "IJK")), "coordinate system IJK in mm"),
        ("p.mrk.json", json.dumps(markups(LPS[:0], "LPS")), "holds no points"),
        ("p.vtk", "x", r"unknown format of points '\.vtk'; give \.csv, \.mrk\.json"),
    ]
    return [pytest.param(*case, id=f"{i}-{case[0]}") for i, case in enumerate(cases)]


@pytest.mark.parametrize(("name", "text", "match"), bad())
def test_bad_files(tmp_path: Path, name: str, text: str, match: str) -> None:
    with pytest.raises(InputError, match=match):
        read(tmp_path, name, text)


def test_empty_fields_beyond_the_columns(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read(tmp_path, "p.csv", "1,2,3,\n").points_lps_mm, [[1, 2, 3]])
    points = read(tmp_path, "p.csv", "x,y,z,,\n1,2,3,,\n")
    np.testing.assert_array_equal(points.points_lps_mm, [[1, 2, 3]])


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        io.read_points(tmp_path / "p.csv")
    (tmp_path / "p.csv").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(InputError, match="cannot be read as text"):
        io.read_points(tmp_path / "p.csv")


def test_wrong_number_of_points_and_unknown_output(tmp_path: Path) -> None:
    points = read(tmp_path, "p.csv", csv_text(LPS))
    with pytest.raises(ValueError, match=r"points \(3, 3\); wanted \(2, 3\)"):
        points.with_points(np.zeros((3, 3)))
    with pytest.raises(OutputError, match=r"cannot be written as '\.vtk'"):
        io.write_points(tmp_path / "o.vtk", points)
