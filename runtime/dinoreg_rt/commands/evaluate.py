"""`dinoreg-rt evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import rich_click as click

from ..console.progress import Reporter, reporting
from ..console.stdout import print_result
from ..errors import InputError
from ..evaluate.cohort import GroupScores, evaluate_pairs, read_pairs, summarise
from ..evaluate.pair import PairFiles, PairScores, evaluate_pair
from .main import EXIT_CODE_TEXT
from .options import FilePath

# Paths are not checked by click: our own messages say more, and their exit code is another.
_PATH = FilePath()
_ONE, _MANY, _OUT = "One pair", "Many pairs", "What is said"

# The blank lines keep the help renderer from joining lines.
_EPILOG = f"""Examples:

dinoreg-rt evaluate -f mr_labels.nii.gz -m ct_labels.nii.gz -t out/transform.h5

dinoreg-rt evaluate --fixed-points f.csv --moving-points m.csv -t out/transform.h5

dinoreg-rt evaluate -f f.nii.gz -m m.nii.gz --learn2reg disp_0001_0002.nii.gz

dinoreg-rt evaluate --pairs pairs.csv --data DATA --results RESULTS --json scores.json

{EXIT_CODE_TEXT}"""


@click.command("evaluate", epilog=_EPILOG)
@click.option("-f", "--fixed-labels", type=_PATH, panel=_ONE, help="Label map of the fixed image.")
@click.option(
    "-m", "--moving-labels", type=_PATH, panel=_ONE, help="Label map of the moving image."
)
@click.option(
    "-t",
    "--transform",
    "transforms",
    type=_PATH,
    multiple=True,
    panel=_ONE,
    help="Fixed to moving points: .h5, .tfm, .txt, .mat, or a displacement image in mm. Repeated, "
    "they are applied to fixed points in the order given. Without: only the scores before.",
)
@click.option(
    "--learn2reg",
    type=_PATH,
    panel=_ONE,
    help="Instead of -t: a Learn2Reg field (H, W, D, 3) in voxels, headers ignored.",
)
@click.option("--fixed-points", type=_PATH, panel=_ONE, help="Landmarks of the fixed image.")
@click.option("--moving-points", type=_PATH, panel=_ONE, help="The same landmarks, same order.")
@click.option(
    "--mask", type=_PATH, panel=_ONE, help="Look at the Jacobian only here (fixed grid, not 0)."
)
@click.option(
    "--pairs",
    type=_PATH,
    panel=_MANY,
    help="CSV with columns pair, fixed, moving and, as there are, kind, fixed_label, "
    "moving_label, fixed_points, moving_points, mask.",
)
@click.option(
    "--data", type=_PATH, panel=_MANY, help="Folder of the table's paths. [default: the table's]"
)
@click.option(
    "--results",
    type=_PATH,
    panel=_MANY,
    help="Folder with <pair>/transform.h5 or <pair>/displacement.nii.gz.",
)
@click.option(
    "--labels-names", type=_PATH, panel=_OUT, help='JSON of label names: {"1": "spleen"}.'
)
@click.option("--csv", "csv_file", type=_PATH, panel=_OUT, help="Write all scores as CSV.")
@click.option(
    "--json",
    "json_file",
    type=FilePath(allow_dash=True),
    panel=_OUT,
    help="Write all scores as JSON; - for stdout, instead of the tables.",
)
@click.option("-q", "--quiet", is_flag=True, panel=_OUT, help="No tables, no progress.")
@click.pass_context
def evaluate(ctx: click.RichContext, /, **options: Any) -> None:
    """Score registrations: overlap, surface distance, landmarks, regularity.

    Before: as the files' headers place the images. After: through the transform, moving labels on
    the fixed grid by nearest neighbour.

    Dice: 0 to 1, over the labels that both maps hold; a label that the transform loses scores 0.

    HD95: surface distance, 95th percentile, the larger of both directions, in mm and in voxels; of
    a label that was lost the diagonal of the grid.

    TRE: distance of mapped fixed landmarks to moving landmarks, mm.

    SDLogJ: standard deviation of log det J where det J > 0; beside it Learn2Reg's,
    std(log(clip(det J + 3, 1e-9, 1e9))) without the outer 2 voxels, which is several times smaller.

    Folded: share of voxels with det J <= 0, in percent.

    Many pairs: means over pairs with 95 % bootstrap intervals, over all and for each kind. A pair
    without a result is listed as missing and is not part of the means.
    """
    _check_usage(options)
    names = _prepare_output(options)
    with reporting(quiet=options["quiet"]) as reporter:
        scores = _score(options, reporter)
    groups = summarise(scores) if options["pairs"] else []
    _write(options, scores, groups, names)
    unusable = [one for one in scores if one.status == "failed"]
    if unusable or all(one.status == "missing" for one in scores):
        # The scores are out already: an exception would add a second document to stdout.
        which = ", ".join(one.name for one in unusable) or "no pair has a result"
        click.echo(f"Error: pairs that could not be scored: {which}", err=True)
        ctx.exit(InputError.exit_code)


#: The name under which the command line looks for a command.
command = evaluate


_INPUTS = ["fixed_labels", "moving_labels", "learn2reg", "fixed_points", "moving_points", "mask"]
_INPUTS += ["pairs", "labels_names"]


def _check_usage(options: dict[str, Any]) -> None:
    """Which options go together; wrong usage is click's own error and exit code."""
    single = {
        "--fixed-labels": "fixed_labels",
        "--moving-labels": "moving_labels",
        "--transform": "transforms",
        "--learn2reg": "learn2reg",
        "--fixed-points": "fixed_points",
        "--moving-points": "moving_points",
        "--mask": "mask",
    }
    given = [flag for flag, name in single.items() if options[name]]
    if options["pairs"]:
        if given:
            raise click.UsageError(f"{', '.join(given)}: not together with --pairs")
        if not options["results"]:
            raise click.UsageError("--pairs needs --results, the folder with the transforms")
        return
    if options["results"] or options["data"]:
        raise click.UsageError("--data and --results go with --pairs")
    if not given:
        raise click.UsageError("nothing to score: give -f and -m, points, or --pairs")
    for a, b in (("fixed_labels", "moving_labels"), ("fixed_points", "moving_points")):
        if bool(options[a]) != bool(options[b]):
            one, other = (a, b) if options[a] else (b, a)
            raise click.UsageError(
                f"--{one.replace('_', '-')} needs --{other.replace('_', '-')} as well"
            )
    if options["learn2reg"] and options["transforms"]:
        raise click.UsageError("--learn2reg and --transform: give one of them")


def _score(options: dict[str, Any], reporter: Reporter) -> list[PairScores]:
    if not options["pairs"]:
        return [
            evaluate_pair(
                PairFiles(
                    name=_pair_name(options),
                    fixed_labels=options["fixed_labels"],
                    moving_labels=options["moving_labels"],
                    transforms=options["transforms"],
                    learn2reg=options["learn2reg"],
                    fixed_points=options["fixed_points"],
                    moving_points=options["moving_points"],
                    mask=options["mask"],
                )
            )
        ]
    table: Path = options["pairs"]
    pairs = read_pairs(table, options["data"] or table.parent, options["results"])
    scores = []
    for number, one in enumerate(evaluate_pairs(pairs), start=1):
        scores.append(one)
        reporter(f"{len(pairs)} pairs", number / len(pairs))
    return scores


def _pair_name(options: dict[str, Any]) -> str:
    fixed = options["fixed_labels"] or options["fixed_points"]
    moving = options["moving_labels"] or options["moving_points"]
    return f"{fixed.name} <- {moving.name}" if fixed and moving else "transform"


def _prepare_output(options: dict[str, Any]) -> dict[int, str]:
    """The label names; whatever would spoil the report at the end is found out here."""
    from ..evaluate.tables import read_label_names
    from ..io import check_outputs, check_writable

    files = [f for f in (options["csv_file"], options["json_file"]) if f and f != Path("-")]
    for file in files:
        check_writable(file.parent)
    single = [options[name] for name in _INPUTS if options[name] is not None]
    check_outputs(files, [*single, *options["transforms"]])
    return read_label_names(options["labels_names"]) if options["labels_names"] else {}


def _write(
    options: dict[str, Any],
    scores: Sequence[PairScores],
    groups: Sequence[GroupScores],
    names: dict[int, str],
) -> None:
    from ..evaluate import tables as report
    from ..io.staging import staged_file

    to_stdout = options["json_file"] == Path("-")
    if options["csv_file"]:
        with staged_file(options["csv_file"]) as path:
            path.write_text(report.scores_to_csv(scores, groups, names), "utf-8")
    if options["json_file"]:
        text = report.scores_to_json(scores, groups, names)
        if to_stdout:
            print_result(text)
        else:
            with staged_file(options["json_file"]) as path:
                path.write_text(text, "utf-8")
    if not options["quiet"] and not to_stdout:
        _print_tables(scores, groups, names)


def _print_tables(
    scores: Sequence[PairScores], groups: Sequence[GroupScores], names: dict[int, str]
) -> None:
    from rich.console import Console

    from ..evaluate.tables import label_table, metric_table, pair_table

    console = Console(highlight=False)
    if not console.is_terminal:
        # A pipe has no width; 80 would break the lines of a log.
        console = Console(highlight=False, width=160)
    if groups:
        console.print(pair_table(scores))
        console.print(metric_table(groups, "Mean over pairs, 95 % bootstrap interval"))
    else:
        if scores[0].before is not None:
            console.print(label_table(scores[0], names))
        console.print(metric_table(summarise(scores), "Means"))
    for one in scores:
        if one.message:
            console.print(f"{one.name}: {one.status}: {one.message}", markup=False)
        if one.vanished:
            lost = ", ".join(names.get(label, str(label)) for label in one.vanished)
            console.print(
                f"{one.name}: labels without a voxel after warping: {lost}; their HD95 is the "
                "diagonal of the grid",
                markup=False,
            )
