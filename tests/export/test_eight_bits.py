"""8-bit numbers, their scales, and the rounding that graphs contain."""

from __future__ import annotations

from collections import Counter

import calm
import numpy as np
import onnx
import onnxruntime
import pytest
from checkpoints import TINY
from encoders import write_bundle
from onnx import TensorProto, helper, numpy_helper

from dinoreg_export.engine.calibrate import measure_ranges
from dinoreg_export.engine.eight_bits import FORMATS, FP8, INT8, multiplies_fp8
from dinoreg_export.engine.qdq import linear_layers, write_quantised
from dinoreg_export.engine.retype import write_retyped
from dinoreg_export.verify.compare import open_session, run_graph, tokens_of
from dinoreg_rt.engines.trt.agreement import compare_tokens, probe
from dinoreg_rt.errors import ConfigError

KINDS = [pytest.param(kind, id=name) for name, kind in FORMATS.items()]


@pytest.mark.parametrize("kind", KINDS)
def test_scales_clip_nothing_and_waste_little(kind, rng) -> None:
    ranges = np.exp(rng.uniform(np.log(1e-2), np.log(1e4), 1000)).astype(np.float32)
    scale = kind.scale(ranges)
    assert scale.dtype == np.float16
    reach = scale.astype(np.float64) * kind.largest
    assert (reach >= ranges).all()
    assert (reach <= ranges * (1 + 2**-4)).all()
    assert kind.scale(np.float32(0)) > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e9])
def test_ranges_that_no_scale_reaches(kind, value) -> None:
    with pytest.raises(ConfigError, match=f"which {kind.name} with scales in float16 cannot hold"):
        kind.scale(np.array([1, value], np.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_onnx_runtimes(kind, rng) -> None:
    """They include every halfway case; beyond the range, both stop at the largest number."""
    scale = np.float16(0.25)
    steps = np.arange(-2 * kind.largest, 2 * kind.largest, 0.25) * 0.25
    x = np.concatenate([steps, rng.normal(0, 9, 5000)]).astype(np.float32)
    x = x[x >= -kind.largest * 0.25]  # ONNX Runtime uses -128, and we do not
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"])],
        "g",
        [value("x", TensorProto.FLOAT, [len(x)])],
        [value("q", kind.onnx_type, [len(x)])],
        [
            numpy_helper.from_array(np.float32(scale), "s"),
            helper.make_tensor("z", kind.onnx_type, [], b"\0", raw=True),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    out = session.run_with_ort_values(["q"], {"x": onnxruntime.OrtValue.ortvalue_from_numpy(x)})[0]
    expected = np.frombuffer(out.numpy().tobytes(), np.uint8)
    np.testing.assert_array_equal(kind.quantise(x, scale), expected)


def test_int8_is_symmetric() -> None:
    x = np.array([-999, -3.0, -0.6, 0.0, 0.6, 3.0, 999], np.float32)
    numbers = INT8.quantise(x, np.float16(1)).view(np.int8)
    assert numbers.tolist() == [-127, -3, -1, 0, 1, 3, 127]


def test_which_gpus_multiply_fp8() -> None:
    found = [multiplies_fp8(c) for c in ("7.5", "8.6", "8.9", "9.0", "10.0", "12.0")]
    assert found == [False, False, True, True, True, True]
    with pytest.raises(ConfigError, match="'ada' is not a compute capability; give two numbers"):
        multiplies_fp8("ada")


def half_graph(folder, name="tiny-v3-gated", precision="fp32"):
    """Write the fp32 and the fp16 graph of a tiny encoder whose blocks outweigh their input."""
    size = (70, 98) if "v2" in name else (64, 96)
    calm.write(folder / "b", TINY[name], [size], precision, share=20.0)
    (own,) = (folder / "b").glob("*[0-9].onnx")
    graphs = [folder / f"{p}.onnx" for p in ("fp32", "fp16")]
    for path, wanted in zip(graphs, ("fp32", "fp16"), strict=True):
        write_retyped(own, path, wanted)
    return graphs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_linear_layers_alone_are_rounded(kind, precision, tmp_path) -> None:
    _, source = half_graph(tmp_path, precision=precision)
    before = onnx.load(str(source)).graph
    weights = [w for _, w in linear_layers(before)]
    # In each of two blocks: queries, keys and values in one; output; up, gate and down.
    assert len(weights) == 2 * 5
    target = tmp_path / "q.onnx"
    write_quantised(source, target, dict.fromkeys(weights, 4.0), kind)
    onnx.checker.check_model(str(target))
    model = onnx.load(str(target))
    assert model.opset_import[0].version == 19
    made_by = {name: node for node in model.graph.node for name in node.output}
    types = {t.name: t.data_type for t in model.graph.initializer}
    rounded = 0
    for node in model.graph.node:
        factors = [made_by.get(x) for x in node.input if x]
        is_rounded = [f is not None and f.op_type == "DequantizeLinear" for f in factors]
        if node.op_type == "MatMul" and any(is_rounded):
            assert all(is_rounded)
            number = made_by[factors[0].input[0]]
            assert number.op_type == "QuantizeLinear"
            assert number.input[1:] == factors[0].input[1:]  # one scale there and back
            assert types[factors[1].input[0]] == kind.onnx_type
            assert (factors[1].attribute[0].name, factors[1].attribute[0].i) == ("axis", 1)
            rounded += 1
        elif node.op_type not in ("DequantizeLinear", "QuantizeLinear"):
            assert not any(is_rounded), node.name
    assert rounded == 2 * 5
    counts = Counter(node.op_type for node in model.graph.node)
    added = counts - Counter(node.op_type for node in before.node)
    # Up and gate share their input, which bundles in 16 bits cast for each of them.
    shared = 2 if precision == "fp32" else 0
    assert added == {"QuantizeLinear": 10 - shared, "DequantizeLinear": 20 - shared}


@pytest.mark.parametrize("name", ["tiny-v3", "tiny-v2-gated", "tiny-convnext"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_calibrated_graph_is_near_float32(kind, name, tmp_path) -> None:
    plain, half = half_graph(tmp_path, name)
    height, width = (70, 98) if "v2" in name else (64, 96)
    pixels = probe(height, width)
    ranges = measure_ranges(plain, pixels, kind)
    target = tmp_path / "q.onnx"
    write_quantised(half, target, ranges, kind)
    found = compare_tokens(tokens_of(target, pixels), tokens_of(plain, pixels))
    assert 0.998 < found.mean_cosine < 0.9999999
    # Scales that are far too small clip, which shows that the graph uses them.
    write_quantised(half, target, {k: v / 50 for k, v in ranges.items()}, kind)
    worse = compare_tokens(tokens_of(target, pixels), tokens_of(plain, pixels))
    assert worse.mean_cosine < found.mean_cosine - 1e-3


def two_layers(folder, factor: float = 1.0):
    """Write ``x W + (factor x) W``, with one weight and two inputs, in fp32 and fp16."""
    value = helper.make_tensor_value_info
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Reshape", ["pixels", "shape"], ["x"]),
        helper.make_node("Mul", ["x", "factor"], ["more"]),
        helper.make_node("MatMul", ["x", "W"], ["a"]),
        helper.make_node("MatMul", ["more", "W"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["sum"]),
        helper.make_node("Reshape", ["sum", "out_shape"], ["tokens"]),
    ]
    graph = helper.make_graph(
        nodes,
        "two",
        [value("pixels", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [value("tokens", TensorProto.FLOAT, ["N", 8, 8, 5])],
        [
            numpy_helper.from_array(np.array([-1, 64, 3]), "shape"),
            numpy_helper.from_array(np.array([-1, 8, 8, 5]), "out_shape"),
            numpy_helper.from_array(np.float32(factor), "factor"),
            numpy_helper.from_array(rng.normal(size=(3, 5)).astype(np.float32), "W"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path = folder / "two.onnx"
    path.write_bytes(model.SerializeToString())
    half = folder / "two_fp16.onnx"
    write_retyped(path, half, "fp16")
    return path, half


def test_a_shared_weight_is_stored_once_with_the_largest_range(tmp_path) -> None:
    plain, half = two_layers(tmp_path, factor=3.0)
    pixels = probe(8, 8)
    ranges = measure_ranges(plain, pixels, FP8)
    assert ranges == {"W": pytest.approx(3 * np.abs(pixels).max(), rel=1e-6)}
    target = tmp_path / "q.onnx"
    write_quantised(half, target, ranges, FP8)
    model = onnx.load(str(target))
    counts = Counter(node.op_type for node in model.graph.node)
    assert (counts["QuantizeLinear"], counts["DequantizeLinear"]) == (2, 3)
    stored = [t.name for t in model.graph.initializer if t.name.startswith("W")]
    assert stored == ["W", "W_scale", "W_scale_zero"]
    assert compare_tokens(*(tokens_of(g, pixels) for g in (target, plain))).mean_cosine > 0.998


def test_the_range_of_int8_is_that_of_the_least_squared_error(tmp_path) -> None:
    plain, _ = two_layers(tmp_path)
    pixels = np.random.default_rng(0).normal(size=(2, 3, 8, 8)).astype(np.float32)
    pixels[1, 0, 0, 0] = 40.0  # in one of several slices
    x = pixels.reshape(2, -1).astype(np.float64)
    tried = 40.0 * 2.0 ** (-np.arange(8) / 2)
    steps = INT8.scale(tried.astype(np.float32)).astype(np.float64)[:, None, None]
    errors = ((np.clip(np.rint(x / steps), -128, 127) * steps - x) ** 2).sum(axis=(1, 2))
    best = tried[errors.argmin()]
    assert measure_ranges(plain, pixels, INT8) == {"W": pytest.approx(best, rel=1e-6)}
    assert measure_ranges(plain, pixels, FP8) == {"W": 40.0}
    many = np.random.default_rng(0).normal(size=(512, 3, 8, 8)).astype(np.float32)
    many[1, 0, 0, 0] = 7.0
    assert measure_ranges(plain, many, INT8)["W"] < 7.0


def test_progress_of_a_calibration(tmp_path) -> None:
    plain, _ = two_layers(tmp_path)
    for kind in (INT8, FP8):
        seen: list[float] = []
        measure_ranges(plain, probe(8, 8, 3), kind, seen.append)
        assert seen == sorted(seen)
        assert (len(seen), seen[-1]) == (6 if kind is INT8 else 3, 1.0)


def test_the_hash_is_that_of_the_scales(tmp_path) -> None:
    _, half = two_layers(tmp_path)
    found = [
        write_quantised(half, tmp_path / "q.onnx", {"W": span}, kind)
        for span, kind in ((2.0, INT8), (2.0, INT8), (2.5, INT8), (2.0, FP8))
    ]
    assert found[0] == found[1]
    assert len(set(found)) == 3


def test_a_graph_without_linear_layers(tmp_path) -> None:
    graph = write_bundle(tmp_path / "gabor", [(24, 32)]) / "encoder_24x32.onnx"
    with pytest.raises(ConfigError, match="has no linear layers to convert to int8"):
        measure_ranges(graph, probe(24, 32), INT8)
    with pytest.raises(ConfigError, match="has no linear layers to convert to fp8"):
        write_quantised(graph, tmp_path / "q.onnx", {}, FP8)


def test_sessions_find_weights_beside_the_graph(tmp_path) -> None:
    plain, _ = half_graph(tmp_path)
    model = onnx.load(str(plain), load_external_data=False).SerializeToString()
    pixels = probe(64, 96, 1)
    (tokens,) = open_session(model, plain.parent).run(["tokens"], {"pixels": pixels})
    np.testing.assert_array_equal(tokens, run_graph(plain, pixels, ["tokens"])[0])
