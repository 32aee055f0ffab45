"""`dinoreg-rt sweep`."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rich_click as click

from ..console.progress import Reporter, reporting
from ..console.stdout import print_result
from ..errors import InputError
from ..evaluate.cohort import read_pairs
from ..evaluate.pair import PairFiles
from ..registration.demands import check_used
from ..sweep.records import Record
from ..sweep.space import read_space
from ..sweep.trials import Finished, plan_trials, run_trials
from .main import EXIT_CODE_TEXT
from .options import (
    DATA_HELP,
    INPUTS,
    OUTPUT,
    PAIRS_HELP,
    config_options,
    given_config,
    json_option,
    path_option,
    quiet_option,
    read_config,
)

_SPACE = "Search space"
_FILES = ("results.jsonl", "table.md", "table.csv", "pareto.png")
#: Shortest interval between two reports of the remaining time.
_SAY_EVERY_S = 10.0

# The blank lines keep the help renderer from joining lines.
_EPILOG = f"""Examples:

dinoreg-rt sweep --pairs pairs.csv -o out --grid smoothness=0.25,0.5,1 --grid iterations=40:20,80:40

dinoreg-rt sweep --pairs pairs.csv -o out --space space.toml --samples 50 --seed 1 --jobs 8

{EXIT_CODE_TEXT}"""


@click.command("sweep", epilog=_EPILOG)
@path_option("--pairs", "table", required=True, panel=INPUTS, help=PAIRS_HELP)
@path_option("--data", panel=INPUTS, help=DATA_HELP)
@click.option(
    "--only",
    multiple=True,
    panel=INPUTS,
    help="Name of a pair to use; may be repeated. [default: all pairs]",
)
@path_option(
    "--initial-folder",
    panel=INPUTS,
    help="Folder of initial transforms, <pair>.tfm; pairs without one use --initial.",
)
@click.option(
    "--grid",
    multiple=True,
    metavar="NAME=A,B,...",
    panel=_SPACE,
    help="Values of a parameter; may be repeated, and all combinations are tried. A value that is "
    "a list is written with colons, such as 80:40.",
)
@path_option(
    "--space",
    panel=_SPACE,
    help="TOML file with tables [grid] (name = [a, b]) and [random] "
    "(name = { low = 0.1, high = 2, log = true, whole = false }).",
)
@click.option(
    "--samples", type=click.IntRange(0), panel=_SPACE, help="Number of draws from [random]."
)
@click.option(
    "--seed", type=click.IntRange(0), panel=_SPACE, help="Seed of the draws. [default: 0]"
)
@config_options
@click.option(
    "--jobs",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    panel="Machine",
    help="Number of registrations at a time, each on --threads threads (in a sweep by default 1).",
)
@path_option("-o", "--output", required=True, panel=OUTPUT, help="Folder for the results.")
@json_option("the table")
@quiet_option
@click.pass_context
def sweep(ctx: click.RichContext, /, **options: Any) -> None:
    """Try many parameter settings on many pairs, and compare accuracy and time.

    The results are results.jsonl (one line per registration, written as it finishes), table.md,
    table.csv and pareto.png. The same command resumes a sweep that was stopped: results for the
    same images, parameters and version are kept, and failed registrations are tried again.

    Parameters that are not swept come from the preset, then --config, then the options; later ones
    override earlier ones.
    """
    trials = _plan(options)
    results = options["output"] / "results.jsonl"
    with reporting(quiet=options["quiet"]) as reporter:
        reporter.say("sweep", f"{len(trials)} registrations, {options['jobs']} at a time")
        records = run_trials(trials, results, jobs=options["jobs"], finished=_progress_of(reporter))
    _write(options, records)
    if failed := sorted({r.pair for r in records if r.status == "failed"}):
        click.echo(f"Error: pairs that failed, see table.md: {', '.join(failed)}", err=True)
        ctx.exit(InputError.exit_code)


def _plan(options: dict[str, Any]) -> list[Any]:
    """Return the trials, and find whatever is wrong before the first registration."""
    from ..io import check_outputs, check_writable

    base = read_config(options, threads=1, trust=False)
    space = read_space(options["space"], options["grid"], options["samples"], options["seed"])
    candidates = space.candidates()
    if not any("encoder" in candidate for candidate in candidates):
        check_used(base, given_config(options))
    check_writable(options["output"])
    given = [options[name] for name in ("table", "space", "config_file") if options[name]]
    check_outputs((options["output"] / name for name in _FILES), given)
    return plan_trials(_pairs(options), candidates, base, options["initial_folder"])


def _pairs(options: dict[str, Any]) -> list[PairFiles]:
    table: Path = options["table"]
    pairs = read_pairs(table, options["data"] or table.parent, options["output"])
    if unknown := sorted(set(options["only"]) - {pair.name for pair in pairs}):
        names = ", ".join(pair.name for pair in pairs)
        raise InputError(f"{table}: lists no pair {', '.join(unknown)}; it lists {names}")
    return [pair for pair in pairs if not options["only"] or pair.name in options["only"]]


def _progress_of(reporter: Reporter) -> Finished:
    began = spoke = time.monotonic()
    first: list[int] = []
    warned: set[str] = set()

    def finished(done: int, total: int, record: Record) -> None:
        nonlocal spoke
        first.append(done)
        reporter("sweep", done / total)
        if record.status == "failed":
            reporter.say("failed", f"{record.pair}: {record.message}")
        for text in (f"{record.pair}: {warning}" for warning in record.warnings):
            if text not in warned:  # another setting of the same pair
                reporter.say("warning", text)
                warned.add(text)
        now = time.monotonic()
        if now - spoke > _SAY_EVERY_S:
            spoke = now
            # Results of an earlier run count as done, but took none of this run's time.
            left_s = (now - began) / len(first) * (total - done)
            reporter.say("sweep", f"{done} of {total}, about {left_s / 60:.1f} min left")

    return finished


def _write(options: dict[str, Any], records: Sequence[Record]) -> None:
    from ..evaluate.tables import without_nan
    from ..io.staging import staged_file
    from ..sweep import tables as report

    folder: Path = options["output"]
    scored = report.score_candidates(records)
    text = report.table_to_markdown(scored, records)
    for name, content in (("table.md", text), ("table.csv", report.table_to_csv(scored))):
        with staged_file(folder / name) as path:
            path.write_text(content, "utf-8")
    with staged_file(folder / "pareto.png") as path:
        report.draw_front(scored, path)
    if options["as_json"]:
        failed = [{"pair": r.pair, "message": r.message} for r in records if r.status == "failed"]
        document = {
            "status": "incomplete" if failed else "ok",
            "candidates": report.scores_to_dict(scored),
            "failed": failed,
        }
        text = json.dumps(without_nan(document), indent=2, allow_nan=False) + "\n"
    if options["as_json"] or not options["quiet"]:
        print_result(text, written=folder)
