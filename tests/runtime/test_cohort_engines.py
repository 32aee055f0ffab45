"""Cohorts on Ray, and the examples for Slurm and Snakemake, each with what runs on one machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from cohorts import FAST, command_on_path, hashes, reports, start, write_pair, write_table

EXAMPLES = Path(__file__).parents[2] / "examples" / "cohort"
#: Longest folder in which the names of Ray's sockets fit into the 107 characters that Unix allows.
_LONGEST = 40


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for number in range(2):
        write_pair(folder, number)
    lines = [f"p{n},f{n % 2}.nii.gz,m{(n + 1) % 2}.nii.gz" for n in range(3)]
    return write_table(folder / "pairs.csv", "pair,fixed,moving", *lines)


@pytest.fixture
def ray_folder(tmp_path_factory):
    """A folder whose path is short enough for the sockets in it."""
    folder = tmp_path_factory.mktemp("r")
    if len(str(folder)) <= _LONGEST:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp") as short:
        yield Path(short)


@pytest.mark.slow
def test_ray_does_the_same_as_local_workers(table, tmp_path, ray_folder):
    pytest.importorskip("ray", reason="Ray is not installed (extra `ray`)")
    home = tmp_path / "home"
    home.mkdir()
    environment = os.environ | {"HOME": str(home)}
    together = ("cohort", table, *FAST, "--workers", "2", "-q")
    on_ray = ("--ray", "local", "--ray-folder", ray_folder)
    with start(*together, "-o", tmp_path / "ray", *on_ray, env=environment) as process:
        _, said = process.communicate()
    assert process.returncode == 0, said
    with start(*together, "-o", tmp_path / "local") as process:
        _, said = process.communicate()
    assert process.returncode == 0, said
    one, other = reports(tmp_path / "ray"), reports(tmp_path / "local")
    assert set(one) == {"p0", "p1", "p2"}
    assert {name: hashes(r) for name, r in one.items()} == {
        name: hashes(r) for name, r in other.items()
    }
    assert not [path for path in home.rglob("*") if path.is_file()]


def test_without_ray_the_error_names_the_extra(table, tmp_path):
    blocked = tmp_path / "blocked"
    blocked.mkdir()
    (blocked / "ray.py").write_text("raise ImportError('no ray here')\n")
    environment = os.environ | {"PYTHONPATH": str(blocked)}
    command = ("cohort", table, "-o", tmp_path / "out", *FAST, "--ray", "local", "-q")
    with start(*command, env=environment) as process:
        _, said = process.communicate()
    assert process.returncode == 5
    assert "dinoreg-rt[ray]" in said


@pytest.mark.slow
def test_the_slurm_script_does_its_part(table, tmp_path):
    output, environment = tmp_path / "out", command_on_path(tmp_path / "bin")
    for task in (2, 1):
        array = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": "2"}
        command = ["bash", EXAMPLES / "slurm.sh", table, output, *FAST, "-q"]
        done = subprocess.run(command, env=environment | array, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        if task == 2:
            assert set(reports(output)) == {"p2", "p1"}
    assert set(reports(output)) == {"p0", "p1", "p2"}
    assert len((output / "cohort.csv").read_text().splitlines()) == 4


@pytest.mark.slow
def test_the_snakefile(table, tmp_path):
    snakemake = os.environ.get("DINOREG_SNAKEMAKE") or shutil.which("snakemake")
    if snakemake is None:
        pytest.skip("snakemake is not installed (or named by DINOREG_SNAKEMAKE)")
    output = tmp_path / "out"
    environment = command_on_path(tmp_path / "bin") | {"HOME": str(tmp_path)}
    environment.pop("PYTHONPATH")  # snakemake has an environment of its own
    words = [snakemake, "--snakefile", EXAMPLES / "Snakefile", "--cores", "2", "--quiet", "all"]
    given = [f"pairs={table}", f"output={output}", "parts=2", f"options={' '.join(FAST)}"]
    command = [*map(str, words), "--directory", str(tmp_path), "--config", *given]
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert set(reports(output)) == {"p0", "p1", "p2"}
    assert len((output / "complete.csv").read_text().splitlines()) == 4
