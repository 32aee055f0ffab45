"""`dinoreg-rt cohort` on small phantoms: results, resuming, failures, killed processes."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import signal
import subprocess
import time

import psutil
import pytest
import SimpleITK as sitk
from click.testing import CliRunner
from cohorts import FAST, hashes, reports, start, write_pair, write_table

from dinoreg_rt.cohort.jobs import read_jobs
from dinoreg_rt.cohort.worker import Settings, Task, Worker
from dinoreg_rt.commands.main import cli
from dinoreg_rt.config.parameters import RegistrationConfig
from dinoreg_rt.io.hidden import hidden_place
from dinoreg_rt.io.paths import HIDDEN
from dinoreg_rt.run.request import RunRequest

COLUMNS = "pair,kind,fixed,moving,fixed_label,moving_label,labels,initial,smoothness"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Three pairs, an initial transform, and a table with a pair that is damaged."""
    folder = tmp_path_factory.mktemp("images")
    for number in range(3):
        write_pair(folder, number)
    sitk.WriteTransform(sitk.TranslationTransform(3, (2.0, 0.0, 0.0)), str(folder / "start.tfm"))
    (folder / "broken.nii.gz").write_bytes(b"not an image")
    write_table(
        folder / "pairs.csv",
        COLUMNS,
        "one,a,f0.nii.gz,m0.nii.gz,f0_l.nii.gz,m0_l.nii.gz,m0_l.nii.gz;m1_l.nii.gz,,",
        "bad,b,f0.nii.gz,broken.nii.gz,,,,,",
        "two,b,f0.nii.gz,m1.nii.gz,,,,start.tfm,2",
    )
    return folder


@pytest.fixture(scope="module")
def done(images, tmp_path_factory):
    """Two workers on that table: the folder, the exit code and what was printed."""
    output = tmp_path_factory.mktemp("cohort") / "out"
    table = images / "pairs.csv"
    process = start("cohort", table, "-o", output, *FAST, "--retries", "1", "--json")
    printed, said = process.communicate()
    return output, process.returncode, json.loads(printed), said


def cohort(images, output, *options, table="pairs.csv"):
    command = ["cohort", str(images / table), "-o", str(output), *FAST, *map(str, options)]
    return CliRunner().invoke(cli, command)


def rows(file):
    return list(csv.DictReader(file.read_text("utf-8").splitlines()))


def test_one_bad_pair_fails_alone_and_is_listed(done):
    output, code, document, said = done
    assert (code, document["exit_code"], document["status"]) == (3, 3, "incomplete"), said
    (failure,) = rows(output / "failures.csv")
    assert (failure["pair"], failure["exit_code"], failure["tries"]) == ("bad", "3", "1")
    assert "broken.nii.gz" in failure["error"]
    assert "trying again" not in said
    assert set(reports(output)) == {"one", "two"}
    assert not list(output.rglob(".dinoreg-*"))


def test_the_table_holds_verdict_quality_and_scores(done):
    output, _, document, _ = done
    one, bad, two = rows(output / "cohort.csv")
    assert [row["pair"] for row in (one, bad, two)] == ["one", "bad", "two"]
    assert (one["status"], bad["status"]) == ("ok", "failed")
    assert one["trusted"] in ("yes", "no")
    assert float(one["score.dice_after"]) > float(one["score.dice_before"])
    assert two["score.dice_after"] == ""  # no labels were given
    assert float(two["quality.folded_percent"]) >= 0
    assert [row["folder"] for row in document["pairs"]] == ["one", None, "two"]


def test_a_pair_has_the_files_and_bits_of_a_single_run(images, done, tmp_path):
    output = done[0]
    arguments = ["-f", images / "f0.nii.gz", "-m", images / "m1.nii.gz", "-o", tmp_path / "two"]
    more = ["--initial", images / "start.tfm", "--smoothness", "2"]
    single = CliRunner().invoke(cli, ["run", *map(str, [*arguments, *more, *FAST])])
    assert single.exit_code == 0, single.output
    together = reports(output)["two"]
    alone = json.loads((tmp_path / "two" / "report.json").read_text("utf-8"))
    assert hashes(together) == hashes(alone)
    assert together["fingerprint"] == alone["fingerprint"]
    assert {p.name for p in (output / "one").iterdir()} == {
        *(p.name for p in (tmp_path / "two").iterdir()),
        "labels_m0_l.nii.gz",
        "labels_m1_l.nii.gz",
    }


def copied(done, tmp_path):
    return shutil.copytree(done[0], tmp_path / "again")


def planned(images, output, *options):
    result = cohort(images, output, "--dry-run", "--json", "-q", *options)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)["pairs"]


def test_a_rerun_does_only_what_is_missing_or_changed(images, done, tmp_path):
    output = copied(done, tmp_path)
    assert planned(images, output) == {"one": "done", "bad": "register", "two": "done"}
    assert planned(images, output, "--threads", "1")["one"] == "done"
    # The pair's own value stays, so the option concerns the other one alone.
    changed = planned(images, output, "--smoothness", "3")
    assert (changed["one"], changed["two"]) == ("register", "done")
    (output / "one" / "warped.nii.gz").write_bytes(b"cut off")
    (output / ".cohort" / "two.scores.json").unlink(missing_ok=True)
    assert planned(images, output) == {"one": "register", "bad": "register", "two": "done"}


def test_a_changed_input_is_done_again_and_a_repaired_pair_leaves_the_failures(
    images, done, tmp_path
):
    output, data = copied(done, tmp_path), shutil.copytree(images, tmp_path / "images")
    before = reports(output)
    shutil.copy(data / "m2.nii.gz", data / "broken.nii.gz")
    (output / ".cohort" / "one.scores.json").unlink()
    plan = planned(data, output)
    assert plan == {"one": "score", "bad": "register", "two": "done"}
    finished = cohort(data, output, "--quiet")
    assert finished.exit_code == 0, finished.output
    after = reports(output)
    assert {name: after[name] for name in before} == before  # not registered again
    assert rows(output / "failures.csv") == []
    assert rows(output / "cohort.csv")[0]["score.dice_after"] != ""
    assert set(planned(data, output).values()) == {"done"}


def test_a_pair_that_was_written_before_its_worker_died_is_not_done_again(
    images, done, tmp_path, monkeypatch
):
    output = copied(done, tmp_path)
    config = RegistrationConfig(iterations=(3,), working_megavoxels=0.05)
    common = RunRequest(images, images, output, config, picture=False)
    table = images / "pairs.csv"
    one, bad, _ = read_jobs(table, images, output, common, lambda own: config.changed(**own))
    left = hidden_place(output / "one", HIDDEN)
    os.utime(left, (0, 0))  # a leftover, for nobody has touched it for a day

    def refuse(*_):
        raise AssertionError("registered again")

    monkeypatch.setattr("dinoreg_rt.cohort.worker.execute_run", refuse)
    worker = Worker(Settings(config, "cpu", 1))
    assert worker.work(Task(one)).error == ""
    assert not list(output.rglob(".dinoreg-*"))
    assert "registered again" in worker.work(Task(bad)).error


def test_killed_workers_and_a_killed_driver(images, tmp_path):
    """The small version of tests/bench/cohort_kill.py, with one worker killed and the driver."""
    names = [f"p{number}" for number in range(6)]
    lines = [f"{name},f{n % 2}.nii.gz,m{n % 3}.nii.gz" for n, name in enumerate(names)]
    table = write_table(tmp_path / "pairs.csv", "pair,fixed,moving", *lines)
    output = tmp_path / "out"
    command = ("cohort", table, "--data", images, "-o", output, *FAST, "--workers", "1", "-q")
    nowhere = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with start(*command, **nowhere) as driver:
        for count, kills_driver in ((1, False), (3, True)):
            workers = wait_for(output, count, driver)
            (driver if kills_driver else workers[0]).kill()
        psutil.wait_procs(workers, timeout=20)
        assert not any(worker.is_running() for worker in workers)  # they follow their driver
    before = reports(output)
    assert 3 <= len(before) < len(names)
    with start(*command) as again:
        said = again.communicate()[1]
    assert again.returncode == 0, said
    after = reports(output)
    assert set(after) == set(names)
    assert {name: after[name] for name in before} == before  # nothing is done twice
    assert hashes(after["p0"]) == hashes(before["p0"])
    leftovers = list(output.rglob(".dinoreg-*"))  # of the killed; removed after an hour
    for left in leftovers:
        os.utime(left / ".lock", (0, 0))
        os.utime(left, (0, 0))
    with start(*command, **nowhere):
        pass
    assert not list(output.rglob(".dinoreg-*"))


def wait_for(output, count, driver):
    """Wait until so many pairs are done, and return the workers."""
    until = time.monotonic() + 120
    while len(reports(output)) < count:
        assert driver.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    children = psutil.Process(driver.pid).children()
    return [child for child in children if "spawn_main" in " ".join(child.cmdline())]


def test_ctrl_c_keeps_what_is_done_and_says_how_to_resume(images, tmp_path):
    lines = [f"p{n},f{n % 3}.nii.gz,m{n % 3}.nii.gz" for n in range(12)]
    table = write_table(tmp_path / "pairs.csv", "pair,fixed,moving", *lines)
    output = tmp_path / "out"
    command = ("cohort", table, "--data", images, "-o", output, *FAST, "--workers", "1")
    with start(*command) as driver:
        workers = wait_for(output, 1, driver)
        driver.send_signal(signal.SIGINT)
        said = driver.communicate()[1]
    assert driver.returncode == 130, said
    assert "the same command resumes" in said
    assert not any(worker.is_running() for worker in workers)
    assert not list(output.rglob(".dinoreg-*"))


def test_the_page_of_all_pairs_is_written_unless_no_pages_are_wanted(images, tmp_path):
    write_table(images / "one.csv", "pair,fixed,moving", "p,f0.nii.gz,m0.nii.gz")
    for name, options in (("with", ()), ("without", ("--report", "none"))):
        result = cohort(images, tmp_path / name, *options, table="one.csv")
        assert result.exit_code == 0, result.output
        assert (tmp_path / name / "index.html").exists() == (name == "with")


def test_two_processes_share_the_pairs_of_one_folder(images, tmp_path):
    lines = [f"p{n},f{n % 3}.nii.gz,m{n % 3}.nii.gz" for n in range(6)]
    table = write_table(tmp_path / "pairs.csv", "pair,fixed,moving", *lines)
    output = tmp_path / "out"
    command = ("cohort", table, "--data", images, "-o", output, *FAST, "--workers", "1")
    both = [start(*command) for _ in range(2)]
    written: dict[str, set[str]] = {}
    while any(one.poll() is None for one in both):
        for name, report in reports(output).items():
            written.setdefault(name, set()).add(report["started_at"])
        time.sleep(0.005)
    for one in both:
        with one:
            said = one.communicate()
        assert one.returncode == 0, said
    assert set(reports(output)) == {f"p{n}" for n in range(6)}
    assert all(len(times) <= 1 for times in written.values())
    for name, report in reports(output).items():
        for file, record in report["outputs"].items():
            content = (output / name / file).read_bytes()
            assert hashlib.sha256(content).hexdigest() == record["sha256"]
    assert not list((output / ".cohort").glob("*.lock"))


def test_an_option_for_all_need_not_matter_for_a_rigid_pair(images, tmp_path):
    rows = ("p,f0.nii.gz,m0.nii.gz,rigid", "q,f0.nii.gz,m0.nii.gz,")
    write_table(images / "mixed.csv", "pair,fixed,moving,transform", *rows)
    result = cohort(images, tmp_path / "out", table="mixed.csv")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "p" / "transform.tfm").exists()
    assert (tmp_path / "out" / "q" / "transform.h5").exists()


@pytest.mark.parametrize(
    ("columns", "row", "message"),
    [
        ("pair,fixed,moving,colour", "p,f0.nii.gz,m0.nii.gz,red", "choose from: pair, fixed"),
        ("pair;fixed;moving", "p;f0.nii.gz;m0.nii.gz", "separate them by commas"),
        ("pair,fixed,moving,smothness", "p,f0.nii.gz,m0.nii.gz,1", "is 'smoothness' meant"),
        ("pair,fixed,moving,threads", "p,f0.nii.gz,m0.nii.gz,1", "'threads' is not known"),
        ("pair,fixed,moving", "a/b,f0.nii.gz,m0.nii.gz", "cannot have a folder of its name"),
        ("pair,fixed,moving", f"{'x' * 201},f0.nii.gz,m0.nii.gz", "a name of 201 bytes"),
        ("pair,fixed,moving", "cohort.csv,f0.nii.gz,m0.nii.gz", "cannot have a folder of its name"),
    ],
)
def test_tables_that_cannot_be_used(images, tmp_path, columns, row, message):
    write_table(images / "wrong.csv", columns, row)
    result = cohort(images, tmp_path / "out", table="wrong.csv")
    assert result.exit_code == 3
    assert message in result.output
    assert not (tmp_path / "out").exists()


def test_a_wrong_parameter_of_one_pair_names_it(images, tmp_path):
    write_table(images / "wrong.csv", "pair,fixed,moving,smoothness", "p,f0.nii.gz,m0.nii.gz,-1")
    result = cohort(images, tmp_path / "out", table="wrong.csv")
    assert result.exit_code == 4
    assert "pair p:" in result.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["cohort", "-o", "out"], "PAIRS.CSV"),
        (["cohort", "p.csv", "--bids", "b", "-o", "out"], "either"),
        (["cohort", "--bids", "b", "-o", "out"], "--fixed"),
        (["cohort", "p.csv", "-o", "out", "--shard", "3/2"], "I from 1 to N"),
        (["cohort", "p.csv", "-o", "out", "--ray", "auto"], "--workers"),
        (["run", "--pairs", "p.csv"], "dinoreg-rt cohort p.csv"),
    ],
)
def test_wrong_usage(words, message):
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 2
    assert message in result.output.replace("\n", " ")
