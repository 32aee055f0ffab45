"""Options of one value that are given twice, of which click would take the last in silence."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

from dinoreg_rt.commands.main import cli


def invoke(words: str) -> Result:
    return CliRunner().invoke(cli, words.split())


@pytest.mark.parametrize(
    ("words", "option"),
    [
        ("run -f a --fixed b -m c -o d", "--fixed"),
        ("run -f a -m b -o c --iterations 3 --iterations=4", "--iterations"),
        ("run -f a -m b -o c --trust --no-trust", "--trust"),
        ("run -f a -m b -oc -o d", "--output"),
        ("evaluate -f a -f b -m c", "--fixed-labels"),
        ("sweep --pairs a --pairs b -o c", "--pairs"),
        ("bench --runs 2 --runs 3", "--runs"),
        ("probe e -f a -m b -m c", "--moving"),
        ("export onnx --weights a --weights b -o c", "--weights"),
    ],
)
def test_is_an_error(words: str, option: str) -> None:
    result = invoke(words)
    assert result.exit_code == 2
    assert f"{option} is given 2 times; give it once" in result.stderr


def test_is_an_error_in_json() -> None:
    error = json.loads(invoke("run -f a -f b -m c -o d --json").stdout)
    assert (error["exit_code"], error["error"]["type"]) == (2, "UsageError")


@pytest.mark.parametrize(
    "words",
    ["run -q -q -f a -m b -o c", "run -f a -m b -o c --labels d --labels e --image f --image g"],
)
def test_switches_and_lists_may_be_repeated(words: str) -> None:
    result = invoke(words)
    assert result.exit_code == 3  # the files do not exist
    assert "a: no such file or folder" in result.stderr


def test_other_faults_are_reported_as_ever() -> None:
    assert "No such option '--bogus'" in invoke("run --bogus").stderr
    assert "Missing option" in invoke("run -f a").stderr
    assert invoke("run --help").exit_code == 0
