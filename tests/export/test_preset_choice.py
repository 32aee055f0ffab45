"""Registration presets determine the size and the layer of an export."""

import json

import pytest
from checkpoints import TINY, canonical, huggingface, write_safetensors
from click.testing import CliRunner

from dinoreg_export.bundle import preset_choice
from dinoreg_export.bundle.preset_choice import encoder_presets, layers_at
from dinoreg_export.checkpoint import models
from dinoreg_export.cli import export
from dinoreg_rt.bundle.manifest import read_manifest
from dinoreg_rt.config.files import read_preset
from dinoreg_rt.errors import ConfigError

A = TINY["tiny-v3"]
PRESETS = {
    "balanced": {"encoder": "x", "token_grid": [3, 2]},
    "early": {"encoder": "x", "token_grid": [2, 4], "encoder_depth": 0.5},
    "mind": {},
    "without-grid": {"encoder": "x"},
}


@pytest.fixture
def presets(monkeypatch):
    there = dict(PRESETS)
    monkeypatch.setattr(preset_choice, "preset_names", lambda: sorted(there))
    monkeypatch.setattr(preset_choice, "read_preset", there.__getitem__)
    monkeypatch.setitem(models.ARCHITECTURES, A.name, A)
    option = next(p for p in export.commands["onnx"].params if p.name == "preset")
    monkeypatch.setattr(option.type, "choices", encoder_presets())
    return there


def made(tmp_path, *words):
    path = tmp_path / "x.safetensors"
    if not path.exists():
        write_safetensors(path, huggingface(A, canonical(A)))
    arguments = ["onnx", "--weights", path, "-o", tmp_path / "b", "--force", *words]
    done = CliRunner().invoke(export, [str(a) for a in arguments])
    assert done.exit_code == 0, done.output
    manifest = read_manifest(tmp_path / "b")
    return [(g.height, g.width) for g in manifest.graphs], manifest.layers, done.output


def test_the_presets_that_are_there():
    assert {"balanced", "fast", "paper", "dino-reg"} <= set(encoder_presets())
    assert "mind" not in encoder_presets()
    for name in encoder_presets():
        choice = preset_choice.preset_choice(name)
        assert choice.size(A) == tuple(16 * n for n in read_preset(name)["token_grid"])


def test_size_and_layer_of_a_preset(presets, tmp_path):
    sizes, layers, output = made(tmp_path, "--preset", "early")
    assert (sizes, layers) == ([(32, 64)], ("0",))
    assert "size 32x64 and layer 0: from the preset early" in output
    manifest = json.loads(made(tmp_path, "--preset", "early", "--json")[2])
    assert manifest["blocks"] == A.depth


def test_what_is_given_wins(presets, tmp_path):
    assert made(tmp_path, "--preset", "early", "--size", "16x16")[:2] == ([(16, 16)], ("0",))
    sizes, layers, output = made(tmp_path, "--preset", "early", "--layer", "final")
    assert (sizes, layers) == ([(32, 64)], ("final",))
    assert "size 32x64: from the preset early" in output
    sizes, layers, output = made(tmp_path, "--size", "16x32", "--layer", "0", "--preset", "early")
    assert (sizes, layers) == ([(16, 32)], ("0",))
    assert "from the preset" not in output


def test_the_default_preset(presets, tmp_path):
    sizes, layers, output = made(tmp_path)
    assert (sizes, layers) == ([(48, 32)], ("final",))
    assert "size 48x32 and layer final: from the preset balanced" in output
    presets["best-encoder"] = {"encoder": "x", "token_grid": [2, 2], "encoder_depth": 0.4}
    assert made(tmp_path)[:2] == ([(32, 32)], ("0",))
    # A given size disables the preset for the layer, too.
    assert made(tmp_path, "--size", "16x16")[1] == ("final",)


def test_presets_without_an_encoder(presets, tmp_path):
    for name in ("mind", "without-grid", "none-such"):
        words = ["--random-seed", "1", "--model", A.name, "-o", str(tmp_path / "b")]
        done = CliRunner().invoke(export, ["onnx", *words, "--preset", name])
        assert done.exit_code == 2
        assert "balanced" in done.output
        with pytest.raises(ConfigError, match="not a preset with an encoder; choose one of balan"):
            preset_choice.preset_choice(name)


@pytest.mark.parametrize(
    ("depth", "layer"),
    [(None, "final"), (1.0, "final"), (0.999, "11"), (0.75, "8"), (2 / 3, "7"), (0.01, "0")],
)
def test_relative_depth(depth, layer):
    assert layers_at(models.ARCHITECTURES["dinov3-vits16"], depth) == (layer,)


def test_depth_of_a_convnext():
    a = TINY["tiny-convnext"]
    assert layers_at(a, None) == layers_at(a, 1.0) == ("final",)
    with pytest.raises(ConfigError, match=r"ConvNeXt and has no tokens at the depth 0\.5"):
        layers_at(a, 0.5)
