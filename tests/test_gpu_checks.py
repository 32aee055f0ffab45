"""docs/gpu_checks.md: commands that nobody here can run are at least understood."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from command_lines import parse

from dinoreg_rt.commands.options import given_config
from dinoreg_rt.config.parameters import RegistrationConfig

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "gpu_checks.md").read_text("utf-8")
#: Lines of code blocks, and code in tables.
BLOCKS = re.findall(r"```sh\n(.*?)```", TEXT, re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines()]
LINES += re.findall(r"\| `([^`]+)` \|", TEXT)
COMMANDS = [
    part.partition(" > ")[0]
    for line in LINES
    for part in line.split(" && ")
    if part.startswith("dinoreg-rt ")
]


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_understood(command) -> None:
    words = shlex.split(command)[1:]
    options = parse(words).params
    if words[0] in ("run", "bench"):
        RegistrationConfig.from_sources(options["preset"], None, given_config(options))


def test_every_kind_of_command_is_there() -> None:
    assert {command.split()[1] for command in COMMANDS} == {"doctor", "run", "export", "bench"}


def test_files_exist() -> None:
    named = re.findall(r"(?:tests|kernels|docker|docs)/[\w/]+\.(?:py|sh|nii\.gz)", TEXT)
    assert len(named) > 6
    for name in set(named):
        assert (ROOT / name).exists(), name
