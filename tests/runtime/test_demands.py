"""Requests that cannot be met, or would go unused, are reported before an image is read."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result
from encoders import write_bundle

import dinoreg_rt
from dinoreg_rt.commands.main import cli
from dinoreg_rt.config.parameters import RegistrationConfig
from dinoreg_rt.device.choice import Device
from dinoreg_rt.errors import ConfigError, DeviceError, InputError
from dinoreg_rt.images.phantom import phantom_grid, phantom_pair
from dinoreg_rt.registration import demands
from dinoreg_rt.registration.demands import check_demands, check_used, choose_machine

NO_GPU = "there is no NVIDIA driver on this machine"


@pytest.fixture
def no_gpu(monkeypatch) -> None:
    monkeypatch.setattr("dinoreg_rt.device.choice.cuda_problem", lambda index: NO_GPU)


@pytest.fixture
def gpu(monkeypatch) -> None:
    monkeypatch.setattr("dinoreg_rt.device.choice.cuda_problem", lambda index: None)


def choose(**values: Any) -> tuple[Device, str]:
    return choose_machine(RegistrationConfig(**values))


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu() -> None:
    assert choose()[0].kind == "cpu"
    with pytest.raises(DeviceError, match=f"--device cuda: {NO_GPU}"):
        choose(device="cuda")
    wanted = rf"--engine tensorrt .* needs a GPU, and the device is cpu, because {NO_GPU}"
    with pytest.raises(DeviceError, match=wanted):
        choose(engine="tensorrt", encoder="x")
    with pytest.raises(ConfigError, match="GPU, and the device is the CPU; use --device cuda or"):
        choose(device="cpu", engine="ort-cuda", encoder="x")
    with pytest.raises(
        ConfigError, match=r"--gpu-memory 8GB .* use --device cuda or omit --gpu-memory"
    ):
        choose(gpu_memory_gb=8)


@pytest.mark.usefixtures("gpu")
def test_with_a_gpu(monkeypatch) -> None:
    monkeypatch.setattr(demands, "_importable", lambda module: module != "tensorrt_rtx")
    for engine in ("tensorrt", "ort-cuda", "auto"):
        assert choose(engine=engine, encoder="x", gpu_memory_gb=8)[0].kind == "cuda"
    with pytest.raises(DeviceError, match=r"tensorrt_rtx is not installed; .*\[gpu,rtx\]"):
        choose(engine="tensorrt-rtx", encoder="x")
    with pytest.raises(ConfigError, match="--gpu-memory"):
        choose(device="cpu", gpu_memory_gb=8)


@pytest.mark.parametrize("engine", ["ort-cpu", "openvino"])
def test_an_engine_without_an_encoder(engine) -> None:
    with pytest.raises(ConfigError, match=rf"--engine {engine} runs an encoder, and no encoder"):
        choose(device="cpu", engine=engine)


def test_planning_and_a_registrar_say_it_too() -> None:
    config = RegistrationConfig(device="cpu", gpu_memory_gb=8)
    pair = phantom_pair(phantom_grid((16, 16, 16), 4.0))
    for attempt in (
        lambda: dinoreg_rt.plan(*pair, config),
        lambda: dinoreg_rt.register(*pair, config=config),
        lambda: dinoreg_rt.Registrar(config),
    ):
        with pytest.raises(ConfigError, match="--gpu-memory"):
            attempt()


def table(folder: Any) -> str:
    """A table of one pair whose image files hold no images."""
    for role in ("fixed", "moving"):
        (folder / f"{role}.nii.gz").write_bytes(b"no image")
    (folder / "pairs.csv").write_text("pair,fixed,moving\na,fixed.nii.gz,moving.nii.gz\n")
    return str(folder / "pairs.csv")


@pytest.fixture
def ask(tmp_path, monkeypatch) -> Callable[..., Result]:
    """Run a command for images that must not be opened and an output that must not be made."""

    def opened(*_: Any, **__: Any) -> None:
        raise AssertionError("an image was opened")

    def run(command: str, *asked: str) -> Result:
        words = command.split()
        if command == "sweep":
            words += ["--pairs", table(tmp_path)]
        else:
            words += ["-f", "a.nii.gz", "-m", "b.nii.gz"]
        words += ["-o", str(tmp_path / "out")] if words[0] in ("run", "sweep") else []
        done = CliRunner().invoke(cli, [*words, *asked])
        assert not (tmp_path / "out").exists()
        return done

    monkeypatch.setattr("dinoreg_rt.io.read_volume", opened)
    monkeypatch.setattr("dinoreg_rt.sweep.trials._file_hash", opened)
    monkeypatch.chdir(tmp_path)
    return run


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (["--device", "cuda"], 5),
        (["--engine", "tensorrt"], 5),
        (["--engine", "tensorrt", "--encoder", "x"], 5),
        (["--engine", "ort-cpu"], 4),
        (["--gpu-memory", "8GB"], 4),
        (["--components", "8"], 4),
        (["--axis", "axial", "--mind-weight", "1"], 4),
    ],
)
@pytest.mark.parametrize("command", ["run", "run --dry-run", "sweep", "bench"])
def test_no_image_is_opened(command, asked, code, ask) -> None:
    done = ask(command, *asked)
    assert done.exit_code == code, done.output


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        ("no/such/folder", "no encoder 'no/such/folder'"),
        ("no/such/model.safetensors", "no encoder 'no/such/model.safetensors'"),
        ("empty", "empty: is not an encoder bundle"),
        ("corrupt", "manifest.json: not a manifest"),
    ],
)
@pytest.mark.parametrize("engine", ["auto", "ort-cpu"])
@pytest.mark.parametrize("command", ["run", "run --dry-run", "sweep", "bench", "probe"])
def test_a_wrong_encoder_comes_before_the_images(
    command, engine, encoder, message, ask, tmp_path
) -> None:
    for name in ("empty", "corrupt"):
        (tmp_path / name).mkdir()
    (tmp_path / "corrupt" / "manifest.json").write_text("{")
    named = [encoder] if command == "probe" else ["--encoder", encoder]
    done = ask(command, *named, "--engine", engine, "--device", "cpu")
    assert done.exit_code == 3, done.output
    assert message in done.stderr


def test_an_encoder_that_is_not_there_comes_before_the_images(tmp_path, monkeypatch) -> None:
    def opened(*_: Any, **__: Any) -> None:
        raise AssertionError("an image was opened")

    monkeypatch.setattr("dinoreg_rt.registration.case.as_volume", opened)
    config = RegistrationConfig(device="cpu", encoder=str(tmp_path / "none"))
    for attempt in (
        lambda: dinoreg_rt.plan("a.nii.gz", "b.nii.gz", config),
        lambda: dinoreg_rt.register("a.nii.gz", "b.nii.gz", config=config),
        lambda: dinoreg_rt.Registrar(config),
    ):
        with pytest.raises(InputError, match="no encoder"):
            attempt()


def test_checks_by_the_manifest_alone(tmp_path) -> None:
    """Neither the bundle's other files nor an image is read."""
    pytest.importorskip("onnx", reason="makes a small ONNX encoder: onnx is not installed")
    folder = write_bundle(tmp_path / "gabor", [(24, 32), (32, 24)], patch=4)

    def check(**values: Any) -> None:
        check_demands(RegistrationConfig(device="cpu", encoder=str(folder), **values))

    (folder / "encoder_24x32.onnx").write_bytes(b"a change is only found when it is opened")
    check()
    check(token_grid=(6, 8), engine="ort-cpu")
    with pytest.raises(ConfigError, match="holds no graph of 6 x 9 tokens"):
        check(token_grid=(6, 9))
    with pytest.raises(ConfigError, match="--components 64: gabor-bank"):
        check(components=64)
    (folder / "encoder_24x32.onnx").unlink()
    with pytest.raises(InputError, match=r"its file encoder_24x32\.onnx is missing"):
        check()
    in_bfloat16 = write_bundle(tmp_path / "half", [(24, 32)], patch=4, precision="bf16")
    with pytest.raises(ConfigError, match="no matrix products in bfloat16"):
        check_demands(RegistrationConfig(device="cpu", encoder=str(in_bfloat16), engine="ort-cpu"))


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"encoder_depth": 0.5}, r"--encoder-depth .*gabor is a bundle, .* --layers"),
        ({"mind_weight": 1.0, "search_features": ("encoder", "mind"),
          "refinement_features": "mind"}, "--mind-weight .* no stage joins them"),
        ({"token_smoothing_mm": 9.0, "token_centre": "image"}, "has --token-centre image"),
        ({"slice_scale": "body", "body_mask": "off"}, "--slice-scale body .* --body-mask off"),
    ],
)  # fmt: skip
def test_what_an_encoder_would_leave_unused(given, error, tmp_path) -> None:
    """Where it was given on the command line; in a preset or a file it may stand."""
    pytest.importorskip("onnx", reason="makes a small ONNX encoder: onnx is not installed")
    folder = write_bundle(tmp_path / "gabor", [(24, 32)], patch=4)
    config = RegistrationConfig(device="cpu", encoder=str(folder), **given)
    with pytest.raises(ConfigError, match=error):
        check_used(config, given)
    check_used(config, ["encoder", "device"])


def test_what_an_encoder_uses(tmp_path) -> None:
    pytest.importorskip("onnx", reason="makes a small ONNX encoder: onnx is not installed")
    folder = write_bundle(tmp_path / "gabor", [(24, 32)], patch=4)
    (tmp_path / "model.safetensors").write_bytes(b"not read yet")
    for encoder, values in (
        (tmp_path / "model.safetensors", {"encoder_depth": 0.5}),
        (folder, {"mind_weight": 1.0, "search_features": ("joined", "mind"),
                  "refinement_features": "mind"}),
        (folder, {"mind_weight": 1.0, "search_features": ("encoder",)}),
        (folder, {"mind_weight": 0.0}),
        (folder, {"token_smoothing_mm": 9.0}),
        (folder, {"slice_scale": "common", "body_mask": "off"}),
    ):  # fmt: skip
        check_used(RegistrationConfig(encoder=str(encoder), **values), values)
    with pytest.raises(InputError, match="no encoder 'nothing'"):
        check_used(RegistrationConfig(encoder="nothing"), ["encoder_depth"])


@pytest.mark.usefixtures("no_gpu")
def test_a_swept_engine(ask, monkeypatch) -> None:
    monkeypatch.setattr(demands, "check_encoder", lambda config, device: None)
    done = ask("sweep", "--encoder", "x", "--grid", "engine=auto,tensorrt")
    assert (done.exit_code, "--engine tensorrt" in done.output) == (5, True)


@pytest.mark.parametrize("command", ["run -f a.nii.gz -m b.nii.gz -o out", "bench"])
def test_a_missing_gpu_is_reported_before_the_slow_imports(command) -> None:
    code = (
        "import sys, time\n"
        "from dinoreg_rt.commands.main import cli\n"
        f"words = {[*command.split(), '--device', 'cuda']!r}\n"
        "code = cli.main(words, standalone_mode=False)\n"
        "slow = {'dinoreg_rt.bench.measure', 'dinoreg_rt.registration.register'}\n"
        "slow |= {'SimpleITK', 'scipy', 'cupy'}\n"
        "print(code, sorted(slow & set(sys.modules)), time.process_time() < 3)\n"
    )
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )
    assert ended.stdout == "5 [] True\n"
    assert "--device cpu runs without a GPU" in ended.stderr
