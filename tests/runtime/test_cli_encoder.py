"""`run --encoder`, `--save features` and `models`: files, messages and exit codes."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from click.testing import CliRunner, Result
from encoders import write_bundle
from phantoms import make_grid, make_phantom

from dinoreg_rt.commands.main import cli
from dinoreg_rt.console.progress import LineReporter, duration, reporting
from dinoreg_rt.encoder import estimate
from dinoreg_rt.io import write_volume

pytest.importorskip("onnx", reason="makes a small ONNX encoder: onnx is not installed")
pytest.importorskip("onnxruntime", reason="runs it: ONNX Runtime is not installed")


@pytest.fixture
def models(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("DINOREG_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("DINOREG_CACHE", str(tmp_path / "cache"))
    (tmp_path / "models").mkdir()
    return tmp_path / "models"


@pytest.fixture
def images(tmp_path) -> tuple[str, str]:
    grid = make_grid((20, 24, 28), (3.0, 3.0, 4.0))
    phantom = make_phantom(grid, grid)
    paths = tmp_path / "fixed.nii.gz", tmp_path / "moving.nii.gz"
    for path, volume in zip(paths, (phantom.fixed, phantom.moving), strict=True):
        write_volume(path, volume)
    return str(paths[0]), str(paths[1])


def call(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def run(images: tuple[str, str], out: Path, *words: object) -> Result:
    return call("run", "-f", images[0], "-m", images[1], "-o", out, "--threads", 1, "--no-qc",
                "--initial", "none", *words)  # fmt: skip


def test_an_encoder_by_name_with_its_features_written(images, models, tmp_path) -> None:
    write_bundle(models / "gabor", [(96, 112)], random_weights=True)
    out = tmp_path / "out"
    result = run(images, out, "--encoder", "gabor", "--components", 8, "--save", "features")
    assert result.exit_code == 0, result.stderr
    assert "features: 8 components of gabor-bank (fp32, gabor), RANDOM WEIGHTS" in result.stderr
    assert "engine: ort-cpu" in result.stderr
    assert "warning: the encoder's weights are random" in result.stderr
    report = json.loads((out / "report.json").read_text())
    encoding = report["encoding"]
    assert encoding["random_weights"]
    assert encoding["engine"] == "ort-cpu"
    assert encoding["planes"][0]["token_grid"] == [24, 28]
    assert len(encoding["planes"][0]["explained_variance"]) == 8
    assert report["versions"]["onnxruntime"]
    assert {"encode", "features", "trust"} <= report["timings_ms"].keys()
    assert report["trust"]["verdict"] == "trusted"
    assert 0 < report["quality"]["decoy_ratio"] < 0.98
    assert 0 < report["quality"]["unrelated_ratio"] < 0.62
    assert report["choices"]["trust"] == "judged by MIND-SSC, not by the encoder's features"
    for role in ("fixed", "moving"):
        image = sitk.ReadImage(str(out / f"features_{role}.nrrd"))
        assert image.GetNumberOfComponentsPerPixel() == 8
        assert image.GetSpacing() == pytest.approx((6.0, 6.0, 8.0))
        assert np.isfinite(sitk.GetArrayViewFromImage(image)).all()
    picture = sitk.GetArrayFromImage(sitk.ReadImage(str(out / "features.png")))
    assert picture.shape[1] == 1100
    assert picture[..., :3].std() > 10


def test_features_of_mind_can_be_written_too(images, models, tmp_path) -> None:
    out = tmp_path / "out"
    assert run(images, out, "--save", "features").exit_code == 0
    assert {"features_fixed.nrrd", "features_moving.nrrd", "features.png"} <= {
        p.name for p in out.iterdir()
    }
    assert json.loads((out / "report.json").read_text())["encoding"] is None


def test_a_preset_names_its_encoder(images, models, tmp_path) -> None:
    result = run(images, tmp_path / "out", "--preset", "paper")
    assert result.exit_code == 3
    assert "no encoder 'dinov3-vitl16'" in result.stderr
    assert not (tmp_path / "out").exists()
    write_bundle(models / "gabor", [(448, 384)])
    words = ("--preset", "paper", "--encoder", "gabor", "--slice-stride", 4)
    result = run(images, tmp_path / "out", *words, "--dry-run")
    assert result.exit_code == 0, result.stderr
    assert "tokens: 112 x 96 tokens in 6 + 6 axial slices" in result.stderr


def test_a_changed_bundle_is_refused(images, models, tmp_path) -> None:
    folder = write_bundle(models / "gabor", [(96, 112)])
    graph = folder / "encoder_96x112.onnx"
    content = bytearray(graph.read_bytes())
    content[-20] ^= 1
    graph.write_bytes(content)
    result = run(images, tmp_path / "out", "--encoder", "gabor")
    assert result.exit_code == 3
    assert "changed since the export" in result.stderr
    check = call("models", "check")
    assert check.exit_code == 3
    assert "1 of 1 encoders cannot be used: gabor" in check.stderr
    assert "changed since the export" in check.stdout


def test_models_list(models) -> None:
    assert "no encoder in" in call("models", "list").stdout
    write_bundle(models / "gabor", [(24, 32), (32, 32)], random_weights=True)
    (models / "broken").mkdir()
    (models / "broken" / "manifest.json").write_text("{}")
    text = call("models", "list").stdout
    assert "gabor-bank" in text
    assert "random" in text
    found = json.loads(call("models", "list", "--json").stdout)["models"]
    assert found["gabor"]["sizes"] == ["24x32", "32x32"]
    assert "not a manifest" in found["broken"]["problem"]


def test_models_check(models) -> None:
    write_bundle(models / "a", [(24, 32)])
    assert call("models", "check").stdout == "a: all files as exported\n"
    assert json.loads(call("models", "check", "a", "--json").stdout) == {"models": {"a": None}}
    missing = call("models", "check", "b")
    assert missing.exit_code == 3
    assert "no encoder 'b'" in missing.stdout


def test_models_check_continues_after_unreadable_encoders(models, monkeypatch) -> None:
    for name in ("a", "b", "c"):
        write_bundle(models / name, [(24, 32)])
    (models / "b" / "manifest.json").write_bytes(b"\xff\xff")
    path_open = Path.open

    def locked(path: Path, *words: object, **options: object) -> object:
        if path == models / "a" / "encoder_24x32.onnx":
            raise PermissionError(13, "Permission denied", str(path))
        return path_open(path, *words, **options)

    monkeypatch.setattr(Path, "open", locked)
    check = call("models", "check")
    assert check.exit_code == 3
    a, b, c = check.stdout.splitlines()
    assert "cannot be read: Permission denied" in a
    assert "not a manifest" in b
    assert c == "c: all files as exported"
    listed = json.loads(call("models", "list", "--json").stdout)["models"]
    assert "problem" in listed["b"]
    assert listed["c"]["model"] == "gabor-bank"


def test_models_check_looks_into_the_folder_of_models(models, monkeypatch, tmp_path) -> None:
    write_bundle(models / "a", [(24, 32)])
    (tmp_path / "here" / "a").mkdir(parents=True)
    (tmp_path / "here" / "a" / "manifest.json").write_text("{}")
    monkeypatch.chdir(tmp_path / "here")
    assert call("models", "check").stdout == "a: all files as exported\n"


def test_names_are_not_markup(models, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DINOREG_MODELS", str(models / "[red]all"))
    write_bundle(models / "[red]all" / "[bold]x", [(24, 32)], model="[i]:x:")
    (models / "[red]all" / "[b]broken").mkdir()
    (models / "[red]all" / "[b]broken" / "manifest.json").write_text("{}")
    text = call("models", "list").stdout
    for name in ("[red]all", "[bold]x", "[i]:x:", "[b]broken"):
        assert name in text.replace("\n", "")


def test_a_staging_folder_is_not_an_encoder(models) -> None:
    write_bundle(models / ".gabor.k2", [(24, 32)])
    assert "no encoder in" in call("models", "list").stdout
    assert "no encoder in" in call("models", "check").stdout


def test_names_of_folders_that_are_too_long(images, models, tmp_path, monkeypatch) -> None:
    write_bundle(models / "gabor", [(24, 28)])
    long, out = str(tmp_path / ("x" * 300)), tmp_path / "out"
    assert run(images, out, "--encoder", long).exit_code == 3
    monkeypatch.setenv("DINOREG_CACHE", long)
    result = run(images, out, "--encoder", "gabor", "--components", 4, "--no-trust")
    assert result.exit_code == 0, result.output
    monkeypatch.setenv("DINOREG_MODELS", long)
    assert run(images, tmp_path / "other", "--encoder", "gabor").exit_code == 3
    assert call("models", "list").exit_code == 3
    assert call("models", "check").exit_code == 3


def test_progress_says_speed_and_time_left(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr("dinoreg_rt.console.progress.time.monotonic", lambda: now[0])
    log = StringIO()
    reporter = LineReporter(log)
    reporter.expect("encode fixed", 40, "slices")
    reporter("encode fixed", 0.0)
    now[0] = 4.0  # the time to open the encoder does not count for the speed
    reporter("encode fixed", 0.0)
    for now[0], fraction in ((9.0, 0.125), (24.0, 0.25), (1204.0, 0.5), (1244.0, 0.75)):
        reporter("encode fixed", fraction)
    assert log.getvalue() == (
        "encode fixed: 10 of 40 slices after 24 s, 0.5 slices/s, 60 s left\n"
        "encode fixed: 20 of 40 slices after 20 min, 0.0167 slices/s, 20 min left\n"
    )


def test_a_terminal_shows_the_same(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr("dinoreg_rt.console.progress.time.monotonic", lambda: now[0])
    terminal = StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setenv("COLUMNS", "120")
    with reporting(quiet=False, stream=terminal) as reporter:
        reporter.expect("encode moving", 40, "slices")
        reporter("encode moving", 0.0)
        now[0] = 20.0
        reporter("encode moving", 0.25)
        reporter._bars.refresh()
        assert "10 of 40 slices, 0.5 slices/s, 60 s left" in terminal.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (99.4, "99 s"), (100, "2 min"), (5900, "98 min"), (7500, "2 h 05 min")],
)
def test_durations(seconds, text) -> None:
    assert duration(seconds) == text


def test_a_dry_run_estimates_the_encoding(images, models, tmp_path, monkeypatch) -> None:
    """Cached slices cost nothing, and an unknown encoder gets no estimate of the time."""
    write_bundle(models / "gabor", [(48, 56)], patch=4)
    words = ("--encoder", "gabor", "--components", 4, "--slice-stride", 3, "--no-trust")
    dry = run(images, tmp_path / "out", *words, "--dry-run")
    assert "\nencoding       16 slices\n" in dry.stdout
    monkeypatch.setattr(estimate, "slice_operations", lambda bundle, graph: 2e11)
    monkeypatch.setattr(estimate, "_product_rate", lambda threads: 1e11 * threads)
    dry = run(images, tmp_path / "out", *words, "--dry-run")
    said = "encoding       about 42 s on this CPU (16 slices of 0.2 TFLOP at 0.077 TFLOP/s)\n"
    assert said in dry.stdout
    planned = json.loads(run(images, tmp_path / "out", *words, "--dry-run", "--json").stdout)
    assert planned["encoding"] == {"slices": 16, "cached_slices": 0, "seconds": 41.6}
    assert not (tmp_path / "cache").exists()
    done = run(images, tmp_path / "out", *words)
    assert "encoding: about 42 s on this CPU" in done.stderr
    dry = run(images, tmp_path / "out", *words, "--dry-run")
    assert "encoding       nothing to encode: all 16 slices are in the cache\n" in dry.stdout
    dry = run((images[0], images[0]), tmp_path / "out", *words, "--dry-run")
    assert "nothing to encode" in dry.stdout
    encoded = run((images[0], images[1]), tmp_path / "out", *words, "--dry-run", "--no-cache")
    assert "16 slices of 0.2" in encoded.stdout


def test_the_rate_of_products_is_of_cores(monkeypatch) -> None:
    monkeypatch.setattr(estimate.psutil, "cpu_count", lambda logical: 4)
    one = estimate._product_rate(1)
    assert one is not None
    assert 1e8 < one < 1e13
    monkeypatch.setattr(estimate, "_PRODUCTS", "print(1e11)")
    assert estimate._product_rate(3) == 3e11
    assert estimate._product_rate(8) == 4e11  # two threads on each core
    monkeypatch.setattr(estimate, "_PRODUCTS", "import nothing_of_that_name")
    assert estimate._product_rate(1) is None


def test_a_real_pair_with_a_random_vision_transformer(models, tmp_path) -> None:
    """A twelve-block encoder from a seed, on an MR and a CT: the plumbing, not the quality."""
    pytest.importorskip("ml_dtypes", reason="exports an encoder: pip install '.[export]'")
    exported = call("export", "onnx", "--model", "dinov3-vits16", "--random-seed", 1,
                    "--size", "128x160", "-o", models / "random-s", "-q")  # fmt: skip
    assert exported.exit_code == 0, exported.stderr
    data = Path(__file__).parents[1] / "data" / "abdomen"
    result = call("run", "-f", data / "mr.nii.gz", "-m", data / "ct.nii.gz", "-o", tmp_path / "out",
                  "--encoder", "random-s", "--slice-stride", 6, "--threads", 1, "--no-qc",
                  "--accept-untrusted")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "RANDOM WEIGHTS: its features mean nothing" in result.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["encoding"]["model"] == "dinov3-vits16"
    assert len(report["encoding"]["planes"][0]["explained_variance"]) == 24
