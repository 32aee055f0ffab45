"""`dinoreg-rt sweep` on small phantoms with labels: tables, resuming, failures, processes."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
import SimpleITK as sitk
from click.testing import CliRunner
from encoders import write_bundle
from phantoms import make_grid, make_phantom

from dinoreg_rt.commands.main import cli
from dinoreg_rt.config.parameters import RegistrationConfig
from dinoreg_rt.evaluate.cohort import read_pairs
from dinoreg_rt.run.fingerprint import encoder_hash
from dinoreg_rt.sweep.records import Record, read_records
from dinoreg_rt.sweep.tables import score_candidates, table_to_csv, table_to_markdown
from dinoreg_rt.sweep.trials import plan_trials

SMALL = ["--iterations", "4", "--working-megavoxels", "0.05"]


def write_image(path, array, grid):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(grid.spacing_mm)
    image.SetOrigin(grid.origin_mm)
    image.SetDirection(grid.direction.ravel().tolist())
    sitk.WriteImage(image, str(path))


@pytest.fixture(scope="module")
def cohort(tmp_path_factory):
    """Two pairs of 24 voxels per axis with labels, and one whose moving image is damaged."""
    folder = tmp_path_factory.mktemp("cohort")
    grid = make_grid((24, 24, 24), (4.0, 4.0, 4.0))
    lines = ["pair,kind,fixed,fixed_label,moving,moving_label"]
    for number, peak_mm in enumerate((6.0, 9.0), start=1):
        pair = make_phantom(grid, grid, peak_mm=peak_mm)
        for role, volume in (("f", pair.fixed), ("m", pair.moving)):
            write_image(folder / f"{role}{number}.nii.gz", volume.array, grid)
            labels = np.digitize(volume.array, [200, 500]).astype(np.uint8)
            write_image(folder / f"{role}{number}_l.nii.gz", labels, grid)
        files = ",".join(f"{n}{number}{s}.nii.gz" for n in "fm" for s in ("", "_l"))
        lines.append(f"p{number},kind {number},{files}")
    (folder / "broken.nii.gz").write_bytes(b"not an image")
    (folder / "pairs.csv").write_text("\n".join(lines) + "\n")
    broken = "bad,kind 1,f1.nii.gz,f1_l.nii.gz,broken.nii.gz,m1_l.nii.gz\n"
    (folder / "with_broken.csv").write_text("\n".join(lines) + "\n" + broken)
    return folder


def sweep(cohort, out, *options, pairs="pairs.csv"):
    command = ["sweep", "--pairs", str(cohort / pairs), "-o", str(out), *SMALL, *options]
    return CliRunner().invoke(cli, command)


def lines_of(out):
    return (out / "results.jsonl").read_text().splitlines()


def test_a_grid_on_two_pairs(cohort, tmp_path):
    done = sweep(cohort, tmp_path, "--grid", "smoothness=0.1,50", "--json", "--quiet")
    assert done.exit_code == 0, done.output
    assert len(lines_of(tmp_path)) == 4
    document = json.loads(done.stdout)
    assert document["status"] == "ok"
    assert [c["parameters"] for c in document["candidates"]] == [
        {"smoothness": 0.1},
        {"smoothness": 50},
    ]
    groups = document["candidates"][0]["groups"]
    assert [(g["kind"], g["pairs"]) for g in groups] == [("all", 2), ("kind 1", 1), ("kind 2", 1)]
    dice = [c["groups"][0]["metrics"]["dice_after"] for c in document["candidates"]]
    assert dice[0]["mean"] > dice[1]["mean"]  # a very smooth field follows nothing
    assert dice[0]["low"] <= dice[0]["mean"] <= dice[0]["high"]
    assert dice[0]["cases"] == 2
    assert (tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")
    table = (tmp_path / "table.md").read_text()
    assert "## kind 2" in table
    assert "| smoothness |" in table
    rows = list(csv.DictReader((tmp_path / "table.csv").read_text().splitlines()))
    assert len(rows) == 6
    assert float(rows[0]["dice_after"]) == pytest.approx(dice[0]["mean"], abs=1e-5)
    assert float(rows[0]["cpu_s"]) > 0


def test_what_the_images_leave_open_is_a_warning_once(cohort, tmp_path):
    shutil.copytree(cohort, tmp_path / "clipped")
    file = str(tmp_path / "clipped" / "f1.nii.gz")
    image = sitk.ReadImage(file)
    low, high = np.percentile(sitk.GetArrayViewFromImage(image), [40, 95])
    sitk.WriteImage(sitk.Clamp(image, image.GetPixelID(), low, high), file)
    options = ("--only", "p1", "--grid", "smoothness=0.1,50")
    done = sweep(tmp_path / "clipped", tmp_path / "out", *options)
    assert done.exit_code == 0, done.output
    assert done.stderr.count("warning: p1: the fixed image is taken for") == 1
    records = read_records(tmp_path / "out" / "results.jsonl").values()
    assert all("--fixed-modality ct or mr" in record.warnings[0] for record in records)


def test_resuming_computes_only_what_is_missing(cohort, tmp_path):
    first = ("--grid", "smoothness=0.5", "-q")
    assert sweep(cohort, tmp_path, *first).exit_code == 0
    before = lines_of(tmp_path)
    assert sweep(cohort, tmp_path, *first).exit_code == 0
    assert lines_of(tmp_path) == before
    assert sweep(cohort, tmp_path, "--grid", "smoothness=0.5,1", "-q").exit_code == 0
    assert lines_of(tmp_path)[:2] == before
    assert len(lines_of(tmp_path)) == 4


def test_half_a_line_is_ignored_and_not_written_into(cohort, tmp_path):
    command = ("--grid", "smoothness=0.5", "-q")
    sweep(cohort, tmp_path, *command)
    first, second = lines_of(tmp_path)
    (tmp_path / "results.jsonl").write_text(first + "\n" + second[:40])
    assert sweep(cohort, tmp_path, *command).exit_code == 0
    lines = lines_of(tmp_path)
    assert (lines[0], lines[1], len(lines)) == (first, second[:40], 3)
    assert json.loads(lines[2])["key"] == json.loads(second)["key"]


def test_other_images_are_other_results(cohort, tmp_path):
    sweep(cohort, tmp_path, "-q", "--only", "p1")
    grid = make_grid((24, 24, 24), (4.0, 4.0, 4.0))
    original = (cohort / "m1.nii.gz").read_bytes()
    from dinoreg_rt.sweep.trials import _file_hash

    try:
        write_image(cohort / "m1.nii.gz", make_phantom(grid, grid, peak_mm=3.0).fixed.array, grid)
        _file_hash.cache_clear()  # as in another process
        sweep(cohort, tmp_path, "-q", "--only", "p1")
    finally:
        (cohort / "m1.nii.gz").write_bytes(original)
        _file_hash.cache_clear()
    assert len({json.loads(line)["key"] for line in lines_of(tmp_path)}) == 2


def test_a_pair_that_fails_is_recorded_and_tried_again(cohort, tmp_path):
    for _ in range(2):
        done = sweep(cohort, tmp_path, "--grid", "smoothness=0.5,1", pairs="with_broken.csv")
        assert done.exit_code == 3
        assert "pairs that failed, see table.md: bad" in done.output
    records = [json.loads(line) for line in lines_of(tmp_path)]
    assert [r["pair"] for r in records if r["status"] == "failed"] == ["bad"] * 4
    assert len(records) == 8
    table = (tmp_path / "table.md").read_text()
    assert "2 of 3" in table
    assert "- bad, smoothness=0.5: " in table
    # Means over fewer pairs are not compared, so no candidate is on the front.
    assert "*" not in table.split("## kind")[0]


def test_several_processes_find_the_same(cohort, tmp_path):
    for name, jobs in (("one", "1"), ("two", "2")):
        done = sweep(cohort, tmp_path / name, "--grid", "smoothness=0.5", "--jobs", jobs, "-q")
        assert done.exit_code == 0, done.output
    one, two = (read_records(tmp_path / n / "results.jsonl") for n in ("one", "two"))
    assert one.keys() == two.keys()
    for key in one:
        assert one[key].quality == pytest.approx(two[key].quality, nan_ok=True)
        assert one[key].scores == pytest.approx(two[key].scores, nan_ok=True)


@pytest.mark.slow
def test_goes_on_after_it_was_killed(cohort, tmp_path):
    command = [sys.executable, "-m", "dinoreg_rt", "sweep", "--pairs", str(cohort / "pairs.csv"),
               "-o", str(tmp_path), "--grid", "smoothness=0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8", "-q",
               "--working-megavoxels", "0.05", "--iterations", "300"]  # fmt: skip
    results = tmp_path / "results.jsonl"
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (results.exists() and results.read_bytes()):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    kept = [line for line in results.read_text().split("\n")[:-1] if line]
    assert 1 <= len(kept) < 16
    assert subprocess.run(command, check=False).returncode == 0
    assert lines_of(tmp_path)[: len(kept)] == kept
    assert len(read_records(results)) == 16


def group_of(leader):
    """List the processes of a group that are still alive."""
    found = []
    for process in psutil.process_iter(["status"]):
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(process.pid) == leader and process.info["status"] != "zombie":
                found.append(process.pid)
    return found


@pytest.mark.parametrize(
    ("number", "word", "code"),
    [(signal.SIGINT, "interrupted", 130), (signal.SIGTERM, "terminated", 143)],
)
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_stopped_says_what_is_kept_and_ends_soon(cohort, tmp_path, number, word, code, jobs):
    command = [sys.executable, "-m", "dinoreg_rt", "sweep", "--pairs", str(cohort / "pairs.csv"),
               "-o", str(tmp_path), "--grid", "smoothness=0.1,0.2,0.3,0.4,0.5,0.6,0.7,0.8", "-q",
               "--working-megavoxels", "0.05", "--iterations", "3000", "--jobs", jobs]  # fmt: skip
    results = tmp_path / "results.jsonl"
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (results.exists() and results.read_bytes()):
        time.sleep(0.02)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    sent = time.monotonic()
    _, said = process.communicate(timeout=60)
    kept = len(read_records(results))
    assert process.returncode == code
    assert f"{word}; {kept} of 16 are in {results}; the same command resumes" in said
    assert time.monotonic() - sent < 3
    while time.monotonic() < sent + 10 and (left := group_of(process.pid)):
        time.sleep(0.05)  # multiprocessing's helper ends once it is alone
    assert not left


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--grid", "smothness=1"], 4, "'smothness' cannot be swept"),
        (["--grid", "smoothness=-1"], 4, "smoothness = -1"),
        (["--grid", "components=8,24"], 4, "have no effect: --components; add --encoder"),
        (["--only", "p7"], 3, "lists no pair p7; it lists p1, p2"),
        (["--initial-folder", "nowhere"], 3, "is not a folder; give one of initial transforms"),
        (["--samples", "3"], 4, "0 random parameters and 3 samples"),
    ],
)
def test_what_is_wrong_is_found_before_anything_runs(cohort, tmp_path, options, code, message):
    done = sweep(cohort, tmp_path / "out", *options)
    assert done.exit_code == code
    assert message in done.output.replace("\n", "")
    assert not (tmp_path / "out" / "results.jsonl").exists()


def test_another_encoder_of_the_same_name_is_another_one(cohort, tmp_path):
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason=f"makes or runs an encoder: no {package}")
    keys = []
    for channels in (False, True):
        folder = write_bundle(tmp_path / "e", [(96, 112)], random_weights=channels)
        base = RegistrationConfig(encoder=str(folder), threads=1)
        pairs = read_pairs(cohort / "pairs.csv", cohort, tmp_path)
        keys.append([trial.key for trial in plan_trials(pairs, [{}], base)])
        encoder_hash.cache_clear()  # as in another process
        shutil.rmtree(folder)
    assert not set(keys[0]) & set(keys[1])


def test_the_table_of_pairs_is_not_overwritten(cohort):
    (cohort / "table.csv").write_text((cohort / "pairs.csv").read_text())
    done = sweep(cohort, cohort, pairs="table.csv")
    assert done.exit_code == 7
    assert "is an input" in done.output.replace("\n", "")
    assert not (cohort / "results.jsonl").exists()


def test_initial_transforms_are_used_and_part_of_the_key(cohort, tmp_path):
    starts = tmp_path / "init"
    starts.mkdir()
    for offset in (0.0, 2.0):
        transform = sitk.TranslationTransform(3, (offset, 0.0, 0.0))
        sitk.WriteTransform(transform, str(starts / "p1.tfm"))
        from dinoreg_rt.sweep.trials import _file_hash

        _file_hash.cache_clear()
        done = sweep(cohort, tmp_path, "--only", "p1", "--initial-folder", str(starts), "-q")
        assert done.exit_code == 0, done.output
    quality = [json.loads(line)["quality"] for line in lines_of(tmp_path)]
    assert len(quality) == 2
    assert quality[0]["feature_distance_before"] != quality[1]["feature_distance_before"]


# ---- tables ---------------------------------------------------------------------------------


def record(value, dice, cpu_s, pair="a", status="ok"):
    scores = {"dice_after": dice, "tre_mm_after": math.nan}
    return Record(f"{value}{pair}", pair, "k", {"smoothness": value}, status, "", cpu_s, 1, scores)


def test_front_of_accuracy_and_time():
    """Candidate 2 is slower and worse than 1; 4 is the best but was not scored on every pair."""
    records = [record(1, 0.5, 1.0), record(2, 0.4, 2.0), record(3, 0.6, 3.0), record(4, 0.9, 1.0)]
    records.append(record(4, math.nan, math.nan, pair="b", status="failed"))
    scored = score_candidates(records)
    assert [s.best for s in scored] == [True, False, True, False]
    assert [s.number for s in scored] == [1, 2, 3, 4]


def test_table_begins_with_the_most_accurate():
    records = [record(1, 0.5, 1.0), record(2, 0.7, 2.0)]
    rows = [line for line in table_to_markdown(score_candidates(records), records).splitlines()
            if line.startswith("| 1") or line.startswith("| 2")]  # fmt: skip
    assert rows[0].startswith("| 2* | 2 | 1 | 0.700 |")
    assert rows[1].startswith("| 1* | 1 | 1 | 0.500 |")


def test_csv_leaves_empty_what_was_not_scored():
    row = next(csv.DictReader(table_to_csv(score_candidates([record(1, 0.5, 1.0)])).splitlines()))
    assert row["dice_after"] == "0.5"
    assert row["dice_after_ci_low"] == row["tre_mm_after"] == ""
