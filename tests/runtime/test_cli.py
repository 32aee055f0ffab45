"""The command line: help, usage, error messages and exit codes. No registration runs here."""

from __future__ import annotations

import errno
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import rich_click as click
from click.testing import CliRunner, Result

from dinoreg_rt.commands import main as cli
from dinoreg_rt.config.feature_parameters import EngineChoice
from dinoreg_rt.config.parameters import RegistrationConfig
from dinoreg_rt.console.stdout import print_result
from dinoreg_rt.errors import EXIT_CODES, DinoregError, InputError, OutputError


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(cli.cli, list(arguments), terminal_width=100)


@pytest.fixture
def raising(monkeypatch: pytest.MonkeyPatch):
    """Replaces the command `run` by one that raises a given error."""

    def set_error(error: BaseException) -> None:
        @click.command("run")
        @click.option("--json", "as_json", is_flag=True)
        def run(*, as_json: bool) -> None:
            raise error

        module = type("Module", (), {"run": run})
        monkeypatch.setattr(cli, "importlib", SimpleNamespace(import_module=lambda _: module))

    return set_error


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["apply", "--help"]])
def test_help_lists_exit_codes(arguments: list[str]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 0
    flat = " ".join(result.output.split())
    for code, meaning in EXIT_CODES.items():
        assert f"{code}: {meaning}" in flat


@pytest.mark.parametrize("name", cli._COMMANDS)
def test_every_command_has_help(name: str) -> None:
    assert name in invoke("--help").output
    result = invoke(name, "--help")
    assert result.exit_code == 0
    assert f"Usage: cli {name}" in result.output


def test_run_has_an_option_for_each_parameter() -> None:
    output = invoke("run", "--help-all").output
    missing = [
        name
        for name in RegistrationConfig.model_fields
        if f"--{name.removesuffix('_gb').replace('_', '-')}" not in output
    ]
    assert not missing
    assert re.search(r"--token-grid +ROWS COLUMNS ", output)
    assert re.search(r"--ct-window-hu +LOW HIGH ", output)
    panels = re.findall(r"─ ([A-Z][\w -]+) ─", output)
    assert panels[:5] == ["Inputs", "Output", "Parameters", "Machine", "Initial alignment"]
    assert panels[-3:] == ["Refinement", "Reporting", "Options"]


@pytest.mark.parametrize("command", ["run", "bench", "sweep", "probe"])
def test_help_begins_with_the_common_options(command: str) -> None:
    """The long help shows more, also of the command that showed the short one before."""
    short, every, again = (invoke(command, w).output for w in ("--help", "--help-all", "--help"))
    assert short == again
    assert len(every.splitlines()) > len(short.splitlines()) + 20
    for option in ("--preset", "--help-all"):
        assert f" {option} " in short
    assert "--token-grid" in every
    assert "--token-grid" not in short


@pytest.mark.parametrize("command", [["run"], ["apply"], ["evaluate"], ["sweep"]])
def test_help_shows_an_example_that_can_be_pasted(command: list[str]) -> None:
    output = invoke(*command, "--help").output
    assert f" dinoreg-rt {command[0]} -" in output
    assert "Example" in output


def test_long_lists_of_names_are_not_broken_inside_of_a_name() -> None:
    flat = " ".join(invoke("run", "--help-all").output.replace("│", " ").split())
    for name in get_args(EngineChoice):
        assert f" {name}," in flat or f" {name}." in flat


def test_version() -> None:
    result = invoke("--version")
    assert result.exit_code == 0
    assert result.output.startswith("dinoreg-rt ")


@pytest.mark.parametrize("arguments", [["rnu"], ["run"], ["run", "--no-such-option"]])
def test_wrong_usage_is_code_2(arguments: list[str]) -> None:
    assert invoke(*arguments).exit_code == 2


@pytest.mark.parametrize("error_type", DinoregError.__subclasses__())
def test_own_errors_have_their_codes(raising, error_type: type[DinoregError]) -> None:
    raising(error_type("scan.nii: what is wrong; what to do"))
    result = invoke("run")
    assert result.exit_code == error_type.exit_code
    assert result.exit_code in EXIT_CODES
    assert result.stdout == ""
    assert result.stderr == "Error: scan.nii: what is wrong; what to do\n"


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (MemoryError("Unable to allocate 9 GiB"), 6, "9 GiB"),
        (OSError(errno.ENOSPC, "No space left on device", "out.nii.gz"), 7, "out.nii.gz"),
        (ImportError("x.so: failed to map segment from shared object"), 6, "out of memory"),
    ],
)
def test_system_errors_have_codes(raising, error: BaseException, code: int, message: str) -> None:
    raising(error)
    result = invoke("run")
    assert result.exit_code == code
    assert message in result.stderr


def test_unforeseen_error_keeps_its_traceback(raising) -> None:
    raising(RuntimeError("a bug"))
    result = invoke("run")
    assert result.exit_code == 1
    assert isinstance(result.exception, RuntimeError)


@pytest.mark.parametrize(("error", "code"), [(InputError("bad"), 3), (RuntimeError("bug"), 1)])
def test_errors_as_json(raising, error: Exception, code: int) -> None:
    raising(error)
    problem = json.loads(invoke("run", "--json").stdout)
    assert problem["status"] == "error"
    assert problem["exit_code"] == code
    assert problem["error"]["type"] == type(error).__name__
    assert str(error) in problem["error"]["message"]


def test_wrong_usage_as_json(raising) -> None:
    raising(RuntimeError("never reached"))
    result = invoke("run", "--json", "--no-such-option")
    assert json.loads(result.stdout)["exit_code"] == 2


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["run"], False),
        (["run", "--json"], True),
        (["run", "--json", "-q"], True),
        (["evaluate", "--json", "-"], True),
        (["evaluate", "--json", "scores.json"], False),
    ],
)
def test_when_stdout_is_json(arguments: list[str], wanted: bool) -> None:
    assert cli._wants_json(arguments) is wanted


def test_doctor_as_json() -> None:
    result = invoke("doctor", "--json")
    assert result.exit_code == 0
    assert set(json.loads(result.stdout)) == {"findings", "choices", "details"}


def test_doctor_as_table() -> None:
    result = invoke("doctor")
    assert result.exit_code == 0
    assert "What auto would choose" in result.stdout


@pytest.mark.parametrize("arguments", [[], ["models"], ["export"]])
def test_groups_without_a_command_show_their_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["dinoreg-rt", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    said = capsys.readouterr()
    assert "Usage: dinoreg-rt" in said.out + said.err
    assert "terminated" not in said.err


@pytest.mark.parametrize(
    ("name", "code", "word"), [("SIGTERM", 143, "terminated"), ("SIGHUP", 129, "hung up")]
)
def test_signals_have_codes(name: str, code: int, word: str) -> None:
    # In a separate process: pytest's fault handler sets up a signal stack that is too small for
    # the vector registers once OpenVINO has widened them, and any signal then ends the process.
    program = (
        "import os, signal; from dinoreg_rt.commands import main as cli; "
        f"cli.cli.main = lambda **_: os.kill(os.getpid(), signal.{name}); cli.main()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert ended.returncode == code
    assert code in EXIT_CODES
    assert word in ended.stderr


def shell(line: str) -> subprocess.CompletedProcess[str]:
    """Run a command line with redirections, in which ``$P`` is the program."""
    program = f"P='{sys.executable} -m dinoreg_rt'; {line}"
    return subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "arguments", ["models list --json", "models list", "models check", "doctor --json"]
)
@pytest.mark.parametrize(
    ("redirection", "reason"), [(">/dev/full", "No space left on device"), (">&-", "it is closed")]
)
def test_result_that_cannot_be_printed(
    arguments: str, redirection: str, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DINOREG_MODELS", str(tmp_path))
    ended = shell(f"$P {arguments} {redirection}")
    wanted = f"Error: stdout: the result cannot be printed: {reason}; redirect it elsewhere\n"
    assert (ended.returncode, ended.stderr) == (7, wanted)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [("--help", 7), ("doctor", 7), ("run -f nix.nii -m nix.nii -o nix --json", 3)],
)
def test_full_stdout_gives_no_traceback(arguments: str, code: int) -> None:
    ended = shell(f"$P {arguments} >/dev/full")
    assert ended.returncode == code
    assert "Traceback" not in ended.stderr
    assert "Exception ignored" not in ended.stderr


def test_files_that_are_there_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(OutputError, match=f"the files were written to {tmp_path}$"):
        print_result("{}", written=tmp_path)


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full"])
def test_errors_that_cannot_be_printed_keep_their_code(redirection: str) -> None:
    ended = shell(f"$P run -f nix.nii -m nix.nii -o /proc/x {redirection}")
    assert ended.returncode == 7


@pytest.mark.parametrize("option", ["-f", "-m", "-o", "--labels"])
def test_empty_path_is_wrong_usage(option: str) -> None:
    given = {"-f": "a.nii", "-m": "b.nii", "-o": "c"} | {option: ""}
    result = invoke("run", *(word for pair in given.items() for word in pair))
    assert result.exit_code == 2
    assert "the path is empty" in result.stderr
