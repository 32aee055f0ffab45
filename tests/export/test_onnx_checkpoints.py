"""ONNX files of other exporters are read as checkpoints with the same tensors, or refused."""

import contextlib
import os
import re
import shutil
from dataclasses import replace

import checkpoints
import numpy as np
import onnx
import pytest
from checkpoints import SOURCE, TINY, VITS, assert_same, canonical, huggingface, write_safetensors
from click.testing import CliRunner
from onnx import helper, numpy_helper
from onnx_exports import Export, write_export

from dinoreg_export.bundle.write import export_bundle
from dinoreg_export.checkpoint import models
from dinoreg_export.checkpoint.read import open_checkpoint
from dinoreg_export.cli import export
from dinoreg_rt.bundle.manifest import Source, file_sha256, read_manifest
from dinoreg_rt.errors import InputError, OutputError

A = TINY["tiny-v2-reg4"]
STYLES = {
    "folded": {"prefix": "backbone."},
    "alone": {},
    "named": {"folded": False, "prefix": "net.vision."},
    "decomposed": {"decomposed": True},
}


def read(path, a=A):
    return checkpoints.read(path, a)[1]


def saved(model, tmp_path):
    path = tmp_path / "x.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def refused(model, tmp_path, problem):
    with pytest.raises(InputError, match=problem):
        read(saved(model, tmp_path))


def graph(**style):
    return Export(A, canonical(A), **({"prefix": "backbone."} | style)).build()


def node_of(model, name):
    return next(n for n in model.graph.node if n.name.endswith(name))


def constant_of(model, name):
    return next(t for t in model.graph.initializer if t.name == name)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("name", VITS)
def test_the_same_tensors_as_in_the_module(name, style, tmp_path):
    a, tensors = VITS[name], canonical(VITS[name])
    path = write_export(tmp_path / "model.onnx", a, tensors, **STYLES[style])
    assert_same(read(path, a), tensors)


def test_the_same_bundle_as_from_safetensors(tmp_path, monkeypatch):
    monkeypatch.setitem(models.ARCHITECTURES, A.name, A)
    tensors = canonical(A)
    first = write_export(tmp_path / "x.onnx", A, tensors, prefix="backbone.")
    second = write_safetensors(tmp_path / "x.safetensors", huggingface(A, tensors))
    for i, path in enumerate((first, second)):
        words = ["onnx", "--weights", path, "--size", "56x70", "-o", tmp_path / str(i)]
        done = CliRunner().invoke(export, [str(w) for w in words])
        assert done.exit_code == 0, done.output
    made = [read_manifest(tmp_path / str(i)) for i in (0, 1)]
    hashes = [{f.name: f.sha256 for f in m.files if f.name != "LICENSE"} for m in made]
    assert hashes[0] == hashes[1]
    assert made[0].source == Source(
        checkpoint="x.onnx", sha256=file_sha256(first), layout="huggingface"
    )


def test_numbers_of_every_type(tmp_path):
    expected = canonical(A)
    for kind in ("float16", "bfloat16", "float64", "listed", "listed float16", "listed bfloat16"):
        model = graph()
        for tensor in model.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT:
                store_as(tensor, kind)
        for name, values in read(saved(model, tmp_path)).items():
            error = np.abs(values - expected[name]).max()
            assert error <= (0.02 if "bf" in kind else 2e-3 if "16" in kind else 0), (kind, name)


def store_as(tensor, kind):
    import ml_dtypes

    types = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float64": np.float64}
    values = numpy_helper.to_array(tensor).astype(types.get(kind.split()[-1], np.float32))
    if not kind.startswith("listed"):
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        return
    tensor.ClearField("raw_data")
    if values.itemsize == 2:
        tensor.data_type = {"float16": 10, "bfloat16": 16}[kind.split()[-1]]
        tensor.int32_data.extend(values.view(np.uint16).ravel().tolist())
    else:
        tensor.float_data.extend(values.ravel().tolist())


def test_a_matrix_that_was_transposed_under_its_own_name(tmp_path):
    """The graph's use of a square matrix decides, because its shape does not."""
    model = graph(folded=False)
    name = "backbone.encoder.layer.0.attention.attention.query.weight"
    node = node_of(model, "layer.0/attention/attention/query/MatMul")
    node.input[1] = name
    tensor = constant_of(model, name)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).T.copy(), name))
    assert_same(read(saved(model, tmp_path)), canonical(A))


def test_equal_vectors_are_stored_once(tmp_path):
    tensors = canonical(A)
    zero = np.zeros(A.dim, np.float32)
    biases = [f"blocks.{n}.{p}.bias" for n in (0, 1) for p in "qkvo"]
    tensors |= dict.fromkeys(biases, zero)
    model = Export(A, tensors).build()
    equal = [t.name for t in model.graph.initializer if not any(numpy_helper.to_array(t).flat)]
    assert len(equal) >= len(biases)
    for node in model.graph.node:
        for i, value in enumerate(node.input):
            if value in equal:
                node.input[i] = equal[0]
    kept = [t for t in model.graph.initializer if t.name not in equal[1:]]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    assert_same(read(saved(model, tmp_path)), tensors)


def test_constants_in_nodes(tmp_path):
    """Some exporters write constants as nodes instead of initializers."""
    model = graph()
    held = list(model.graph.initializer)
    del model.graph.initializer[:]
    nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in held]
    nodes += list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    assert_same(read(saved(model, tmp_path)), canonical(A))


def test_nodes_that_only_their_biases_tell_apart(tmp_path):
    model = graph()
    for i, node in enumerate(model.graph.node):
        if node.op_type == "MatMul":
            node.name = f"node_{i}"
    assert_same(read(saved(model, tmp_path)), canonical(A))


def test_nodes_with_scopes_in_their_metadata(tmp_path):
    """Nodes are named as by torch.onnx since it exports what torch.export captured."""
    a = TINY["tiny-v3"]  # k has no bias
    model = Export(a, canonical(a)).build()
    for i, node in enumerate(model.graph.node):
        module = re.sub(r"/(?=[^/]*$).*", "", node.name).strip("/").replace("/", ".")
        scopes = repr(["", module.split(".")[0], module, f"linear_{i}"])
        node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
        node.name = f"node_{i}"
    assert_same(read(saved(model, tmp_path), a), canonical(a))
    for node in model.graph.node:
        node.metadata_props[0].value = "[" * 9000
    with pytest.raises(InputError, match="that is no parameter of DINOv2 or DINOv3"):
        read(saved(model, tmp_path), a)


def with_head(model, name):
    """Add a convolution of the tokens, whose weights have this name."""
    last = model.graph.output[0].name
    weight = numpy_helper.from_array(np.ones((1, A.dim, 1, 1), np.float32), name)
    model.graph.initializer.append(weight)
    model.graph.node.append(helper.make_node("Conv", [last, name], ["saliency"], "/decoder/Conv"))
    model.graph.output[0].name = "saliency"
    return model


def test_a_head_of_another_module_is_left_out(tmp_path):
    model = with_head(graph(), "decoder.final_conv.weight")
    assert_same(read(saved(model, tmp_path)), canonical(A))


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_what_may_be_of_the_backbone_is_not_left_out(prefix, tmp_path):
    model = with_head(graph(prefix=prefix), f"{prefix}decoder.final_conv.weight")
    refused(model, tmp_path, "tensors of no known encoder: decoder.final_conv.weight")


def test_a_matrix_that_is_added_to_the_encoder(tmp_path):
    """Without the matrix of an adapter, for instance, the tokens would differ."""
    for name in ("adapter.down", "onnx::MatMul_77"):
        model = graph()
        node = node_of(model, "layer.1/mlp/fc2/MatMul")
        values = np.ones((A.hidden, A.hidden), np.float32)
        model.graph.initializer.append(numpy_helper.from_array(values, name))
        place = list(model.graph.node).index(node)
        model.graph.node.insert(
            place, helper.make_node("MatMul", [node.input[0], name], ["more"], "/adapter/MatMul")
        )
        node.input[0] = "more"
        refused(model, tmp_path, "the MatMul '/adapter/MatMul' multiplies by a constant that is no")


def test_two_constants_for_one_parameter(tmp_path):
    model = graph()
    first, second = (node_of(model, f"layer.{n}/mlp/fc2/MatMul") for n in (0, 1))
    second.name = first.name
    refused(model, tmp_path, "two constants are used as 'encoder.layer.0.mlp.fc2.weight'")


def test_control_flow(tmp_path):
    weight = "backbone.encoder.layer.0.norm1.bias"
    branches = {
        "product": helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["y"])], "b", [], []),
        "weight": helper.make_graph([helper.make_node("Identity", [weight], ["y"])], "b", [], []),
        "own": helper.make_graph(
            [], "b", [], [], [numpy_helper.from_array(np.ones(2, np.float32), "own")]
        ),
    }
    choice = helper.make_node("If", ["c"], ["y"], then_branch=branches["own"])
    branches["nested"] = helper.make_graph([choice], "b", [], [])
    shapes = helper.make_graph([helper.make_node("Reshape", ["a", "b"], ["y"])], "b", [], [])
    cases = [("If", branch) for branch in branches.values()]
    cases += [("Loop", shapes), ("Scan", shapes), ("Custom", shapes)]
    for kind, branch in cases:
        model = graph()
        node = helper.make_node(kind, ["c"], ["y"], "/maybe", then_branch=branch)
        model.graph.node.append(node)
        refused(model, tmp_path, f"the {kind} '/maybe' decides at run time")
    # A graph may choose between shapes, as DINOv3's rotary positions do.
    model = graph()
    model.graph.node.append(helper.make_node("If", ["c"], ["y"], then_branch=shapes))
    assert_same(read(saved(model, tmp_path)), canonical(A))


def test_optimised_and_quantised_graphs(tmp_path):
    model = graph()
    node_of(model, "layer.0/norm1/LayerNormalization").domain = "com.microsoft"
    refused(model, tmp_path, r"com\.microsoft\.LayerNormalization, of a graph that was optimised")
    for kind in ("DequantizeLinear", "MatMulInteger", "DynamicQuantizeLinear", "QLinearMatMul"):
        model = graph()
        model.graph.node.append(helper.make_node(kind, ["a"], ["b"], "/quantised"))
        refused(model, tmp_path, "belongs to a quantised graph")
    model = graph()
    model.graph.sparse_initializer.add()
    refused(model, tmp_path, "holds sparse weights")


def test_graphs_of_other_networks(tmp_path):
    model = graph()
    for tensor in model.graph.initializer:
        tensor.name = tensor.name.replace("patch_embeddings", "stem")
    for node in model.graph.node:
        node.name = node.name.replace("patch_embeddings", "stem")
        node.input[:] = [v.replace("patch_embeddings", "stem") for v in node.input]
    refused(model, tmp_path, "holds no patch embedding of Hugging Face's DINOv2 or DINOv3")
    model, other = graph(), graph(prefix="teacher.")
    model.graph.node.extend(other.graph.node)
    model.graph.initializer.extend(other.graph.initializer)
    refused(model, tmp_path, "holds 2 patch embeddings")


def test_tensors_that_cannot_be_identified(tmp_path):
    model = graph()
    add = node_of(model, "embeddings/Add")
    add.input[1] = "pixel_values"
    refused(model, tmp_path, "lacks position")
    model = graph()
    del model.graph.initializer[0:1]
    refused(model, tmp_path, "no patch embedding")
    name = "backbone.encoder.layer.1.norm2.bias"
    model = graph()
    model.graph.initializer.remove(constant_of(model, name))
    refused(model, tmp_path, r"lacks blocks\.1\.norm2\.bias")


def test_damaged_files(tmp_path):
    data = graph().SerializeToString()
    refused(data[: len(data) // 2], tmp_path, "not an ONNX file, or truncated")
    refused(b"", tmp_path, "it has no nodes")
    refused(b"\xff" * 100, tmp_path, "not an ONNX file")
    model = graph()
    tensor = constant_of(model, "backbone.encoder.layer.0.norm1.bias")
    for dims, raw in (([A.dim], b"\0" * 12), ([-1], b""), ([-4, -16], b"\0" * 256), ([2**62], b"")):
        tensor.ClearField("dims")
        tensor.dims.extend(dims)
        tensor.raw_data = raw
        refused(model, tmp_path, r"norm1\.bias' of shape .* should have .*truncated or damaged")
    for kept in (0, 1):
        model = graph()
        del node_of(model, "layer.0/mlp/fc1/MatMul").input[kept:]
        refused(model, tmp_path, "fc1/MatMul' lacks inputs or outputs")
    model = graph()
    del node_of(model, "layer.0/mlp/fc1/Add").output[:]
    refused(model, tmp_path, "fc1/Add' lacks inputs or outputs")
    model = graph()
    constant_of(model, "backbone.encoder.layer.0.norm1.bias").raw_data = b"\xff" * 4 * A.dim
    refused(model, tmp_path, "holds values that are not finite")


def test_damaged_bytes_raise_only_input_errors(tmp_path):
    """The weights are small compared with the graph, so that most of the damage is in the graph."""
    a = replace(A, dim=4, hidden=4, patch=2)
    tensors = canonical(a)
    tensors["position"] = tensors["position"][:, :5]
    data = Export(a, tensors, prefix="backbone.").build().SerializeToString()
    assert_same(read(saved(data, tmp_path), a), tensors)
    assert sum(values.nbytes for values in tensors.values()) < len(data) / 2
    rng = np.random.default_rng(0)
    for _ in range(500):
        damaged = bytearray(data)
        for place in rng.integers(0, len(data), rng.integers(1, 4)):
            damaged[place] = rng.integers(0, 256)
        with contextlib.suppress(InputError):
            read(saved(bytes(damaged), tmp_path), a)


def split(tmp_path):
    """Export a model with its weights in a separate file; return the folder and the graph."""
    folder = tmp_path / "export"
    folder.mkdir()
    model = graph()
    onnx.save(
        model, str(folder / "model.onnx"), save_as_external_data=True,
        location="model.onnx_data", size_threshold=64,
    )  # fmt: skip
    return folder, onnx.load(str(folder / "model.onnx"), load_external_data=False)


def test_numbers_in_a_file_beside_it(tmp_path):
    folder, _ = split(tmp_path)
    with open_checkpoint(folder / "model.onnx", architecture=A) as checkpoint:
        assert_same({n: checkpoint.read(n) for n in checkpoint.names()}, canonical(A))
        assert [f.name for f in checkpoint.files] == ["model.onnx", "model.onnx_data"]
        before = checkpoint.sha256
        with pytest.raises(OutputError, match=r"holds .*model\.onnx"):
            export_bundle(checkpoint, SOURCE, [(56, 56)], folder, force=True)
    content = bytearray((folder / "model.onnx_data").read_bytes())
    content[0] ^= 1
    (folder / "model.onnx_data").write_bytes(content)
    with open_checkpoint(folder / "model.onnx", architecture=A) as checkpoint:
        assert checkpoint.sha256 != before


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("location", "../elsewhere", "lies in '../elsewhere', which is not a file in the same fol"),
        ("location", "/etc/passwd", "refused"),
        ("location", "a/../../elsewhere", "refused"),
        ("location", "..\\elsewhere", "refused"),
        ("location", "", "refused"),
        ("location", "x\0y", "refused"),
        ("location", "missing", "its file 'missing' is missing; copy it to the same folder"),
        ("location", ".", "refused"),
        ("location", "x" * 5000, "is missing; copy it"),
        ("offset", "-4", "truncated or damaged"),
        ("offset", str(2**70), "truncated or damaged"),
        ("offset", "many", "damaged: the offset or length of .* is not a number"),
        ("length", "8", "truncated or damaged"),
        ("length", "-8", "truncated or damaged"),
    ],
)
def test_places_that_are_refused(key, value, problem, tmp_path):
    folder, model = split(tmp_path)
    (tmp_path / "elsewhere").write_bytes(b"\0" * 100_000)
    tensor = constant_of(model, "backbone.encoder.layer.0.norm1.bias")
    entry = next(e for e in tensor.external_data if e.key == key)
    entry.value = value
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=problem):
        read(folder / "model.onnx")


def test_a_part_that_is_cut_off(tmp_path):
    folder, _ = split(tmp_path)
    part = folder / "model.onnx_data"
    os.truncate(part, part.stat().st_size // 2)
    with pytest.raises(InputError, match="truncated or damaged"):
        read(folder / "model.onnx")
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="is not a checkpoint"):
        read(folder / "model.onnx")
