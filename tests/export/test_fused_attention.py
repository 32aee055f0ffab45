"""The graph for ONNX Runtime's CUDA provider: attention in one node, the same tokens."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from checkpoints import TINY, make_bundle

from dinoreg_export.bundle import write
from dinoreg_export.bundle.files import GraphFile, write_files
from dinoreg_export.checkpoint.architecture import VitArchitecture
from dinoreg_export.checkpoint.random_weights import RandomWeights
from dinoreg_export.verify.compare import check_same_tokens, probe, run_graph
from dinoreg_rt.bundle.manifest import Manifest, check_files, file_sha256, read_manifest
from dinoreg_rt.bundle.opened import open_bundle
from dinoreg_rt.encoder.encoding import activation_bytes
from dinoreg_rt.errors import InputError

VITS = [name for name, a in TINY.items() if isinstance(a, VitArchitecture)]
GRID = (12, 10)


def both(name: str, folder: Path, precision: str, *, verified: bool = False) -> list[Path]:
    """Write the plain and the fused graph of a tiny encoder and return them."""
    a = TINY[name]
    size = (GRID[0] * a.patch, GRID[1] * a.patch)
    files = [GraphFile(f"{fused}.onnx", size, verified, fused) for fused in (False, True)]
    write_files(RandomWeights(a, 1), files, folder, precision)
    return [folder / file.name for file in files]


@pytest.mark.parametrize("name", VITS)
@pytest.mark.parametrize(("precision", "atol"), [("fp32", 1e-5), ("fp16", 0.01), ("bf16", 0.1)])
def test_same_tokens(name, precision, atol, tmp_path) -> None:
    """In half precision the shares of attention are not rounded before they are multiplied."""
    a = TINY[name]
    plain, fused = both(name, tmp_path, precision, verified=True)
    pixels = probe(GRID[0] * a.patch, GRID[1] * a.patch, 3)
    for one, other in zip(run_graph(fused, pixels), run_graph(plain, pixels), strict=True):
        assert np.abs(other).max() > 1
        np.testing.assert_allclose(one, other, rtol=0, atol=atol)


@pytest.mark.parametrize("name", VITS)
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_attention_is_one_node(name, precision, tmp_path) -> None:
    _, fused = both(name, tmp_path, precision)
    model = onnx.load(str(fused), load_external_data=False)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("MultiHeadAttention") == TINY[name].depth
    assert "Softmax" not in kinds
    assert {(o.domain, o.version) for o in model.opset_import} == {("", 18), ("com.microsoft", 1)}
    # No transposition of heads is left: one for the patches alone.
    assert kinds.count("Transpose") == 1


def test_bundles_hold_it(tmp_path) -> None:
    made = make_bundle(tmp_path / "b", sizes=[(64, 96)])
    assert made.graphs[0].fused == "encoder_64x96_cuda.onnx"
    check_files(read_manifest(tmp_path / "b"), tmp_path / "b")
    assert not list((tmp_path / "b").glob("probe*"))
    path = tmp_path / "b" / "encoder_64x96_cuda.onnx"
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(InputError, match=r"encoder_64x96_cuda\.onnx"):
        open_bundle(tmp_path / "b")


def test_its_hash_is_required(tmp_path) -> None:
    made = make_bundle(tmp_path / "b")
    files = tuple(file for file in made.files if file.name != made.graphs[0].fused)
    with pytest.raises(InputError, match=r"gives no hash for encoder_32x32_cuda\.onnx"):
        check_files(made.model_copy(update={"files": files}), tmp_path / "b")


def test_bundles_without_attention_or_for_the_cpu_have_none(tmp_path) -> None:
    conv = next(name for name in TINY if name not in VITS)
    one = make_bundle(tmp_path / "conv", RandomWeights(TINY[conv], 0), [(64, 64)])
    other = make_bundle(tmp_path / "int8", precision="int8", sizes=[(64, 64)])
    assert [m.graphs[0].fused for m in (one, other)] == [None, None]


def test_older_bundles_keep_their_hash(tmp_path) -> None:
    """Their engines and cached tokens remain valid."""
    made = json.loads(make_bundle(tmp_path / "b").model_dump_json())
    for graph in made["graphs"]:
        del graph["fused"]
    made["verification"] = None  # pydantic writes small numbers in another way
    old = Manifest.model_validate(made)
    assert old.graphs[0].fused is None
    text = {key: value for key, value in made.items() if key not in ("blocks", "layers")}
    as_before = json.dumps(text, separators=(",", ":"), ensure_ascii=False)
    assert old.hash() == hashlib.sha256(as_before.encode()).hexdigest()
    assert old.hash() != read_manifest(tmp_path / "b").hash()


def test_a_graph_with_other_tokens_is_refused(tmp_path, monkeypatch) -> None:
    write_both = write.write_files

    def spoiled(weights, graphs, folder, *args, **more):
        write_both(weights, graphs, folder, *args, **more)
        for graph in graphs:
            if graph.fused:
                model = onnx.load(str(folder / graph.name), load_external_data=False)
                for node in model.graph.node:
                    for attribute in node.attribute:
                        if attribute.name == "scale":
                            attribute.f = 30.0
                (folder / graph.name).write_bytes(model.SerializeToString())

    monkeypatch.setattr(write, "write_files", spoiled)
    with pytest.raises(InputError, match="for ONNX Runtime's CUDA provider differs"):
        make_bundle(tmp_path / "b", RandomWeights(TINY["tiny-v3"], 1), [(96, 96)])
    assert not (tmp_path / "b").exists()


def test_the_comparison_itself(tmp_path) -> None:
    plain, fused = both("tiny-v3", tmp_path, "fp32")
    a = TINY["tiny-v3"]
    check_same_tokens(plain, fused, (GRID[0] * a.patch, GRID[1] * a.patch))


def test_scores_take_no_memory(tmp_path) -> None:
    bundle = open_bundle((make_bundle(tmp_path / "b", sizes=[(320, 320)]), tmp_path / "b")[1])
    (graph,) = bundle.manifest.graphs
    tokens = np.prod(bundle.token_grid(graph)) + 5
    saved = activation_bytes(bundle, graph) - activation_bytes(bundle, graph, fused=True)
    assert saved == 2 * 4 * 16 * tokens**2
    assert file_sha256(tmp_path / "b" / graph.fused) != file_sha256(tmp_path / "b" / graph.file)
