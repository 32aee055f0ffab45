"""Whole exports, in Python and on the command line, write verified bundles or nothing."""

import hashlib
import json
import resource
import subprocess
import sys

import calm
import numpy as np
import onnx
import pytest
from checkpoints import TINY, canonical, huggingface, make_bundle, write_pth, write_safetensors
from click.testing import CliRunner

from dinoreg_export.bundle import write as bundle
from dinoreg_export.checkpoint import models
from dinoreg_export.checkpoint.architecture import VitArchitecture
from dinoreg_export.checkpoint.random_weights import RandomWeights
from dinoreg_export.cli import export
from dinoreg_export.verify import golden
from dinoreg_rt.bundle.manifest import Manifest, check_files, read_manifest
from dinoreg_rt.errors import ConfigError, InputError, OutputError

A = TINY["tiny-v3"]


def make(folder, precision="fp32", a=A, **options):
    sizes = [(64, 96), (96, 64)]
    return make_bundle(folder, RandomWeights(a, 0), sizes, precision=precision, **options)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_bundle_is_what_its_manifest_says(precision, tmp_path):
    made = make(tmp_path / "b", precision)
    manifest = read_manifest(tmp_path / "b")
    check_files(manifest, tmp_path / "b")
    assert manifest == made
    assert manifest.verification.mean_cosine > 0.9999
    assert manifest.verification.by_rounding == (precision == "bf16")
    listed = {"LICENSE", "weights.bin", "encoder_64x96.onnx", "encoder_96x64.onnx"}
    listed |= {"encoder_64x96_cuda.onnx", "encoder_96x64_cuda.onnx"}
    assert {file.name for file in manifest.files} == listed
    assert {p.name for p in (tmp_path / "b").iterdir()} == {"manifest.json", *listed}
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


@pytest.mark.parametrize("size", [(64, 100), (8, 64), (0, 64)])
def test_sizes_that_are_not_multiples_of_the_patch(size, tmp_path):
    with pytest.raises(ConfigError, match="patch of 16 pixels; the nearest size is"):
        make_bundle(tmp_path / "b", sizes=[size])


def test_an_error_about_int8_names_a_precision_that_passes(tmp_path):
    weights = calm.Weights(A, share=1.0, outlier=1000.0)
    with pytest.raises(InputError, match=r"the int8 graph does not agree.*--precision .* passes"):
        make_bundle(tmp_path / "b", weights, [(64, 64)], precision="int8")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_whatever_stops_it_leaves_nothing(error, tmp_path, monkeypatch):
    def stop(stage, fraction):
        if stage == "graphs":
            raise error

    wanted = OutputError if isinstance(error, OSError) else error
    with pytest.raises(wanted):
        make(tmp_path / "b", progress=stop)
    assert list(tmp_path.iterdir()) == []
    make(tmp_path / "b")
    before = (tmp_path / "b" / "manifest.json").read_bytes()
    with pytest.raises(wanted):
        make(tmp_path / "b", force=True, progress=stop)
    assert (tmp_path / "b" / "manifest.json").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["b"]


def test_a_full_disk(tmp_path):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limit[1]))
    try:
        with pytest.raises(OutputError, match="cannot be written: File too large"):
            make(tmp_path / "b")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert list(tmp_path.iterdir()) == []


def test_what_is_in_the_way(tmp_path):
    (tmp_path / "b").mkdir()
    with pytest.raises(OutputError, match="is not a bundle"):
        make(tmp_path / "b", force=True)
    make(tmp_path / "c")
    with pytest.raises(OutputError, match="--force replaces it"):
        make(tmp_path / "c")
    make(tmp_path / "c", "fp16", force=True)
    assert read_manifest(tmp_path / "c").precision == "fp16"


def run(*arguments):
    return CliRunner().invoke(export, [str(a) for a in arguments])


def test_command_with_random_weights(tmp_path):
    done = run("onnx", "--random-seed", 1, "--model", "dinov3-vits16", "--size", "32x48",
               "-o", tmp_path / "b", "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    manifest = json.loads(done.stdout)
    assert manifest["source"]["random_weights"]
    assert "Random weights" in (tmp_path / "b" / "LICENSE").read_text()
    assert json.loads(run("check", tmp_path / "b", "--json").stdout)["files"] == "as exported"


@pytest.fixture
def tiny_model(monkeypatch):
    """Words of a command that exports a tiny encoder with random weights."""
    monkeypatch.setitem(models.ARCHITECTURES, A.name, A)
    return ["--random-seed", "1", "--model", A.name]


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_a_stdout_that_cannot_be_written(words, tiny_model, tmp_path, monkeypatch):
    folder = str(tmp_path / "b")
    made = ["onnx", *tiny_model, "--size", "16x16", "-o", folder, "--force"]
    where = f"; the files were written to {folder}"
    for arguments, end in ((made, where), (["check", folder], "")):
        with open("/dev/full", "w") as full, monkeypatch.context() as patch:
            for stdout, reason in ((full, "No space left on device"), (None, "it is closed")):
                patch.setattr(sys, "stdout", stdout)
                text = f"cannot be printed: {reason}; redirect it elsewhere{end}$"
                with pytest.raises(OutputError, match=text):
                    export.main([*arguments, *words], standalone_mode=False)


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("dinov3_vitl16_pretrain_sat493m-eadcf0ff.pth", "satellite"),
        ("dinov3-vitl16-pretrain-SAT493M/model.safetensors", "satellite"),
        ("sat493m-and-others/dinov3_vits16_pretrain_lvd1689m-08c60483.pth", "imagenet"),
        ("model.safetensors", "imagenet"),
    ],
)
def test_normalisation_by_the_name_of_the_checkpoint(path, wanted, tmp_path):
    assert bundle.normalisation_of([tmp_path / path]) == wanted


def test_command_with_a_normalisation(tmp_path, tiny_model):
    path = write_pth(tmp_path / "x_sat493m.pth", huggingface(A, canonical(A)))
    for words, wanted in (([], "satellite"), (["--normalisation", "none"], "none")):
        done = run("onnx", "--weights", path, "--size", "32x32", "-o", tmp_path / wanted, *words)
        assert f"normalisation {wanted}" in done.output
        assert read_manifest(tmp_path / wanted).normalisation == bundle.NORMALISATIONS[wanted]


def test_command_errors(tmp_path):
    path = write_safetensors(tmp_path / "x.safetensors", huggingface(A, canonical(A)))
    done = run("onnx", "--weights", path, "--size", "32x48", "-o", tmp_path / "b")
    assert isinstance(done.exception, InputError)
    assert "no known architecture" in str(done.exception)
    wrong = ["32by48", f"{'1' * 5000}x16"]
    for arguments in (["--size", "32x48"], *(["--random-seed", 1, "--size", s] for s in wrong)):
        assert run("onnx", *arguments, "-o", tmp_path / "b").exit_code == 2
    assert not (tmp_path / "b").exists()


def test_golden_picture(tmp_path, monkeypatch):
    import SimpleITK as sitk

    manifest = make_bundle(tmp_path / "b", sizes=[(224, 224)])
    values = np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)
    picture = tmp_path / "p.png"
    sitk.WriteImage(sitk.GetImageFromArray(values, isVector=True), str(picture))
    pixels = golden._pixels(picture, manifest)
    tokens, _ = golden.run_graph(tmp_path / "b" / "encoder_224x224.onnx", pixels)
    with pytest.raises(InputError, match="no tokens are published for tiny-v3"):
        golden.golden_error(tmp_path / "b", manifest, picture)
    monkeypatch.setattr(golden, "PATCH_TOKENS", {"tiny-v3": tuple(tokens[0, 0, 0, :5])})
    done = run("check", tmp_path / "b", "--golden", picture)
    assert "published tokens: largest error" in done.output
    wrong = tuple(tokens[0, 0, 0, :5] + np.float32(0.01))
    monkeypatch.setattr(golden, "PATCH_TOKENS", {"tiny-v3": wrong})
    done = run("check", tmp_path / "b", "--golden", picture)
    assert "differs from the published tokens by 1.00e-02" in str(done.exception)


_CHILD = """
import sys, re, onnx, onnxruntime
from pathlib import Path
from dinoreg_export.bundle.write import export_bundle
from dinoreg_export.checkpoint.architecture import VitArchitecture
from dinoreg_export.checkpoint.read import open_checkpoint
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
before = peak()
with open_checkpoint(Path(sys.argv[1]), architecture=eval(sys.argv[3])) as checkpoint:
    export_bundle(checkpoint, checkpoint.source, [(112, 112)], Path(sys.argv[2]))
print(peak() - before)
"""


def test_peak_memory(tmp_path):
    """An export takes at most 1.3 times the checkpoint plus 60 MB that do not grow with it."""
    a = VitArchitecture("third-vitb", 3, 16, 768, 4, 12, 3072)
    noise = np.random.default_rng(0).normal(0, 0.04, 99991).astype(np.float32)
    shapes = a.parameters() | a.optional_parameters()
    tensors = {n: np.resize(noise, s) for n, s in shapes.items() if not n.endswith("k.bias")}
    path = write_safetensors(tmp_path / "x.safetensors", huggingface(a, tensors))
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, path, tmp_path / "b", repr(a)],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    size = path.stat().st_size / 2**20
    print(f"checkpoint {size:.0f} MiB, peak {float(done.stdout):.0f} MiB")
    assert float(done.stdout) < 1.3 * size + 60


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_layers_are_part_of_the_bundle(precision, tmp_path):
    made = make(tmp_path / "b", precision, layers=["-1", "final", "0"])
    assert made.layers == ("1", "final", "0")
    assert made.channels == 3 * A.dim == 3 * made.layer_channels
    assert made.verification.mean_cosine > 0.999
    assert read_manifest(tmp_path / "b") == made
    graph = onnx.load(str(tmp_path / "b" / "encoder_64x96.onnx"), load_external_data=False).graph
    assert [o.name for o in graph.output] == ["tokens", "cls"]
    assert [d.dim_value for d in graph.output[0].type.tensor_type.shape.dim][1:] == [4, 6, 192]
    assert made.layers_text == "block 1 + final layer + block 0"


def test_a_hash_tells_layers_apart_and_knows_old_bundles(tmp_path):
    hashes = {}
    for layers in ((), ("final",), ("-1",), ("0", "1"), ("1", "0")):
        made = make(tmp_path / "-".join(["b", *layers]), layers=layers)
        hashes[layers] = made.hash()
    assert hashes.pop(()) == hashes[("final",)]
    assert len(set(hashes.values())) == 4
    old = json.loads((tmp_path / "b" / "manifest.json").read_text())
    del old["layers"], old["blocks"]  # absent in manifests of older versions
    (tmp_path / "b" / "manifest.json").write_text(json.dumps(old))
    manifest = read_manifest(tmp_path / "b")
    assert manifest.layers == ("final",)
    assert manifest.layer_channels == manifest.channels
    assert manifest.hash() == hashes[("final",)]
    old["verification"] = None  # Python formats its small numbers differently
    plain = json.dumps(old, separators=(",", ":"))
    hashed_then = hashlib.sha256(plain.encode()).hexdigest()
    assert Manifest.model_validate(old).hash() == hashed_then


@pytest.mark.parametrize(
    "layers", [["1", "1"], [], ["-1"], ["01"], ["last"], ["0", "1", "final", "2", "3"]]
)
def test_a_manifest_with_damaged_layers_is_refused(layers, tmp_path):
    content = json.loads(make(tmp_path / "b").model_dump_json())
    with pytest.raises(ValueError, match="layers"):
        Manifest.model_validate(content | {"layers": layers})


@pytest.mark.parametrize(
    ("layers", "problem"),
    [
        (["2"], "tiny-v3 has the blocks 0 to 1 "),
        (["-3"], r"--layer -3: .*\(or -2 to -1, counted from the end\); give one of these"),
        (["last"], "or 'final'"),
        (["1.0"], "has the blocks"),
        (["9" * 5000], "has the blocks"),
        (["1", "0", "-1"], "--layer 1, 0, -1: layer 1 is given twice"),
        (["final", "final"], "layer final is given twice"),
    ],
)
def test_layers_that_are_refused(layers, problem, tmp_path):
    with pytest.raises(ConfigError, match=problem):
        make(tmp_path / "b", layers=layers)
    assert list(tmp_path.iterdir()) == []


def test_a_convnext_has_its_final_layer_alone(tmp_path):
    a = TINY["tiny-convnext"]
    with pytest.raises(ConfigError, match=r"a ConvNeXt, which gives only the layer 'final'"):
        make(tmp_path / "b", a=a, layers=["-1"])
    assert make(tmp_path / "b", a=a, layers=["final"]).layers == ("final",)


def test_command_with_layers(tmp_path, tiny_model):
    words = ["onnx", *tiny_model, "--size", "32x48", "-o", tmp_path / "b", "--layer", "1"]
    assert "layer 1 is given twice" in str(run(*words, "--layer", "-1", "--layer", 0).exception)
    done = run(*words, "--layer", "-2")
    assert done.exit_code == 0, done.output
    assert "block 1 + block 0" in done.output
    assert read_manifest(tmp_path / "b").layers == ("1", "0")


def test_published_tokens_are_of_the_final_layer(tmp_path, monkeypatch):
    manifest = make_bundle(tmp_path / "b", layers=["0"])
    monkeypatch.setattr(golden, "PATCH_TOKENS", {"tiny-v3": (0,) * 5})
    with pytest.raises(InputError, match="gives the tokens of block 0, but those of the final"):
        golden.golden_error(tmp_path / "b", manifest, tmp_path / "p.png")
