"""Options of `run` and `cohort` that say which files each result has."""

from __future__ import annotations

from typing import Any

import rich_click as click

from .options import OUTPUT, Command, parse_names

#: What ``--save`` takes: the files that are written on request.
SAVEABLE = ("displacement", "inverse", "confidence", "features")
#: Those that are also parameters, because they are computed only on request.
_COMPUTED = {"inverse", "confidence"}
_SAVE = click.option(
    "--save",
    type=parse_names,
    default="",
    metavar="A,B,...",
    panel=OUTPUT,
    help=f"What to write as well, separated by commas: {', '.join(SAVEABLE)}.",
)
_NO_QC = click.option("--no-qc", is_flag=True, panel=OUTPUT, help="Do not draw qc.png.")
_REPORT = click.option(
    "--report",
    "page",
    type=click.Choice(["static", "full", "none"]),
    default="static",
    show_default=True,
    panel=OUTPUT,
    help="Kind of the page report.html: static (slices in three planes, at most 1.5 MB), full "
    "(with the 3D viewer NiiVue and both volumes at half the resolution, at most 5 MB) or none.",
)


def result_options(command: Command) -> Command:
    """Decorate a command with the options that `saved_names` and `wanted_files` read."""
    return _SAVE(_NO_QC(_REPORT(command)))


def saved_names(options: dict[str, Any]) -> set[str]:
    """Return the names of ``--save``, checked."""
    saved = set(options["save"])
    if unknown := sorted(saved.difference(SAVEABLE)):
        raise click.UsageError(
            f"--save {','.join(unknown)} is not something to save; give {', '.join(SAVEABLE)}"
        )
    for name in sorted(saved & _COMPUTED):
        if options[name] is False:
            raise click.UsageError(f"--save {name} contradicts --no-{name}; leave one of them out")
    return saved


def computed(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options with the parameters that ``--save`` asks for."""
    return options | {name: True for name in saved_names(options) & _COMPUTED}


def wanted_files(options: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of `RunRequest` that say which files a result has."""
    saved = saved_names(options)
    return {
        "picture": not options["no_qc"],
        "page": options["page"],
        "save_displacement": "displacement" in saved,
        "save_features": "features" in saved,
    }
