"""`dinoreg-rt cohort`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from ..cohort.capacity import Crew, crew
from ..cohort.jobs import Job
from ..cohort.names import PAGE, TABLE
from ..cohort.study import Work, do_work, plan_work
from ..console.progress import reporting
from ..console.stdout import print_result
from ..registration.demands import check_demands
from .cohort_inputs import Shard, check_usage, configure, read_all
from .main import EXIT_CODE_TEXT
from .options import (
    DATA_HELP,
    INPUTS,
    OUTPUT,
    REPORTING,
    FilePath,
    config_options,
    json_option,
    path_option,
    quiet_option,
)
from .result_options import result_options

if TYPE_CHECKING:
    from ..cohort.schedule import Workers
    from ..page.cohort_rows import CohortRow

_WORK = "Workers"
_RAY_HELP = (
    "Address of the Ray cluster that runs the workers; auto: the cluster of this machine; local: "
    "start Ray on this machine alone. All machines must see the same files."
)

# The blank lines keep the help renderer from joining lines.
_EPILOG = f"""Examples:

dinoreg-rt cohort pairs.csv -o out

dinoreg-rt cohort pairs.csv -o out --preset fast --encoder dinov3 --retries 1 --dry-run

dinoreg-rt cohort pairs.csv -o out --shard "$SLURM_ARRAY_TASK_ID/8"

dinoreg-rt cohort --bids study --fixed ses-pre_T1w --moving ses-post_T1w -o study/derivatives/reg

{EXIT_CODE_TEXT}"""


@click.command("cohort", epilog=_EPILOG)
@click.argument("table", type=FilePath(), required=False, metavar="[PAIRS.CSV]")
@path_option("--data", panel=INPUTS, help=DATA_HELP)
@click.option(
    "--only",
    multiple=True,
    panel=INPUTS,
    help="Do only the pair of this name; may be repeated. [default: all pairs]",
)
@path_option("--bids", panel=INPUTS, help="Folder of a BIDS dataset, instead of a table.")
@click.option(
    "--fixed",
    metavar="SELECTOR",
    panel=INPUTS,
    help="With --bids: entities and suffix of the fixed images, such as ses-pre_T1w, or a file "
    "that is the fixed image of all pairs.",
)
@click.option(
    "--moving",
    metavar="SELECTOR",
    panel=INPUTS,
    help="With --bids: entities and suffix of the moving images.",
)
@path_option(
    "-o",
    "--output",
    required=True,
    panel=OUTPUT,
    help="Folder for the results: a folder for each pair, index.html, cohort.csv, failures.csv.",
)
@config_options
@result_options
@click.option(
    "--workers",
    type=click.IntRange(1, 1024),
    panel=_WORK,
    help="Number of pairs that are done at the same time. [default: one for each GPU, or for each "
    "CPU as far as the predicted memory of the largest pair allows]",
)
@click.option(
    "--retries",
    type=click.IntRange(0, 100),
    default=2,
    show_default=True,
    panel=_WORK,
    help="How often a pair is tried again that fails for another reason than its inputs, its "
    "parameters or its images, such as a lack of memory.",
)
@click.option(
    "--shard",
    type=Shard(),
    panel=_WORK,
    help="Do only the I-th of N parts of the pairs, such as 2/8; all parts may write into the same "
    "output folder.",
)
@click.option("--ray", "ray_address", metavar="ADDRESS", panel=_WORK, help=_RAY_HELP)
@path_option(
    "--ray-folder",
    panel=_WORK,
    help="Folder for Ray's own files with --ray local; a short path. [default: chosen by Ray]",
)
@click.option(
    "--dry-run",
    is_flag=True,
    panel=REPORTING,
    help="List the pairs and what would be done, but write nothing.",
)
@click.option(
    "--accept-untrusted",
    is_flag=True,
    panel=REPORTING,
    help="Exit with 0 instead of 9 if a result should not be trusted; the table still says so.",
)
@json_option("the summary")
@quiet_option
@click.pass_context
def cohort(ctx: click.RichContext, /, **options: Any) -> None:
    """Register many pairs, each into a folder of its own, and score those that have labels.

    PAIRS.CSV has the columns pair, fixed and moving. Optional columns for scores are those of
    'evaluate --pairs': kind, fixed_label, moving_label, fixed_points, moving_points and mask. The
    columns fixed_mask, moving_mask, weights, labels and images (semicolons separate several) stand
    for options of 'run'. The column preset, and one for any parameter, such as initial or
    smoothness, hold values for single pairs; colons separate the values of a list, such as 80:40.
    Where a field is empty, the options apply.

    Each pair has a folder with the files that 'run' writes, which appear together or not at all.
    The same command resumes: it does only the pairs that are missing or have failed, or whose
    inputs, parameters or version have changed.

    A pair that fails unexpectedly or for lack of memory is tried again. What fails for good is
    listed in failures.csv, and the others go on. The exit code is that of the first failed pair in
    the table, or 9 if none failed but a result should not be trusted.

    The workers stay open between pairs. Pairs with the same fixed image follow each other, and what
    depends on that image alone is computed once.
    """
    check_usage(options)
    with reporting(quiet=options["quiet"]) as reporter:
        everything = read_all(options, reporter)
        config = configure(options, {})
        check_demands(config)
        chosen = [job for job in everything if job.name in (options["only"] or (job.name,))]
        work = plan_work(everything, chosen, options["shard"], reporter)
        team = crew(config, work.pairs, options["workers"]) if work.tasks else None
        if team is not None:
            reporter.say("workers", team.reason)
        if options["dry_run"]:
            _print_plan(work, team, as_json=options["as_json"])
            return
        workers = None if team is None else _workers(team, options)
        do_work(work, options["output"], workers, options["retries"], reporter)
    code = _finish(work, options)
    if code:
        ctx.exit(code)


def _print_plan(work: Work, team: Crew | None, *, as_json: bool) -> None:
    if as_json:
        todo = {task.job.name: "register" if task.register else "score" for task in work.tasks}
        document = {
            "status": "planned",
            "exit_code": 0,
            "workers": 0 if team is None else len(team.settings),
            "pairs": {job.name: todo.get(job.name, "done") for job in work.own},
        }
        print_result(json.dumps(document, indent=2) + "\n")
        return
    names = {False: "score only", True: "register"}
    lines = [
        f"{names[task.register]}: {task.job.name}: {task.job.request.moving} to "
        f"{task.job.request.fixed}"
        for task in work.tasks
    ]
    lines.append(f"{len(work.tasks)} of {len(work.own)} pairs would be done")
    print_result("\n".join(lines) + "\n")


def _workers(team: Crew, options: dict[str, Any]) -> Workers:
    if options["ray_address"] is None:
        from ..cohort.local import LocalWorkers

        return LocalWorkers(team.settings)
    from ..cohort.on_ray import RayWorkers

    folder = options["ray_folder"]
    return RayWorkers(
        options["ray_address"], team.settings, None if folder is None else str(folder.resolve())
    )


def _finish(work: Work, options: dict[str, Any]) -> int:
    """Write the tables and derivatives, print the summary, and return the exit code."""
    from ..cohort.summary import (
        exit_code_of,
        failures_of,
        row_to_dict,
        rows_of,
        write_tables,
    )
    from ..page.cohort_page import write_cohort_page

    output: Path = options["output"]
    rows = rows_of(work.everything, output)
    write_tables(output, rows, failures_of(work.everything))
    if options["bids"]:
        _write_derivatives(work.own, rows, options)
    if options["page"] != "none":
        write_cohort_page(output / PAGE, rows)
    own = {job.name for job in work.own}
    mine = [row for row in rows if row.pair in own]
    jobs = [job for job in work.everything if job.name in own]
    failed = [row.pair for row in mine if row.status == "failed"]
    code = exit_code_of(jobs, accept_untrusted=options["accept_untrusted"])
    if options["as_json"]:
        document = {
            "status": "incomplete" if failed else "ok",
            "exit_code": code,
            "done": len(work.tasks) - len(failed),
            "done_before": len(work.own) - len(work.tasks),
            "pairs": [row_to_dict(row) for row in mine],
        }
        text = json.dumps(document, indent=2, allow_nan=False) + "\n"
        print_result(text, written=output)
    elif not options["quiet"]:
        print_result(_summary(mine, failed, output), written=output)
    if failed:
        click.echo(f"Error: pairs that failed, see failures.csv: {', '.join(failed)}", err=True)
    return code


def _summary(rows: Sequence[CohortRow], failed: Sequence[str], output: Path) -> str:
    doubtful = [row.pair for row in rows if row.trusted is False]
    lines = [f"{len(rows) - len(failed)} of {len(rows)} pairs are in {output}"]
    if doubtful:
        lines.append(f"not to be trusted: {', '.join(doubtful)}")
    return "\n".join([*lines, f"table: {output / TABLE}"]) + "\n"


def _write_derivatives(
    own: Sequence[Job], rows: Sequence[CohortRow], options: dict[str, Any]
) -> None:
    from ..cohort.bids import BidsJob
    from ..cohort.derivatives import describe_dataset, write_derivatives

    there = {row.pair for row in rows if row.folder is not None}
    jobs = [job for job in own if isinstance(job, BidsJob) and job.name in there]
    describe_dataset(options["output"], options["bids"])
    write_derivatives(options["output"], options["bids"], jobs)
