"""Engines get attention of all heads at once; its tokens are those of the graph in parts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from checkpoints import TINY, make_bundle
from encoders import write_bundle

from dinoreg_export.checkpoint.random_weights import RandomWeights
from dinoreg_export.engine.formats import export_engines
from dinoreg_export.engine.retype import write_retyped
from dinoreg_export.engine.whole_attention import write_whole
from dinoreg_export.graph import vit
from dinoreg_export.verify.compare import tokens_of
from dinoreg_rt.engines.trt.agreement import probe

SIZE = (80, 48)


def write(folder: Path, name: str, precision: str = "fp32") -> Path:
    a = TINY[name]
    size = (5 * a.patch, 3 * a.patch)
    manifest = make_bundle(folder, RandomWeights(a, 1), [size], precision=precision)
    return folder / manifest.graphs[0].file


@pytest.fixture
def parts(monkeypatch) -> None:
    """Graphs hold the scores of one head at a time."""
    monkeypatch.setattr(vit, "SCORE_BYTES", 1)


def nodes(path: Path) -> list[str]:
    return sorted(n.op_type for n in onnx.load(str(path), load_external_data=False).graph.node)


def count(path: Path, kind: str) -> int:
    return nodes(path).count(kind)


@pytest.mark.parametrize("name", [n for n in TINY if "conv" not in n])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_same_tokens_from_the_graph_that_was_never_split(
    name, precision, tmp_path, monkeypatch
) -> None:
    plain = write(tmp_path / "plain", name, precision)
    monkeypatch.setattr(vit, "SCORE_BYTES", 1)
    split = write(tmp_path / "split", name, precision)
    a, whole = TINY[name], tmp_path / "whole.onnx"
    assert count(split, "Softmax") == a.depth * a.heads
    assert write_whole(split, whole)
    onnx.checker.check_model(str(whole))
    assert count(whole, "Softmax") == a.depth
    assert nodes(whole) == nodes(plain)
    model = onnx.load(str(whole), load_external_data=False)
    read = {name for node in model.graph.node for name in node.input}
    assert {tensor.name for tensor in model.graph.initializer} <= read
    pixels = probe(5 * a.patch, 3 * a.patch, 3)
    expected = tokens_of(split, pixels)
    assert np.abs(expected).max() > 1
    for graph in (whole, plain):
        np.testing.assert_allclose(tokens_of(graph, pixels), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "fp32"])
def test_after_a_change_of_precision(parts, precision, tmp_path) -> None:
    split = write(tmp_path / "split", "tiny-v3")
    retyped, whole = tmp_path / "retyped.onnx", tmp_path / "whole.onnx"
    write_retyped(split, retyped, precision)
    assert write_whole(retyped, whole)
    assert count(whole, "Softmax") == TINY["tiny-v3"].depth
    onnx.checker.check_model(str(whole))
    if precision != "bf16":  # ONNX Runtime's CPU has no such products
        pixels = probe(5 * TINY["tiny-v3"].patch, 3 * TINY["tiny-v3"].patch)
        np.testing.assert_allclose(
            tokens_of(whole, pixels), tokens_of(retyped, pixels), rtol=0, atol=1e-5
        )


def test_nothing_else_is_changed(tmp_path) -> None:
    for name in ("tiny-v3", next(n for n in TINY if "conv" in n)):
        assert not write_whole(write(tmp_path / name, name), tmp_path / "whole.onnx")
    gabor = write_bundle(tmp_path / "gabor", [(24, 32)])
    (graph,) = gabor.glob("*.onnx")
    assert not write_whole(graph, tmp_path / "whole.onnx")
    assert not (tmp_path / "whole.onnx").exists()


def test_parts_that_differ_are_left_alone(parts, tmp_path) -> None:
    """For instance because one head is scaled."""
    split = write(tmp_path / "split", "tiny-v3")
    model = onnx.load(str(split), load_external_data=False)
    joint = next(n for n in model.graph.node if n.op_type == "Concat" and "MatMul" in n.input[0])
    joint.input[0], joint.input[1] = joint.input[1], joint.input[0]  # another order
    split.write_bytes(model.SerializeToString())
    assert write_whole(split, tmp_path / "whole.onnx")
    a = TINY["tiny-v3"]
    assert count(tmp_path / "whole.onnx", "Softmax") == a.depth - 1 + a.heads


@pytest.mark.parametrize(("precision", "each"), [("fp16", 1), ("fp32", TINY["tiny-v3"].heads)])
def test_engines_are_built_from_it(parts, gpu, tmp_path, precision, each) -> None:
    """In float32, where TensorRT would store the scores of all heads, they stay in parts."""
    graph = write(tmp_path / "split", "tiny-v3")
    ((path, record),) = export_engines(graph.parent, "tensorrt", precision=precision, batches=(2,))
    assert record.verification.holds
    built = onnx.load_model_from_string(path.read_bytes().partition(b"\n")[2])
    softmax = [n for n in built.graph.node if n.op_type == "Softmax"]
    assert len(softmax) == TINY["tiny-v3"].depth * each
