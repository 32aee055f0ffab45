"""`dinoreg-rt doctor`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import rich_click as click

from ..console.stdout import print_result
from ..errors import DeviceError
from .diagnosis import examine

if TYPE_CHECKING:
    from .diagnosis import Diagnosis

_MARKS = {"ok": ("✓", "green"), "absent": ("-", "dim"), "problem": ("✗", "bold red")}


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Findings on stdout as JSON.")
@click.option("--strict", is_flag=True, help="Exit with 5 if anything is broken: a health check.")
def doctor(*, as_json: bool, strict: bool) -> None:
    """Show what this machine has, what `auto` would choose and why, and what to type to mend it.

    Nothing heavy is imported and nothing is changed. Exit code 0 even when optional parts are
    missing; a part that is there but broken is shown with the command that mends it.
    """
    diagnosis = examine()
    if as_json:
        print_result(json.dumps(asdict(diagnosis), indent=2) + "\n")
    else:
        _print(diagnosis)
    broken = [f.name for f in diagnosis.findings if f.status == "problem"]
    if strict and broken:
        raise DeviceError(f"broken: {', '.join(broken)}; the lines above say what mends them")


def _print(diagnosis: Diagnosis) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table(box=None, padding=(0, 1), show_header=False)
    table.add_column(width=1)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for finding in diagnosis.findings:
        mark, style = _MARKS[finding.status]
        # As text: names of folders are no markup.
        table.add_row(Text(mark, style), Text(finding.name), Text(finding.value))
    console.print(table)
    console.print("\nWhat [bold]auto[/bold] would choose:")
    for name, choice in diagnosis.choices.items():
        console.print(Text.assemble("  ", (f"{name}: ", "bold"), choice), soft_wrap=True)
    for heading, status in (("mend what is broken", "problem"), ("add what is missing", "absent")):
        hints = [f for f in diagnosis.findings if f.remedy and f.status == status]
        if hints:
            console.print(f"\nTo {heading}:")
        for finding in hints:
            line = Text.assemble("  ", (f"{finding.name}: ", "bold"), finding.remedy)
            console.print(line, soft_wrap=True)  # a command to paste stays one line
