"""`dinoreg-rt bench`: consistent numbers, the comparison with a peer, refusals."""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from encoders import write_bundle

import dinoreg_rt
from dinoreg_export.checkpoint.models import slice_operations
from dinoreg_rt.bench.tables import Distribution, Run
from dinoreg_rt.commands.main import cli
from dinoreg_rt.device.ceilings import Ceilings, best_seconds, measure_ceilings
from dinoreg_rt.device.choice import Device
from dinoreg_rt.images.phantom import phantom_grid, phantom_pair
from dinoreg_rt.io import write_volume
from dinoreg_rt.registration import needs
from dinoreg_rt.registration.sizes import Work

CEILINGS = Ceilings(1e9, 4e9, 1e9, 8e9, "float16", "made up")
PLANNING = ("plan", "modality", "alignment")
STAGES = [*PLANNING, "field of view", "features", "solve", "trust", "warp", "quality", "hash"]
STAGES += ["deliver", "other"]
ARGUMENTS = ["bench", "--size", "32", "24", "28", "--device", "cpu", "--threads", "1"]
PEER = {
    "torch.py": (
        "__version__ = '0'\nfloat16, float32 = 'half', 'single'\n"
        "def set_num_threads(n): assert n == 1\n"
        "class device:\n"
        "    def __init__(self, name): self.type = name\n"
        "class Tensor:\n"
        "    def __init__(self, array): self.array = array\n"
        "    def to(self, device, kind): return self\n"
        "from_numpy = Tensor\n"
    ),
    "convexAdam/__init__.py": "",
    "convexAdam/convex_adam_MIND.py": (
        "import time\n"
        "def extract_features(*_, **__): time.sleep(0.2)\n"
        "def convex_adam_pt(fixed, moving, dtype, device):\n"
        "    assert fixed.shape == moving.shape == (28, 24, 32), fixed.shape\n"
        "    assert fixed.min() >= 0 and fixed.max() <= 1 and moving.std() > 0\n"
        "    assert dtype == 'single' and device.type == 'cpu'\n"
        "    print('chatter')\n"
        "    made = extract_features(fixed, moving)\n"
        "    if made is not None:\n"
        "        assert [a.array.shape for a in made] == [(1, 14, 28, 24, 32)] * 2\n"
        "        assert made[0].array.min() < 0 < made[0].array.std()\n"  # local intensities
        "        cells = made[0].array.reshape(14, 14, 2, 12, 2, 16, 2)\n"
        "        assert (cells == cells[:, :, :1, :, :1, :, :1]).all()\n"
        "    time.sleep(0.05)\n"
    ),
    "convexAdam-9.8.dist-info/METADATA": "Metadata-Version: 2.1\nName: convexAdam\nVersion: 9.8\n",
}


@pytest.fixture(autouse=True)
def quick_ceilings(monkeypatch) -> None:
    monkeypatch.setattr("dinoreg_rt.bench.measure.measure_ceilings", lambda device: CEILINGS)


def bench(*more: str, code: int = 0) -> dict:
    done = CliRunner().invoke(cli, [*ARGUMENTS, "--runs", "2", "--json", *more])
    assert done.exit_code == code, done.output
    return json.loads(done.stdout)


def test_numbers_are_consistent() -> None:
    report = bench("--inverse", "--iterations", "4,2")
    assert list(report["stages"]) == STAGES
    described = [stage.name for stage in needs.STAGES if stage.name not in ("encode", "linear")]
    assert described == [name for name in STAGES if name not in (*PLANNING, "hash", "other")]
    assert report["runs"] == 2
    total = report["warm_ms"]
    assert 0 < total["p50"] <= total["p95"] <= total["p99"]
    # The median of two runs is their mean, so the stages add up to the total.
    stages_ms = sum(stage["warm_ms"]["p50"] for stage in report["stages"].values())
    assert stages_ms == pytest.approx(total["p50"], rel=1e-3)
    assert sum(s["cold_ms"] for s in report["stages"].values()) == pytest.approx(
        report["cold_ms"], rel=1e-3
    )
    left_out = sum(report["stages"][stage]["warm_ms"]["p50"] for stage in (*PLANNING, "hash"))
    rest = report["without_encoder_ms"]
    assert rest["p50"] == pytest.approx(total["p50"] - left_out, rel=1e-3)
    assert 0 < rest["p50"] <= rest["p95"] <= rest["p99"] < total["p99"]
    assert report["pairs_per_second"] == pytest.approx(1e3 / total["p50"], rel=1e-3)
    for name, stage in report["stages"].items():
        parts = [part for part in report["parts"] if part["stage"] == name]
        assert stage["floor_ms"] == pytest.approx(sum(p["floor_ms"] for p in parts), abs=0.01)
        moved = sum(p["megabytes"] for p in parts) / stage["warm_ms"]["p50"]
        assert stage["gigabytes_per_s"] == pytest.approx(moved, abs=0.01)
    assert {part["name"] for part in report["parts"]} >= {"discrete search", "inverse", "warp"}
    assert report["memory"]["peak_process_mb"] > report["memory"]["predicted_mb"] > 0
    assert report["configuration"]["inverse"] is True
    assert report["peer"] is None


def test_table_of_two_files(tmp_path: Path) -> None:
    files = [str(tmp_path / f"{role}.nii.gz") for role in ("fixed", "moving")]
    for file, volume in zip(files, phantom_pair(phantom_grid((20, 24, 28), 3.0)), strict=True):
        write_volume(file, volume)
    arguments = [*ARGUMENTS, "--runs", "2", "-q", "-f", files[0], "-m", files[1]]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    assert "fixed 28 x 24 x 20 voxels of 3 x 3 x 3 mm" in done.stdout
    wanted = [*STAGES, "without encoder", "total"]
    lines = [line.strip() for line in done.stdout.splitlines()]
    found = [name for line in lines for name in wanted if re.match(rf"{name} +[0-9]", line)]
    assert found == wanted
    said = "measured rates: 1.0 GB/s, 4.0 G multiply-adds/s in float32, for the encoder 8.0 in"
    assert said in done.stdout


def test_what_the_images_leave_open_is_a_warning(tmp_path: Path) -> None:
    files = [str(tmp_path / f"{role}.nii.gz") for role in ("fixed", "moving")]
    for file, volume in zip(files, phantom_pair(phantom_grid((20, 24, 28), 3.0)), strict=True):
        low, high = np.percentile(volume.array, [40, 95])
        write_volume(file, replace(volume, array=np.clip(volume.array, low, high)))
    done = CliRunner().invoke(
        cli, [*ARGUMENTS, "--runs", "2", "--json", "-f", files[0], "-m", files[1]]
    )
    assert done.exit_code == 0, done.output
    assert "--fixed-modality ct or mr" in json.loads(done.stdout)["warnings"][0]
    assert "warning: the fixed image is taken for" in done.stderr


def test_encoder_is_run_every_time(tmp_path, monkeypatch, capsys) -> None:
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason=f"makes or runs an encoder: no {package}")
    monkeypatch.setenv("DINOREG_CACHE", str(tmp_path / "cache"))
    bundle = write_bundle(tmp_path / "[bold]x", [(48, 64)])
    report = bench("--encoder", str(bundle), "--mind-weight", "1")
    assert list(report["stages"])[:6] == [*PLANNING, "field of view", "encode", "features"]
    assert report["stages"]["encode"]["warm_ms"]["p50"] > 0
    encoder = [report["stages"][name]["warm_ms"]["p50"] for name in (*PLANNING, "encode", "hash")]
    assert report["without_encoder_ms"]["p50"] == pytest.approx(
        report["warm_ms"]["p50"] - sum(encoder), rel=1e-3
    )
    assert not (tmp_path / "cache").exists()
    names = [part["name"] for part in report["parts"]]
    assert names[:3] == ["field-of-view weight", "encoder", "second moments of the tokens"]
    assert "MIND-SSC and local intensities" in names
    from dinoreg_rt.bench.tables import BenchReport
    from dinoreg_rt.commands.bench import _print

    capsys.readouterr()
    _print(BenchReport.model_validate(report))
    assert "[bold]x" in capsys.readouterr().out


@pytest.fixture
def peer(tmp_path, monkeypatch) -> Path:
    """An environment with convexAdam: this Python with a stand-in for the package."""
    for name, text in PEER.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def test_against_a_peer(peer) -> None:
    more = ["--against", "convexadam", "--peer-python", sys.executable, "--peer-runs", "2"]
    report = bench(*more)
    assert report["peer"]["version"] == "9.8"
    assert len(report["peer"]["wall_s"]) == 2
    assert min(report["peer"]["wall_s"]) >= 0.25
    same = report["peer"]["same_features"]["wall_s"]
    assert len(same) == 2
    assert 0.05 <= min(same) < min(report["peer"]["wall_s"])
    of_solve = 1e3 * np.median(same) / report["stages"]["solve"]["warm_ms"]["p50"]
    assert report["solver_times_faster"] == pytest.approx(of_solve, abs=0.01)
    ratio = 1e3 * np.median(report["peer"]["wall_s"]) / report["warm_ms"]["p50"]
    assert report["times_faster_than_peer"] == pytest.approx(ratio, abs=0.01)


def test_peer_that_fails(peer) -> None:
    broken = peer / "convexAdam" / "convex_adam_MIND.py"
    broken.write_text("def convex_adam_pt(*a, **k): raise MemoryError('too little')\n")
    more = ["--against", "convexadam", "--peer-python", sys.executable]
    error = bench(*more, code=5)["error"]["message"]
    assert error.endswith("convexAdam fails on this pair on cpu: MemoryError: too little")


@pytest.mark.parametrize(
    ("more", "code", "message"),
    [
        (["-f", "a.nii.gz"], 2, "give both --fixed and --moving"),
        (["--against", "convexadam"], 2, "--against and --peer-python belong together"),
        (["--against", "convexadam", "--peer-python", "/no/python"], 5, "cannot be run: No such"),
        (
            ["--against", "convexadam", "--peer-python", sys.executable],
            5,
            "cannot import convexAdam",
        ),
        (
            ["--against", "convexadam", "--peer-python", sys.executable, "--encoder", "x"],
            4,
            "omit --encoder",
        ),
        (["-f", "a.nii.gz", "-m", "b.nii.gz"], 3, "a.nii.gz"),
        (["--preset", "nothing"], 4, "no preset 'nothing'"),
    ],
)
def test_refusals(more, code, message) -> None:
    assert message in bench(*more, code=code)["error"]["message"]


def test_a_sum_has_percentiles_of_its_own() -> None:
    """The sum is taken in each run: the encoder may be slow in one and the rest in another."""
    runs = [
        Run(60.0, {"plan": 10.0, "encode": 30.0, "hash": 1.0, "solve": 19.0}, {}),
        Run(60.0, {"plan": 10.0, "encode": 20.0, "hash": 1.0, "solve": 29.0}, {}),
    ]
    assert [run.without_encoder_ms for run in runs] == [19.0, 29.0]
    assert Run(60.0, {"solve": 50.0, "other": 10.0}, {}).without_encoder_ms == 60.0


def test_percentiles() -> None:
    values = Distribution.of([float(v) for v in range(101)])
    assert (values.p50, values.p95, values.p99) == (50, 95, 99)


def test_floor_is_the_slower_of_memory_and_arithmetic() -> None:
    assert Work("", 2e9, 4e9).floor_s(CEILINGS) == 2
    assert Work("", 2e9, 12e9).floor_s(CEILINGS) == 3
    assert Work("", 0, 4e9, "scalar").floor_s(CEILINGS) == 4
    assert Work("", 0, 4e9, "matrix").floor_s(CEILINGS) == 0.5
    assert Work("", 2e9, 4e9, jumps=3e9).floor_s(CEILINGS) == 4


def test_work_grows_with_the_settings() -> None:
    def works(**more: object) -> dict[str, Work]:
        config = dinoreg_rt.RegistrationConfig(device="cpu", initial="none", **more)
        grid = phantom_grid((20, 24, 28), 3.0)
        sizes = dinoreg_rt.plan(*phantom_pair(grid), config).sizes
        return {work.name: work for stage in needs.STAGES for work in stage.work(sizes)}

    base, longer = works(iterations=(8, 4)), works(iterations=(8, 14))  # and one more each
    fine = "refinement, fine"
    assert longer[fine].operations == pytest.approx(3 * base[fine].operations)
    assert longer["refinement, coarse"] == base["refinement, coarse"]
    alike, unlike = works(intensity="on"), works(intensity="off")
    assert alike["discrete search"].operations > unlike["discrete search"].operations
    assert "local correlation" not in works(correlation_weight=0.0)
    narrow, wide = works(correlation_window_mm=6.0), works(correlation_window_mm=24.0)
    assert wide["local correlation"].operations > 2 * narrow["local correlation"].operations
    channels = works(feature_similarity="lncc")["local correlation"]
    assert channels.bytes > 10 * base["local correlation"].bytes
    cosine = works(feature_similarity="cosine")
    assert cosine[fine].operations > base[fine].operations


@pytest.mark.parametrize(
    ("model", "grid", "operations"),
    [("dinov3-vits16", (32, 32), 63e9), ("dinov3-vitl16", (112, 96), 18e12)],
)
def test_operations_of_an_encoder(model, grid, operations) -> None:
    assert slice_operations(model, *grid) == pytest.approx(operations, rel=0.05)
    assert slice_operations("gabor-bank", *grid) is None


def test_blocks_beyond_the_wanted_layers_cost_nothing():
    whole = slice_operations("dinov3-vits16", 16, 20)
    early = slice_operations("dinov3-vits16", 16, 20, ("2", "7"))
    assert early == pytest.approx(whole * 8 / 12, rel=0.01)
    assert early < slice_operations("dinov3-vits16", 16, 20, ("11",)) == whole


@pytest.mark.slow
def test_ceilings_of_this_machine() -> None:
    measured = measure_ceilings(Device("cpu", threads=1))
    assert 1e9 < measured.bytes_per_s < 1e12
    assert measured.scalar_per_s < measured.vector_per_s == measured.matrix_per_s < 1e12
    assert measured.matrix_type == "float32"


def test_best_of_several() -> None:
    clock = iter([0.0, 3.0, 10.0, 11.0, 20.0, 22.0])
    assert best_seconds(lambda: None, 3, clock=lambda: next(clock)) == 1.0


def test_phantom_is_a_pair() -> None:
    grid = phantom_grid((20, 24, 28), 3.0)
    fixed, moving = phantom_pair(grid)
    np.testing.assert_array_equal(fixed.array, phantom_pair(grid)[0].array)
    assert not np.array_equal(fixed.array, moving.array)
    assert fixed.array.min() == 0
    assert 0 < fixed.array.max() <= 1000
    result = dinoreg_rt.register(
        fixed, moving, config=dinoreg_rt.RegistrationConfig(device="cpu", threads=1)
    )
    # Axes stretch by a sine of 3.5 % of their length, at most 2.9 mm along x.
    along_x = result.displacement.vectors_mm[10, 12, :, 0]
    truth = 0.035 * 84 * np.sin(np.pi * (np.arange(28) + 0.5 - 14) / 14 / 0.7)
    body = slice(6, 22)
    assert np.abs(along_x[body] - truth[body]).mean() < 1.0
    assert np.abs(truth[body]).mean() > 1.8
