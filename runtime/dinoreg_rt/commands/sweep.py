"""`dinoreg-rt sweep`."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rich_click as click

from ..config.files import preset_names
from ..console.progress import Reporter, reporting
from ..console.stdout import print_result
from ..errors import InputError
from ..evaluate.cohort import read_pairs
from ..evaluate.pair import PairFiles
from ..registration.demands import check_used
from ..sweep.space import read_space
from ..sweep.trials import Finished, Record, plan_trials, run_trials
from .main import EXIT_CODE_TEXT
from .options import FilePath, config_options, given_config, read_config

# Paths are not checked by click: our own messages say more, and their exit code is another.
_PATH = FilePath()
_PAIRS, _SPACE, _OUT = "Pairs", "What is tried", "What is said"
_FILES = ("results.jsonl", "table.md", "table.csv", "pareto.png")
#: The rest of the time is said this often.
_SAY_EVERY_S = 10.0

# The blank lines keep the help renderer from joining lines.
_EPILOG = f"""Examples:

dinoreg-rt sweep --pairs pairs.csv -o out --grid smoothness=0.25,0.5,1 --grid iterations=40:20,80:40

dinoreg-rt sweep --pairs pairs.csv -o out --space space.toml --samples 50 --seed 1 --jobs 8

{EXIT_CODE_TEXT}"""


@click.command("sweep", epilog=_EPILOG)
@click.option(
    "--pairs",
    "table",
    type=_PATH,
    required=True,
    panel=_PAIRS,
    help="CSV with columns pair, fixed, moving and, as there are, kind, fixed_label, "
    "moving_label, fixed_points, moving_points, mask.",
)
@click.option(
    "--data", type=_PATH, panel=_PAIRS, help="Folder of the table's paths. [default: the table's]"
)
@click.option("--only", multiple=True, panel=_PAIRS, help="Name of a pair; repeat. [default: all]")
@click.option(
    "--initial-folder",
    type=_PATH,
    panel=_PAIRS,
    help="Folder with <pair>.tfm, the start of a pair; pairs without one take --initial.",
)
@click.option(
    "--grid",
    multiple=True,
    metavar="NAME=A,B,...",
    panel=_SPACE,
    help="Values of a parameter; repeat, all combinations are tried. Lists are written 80:40.",
)
@click.option(
    "--space",
    type=_PATH,
    panel=_SPACE,
    help="TOML file with [grid] and [random]: name = [a, b] or "
    "name = { low = 0.1, high = 2, log = true, whole = false }.",
)
@click.option(
    "--samples", type=click.IntRange(0), panel=_SPACE, help="Number of draws from [random]."
)
@click.option(
    "--seed", type=click.IntRange(0), panel=_SPACE, help="Seed of the draws. [default: 0]"
)
@click.option("--config", "config_file", type=_PATH, panel=_SPACE, help="TOML file of parameters.")
@click.option("--preset", panel=_SPACE, help=f"Set of parameters: {', '.join(preset_names())}.")
@config_options
@click.option(
    "--jobs",
    type=click.IntRange(1, 1024),
    default=1,
    show_default=True,
    panel="Machine",
    help="Registrations at a time, each with --threads (here 1 unless given).",
)
@click.option("-o", "--output", type=_PATH, required=True, panel=_OUT, help="Folder for results.")
@click.option("--json", "as_json", is_flag=True, panel=_OUT, help="The table on stdout as JSON.")
@click.option("-q", "--quiet", is_flag=True, panel=_OUT, help="Only errors.")
@click.pass_context
def sweep(ctx: click.RichContext, /, **options: Any) -> None:
    """Try many configurations on many pairs, and compare accuracy and time.

    Written: results.jsonl (one line for each registration, as it finishes), table.md, table.csv
    and pareto.png. The same command continues a sweep that was stopped; what has been computed
    for the same images, parameters and version is not computed again, failures are tried again.

    Parameters that are not swept: the preset, then --config, then options; the later wins.
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


#: The name under which the command line looks for a command.
command = sweep


def _plan(options: dict[str, Any]) -> list[Any]:
    """Everything that can be wrong is found before the first registration."""
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
        raise InputError(f"{table}: lists no pair {', '.join(unknown)}; there are: {names}")
    return [pair for pair in pairs if not options["only"] or pair.name in options["only"]]


def _progress_of(reporter: Reporter) -> Finished:
    began = spoke = time.monotonic()
    first: list[int] = []

    def finished(done: int, total: int, record: Record) -> None:
        nonlocal spoke
        first.append(done)
        reporter("sweep", done / total)
        if record.status == "failed":
            reporter.say("failed", f"{record.pair}: {record.message}")
        now = time.monotonic()
        if now - spoke > _SAY_EVERY_S:
            spoke = now
            # What an earlier run left counts as done, but took none of this run's time.
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
