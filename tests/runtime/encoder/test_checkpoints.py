"""Checkpoints given as an encoder are exported once into the cache, then used."""

import sys
from pathlib import Path

import numpy as np
import pytest

for package in ("onnx", "onnxruntime"):
    pytest.importorskip(package, reason=f"makes or runs an encoder: {package} is not installed")
sys.path.insert(0, str(Path(__file__).parents[2] / "export"))
from checkpoints import TINY, canonical, huggingface, write_safetensors  # noqa: E402
from click.testing import CliRunner  # noqa: E402
from phantoms import make_grid, make_phantom  # noqa: E402

import dinoreg_rt  # noqa: E402
from dinoreg_export.bundle import on_demand  # noqa: E402
from dinoreg_export.checkpoint import models  # noqa: E402
from dinoreg_rt.bundle import checkpoints  # noqa: E402
from dinoreg_rt.bundle.checkpoints import Wanted, bundle_folder, is_checkpoint  # noqa: E402
from dinoreg_rt.commands.main import cli  # noqa: E402
from dinoreg_rt.encoder.open_encoders import EncoderPool  # noqa: E402
from dinoreg_rt.errors import DeviceError, InputError, OutputError  # noqa: E402

A = TINY["tiny-v3"]
WANTED = Wanted((3, 4), 0.5)


@pytest.fixture
def snapshot(tmp_path, monkeypatch):
    """Return a folder with weights, with an empty cache."""
    monkeypatch.setenv("DINOREG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setitem(models.ARCHITECTURES, A.name, A)
    folder = tmp_path / "snapshot"
    folder.mkdir()
    write_safetensors(folder / "model.safetensors", huggingface(A, canonical(A)))
    (folder / "config.json").write_text('{"model_type": "dinov3_vit"}')
    return folder


def exports(tmp_path):
    return sorted(p.name for p in (tmp_path / "cache" / "encoders").glob("*"))


def test_what_is_a_checkpoint(snapshot, tmp_path):
    assert is_checkpoint(str(snapshot))
    assert is_checkpoint(str(snapshot / "model.safetensors"))
    (tmp_path / "repository" / "refs").mkdir(parents=True)
    (tmp_path / "repository" / "refs" / "main").touch()
    assert is_checkpoint(str(tmp_path / "repository"))
    bundle = bundle_folder(str(snapshot), WANTED)
    for other in (bundle, bundle / "weights.bin", tmp_path, tmp_path / "missing.onnx", "x" * 5000):
        assert not is_checkpoint(str(other))
    (bundle / "config.json").touch()  # still a bundle
    assert not is_checkpoint(str(bundle))


def test_a_folder_without_weights_is_reported_before_an_image_is_read(snapshot):
    (snapshot / "model.safetensors").rename(snapshot / "model.bin")
    words = ["run", "-f", "no.nii", "-m", "no.nii", "-o", "out", "--encoder", str(snapshot)]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 3
    assert "but has no file of weights (.safetensors, .onnx, .pth)" in result.stderr


def test_exported_once_and_found_again(snapshot, tmp_path, monkeypatch):
    with EncoderPool() as pool:
        bundle = pool.bundle(str(snapshot), WANTED)
        assert pool.bundle(str(snapshot), WANTED) is bundle
    assert bundle.manifest.layers == ("0",)
    assert bundle.folder.parent == tmp_path / "cache" / "encoders"
    assert {(g.height, g.width) for g in bundle.manifest.graphs} == {(48, 64), (64, 48)}
    assert bundle.exported_from == str(snapshot)
    monkeypatch.setattr(on_demand, "export_bundle", None)
    with EncoderPool() as pool:
        again = pool.bundle(str(snapshot / "model.safetensors"), WANTED)
    assert again.folder == bundle.folder


def test_other_settings_make_another_bundle(snapshot, tmp_path, monkeypatch):
    first = bundle_folder(str(snapshot), WANTED)
    assert bundle_folder(str(snapshot), Wanted((4, 3), 0.5)) == first  # the same two graphs
    others = [bundle_folder(str(snapshot), w) for w in (Wanted((3, 4), None), Wanted((2, 2), 0.5))]
    monkeypatch.setattr(on_demand, "exporter_version", lambda: "other")
    others.append(bundle_folder(str(snapshot), WANTED))
    tensors = canonical(A, seed=3)
    write_safetensors(snapshot / "model.safetensors", huggingface(A, tensors))
    others.append(bundle_folder(str(snapshot), WANTED))
    assert len({first, *others}) == 5 == len(exports(tmp_path))


def test_the_default_preset_sets_the_grid(snapshot, monkeypatch):
    choice = on_demand.preset_choice(None)
    seen = []
    monkeypatch.setattr(on_demand, "export_bundle", lambda c, s, sizes, *a, **k: seen.append(sizes))
    bundle_folder(str(snapshot), Wanted())
    assert choice.size(A) in seen[0]


def test_a_changed_bundle_in_the_cache_is_exported_again(snapshot):
    folder = bundle_folder(str(snapshot), WANTED)
    content = (folder / "weights.bin").read_bytes()
    (folder / "weights.bin").write_bytes(content[:-1] + b"\1")
    with EncoderPool() as pool:
        assert pool.bundle(str(snapshot), WANTED).folder == folder
    assert (folder / "weights.bin").read_bytes() == content


def test_another_process_may_finish_first(snapshot, monkeypatch):
    export = on_demand.export_bundle

    def late(*args, **options):
        export(*args, **options)
        export(*args, **options)  # finds the first one's

    monkeypatch.setattr(on_demand, "export_bundle", late)
    assert (bundle_folder(str(snapshot), WANTED) / "manifest.json").exists()


def test_errors(snapshot, tmp_path, monkeypatch):
    (snapshot / "config.json").write_text('{"model_type": "dinov2"}')
    with pytest.raises(InputError, match="says model_type 'dinov2'"):
        bundle_folder(str(snapshot), WANTED)
    (snapshot / "config.json").unlink()
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        bundle_folder(str(snapshot), WANTED)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(DeviceError, match=r"is a checkpoint, not a .*dinoreg-rt\[export,cpu"):
        bundle_folder(str(snapshot), WANTED)
    monkeypatch.setattr(checkpoints, "entry_points", lambda group: [])
    with pytest.raises(DeviceError, match="this installation has no exporter"):
        bundle_folder(str(snapshot), WANTED)


def test_a_registration_with_a_snapshot(snapshot, tmp_path):
    grid = make_grid((16, 20, 24), (4.0, 4.0, 4.0))
    pair = make_phantom(grid, grid)
    config = dinoreg_rt.RegistrationConfig(
        encoder=str(snapshot), token_grid=(3, 4), encoder_depth=0.5, threads=1, iterations=(1,),
        trust=False,
    )  # fmt: skip
    result = dinoreg_rt.register(pair.fixed, pair.moving, config=config)
    (name,) = exports(tmp_path)
    folder = tmp_path / "cache" / "encoders" / name
    assert result.choices["encoder"] == f"exported from {snapshot} to {folder}"
    assert "block 0" in result.choices["features"]
    assert "layer" not in result.choices
    by_bundle = config.model_copy(update={"encoder": str(folder)})
    again = dinoreg_rt.register(pair.fixed, pair.moving, config=by_bundle)
    assert "encoder" not in again.choices
    fields = [r.displacement.vectors_mm for r in (again, result)]
    np.testing.assert_array_equal(*fields)
    other = by_bundle.model_copy(update={"encoder_depth": 1.0})
    doubt = dinoreg_rt.register(pair.fixed, pair.moving, config=other).choices["layer"]
    assert doubt.startswith("block 0, as the bundle has it, where the configuration means that at")
