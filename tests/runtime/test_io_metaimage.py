"""MetaImage and NRRD: every byte is counted, lists of files are read, contradictions are said."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from dinoreg_rt import io
from dinoreg_rt.errors import InputError
from dinoreg_rt.run.report import hash_input

VOXELS = (np.arange(120, dtype=np.int16) + 1).reshape(4, 5, 6)
RAW = VOXELS.tobytes()
NRRD_SPACE = {
    "space": "left-posterior-superior",
    "space directions": "(1,0,0) (0,2,0) (0,0,3)",
    "space origin": "(4,5,6)",
}


def meta(path: Path, data: bytes = b"", file: str = "LOCAL", **changed: str | None) -> Path:
    fields: dict[str, str | None] = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryData": "True",
        "DimSize": "6 5 4",
        "ElementType": "MET_SHORT",
        "ElementSpacing": "1 2 3",
        "Offset": "4 5 6",
        "TransformMatrix": "1 0 0 0 1 0 0 0 1",
    }
    lines = [f"{k} = {v}\n" for k, v in (fields | changed).items() if v is not None]
    path.write_bytes("".join([*lines, f"ElementDataFile = {file}\n"]).encode() + data)
    return path


def compressed(path: Path, packed: bytes) -> Path:
    return meta(path, packed, CompressedData="True", CompressedDataSize=str(len(packed)))


def nrrd(path: Path, data: bytes = b"", **changed: str | None) -> Path:
    fields: dict[str, str | None] = {"type": "short", "dimension": "3", "sizes": "6 5 4"}
    fields |= {"endian": "little", "encoding": "raw", **NRRD_SPACE}
    fields |= {name.replace("_", " "): value for name, value in changed.items()}
    lines = [f"{k}: {v}\n" for k, v in fields.items() if v is not None]
    path.write_bytes("".join(["NRRD0005\n", *lines]).encode() + (b"\n" + data if data else b""))
    return path


def slices(folder: Path) -> list[str]:
    names = [f"s{i:02d}.raw" for i in range(4)]
    for name, part in zip(names, VOXELS, strict=True):
        (folder / name).write_bytes(part.tobytes())
    return names


def accept(path: Path) -> tuple[str, ...]:
    """Return the notes of an image with the right voxels and the right place."""
    volume = io.read_volume(path)
    assert np.array_equal(volume.array, VOXELS)
    assert volume.geometry.spacing_mm == (1, 2, 3)
    assert volume.geometry.origin_mm == (4, 5, 6)
    return volume.geometry.notes


def refuse(path: Path, match: str) -> None:
    with pytest.raises(InputError, match=match):
        io.read_volume(path)


def test_metaimage_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a.mha"
    assert accept(meta(path, RAW)) == ()
    assert accept(compressed(path, zlib.compress(RAW))) == ()
    (tmp_path / "a.raw").write_bytes(b"skip" + RAW)
    assert accept(meta(tmp_path / "a.mhd", file="a.raw", HeaderSize="4")) == ()
    refuse(meta(path, RAW, HeaderSize="4"), r"begin at byte 4 \(HeaderSize\), within the header")
    packed = {"CompressedData": "True", "HeaderSize": "-1"}
    refuse(meta(path, zlib.compress(RAW), **packed), "compressed pixels and a HeaderSize")
    assert accept(meta(path, b"skip" + RAW, HeaderSize="-1")) == ()
    assert accept(meta(path, RAW, AnatomicalOrientation="RAI")) == ()


@pytest.mark.parametrize("count", [0, 100, 238])
def test_metaimage_with_fewer_compressed_bytes_than_voxels(tmp_path: Path, count: int) -> None:
    path = compressed(tmp_path / "a.mha", zlib.compress(RAW[:count]))
    refuse(path, f"pixels unpack to {count} bytes, but its header announces 240")
    (tmp_path / "a.zraw").write_bytes(zlib.compress(RAW[:count]))
    path = meta(tmp_path / "a.mhd", file="a.zraw", CompressedData="True")
    refuse(path, f"pixels unpack to {count} bytes, but its header announces 240")


def test_metaimage_of_other_lengths(tmp_path: Path) -> None:
    path, packed = tmp_path / "a.mha", zlib.compress(RAW)
    refuse(compressed(path, zlib.compress(RAW + b"xx")), "unpack to 242 bytes")
    refuse(compressed(path, packed[:-9]), "truncated file: its compressed pix")
    size = {"CompressedData": "True", "CompressedDataSize": str(len(packed) - 9)}
    refuse(meta(path, packed, **size), "truncated file: its compressed pixels end too early")
    refuse(meta(path, packed, CompressedData="True"), f"CompressedDataSize = {len(packed)} before")
    refuse(meta(path, RAW[:-1]), r"truncated file: \d+ bytes, but its header announces \d+")
    (tmp_path / "a.raw").write_bytes(RAW)
    refuse(meta(tmp_path / "a.mhd", file="a.raw", HeaderSize="4"), "truncated file: 240 bytes")
    refuse(meta(path, RAW, ElementType="MET_LONG_LONG"), "truncated file")
    refuse(meta(path, RAW, ElementType="MET_OTHER"), "its ElementType is MET_OTHER")


@pytest.mark.parametrize("form", ["LIST", "LIST 2", "s%02d.raw 0 3 1"])
def test_metaimage_lists(tmp_path: Path, form: str) -> None:
    names = slices(tmp_path)
    listing = form if "%" in form else "\n".join([form, *names])
    assert accept(meta(tmp_path / "a.mhd", file=listing)) == ()
    (tmp_path / names[2]).write_bytes(bytes(59))
    refuse(tmp_path / "a.mhd", r"s02\.raw: truncated file: 59 bytes, .* announces 60")
    (tmp_path / names[2]).unlink()
    refuse(tmp_path / "a.mhd", r"its data file s02\.raw is missing")


@pytest.mark.parametrize("listing", ["LIST\ns00.raw\ns01.raw\ns02.raw", "s%02d.raw 0 2 1"])
def test_metaimage_lists_of_too_few_files(tmp_path: Path, listing: str) -> None:
    slices(tmp_path)
    refuse(meta(tmp_path / "a.mhd", file=listing), "names 3 data files, but its size asks for 4")


def test_metaimage_patterns_that_are_none(tmp_path: Path) -> None:
    refuse(meta(tmp_path / "a.mhd", file="s%02d.raw 0"), r"wanted|first and the last file and the")
    listing = "LIST\n" + "\n".join(slices(tmp_path))
    path = meta(tmp_path / "a.mhd", file=listing, CompressedData="True")
    refuse(path, "lists compressed files, which cannot be read")


@pytest.mark.parametrize(
    ("changed", "note"),
    [
        ({"ElementSize": "9 9 9"}, "ElementSpacing was taken; .* ElementSize = 9 9 9"),
        ({"Position": "7 8 9"}, "Offset was taken; .* Position = 7 8 9"),
        ({"Rotation": "0 1 0 1 0 0 0 0 1"}, "TransformMatrix was taken; .* Rotation = 0 1 0"),
        ({"TransformMatrix": None}, r"does not say how its axes lie \(TransformMatrix\)"),
        ({"AnatomicalOrientation": "LAI"}, "axes are RAI .* AnatomicalOrientation says LAI"),
    ],
)
def test_metaimage_fields_that_disagree(
    tmp_path: Path, changed: dict[str, str | None], note: str
) -> None:
    path = meta(tmp_path / "a.mha", RAW, **changed)
    notes = accept(path)
    assert len(notes) == 1
    assert re.search(note, notes[0]), notes
    sides = {"Rotation", "TransformMatrix", "AnatomicalOrientation"} & changed.keys()
    assert io.read_geometry(path).sides_in_doubt == bool(sides)


def test_metaimage_without_spacing_and_with_other_units(tmp_path: Path) -> None:
    volume = io.read_volume(meta(tmp_path / "a.mha", RAW, ElementSpacing=None))
    assert volume.geometry.spacing_mm == (1, 1, 1)
    assert "states no voxel spacing" in volume.geometry.notes[0]
    volume = io.read_volume(meta(tmp_path / "a.mha", RAW, DistanceUnits="cm"))
    assert volume.geometry.spacing_mm == (10, 20, 30)
    assert volume.geometry.origin_mm == (40, 50, 60)
    assert "in cm; they were converted to mm" in volume.geometry.notes[0]
    refuse(meta(tmp_path / "a.mha", RAW, DistanceUnits="inch"), "lengths in 'inch'; convert")
    refuse(meta(tmp_path / "a.mha", RAW, ElementSpacing="1 -2 3"), "each must be positive")


@pytest.mark.parametrize("axes", ["RAI", "LPS", "ASL", "IRP"])
def test_what_itk_writes_is_no_contradiction(tmp_path: Path, axes: str) -> None:
    image = sitk.DICOMOrient(sitk.GetImageFromArray(VOXELS), axes)
    for name in ("a.mha", "a.nrrd", "a.nii"):
        sitk.WriteImage(image, str(tmp_path / name))
        assert io.read_geometry(tmp_path / name).notes == ()


@pytest.mark.parametrize("encoding", ["raw", "gzip", "ascii", "hex"])
def test_nrrd_of_too_few_voxels(tmp_path: Path, encoding: str) -> None:
    def packed(count: int) -> bytes:
        if encoding == "ascii":
            return " ".join(str(v) for v in VOXELS.ravel()[: count // 2]).encode()
        raw = RAW[:count]
        return {"raw": raw, "gzip": gzip.compress(raw), "hex": raw.hex().encode()}[encoding]

    path = tmp_path / "a.nrrd"
    assert accept(nrrd(path, packed(240), encoding=encoding)) == ()
    came = {"raw": "117 .* not 120", "gzip": "expected 240 bytes but received 234"}
    came |= {"ascii": "element 118 of 120", "hex": "byte 234 of 240"}
    refuse(nrrd(path, packed(234), encoding=encoding), came[encoding])


def test_nrrd_in_other_files(tmp_path: Path) -> None:
    names, path = slices(tmp_path), tmp_path / "a.nhdr"
    assert accept(nrrd(path, data_file="LIST\n" + "\n".join(names))) == ()
    assert accept(nrrd(path, data_file="s%02d.raw 0 3 1")) == ()
    refuse(nrrd(path, data_file="LIST\n" + "\n".join(names[:3])), "expected 4 filenames .* got 3")
    (tmp_path / names[1]).write_bytes(bytes(58))
    refuse(nrrd(path, data_file="s%02d.raw 0 3 1"), "got only 29 2-sized things, not 30")
    refuse(nrrd(tmp_path / "b.nrrd", bz2.compress(RAW), encoding="bzip2"), "bzip2 encoding not av")


@pytest.mark.parametrize(
    ("changed", "note"),
    [
        ({"space": "scanner-xyz"}, "its space 'scanner-xyz' does not name the patient's sides"),
        ({"space_units": '"mm" "mm" "mm"'}, ""),
        ({"content": "a: b"}, ""),
    ],
)
def test_nrrd_notes(tmp_path: Path, changed: dict[str, str | None], note: str) -> None:
    path = nrrd(tmp_path / "a.nrrd", RAW, **changed)
    notes = accept(path)
    assert io.read_geometry(path).sides_in_doubt == ("space" in changed)
    assert len(notes) == bool(note)
    assert note in "".join(notes)


def test_nrrd_without_a_place(tmp_path: Path) -> None:
    path, bare = tmp_path / "a.nrrd", dict.fromkeys(NRRD_SPACE)
    volume = io.read_volume(nrrd(path, RAW, **bare, spacings="1 2 3"))
    assert volume.geometry.spacing_mm == (1, 2, 3)
    assert "has no space; its axes were taken as left, post" in volume.geometry.notes[0]
    assert volume.geometry.sides_in_doubt
    notes = io.read_volume(nrrd(path, RAW, **bare)).geometry.notes
    assert "states no voxel spacing; 1 mm was taken" in notes[1]
    notes = io.read_volume(nrrd(path, RAW, space_origin=None)).geometry.notes
    assert "has no space origin; its first voxel was placed at 0" in notes[0]
    refuse(nrrd(path, RAW, spacings="2 2 2"), "has a direction vector, and so can't have")
    refuse(nrrd(path, RAW, **bare, spacings="-2 2 2"), "each must be positive")


def test_nrrd_units(tmp_path: Path) -> None:
    path = tmp_path / "a.nrrd"
    for unit, factor in (("cm", 10), ("um", 1e-3), ("\u00b5m", 1e-3)):
        volume = io.read_volume(nrrd(path, RAW, space_units=f'"{unit}" "{unit}" "{unit}"'))
        assert np.allclose(volume.geometry.spacing_mm, np.array([1, 2, 3]) * factor)
        assert np.allclose(volume.geometry.origin_mm, np.array([4, 5, 6]) * factor)
        assert f"in {unit}; they were converted to mm" in volume.geometry.notes[0]
    refuse(nrrd(path, RAW, space_units='"mm" "cm" "mm"'), "states its lengths in .*convert it")
    refuse(nrrd(path, RAW, space_units='"inch" "inch" "inch"'), "states its lengths in .inch")


@pytest.mark.parametrize("name", ["a.mhd", "a.nhdr", "list.mhd", "list.nhdr", "p.nhdr", "n.hdr"])
def test_the_files_of_an_image_are_hashed(tmp_path: Path, name: str) -> None:
    names, path = slices(tmp_path), tmp_path / name
    (tmp_path / "a.raw").write_bytes(RAW)
    (tmp_path / "n.img").write_bytes(RAW)
    listing = "LIST\n" + "\n".join(names)
    file = {"a": "a.raw", "l": listing, "p": "s%02d.raw 0 3 1"}.get(name[0], "")
    if name.endswith(".mhd"):
        meta(path, file=file)
    else:
        nrrd(path, data_file=file)
    parts = [part.name for part in io.image_parts(path)]
    data = {"a": ["a.raw"], "n": ["n.img"]}.get(name[0], names)
    assert parts == [name, *data]
    before = hash_input(path).sha256
    (tmp_path / data[-1]).write_bytes(bytes(60))
    assert hash_input(path).sha256 != before


def test_files_without_others_are_hashed_alone(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_bytes(b"x")
    (tmp_path / "broken.mhd").write_bytes(b"DimSize = x\nElementDataFile = s%02d.raw 0\n")
    for path in (meta(tmp_path / "a.mha", RAW), tmp_path / "x.txt", tmp_path / "broken.mhd"):
        assert io.image_parts(path) == [path]
        assert hash_input(path).sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
