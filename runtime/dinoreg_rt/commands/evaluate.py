"""`dinoreg-rt evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import rich_click as click

from ..console.progress import Reporter, reporting
from ..console.stdout import print_result
from ..errors import InputError
from ..evaluate.cohort import GroupScores, evaluate_pairs, read_pairs, summarise
from ..evaluate.pair import PairFiles, PairScores, evaluate_pair
from .main import EXIT_CODE_TEXT
from .options import (
    DATA_HELP,
    OUTPUT,
    PAIRS_HELP,
    FilePath,
    orientation_option,
    path_option,
)

_ONE, _MANY = "One pair", "Many pairs"

# The blank lines keep the help renderer from joining lines.
_EPILOG = f"""Examples:

dinoreg-rt evaluate -f mr_labels.nii.gz -m ct_labels.nii.gz -t out/transform.h5

dinoreg-rt evaluate --fixed-points f.csv --moving-points m.csv -t out/transform.h5

dinoreg-rt evaluate -f f.nii.gz -m m.nii.gz --learn2reg disp_0001_0002.nii.gz

dinoreg-rt evaluate --pairs pairs.csv --data DATA --results RESULTS --json scores.json

{EXIT_CODE_TEXT}"""


@click.command("evaluate", epilog=_EPILOG)
@path_option("-f", "--fixed-labels", panel=_ONE, help="Label map of the fixed image.")
@path_option("-m", "--moving-labels", panel=_ONE, help="Label map of the moving image.")
@path_option(
    "-t",
    "--transform",
    "transforms",
    multiple=True,
    panel=_ONE,
    help="Transform from fixed to moving points: .h5, .tfm, .txt, .mat, or a displacement image in "
    "mm; may be repeated, in the order in which points pass through. Without any, only the scores "
    "before registration are computed.",
)
@path_option(
    "--learn2reg",
    panel=_ONE,
    help="Learn2Reg field (H, W, D, 3) in voxels, instead of -t; headers are ignored.",
)
@path_option("--fixed-points", panel=_ONE, help="Landmarks of the fixed image.")
@path_option(
    "--moving-points",
    panel=_ONE,
    help="The same landmarks in the moving image, in the same order.",
)
@path_option(
    "--mask",
    panel=_ONE,
    help="Mask on the fixed grid; the Jacobian is evaluated where it is not 0.",
)
@orientation_option
@path_option("--pairs", panel=_MANY, help=PAIRS_HELP)
@path_option("--data", panel=_MANY, help=DATA_HELP)
@path_option(
    "--results", panel=_MANY, help="Folder with <pair>/transform.h5 or <pair>/displacement.nii.gz."
)
@path_option(
    "--labels-names", panel=OUTPUT, help='JSON file of label names, such as {"1": "spleen"}.'
)
@path_option("--csv", "csv_file", panel=OUTPUT, help="CSV file for all scores.")
@click.option(
    "--json",
    "json_file",
    type=FilePath(allow_dash=True),
    panel=OUTPUT,
    help="JSON file for all scores; - prints them on stdout instead of the tables.",
)
@click.option(
    "-q", "--quiet", is_flag=True, panel=OUTPUT, help="Print neither tables nor progress."
)
@click.pass_context
def evaluate(ctx: click.RichContext, /, **options: Any) -> None:
    """Score registrations by overlap, surface distance, landmarks and regularity.

    Scores 'before' place the images by their headers; scores 'after' apply the transform and
    resample moving labels onto the fixed grid by nearest neighbour.

    Dice: 0 to 1, for the labels that both maps hold; a label that the transform loses scores 0.

    HD95: 95th percentile of the surface distance, the larger of both directions, in mm and in
    voxels; a lost label scores the diagonal of the grid.

    TRE (target registration error): distance in mm from mapped fixed landmarks to moving landmarks.

    SDLogJ: standard deviation of log det J where det J > 0. Learn2Reg's variant is shown next to
    it: std(log(clip(det J + 3, 1e-9, 1e9))) without the outer 2 voxels, which is several times
    smaller.

    Folded: percentage of voxels with det J <= 0.

    For many pairs the table shows means with 95 % bootstrap intervals, over all pairs and for each
    kind. Pairs without a result are listed as missing and left out of the means.
    """
    _check_usage(options)
    names = _prepare_output(options)
    with reporting(quiet=options["quiet"]) as reporter:
        scores = _score(options, reporter)
        for warning in dict.fromkeys(text for one in scores for text in one.warnings):
            reporter.say("warning", warning)
    groups = summarise(scores) if options["pairs"] else []
    _write(options, scores, groups, names)
    unusable = [one for one in scores if one.status == "failed"]
    if unusable or all(one.status == "missing" for one in scores):
        # The scores have been printed; an exception would add a second document to stdout.
        which = ", ".join(one.name for one in unusable) or "no pair has a result"
        click.echo(f"Error: pairs that could not be scored: {which}", err=True)
        ctx.exit(InputError.exit_code)


#: Options of a single pair's files, besides --transform.
_PAIR = ("fixed_labels", "moving_labels", "learn2reg", "fixed_points", "moving_points", "mask")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _check_usage(options: dict[str, Any]) -> None:
    """Check which options go together; wrong usage is click's own error with its exit code."""
    given = [_flag(name) for name in _PAIR if options[name]]
    given += ["--transform"] * bool(options["transforms"])
    if options["pairs"]:
        if given:
            raise click.UsageError(f"{', '.join(given)} cannot be used together with --pairs")
        if not options["results"]:
            raise click.UsageError("--pairs needs --results, the folder with the transforms")
        return
    if options["results"] or options["data"]:
        raise click.UsageError("--data and --results go with --pairs")
    if not given:
        raise click.UsageError("nothing to score; give -f and -m, points, or --pairs")
    for a, b in (("fixed_labels", "moving_labels"), ("fixed_points", "moving_points")):
        if bool(options[a]) != bool(options[b]):
            one, other = (a, b) if options[a] else (b, a)
            raise click.UsageError(f"{_flag(one)} needs {_flag(other)} as well")
    if options["learn2reg"] and options["transforms"]:
        raise click.UsageError("--learn2reg and --transform: give one of them, not both")


def _score(options: dict[str, Any], reporter: Reporter) -> list[PairScores]:
    if not options["pairs"]:
        return [
            evaluate_pair(
                PairFiles(
                    name=_pair_name(options),
                    transforms=options["transforms"],
                    orientation=options["orientation"],
                    **{name: options[name] for name in _PAIR},
                )
            )
        ]
    table: Path = options["pairs"]
    pairs = [
        replace(pair, orientation=options["orientation"])
        for pair in read_pairs(table, options["data"] or table.parent, options["results"])
    ]
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
    """Return the label names, and check early that the scores can be written."""
    from ..evaluate.tables import read_label_names
    from ..io import check_outputs, check_writable

    files = [f for f in (options["csv_file"], options["json_file"]) if f and f != Path("-")]
    for file in files:
        check_writable(file.parent)
    names = (*_PAIR, "pairs", "labels_names")
    single = [options[name] for name in names if options[name] is not None]
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
        # A pipe has no width, and rich's 80 columns would break the lines of a log.
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
