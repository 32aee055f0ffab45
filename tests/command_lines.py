"""Commands in documents, read by the parsers of the commands themselves."""

from __future__ import annotations

import rich_click as click

from dinoreg_rt.commands.main import cli


def parse(words: list[str]) -> click.Context:
    """What comes behind ``dinoreg-rt``; an option that is unknown or missing raises UsageError."""
    command: click.Command | None = cli
    name: str | None = "dinoreg-rt"
    while isinstance(command, click.Group):
        name, command, words = command.resolve_command(click.Context(command), words)
    assert command is not None
    return command.make_context(name, list(words))
