"""Graphs of bundles that read files or run loops in ways that a search for bytes would miss."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from encoders import write_bundle

from dinoreg_rt.bundle.manifest import MANIFEST_NAME, file_sha256
from dinoreg_rt.bundle.onnx_wire import scan_onnx
from dinoreg_rt.bundle.opened import open_bundle
from dinoreg_rt.device.choice import Device
from dinoreg_rt.encoder.tokens import encode_constant
from dinoreg_rt.errors import InputError

onnx = pytest.importorskip("onnx", reason="makes a small ONNX encoder: onnx is not installed")


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_bundle(tmp_path / "gabor", [(32, 32)], patch=4)


def replace_graph(folder: Path, data: bytes) -> None:
    """Write another graph under the name of the first, with the hash that it needs."""
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    (entry,) = manifest["files"]
    (folder / entry["name"]).write_bytes(data)
    entry |= {"size_bytes": len(data), "sha256": file_sha256(folder / entry["name"])}
    (folder / MANIFEST_NAME).write_text(json.dumps(manifest))


def load(folder: Path) -> onnx.ModelProto:
    return onnx.load(str(folder / "encoder_32x32.onnx"), load_external_data=False)


def external(model: onnx.ModelProto, name: str) -> bytes:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=name)
    return model.SerializeToString()


def test_a_path_behind_its_key_or_before_it(folder) -> None:
    data = external(load(folder), "w.bin")
    entry = b"\x0a\x08location\x12\x05w.bin"
    turned = b"\x12\x05w.bin\x0a\x08location"
    assert data.count(entry) == 1
    # ONNX reads both in the same way.
    again = onnx.ModelProto.FromString(data.replace(entry, turned))
    assert again.graph.initializer[0].external_data[0].value == "w.bin"
    for content in (data, data.replace(entry, turned)):
        replace_graph(folder, content)
        with pytest.raises(InputError, match=r"reads w\.bin, for which the manifest gives no hash"):
            open_bundle(folder)


def test_a_path_of_a_tensor_in_an_attribute(folder) -> None:
    model = load(folder)
    tensor = onnx.TensorProto(dims=[1], data_type=1, data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../secret")
    node = onnx.helper.make_node("Constant", [], ["c"], value=tensor)
    model.graph.node.append(node)
    replace_graph(folder, model.SerializeToString())
    with pytest.raises(InputError, match=r"reads \.\./\.\./secret"):
        open_bundle(folder)


@pytest.mark.parametrize("where", ["graph", "function", "training"])
@pytest.mark.parametrize("operator", ["Loop", "If", "Scan", "Mine"])
def test_control_flow(folder, where, operator) -> None:
    model = load(folder)
    body = onnx.helper.make_graph([], "body", [], [])
    node = onnx.helper.make_node(operator, [], ["x"], body=body)
    if where == "function":
        imports = [onnx.helper.make_opsetid("", 18)]
        model.functions.append(onnx.helper.make_function("local", "F", [], ["x"], [node], imports))
    elif where == "training":
        model.training_info.add().algorithm.node.append(node)
    else:
        model.graph.node.append(node)
    replace_graph(folder, model.SerializeToString())
    with pytest.raises(InputError, match=f"runs {operator}, control flow, which no encoder needs"):
        open_bundle(folder)


@pytest.mark.parametrize(
    "data", [b"", b"\x3a\xff\xff\x03", b"\x3b", b"\x3a" + b"\xff" * 11, b"\x08"]
)
def test_a_file_that_is_no_protobuf(folder, data) -> None:
    if not data:
        assert scan_onnx(data).files == set()
        return
    replace_graph(folder, data)
    with pytest.raises(InputError, match=r"encoder_32x32\.onnx: is no ONNX file"):
        open_bundle(folder)


def test_tokens_of_an_empty_picture_must_be_finite(folder) -> None:
    class Nowhere:
        def encode(self, pixels):
            return np.full((1, 8, 8, 2), np.nan, np.float32)

        def cancel(self) -> None: ...

    graph = open_bundle(folder).manifest.graphs[0]
    with pytest.raises(InputError, match="the encoder gives tokens of an empty picture that are"):
        encode_constant(Nowhere(), graph, Device("cpu"), queued=False)
