"""The Dockerfile as far as it can be checked without Docker: what it names exists."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import rich_click as click
from click.testing import CliRunner
from command_lines import parse

from dinoreg_rt.commands.main import cli

ROOT = Path(__file__).parents[1]
#: The comment at the top, its lines joined.
COMMENT = re.sub(
    r"\\\n#",
    " ",
    (ROOT / "docker" / "Dockerfile").read_text("utf-8").split("\nARG", 1)[0],
)
TEXT = re.sub(r"\\\n", " ", (ROOT / "docker" / "Dockerfile").read_text("utf-8"))
LINES = [line.strip() for line in TEXT.splitlines() if line.strip() and line[0] != "#"]
FINAL = LINES[max(i for i, line in enumerate(LINES) if line.startswith("FROM ")) :]


def arguments(lines: list[str], instruction: str) -> list[str]:
    return [line.split(" ", 1)[1].strip() for line in lines if line.split()[0] == instruction]


def test_only_known_instructions() -> None:
    known = {"ARG", "FROM", "SHELL", "RUN", "COPY", "ENV", "USER", "WORKDIR", "VOLUME"}
    known |= {"HEALTHCHECK", "ENTRYPOINT", "CMD"}
    assert {line.split()[0] for line in LINES} <= known


def test_extras_exist() -> None:
    named = re.findall(r"/source\[([\w,]+)\]", TEXT)
    assert len(named) == 1
    extras = set(named[0].split(","))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert extras <= set(project["optional-dependencies"])
    assert {"gpu", "tensorrt"} <= extras
    assert not {"cpu", "dev"} & extras  # they bring the other onnxruntime


def test_copied_files_exist_and_are_not_ignored() -> None:
    kept = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    copies = [words.split()[:-1] for words in arguments(LINES, "COPY")]
    names = [name for words in copies if not words[0].startswith("--from") for name in words]
    assert names
    for name in names:
        assert (ROOT / name).exists(), name
        assert f"!{name}" in kept, name


def test_everything_that_the_build_reads_is_copied() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    packages = project["tool"]["scikit-build"]["wheel"]["packages"].values()
    wanted = {path.split("/")[0] for path in packages}
    wanted |= {project["project"]["readme"], *project["project"]["license-files"]}
    copied = {name for words in arguments(LINES, "COPY") for name in words.split()}
    assert wanted <= copied


def test_both_stages_have_one_cuda_and_one_python() -> None:
    build, final = arguments(LINES, "FROM")
    assert re.sub("-devel-(.*) AS build", r"-base-\1", build) == final
    defaults = dict(words.split("=") for words in arguments(LINES, "ARG"))
    assert re.fullmatch(r"nvidia/cuda:\$\{CUDA\}-base-\$\{SYSTEM\}", final)
    # The extras pin CUDA's libraries to the same release.
    pins = (ROOT / "pyproject.toml").read_text("utf-8")
    release = ".".join(defaults["CUDA"].split(".")[:2])
    assert f"]=={release}.*" in pins


def test_runs_as_a_user_without_rights_and_needs_no_network() -> None:
    (user,) = arguments(FINAL, "USER")
    assert int(user) >= 10000  # a number: Kubernetes can see that it is not root
    assert f"useradd --uid {user}" in TEXT
    order = [line.split()[0] for line in FINAL]
    assert order.index("USER") > max(i for i, word in enumerate(order) if word in ("RUN", "COPY"))
    started = [*arguments(FINAL, "ENTRYPOINT"), *arguments(FINAL, "CMD")]
    assert not re.search(r"\b(pip|curl|wget|git|apt-get)\b", " ".join(started))


def test_package_lists_are_removed_where_they_were_read() -> None:
    for words in arguments(LINES, "RUN"):
        if "apt-get update" in words:
            assert "--no-install-recommends" in words
            assert "rm -rf /var/lib/apt/lists/*" in words


@pytest.mark.parametrize("instruction", ["HEALTHCHECK", "CMD"])
def test_commands_exist(instruction: str) -> None:
    (words,) = [json.loads(re.search(r"\[.*\]", w)[0]) for w in arguments(FINAL, instruction)]
    program = words[1:] if words[0] == "dinoreg-rt" else words
    done = CliRunner().invoke(cli, [*program, "--help"])
    assert done.exit_code == 0, done.output
    for option in (word for word in program if word.startswith("--")):
        assert option in done.output


def docker_runs() -> list[tuple[list[str], list[str]]]:
    """Options of `docker run`, and what the container is told, of each command in the comment."""
    found = []
    for line in COMMENT.splitlines():
        words = shlex.split(line.lstrip("# ")) if "docker run" in line else []
        if words:
            image = words.index("dinoreg-rt")
            found.append((words[2:image], words[image + 1 :]))
    return found


def test_commands_of_the_comment_are_understood() -> None:
    _, told = zip(*docker_runs(), strict=True)
    built, ran = (parse(words).params for words in told)
    assert (str(ran["fixed"]), str(ran["output"])) == ("fixed.nii.gz", "result")
    assert str(built["bundle"]).rsplit("/", 1)[1] == ran["encoder"]
    with pytest.raises(click.UsageError, match="Missing"):
        parse(["run", "fixed.nii.gz", "moving.nii.gz", "-o", "result"])


def test_results_can_be_written_where_they_are_mounted() -> None:
    build, run = (options for options, _ in docker_runs())
    # The mounted folder belongs to the caller, the volume of engines to the image's user.
    assert run[run.index("--user") + 1] == "$(id -u):$(id -g)"
    assert "HOME=/tmp" in run
    assert "$PWD:/data" in run
    assert arguments(FINAL, "WORKDIR") == ["/data"]
    assert "--user" not in build
    assert "engines:/engines" in build
    assert "install -d -m 0755 -o dinoreg -g dinoreg /data /models /engines" in TEXT


def test_an_image_without_cuda_kernels_does_not_come_out() -> None:
    (install,) = [words for words in arguments(LINES, "RUN") if "/source[" in words]
    assert "--config-settings=cmake.define.DINOREG_CUDA=ON" in install
    assert "set(DINOREG_CUDA AUTO CACHE STRING" in (ROOT / "CMakeLists.txt").read_text("utf-8")
