"""The readers under test: a valid file for each, its mutations, and the call that reads it."""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mutate
import numpy as np
import SimpleITK as sitk

from dinoreg_rt import io
from dinoreg_rt.bundle.manifest import MANIFEST_NAME, file_sha256
from dinoreg_rt.bundle.opened import open_bundle
from dinoreg_rt.config.parameters import RegistrationConfig
from dinoreg_rt.errors import InputError
from dinoreg_rt.evaluate.cohort import read_pairs
from dinoreg_rt.evaluate.tables import read_label_names
from dinoreg_rt.run.outputs import earlier_files
from dinoreg_rt.sweep.records import read_records
from dinoreg_rt.sweep.space import read_space
from dinoreg_rt.types import AffineTransform, DisplacementField, Geometry, Volume

GRID = Geometry((4, 5, 6), (1.0, 2.0, 3.0), (10.0, 20.0, 30.0), np.eye(3))


@dataclass(frozen=True)
class Reader:
    """A reader under test.

    Attributes:
        file: name of the file that is mutated.
        seed: makes a valid file.
        read: reads it, and does with the content what the program does next.
        mutations: one is drawn for each mutant; without any, the file holds the mutant's number.
        names_file: whether errors name the file; a log or a report with faults is skipped instead.
    """

    file: str
    seed: Callable[[Path], None]
    read: Callable[[Path], Any]
    mutations: tuple[mutate.Mutation, ...] = (mutate.of_text, mutate.of_text, mutate.of_bytes)
    names_file: bool = True


def _field() -> DisplacementField:
    vectors = np.random.default_rng(0).normal(size=(*GRID.shape_zyx, 3)).astype(np.float32)
    return DisplacementField(vectors, GRID)


def _volume() -> Volume:
    return Volume(np.random.default_rng(1).normal(size=GRID.shape_zyx).astype(np.float32), GRID)


def _composite(path: Path) -> None:
    euler = sitk.Euler3DTransform((5.0, -7.0, 9.0), 0.2, -0.1, 0.4, (1.0, 2.0, 3.0))
    field = sitk.Cast(io.displacement_to_sitk(_field()), sitk.sitkVectorFloat64)
    composite = sitk.CompositeTransform([euler, sitk.DisplacementFieldTransform(field)])
    sitk.WriteTransform(composite, str(path))


def _own_composite(path: Path) -> None:
    io.write_composite_h5(path, AffineTransform.identity(), _field(), GRID)


def _read_with_grid(path: Path) -> None:
    io.read_own_grid(path, io.read_transform(path))


def _text(text: str) -> Callable[[Path], None]:
    return lambda path: Path(path).write_text(text) and None


def _points(path: Path) -> None:
    points = io.read_points(path)
    for suffix in (".csv", ".fcsv", ".mrk.json"):
        io.write_points(path.parent / f"out{suffix}", points)


MARKUPS = {
    "markups": [
        {
            "type": "Fiducial",
            "coordinateSystem": "LPS",
            "coordinateUnits": "mm",
            "controlPoints": [
                {"id": str(i), "label": f"P{i}", "position": [1.5 * i, 2, 3], "positionStatus": s}
                for i, s in enumerate(("defined", "defined", "defined"))
            ],
        }
    ]
}
FCSV = (
    "# Markups fiducial file version = 4.11\n# CoordinateSystem = LPS\n"
    "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"
    "0,1,2,3,0,0,0,1,1,1,0,a,,\n1,4,5,6,0,0,0,1,1,1,0,b,,\n"
)
PAIRS = (
    "pair,kind,fixed,moving,fixed_label,moving_label\na,ct,f.nii,m.nii,l.nii,k.nii\nb,mr,f,m,,\n"
)
RECORD = {"key": "k", "pair": "p", "kind": "ct", "candidate": {"smoothness": 0.5}, "status": "ok"}
RECORD |= {"message": "", "cpu_s": 1.5, "wall_s": None, "scores": {"dice": 0.5, "tre_mm": None}}
RECORD |= {"quality": {"folded_percent": 0.0}, "version": "0"}
REPORT = {
    "outputs": {"a.nii.gz": {"sha256": "0" * 64, "bytes": 5}, "b": {"sha256": "", "bytes": 0}}
}
PARAMETERS = (
    'initial = "auto"\nsmoothness = 0.5\niterations = [40, 20]\nthreads = 2\n'
    'trust = true\nct_window_hu = [-1000, 1000]\ntransform = "displacement"\n'
)
SPACE = (
    "samples = 3\nseed = 1\n[grid]\nsmoothness = [0.1, 0.2]\niterations = [[40, 20], [10, 5]]\n"
    "[random]\ncoupling = { low = 0.1, high = 2, log = true }\nfold_penalty = [0, 1]\n"
)


def _records(path: Path) -> None:
    for record in read_records(path).values():
        record.means()


def _bundle(path: Path) -> None:
    from encoders import write_bundle

    folder = path.parent / "gabor"
    write_bundle(folder, [(32, 32)])
    (folder / path.name).rename(path)


def _open_bundle(path: Path) -> None:
    folder = path.parent / "gabor"
    graph = folder / path.name
    graph.write_bytes(path.read_bytes())
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    size = graph.stat().st_size
    manifest["files"] = [{"name": path.name, "size_bytes": size, "sha256": file_sha256(graph)}]
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))
    open_bundle(folder)


def _safetensors(path: Path) -> None:
    entry = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
    half = {"dtype": "BF16", "shape": [4], "data_offsets": [24, 32]}
    header = json.dumps({"__metadata__": {"a": "b"}, "w": entry, "v": half}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(32))


def _pth(path: Path) -> None:
    from export.checkpoints import write_pth

    write_pth(path, {"w": np.ones((2, 3), np.float32), "v": np.ones(4, np.float32)})


def _tensors(path: Path) -> None:
    from dinoreg_export.checkpoint.safetensors_file import SafetensorsFile
    from dinoreg_export.checkpoint.torch_file import TorchFile

    file = (TorchFile if path.suffix == ".pth" else SafetensorsFile)(path)
    try:
        for name in file.names():
            file.read(name)
    finally:
        file.close()


def _slice(path: Path) -> None:
    from dicom_series import UID, write_raw

    stored = np.random.default_rng(2).integers(0, 1000, (4, 6, 5)).astype(np.uint16)
    folder = path.with_name(f"{path.name}-series")
    write_raw(folder, stored, lambda tags, k: tags.update(SOPInstanceUID=f"{UID}.{k}"))
    (folder / "im001.dcm").rename(path)


def _series(path: Path) -> None:
    folder = path.with_name(f"{path.name}-series")
    (folder / "im001.dcm").write_bytes(path.read_bytes())
    io.read_volume(folder)


def _affine(path: Path) -> None:
    io.write_affine(path, AffineTransform(np.diag([1.1, 0.9, 1.0]), np.array([1.0, 2.0, 3.0])))


def _misbehave(path: Path) -> None:
    """Do what the number of the mutant says: the faults that the harness must find."""
    number = int(path.read_text())
    if number == 1:
        raise ValueError("an exception of a library")
    if number == 2:
        raise InputError("an error without the name of the file")
    if number == 3:
        np.ones(1 << 34)
    if number == 4:
        time.sleep(60)
    if number == 5:
        os.abort()
    if number == 6:
        np.ones(75_000_000)  # 600 MB, more than three times what the process has in use


BINARY = (mutate.of_bytes,)
READERS = {
    "self-test": Reader("number.txt", _text("0"), _misbehave, ()),
    "tfm": Reader("t.tfm", _composite, io.read_transform),
    "affine": Reader("t.txt", _affine, io.read_initial),
    "mat": Reader("t.mat", _affine, io.read_initial, BINARY),
    "h5": Reader(
        "t.h5", _composite, io.read_transform, (mutate.of_hdf5, mutate.of_hdf5, mutate.of_bytes)
    ),
    "own h5": Reader(
        "t.h5", _own_composite, _read_with_grid, (mutate.of_hdf5, mutate.of_hdf5, mutate.of_bytes)
    ),
    "csv": Reader("p.csv", _text("label,x,y,z\na,1,2,3\nb,4,5.5,6\n"), _points),
    "fcsv": Reader("p.fcsv", _text(FCSV), _points),
    "markups": Reader(
        "p.mrk.json", _text(json.dumps(MARKUPS)), _points, (mutate.of_json, mutate.of_text)
    ),
    "pairs": Reader("pairs.csv", _text(PAIRS), lambda p: read_pairs(p, p.parent, p.parent)),
    "names": Reader(
        "n.json",
        _text('{"1": "spleen", "2": "liver"}'),
        read_label_names,
        (mutate.of_json, mutate.of_text),
    ),
    "records": Reader(
        "results.jsonl",
        _text("\n".join([json.dumps(RECORD)] * 3)),
        _records,
        (mutate.of_json_lines, mutate.of_text),
        names_file=False,
    ),
    "report": Reader(
        "report.json",
        _text(json.dumps(REPORT)),
        lambda p: earlier_files(p.parent, set()),
        (mutate.of_json, mutate.of_text),
        names_file=False,
    ),
    "toml": Reader("c.toml", _text(PARAMETERS), lambda p: RegistrationConfig.from_sources(file=p)),
    "space": Reader("s.toml", _text(SPACE), lambda p: read_space(p, (), None, None)),
    "mha": Reader(
        "a.mha",
        lambda p: io.write_volume(p, _volume()),
        io.read_volume,
        (mutate.of_meta, mutate.of_meta, mutate.of_bytes),
    ),
    "nii": Reader("a.nii", lambda p: io.write_volume(p, _volume()), io.read_volume, BINARY),
    "nii.gz": Reader(
        "a.nii.gz",
        lambda p: io.write_volume(p, _volume()),
        io.read_volume,
        (mutate.of_gzip, mutate.of_bytes),
    ),
    "nrrd": Reader(
        "a.nrrd",
        lambda p: io.write_volume(p, _volume()),
        io.read_volume,
        (mutate.of_nrrd, mutate.of_nrrd, mutate.of_bytes),
    ),
    "dcm": Reader(
        "slice.dcm", _slice, _series, (mutate.of_dicom, mutate.of_dicom, mutate.of_bytes)
    ),
    "pth": Reader("a.pth", _pth, _tensors, (mutate.of_pickle, mutate.of_bytes)),
    "safetensors": Reader(
        "a.safetensors", _safetensors, _tensors, (mutate.of_header, mutate.of_bytes)
    ),
    "bundle": Reader("encoder_32x32.onnx", _bundle, _open_bundle, BINARY),
}
