"""The inputs of `dinoreg-rt cohort`: its usage, the pairs and their parameters."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import rich_click as click

from ..cohort.bids import bids_jobs
from ..cohort.jobs import Job, read_jobs
from ..cohort.names import FAILURES, PAGE, TABLE
from ..config.parameters import RegistrationConfig
from ..console.progress import Reporter
from ..errors import InputError
from ..io import check_outputs, check_writable
from ..registration.demands import check_used
from ..run.request import RunRequest
from .options import given_config, read_config
from .result_options import computed, wanted_files


class Shard(click.ParamType[tuple[int, int]]):
    """A part of the pairs, ``I/N``."""

    name = "I/N"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, int]:
        """Return number and count of ``I/N``, with I from 1 to N."""
        first, _, last = str(value).partition("/")
        if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
            self.fail(f"'{value}' is not I/N with I from 1 to N, such as 2/8", param, ctx)
        return int(first), int(last)


def check_usage(options: dict[str, Any]) -> None:
    """Check which options go together; wrong usage is click's own error with its exit code."""
    if bool(options["table"]) == bool(options["bids"]):
        raise click.UsageError("give either a table of pairs, PAIRS.CSV, or --bids FOLDER")
    selectors = (options["fixed"], options["moving"])
    if options["bids"] and not all(selectors):
        raise click.UsageError(
            "--bids needs --fixed and --moving, which select the images, such as "
            "--fixed ses-pre_T1w --moving ses-post_T1w"
        )
    if options["bids"] and options["data"]:
        raise click.UsageError("--data goes with a table of pairs; --bids names its own folder")
    if options["table"] and any(selectors):
        raise click.UsageError("--fixed and --moving go with --bids; a table names the images")
    if options["ray_folder"] and options["ray_address"] != "local":
        raise click.UsageError("--ray-folder goes with --ray local")
    if options["ray_address"] not in (None, "local") and not options["workers"]:
        raise click.UsageError("--ray ADDRESS needs --workers; give the number of workers")


def read_all(options: dict[str, Any], reporter: Reporter) -> list[Job]:
    """Check the output folder and all parameters, and return all pairs in their order."""
    output = options["output"]
    check_writable(output)
    given = [options[name] for name in ("table", "config_file") if options[name]]
    check_outputs((output / name for name in (TABLE, FAILURES, PAGE)), given)
    common = RunRequest(
        fixed=Path(),
        moving=Path(),
        output=output,
        config=configure(options, {}),
        **wanted_files(options),
        command=("dinoreg-rt", *sys.argv[1:]),
        accept_untrusted=options["accept_untrusted"],
    )
    if options["bids"]:
        jobs = _bids_jobs(options, common, reporter)
    else:
        table: Path = options["table"]
        data = options["data"] or table.parent
        jobs = read_jobs(table, data, output, common, lambda own: configure(options, own))
    if unknown := sorted(set(options["only"]) - {job.name for job in jobs}):
        raise InputError(f"there is no pair {', '.join(unknown)}; check --only")
    return jobs


def _bids_jobs(options: dict[str, Any], common: RunRequest, reporter: Reporter) -> list[Job]:
    found, notes = bids_jobs(
        options["bids"], options["fixed"], options["moving"], options["output"], common
    )
    for note in notes:
        reporter.say("left out", note)
    return list(found)


def configure(options: dict[str, Any], own: dict[str, Any]) -> RegistrationConfig:
    """Make the configuration of a pair, whose own values override the options."""
    values = computed(options) | own
    if own.keys() & {"slice_stride", "slice_spacing_mm"}:  # one of the two overrides the other
        values |= {name: own.get(name) for name in ("slice_stride", "slice_spacing_mm")}
    config = read_config(values)
    # An option for all pairs need not matter for one with other features or another transform.
    check_used(config, given_config(own or values))
    return config
