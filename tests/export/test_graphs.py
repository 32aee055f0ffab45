"""Graphs agree with the NumPy reference in every precision and have the structure engines need."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from checkpoints import TINY, VITS

from dinoreg_export.bundle.files import GraphFile, write_files
from dinoreg_export.checkpoint.random_weights import RandomWeights
from dinoreg_export.graph import vit
from dinoreg_export.verify.compare import compare, passes, probe, run_graph
from dinoreg_export.verify.reference import encode

GRIDS = [(4, 4), (3, 7), (12, 10)]
ALL = pytest.mark.parametrize("name", TINY)


def write(a, folder, precision="fp32", *, verified=False, grids=GRIDS):
    weights = RandomWeights(a, 1)
    files = [GraphFile(f"{h}x{w}.onnx", (h * a.patch, w * a.patch), verified) for h, w in grids]
    write_files(weights, files, folder, precision)
    return weights, files


@ALL
def test_float32_graphs_agree_with_the_reference(name, tmp_path):
    weights, files = write(TINY[name], tmp_path)
    for file in files:
        assert compare(weights, tmp_path / file.name, file.size, "fp32").max_error < 1e-4


@ALL
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision(name, precision, tmp_path):
    weights, (file,) = write(TINY[name], tmp_path, precision, verified=True, grids=[(4, 5)])
    found = compare(weights, tmp_path / file.name, file.size, precision)
    assert passes(found)
    assert found.max_error > 1e-4  # or it was not half precision
    kinds = {t.data_type for t in onnx.load(str(tmp_path / file.name)).graph.initializer}
    assert {"fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}[precision] in kinds


@pytest.mark.parametrize("name", VITS)
def test_an_early_exit_equals_the_layer_of_the_whole_network(name, tmp_path):
    """A block has the same output in a graph of all layers and in one that ends with it."""
    a = TINY[name]
    weights, size = RandomWeights(a, 1), (3 * a.patch, 4 * a.patch)
    found, bytes_ = {}, {}
    every = ("0", "1", "final")
    for layers in (every, ("0",), ("1",), ("final",)):
        folder = tmp_path / "-".join(layers)
        folder.mkdir()
        write_files(weights, [GraphFile("g.onnx", size)], folder, "fp32", layers=layers)
        assert compare(weights, folder / "g.onnx", size, "fp32", layers).max_error < 1e-4
        (found[layers],) = run_graph(folder / "g.onnx", probe(*size), ["tokens"])
        bytes_[layers] = (folder / "weights.bin").stat().st_size
        outputs = [o.name for o in onnx.load(str(folder / "g.onnx")).graph.output]
        assert outputs == ["tokens", "cls"][: 1 + ("final" in layers)]
    parts = np.split(found[every], 3, axis=-1)
    for layer, part in zip(every, parts, strict=True):
        np.testing.assert_allclose(part, found[(layer,)], atol=2e-5)
    assert bytes_[every] == bytes_["final",] > bytes_["1",] > 1.3 * bytes_["0",]


@pytest.mark.parametrize("name", VITS)
def test_the_reference_of_a_layer(name):
    """A block's output agrees with an encoder of only that block, whose final norm is repeated."""
    a = TINY[name]
    weights = RandomWeights(a, 1)
    pixels = probe(2 * a.patch, 3 * a.patch, count=1)
    raw, cls = encode(weights, pixels, ("0",))
    assert cls is None
    short = RandomWeights(replace(a, depth=1), 1)
    normed, _ = encode(short, pixels)
    centred = raw - raw.mean(-1, keepdims=True)
    scaled = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + a.epsilon)
    expected = scaled * weights.read("norm.weight") + weights.read("norm.bias")
    np.testing.assert_allclose(normed, expected, atol=1e-5)
    both, _ = encode(weights, pixels, ("final", "0"))
    np.testing.assert_array_equal(both, np.concatenate([encode(weights, pixels)[0], raw], -1))


def test_each_layer_is_verified_by_itself(tmp_path):
    """Errors in a layer with small values are not hidden by another with large ones."""
    a, layers = TINY["tiny-v3"], ("0", "1")
    weights, size = RandomWeights(a, 1), (64, 64)
    read = weights.read
    weights.read = lambda n: read(n) * (1000 if n == "blocks.1.scale2" else 1)
    write_files(weights, [GraphFile("g.onnx", size)], tmp_path, "fp32", layers=layers)
    assert passes(compare(weights, tmp_path / "g.onnx", size, "fp32", layers))
    assert not passes(compare(weights, tmp_path / "g.onnx", size, "fp32", ("1", "0")))
    model = onnx.load(str(tmp_path / "g.onnx"))
    joined = next(n for n in model.graph.node if "tokens" in n.output)
    joined.input[0] = joined.input[1]
    onnx.save(model, str(tmp_path / "wrong.onnx"))
    assert not passes(compare(weights, tmp_path / "wrong.onnx", size, "fp32", layers))


def test_the_reference_sees_a_single_changed_weight(tmp_path):
    weights, (file, *_) = write(TINY["tiny-v3"], tmp_path)
    read = weights.read
    weights.read = lambda n: -read(n) if n == "blocks.1.v.bias" else read(n)
    assert not passes(compare(weights, tmp_path / file.name, file.size, "fp32"))


@ALL
def test_the_bfloat16_graph_computes_what_its_rounded_twin_computes(name, tmp_path):
    """onnx's own evaluator has bfloat16 products but is too slow for real sizes."""
    from onnx.reference import ReferenceEvaluator

    a = TINY[name]
    results = []
    for verified in (False, True):
        folder = tmp_path / str(verified)
        folder.mkdir()
        _, (file,) = write(a, folder, "bf16", verified=verified, grids=[(2, 3)])
        pixels = probe(*file.size, count=1)
        if verified:
            results.append(run_graph(folder / file.name, pixels)[0])
        else:
            model = onnx.load(str(folder / file.name))
            results.append(ReferenceEvaluator(model).run(["tokens"], {"pixels": pixels})[0])
    expected, _ = encode(RandomWeights(a, 1), pixels)
    assert np.abs(results[0] - expected).max() < 0.1
    assert np.abs(results[1] - expected).max() < 0.1


@ALL
def test_int8_has_the_linear_layers_in_one_shared_file(name, tmp_path):
    _, files = write(TINY[name], tmp_path, "int8", grids=[(3, 4), (4, 5)])
    models = [onnx.load(str(tmp_path / f.name), load_external_data=False) for f in files]
    kinds = [n.op_type for n in models[0].graph.node]
    assert "MatMulInteger" in kinds
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ["weights.bin", *(f.name for f in files)]
    )
    places = [
        {t.name: [e.value for e in t.external_data] for t in m.graph.initializer} for m in models
    ]
    shared = [n for n in places[0] if n.endswith("_quantized") and places[0][n]]
    assert shared
    assert all(places[0][n] == places[1][n] for n in shared)


def test_any_batch(tmp_path):
    _, (file,) = write(TINY["tiny-v2-reg4"], tmp_path, grids=[(3, 4)])
    pixels = probe(*file.size, count=3)
    whole = run_graph(tmp_path / file.name, pixels)[0]
    single = [run_graph(tmp_path / file.name, p[None])[0][0] for p in pixels]
    np.testing.assert_allclose(whole, np.stack(single), atol=2e-5)


def operators_after(model, node):
    return [n for n in model.graph.node if set(n.input) & set(node.output)]


@pytest.mark.parametrize("heads_together", [2, 1])
def test_attention_is_one_plain_pattern(heads_together, tmp_path, monkeypatch):
    a = TINY["tiny-v3"]
    monkeypatch.setattr(vit, "SCORE_BYTES", heads_together * 4 * (a.prefix_tokens + 12) ** 2)
    weights, (file,) = write(a, tmp_path, grids=[(3, 4)])
    model = onnx.load(str(tmp_path / file.name))
    softmaxes = [n for n in model.graph.node if n.op_type == "Softmax"]
    assert len(softmaxes) == a.depth * a.heads // heads_together
    makers = {o: n for n in model.graph.node for o in n.output}
    for softmax in softmaxes:
        assert makers[softmax.input[0]].op_type == "MatMul"
        assert [n.op_type for n in operators_after(model, softmax)] == ["MatMul"]
    assert not {"Tile", "Expand"} & {n.op_type for n in model.graph.node}
    assert compare(weights, tmp_path / file.name, file.size, "fp32").max_error < 1e-4


@ALL
def test_golden_tokens_of_transformers(name, tmp_path):
    """The tokens come from make_golden.py, so that parity is tested without torch."""
    golden = json.loads((Path(__file__).parent / "golden.json").read_text())[name]
    a = TINY[name]
    rows, columns = golden["grid"]
    write_files(RandomWeights(a, 0), [GraphFile("g.onnx", (rows * a.patch, columns * a.patch))],
                tmp_path, "fp32")  # fmt: skip
    pixels = probe(rows * a.patch, columns * a.patch, count=1)
    tokens, cls = run_graph(tmp_path / "g.onnx", pixels)
    np.testing.assert_allclose(tokens[0].reshape(-1, a.dim)[:, ::9], golden["tokens"], atol=1e-4)
    np.testing.assert_allclose(cls[0, ::9], golden["cls"], atol=1e-4)


def test_openvino_runs_the_half_precision_graph(tmp_path):
    openvino = pytest.importorskip("openvino", reason="the extra `openvino` is not installed")
    for name in ("tiny-v3", "tiny-convnext"):
        folder = tmp_path / name
        folder.mkdir()
        weights, (file,) = write(TINY[name], folder, "fp16", grids=[(3, 4)])
        pixels = probe(*file.size)
        settings = {"INFERENCE_PRECISION_HINT": "f32"}
        model = openvino.Core().compile_model(str(folder / file.name), "CPU", settings)
        error = np.abs(model({"pixels": pixels})["tokens"] - encode(weights, pixels)[0]).max()
        assert error < 0.05
