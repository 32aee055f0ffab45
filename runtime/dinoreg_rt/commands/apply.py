"""`dinoreg-rt apply`."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from ..console.progress import Reporter, reporting
from ..console.stdout import print_result
from ..errors import InputError
from .main import EXIT_CODE_TEXT
from .options import (
    INPUTS,
    OUTPUT,
    json_option,
    orientation_option,
    path_option,
    quiet_option,
)

if TYPE_CHECKING:
    from ..choices import OrientationChoice
    from ..fields.inversion import Inversion
    from ..types import Geometry, Transform

_METHOD = "Method"

# The blank lines keep the help renderer from joining lines.
_EPILOG = f"""Examples, after registering B (moving) to A (fixed), and C (moving) to B (fixed).

Resample C onto the grid of A:

dinoreg-rt apply -t ab.h5 -t bc.h5 --image C.nii.gz -o C_on_A.nii.gz

Map points of A to C:

dinoreg-rt apply -t ab.h5 -t bc.h5 --points A.csv -o C.csv

{EXIT_CODE_TEXT}"""


@click.command("apply", epilog=_EPILOG)
@path_option(
    "-t",
    "--transform",
    "transforms",
    multiple=True,
    required=True,
    panel=INPUTS,
    help="Transform or displacement field; repeat for a chain.",
)
@path_option("--image", panel=INPUTS, help="Image to resample (trilinear).")
@path_option("--labels", panel=INPUTS, help="Label map to resample; no label is invented.")
@path_option("--points", panel=INPUTS, help="Points to map: .csv, .mrk.json, .fcsv.")
@path_option(
    "--reference",
    panel=INPUTS,
    help="Image that defines the output grid: the fixed image; with --inverse the moving image. "
    "[default: the grid of the first transform; with --inverse there is none]",
)
@orientation_option
@click.option(
    "--inverse", is_flag=True, panel=_METHOD, help="Apply the inverse of the whole chain."
)
@click.option(
    "--nearest",
    is_flag=True,
    panel=_METHOD,
    help="Take the nearest voxel's label instead of the label with the largest trilinear weight.",
)
@click.option(
    "--frame",
    type=click.Choice(["lps", "ras"]),
    default="lps",
    show_default=True,
    panel=_METHOD,
    help="Frame of the coordinates in a CSV file; Slicer's files name their own.",
)
@path_option("-o", "--output", required=True, panel=OUTPUT, help="File to write.")
@json_option("a summary")
@quiet_option
def apply(**options: Any) -> None:
    """Apply a chain of transforms to an image, a label map or points.

    List the transforms in the order in which points pass through them, from the fixed image to the
    moving image.

    As in ITK, one transform resamples moving images onto the fixed grid and maps fixed points into
    the moving image. --inverse resamples fixed images onto the moving grid and maps moving points
    into the fixed image. Displacement fields are inverted numerically, and the largest residual is
    reported. Where a field folds, and for points from outside it, there is no inverse. Such voxels
    are written as if they lay outside the image and such points as NaN (in .mrk.json as missing); a
    warning counts them and names such points. If folds leave most points without one, nothing is
    written and the exit code is 8.
    """
    kind = _only_one_input(options)
    with reporting(quiet=options["quiet"]) as reporter:
        summary = _apply(kind, options, reporter)
    if options["as_json"]:
        print_result(json.dumps(summary, indent=2) + "\n", written=options["output"])


def _only_one_input(options: dict[str, Any]) -> str:
    given = [kind for kind in ("image", "labels", "points") if options[kind] is not None]
    if len(given) != 1:
        raise click.UsageError("give exactly one of --image, --labels and --points")
    if given[0] == "points":
        if options["reference"] is not None:
            raise click.UsageError("--reference is for images and labels: points have no grid")
    elif options["reference"] is None and options["inverse"]:
        raise click.UsageError(
            f"--{given[0]} with --inverse needs --reference, the image that defines the output "
            "grid: the moving image"
        )
    return given[0]


def _apply(kind: str, options: dict[str, Any], reporter: Reporter) -> dict[str, Any]:
    from ..io import check_outputs, check_writable, read_transform
    from ..types import DisplacementField

    output: Path = options["output"]
    check_writable(output.parent)
    others = [options[name] for name in (kind, "reference") if options[name] is not None]
    check_outputs([output], [*options["transforms"], *others])
    reporter("read", 0.0)
    orientation = options["orientation"]
    steps = [read_transform(path, orientation=orientation) for path in options["transforms"]]
    chain = [step for part in steps for step in part]
    grid = None if kind == "points" else _output_grid(steps[0], options, reporter)
    warnings: list[str] = []

    def warn(*texts: str) -> None:
        for text in texts:
            if text not in warnings:  # the reference may be the image itself
                warnings.append(text)
                reporter.say("warning", text)

    warn(*(n for step in chain if isinstance(step, DisplacementField) for n in step.geometry.notes))
    summary: dict[str, Any] = {"status": "ok", "exit_code": 0, "output": str(output)}
    if grid is None:
        inversion, outside = _apply_to_points(chain, options, reporter)
        summary["points_outside_field"] = outside
    else:
        inversion = _apply_to_volume(kind, chain, grid, options, reporter, warn)
    summary["warnings"] = warnings
    if inversion is not None:
        summary["inverse_residual_mm"] = inversion.residual_mm
        summary["inverse_failed"] = int(inversion.failed.size)
        reporter.say("inverse", f"largest residual {inversion.residual_mm:.2g} mm")
        if inversion.failed.size and kind != "points":
            reporter.say("warning", inversion.describe("voxels"))
    reporter.say("written", str(output))
    return summary


def _output_grid(
    first: Sequence[Transform], options: dict[str, Any], reporter: Reporter
) -> Geometry:
    """Return the grid of ``--reference``, or that of the first transform."""
    from ..io import read_geometry, read_own_grid

    if options["reference"] is not None:
        return read_geometry(options["reference"], orientation=options["orientation"])
    path: Path = options["transforms"][0]
    grid = read_own_grid(path, first)
    if grid is None:
        raise click.UsageError(
            f"{path} has no grid of its own, as a displacement field or the transform.h5 of a run "
            "has; give --reference, the image that defines the output grid: the fixed image"
        )
    reporter.say("grid", f"{grid.summary()}, that of {path}")
    return grid


def _apply_to_volume(
    kind: str,
    chain: list[Transform],
    grid: Geometry,
    options: dict[str, Any],
    reporter: Reporter,
    warn: Callable[..., None],
) -> Inversion | None:
    from .. import io
    from ..fields.inversion import invert_chain
    from ..fields.warp import warp_labels, warp_volume
    from ..quality.label_placement import vanished

    take: OrientationChoice = options["orientation"]
    image = labels = inversion = None
    if kind == "image":
        image = io.read_volume(options["image"], constant=True, orientation=take)
        warn(*grid.notes, *image.geometry.notes, *(f"{image.name}: {n}" for n in image.notes))
    else:
        labels = io.read_labels(options["labels"], orientation=take)
        warn(*grid.notes, *labels.geometry.notes)
    if options["inverse"]:
        reporter("invert", 0.0)
        field, inversion = invert_chain(chain, grid)
        chain = [field]
    reporter("warp", 0.0)
    if image is not None:
        io.write_volume(options["output"], warp_volume(image, chain, grid))
    if labels is not None:
        warped = warp_labels(labels, chain, grid, nearest=options["nearest"])
        if doubt := vanished(labels, warped):
            warn(doubt)
        io.write_labels(options["output"], warped)
    reporter("warp", 1.0)
    return inversion


def _apply_to_points(
    chain: list[Transform], options: dict[str, Any], reporter: Reporter
) -> tuple[Inversion | None, int]:
    """Return the inversion, if any, and the number of points outside a field's grid."""
    import numpy as np

    from ..fields.inversion import invert_points
    from ..io import read_points, transform_points_within, write_points

    points = read_points(options["points"], options["frame"])
    reporter("map", 0.0)
    inversion = None
    if options["inverse"]:
        mapped, inversion = invert_points(chain, points.points_lps_mm)
        outside = np.setdiff1d(np.flatnonzero(np.isnan(mapped).any(axis=1)), inversion.failed)
        consequence = (
            "have no origin inside the displacement field, so they lie outside the fixed image's "
            "field of view and are written without a position"
        )
        if outside.size == len(mapped):
            raise InputError(
                f"{options['points']}: {len(mapped)} of {len(mapped)} points have no origin inside "
                "the displacement field; give points of the moving image, in LPS or with --frame "
                "ras"
            )
    else:
        mapped, within = transform_points_within(chain, points.points_lps_mm)
        outside = np.flatnonzero(~within)
        consequence = "lie outside the displacement field, which is taken as 0 there, as in ITK"
    write_points(options["output"], points.with_points(mapped))
    reporter("map", 1.0)
    if outside.size:
        which = _name_some([points.labels[i] for i in outside])
        reporter.say("warning", f"{outside.size} of {len(mapped)} points {consequence}: {which}")
    if inversion is not None and inversion.failed.size:
        which = _name_some([points.labels[i] for i in inversion.failed])
        reporter.say("warning", f"{inversion.describe('points')}: {which}")
    return inversion, int(outside.size)


def _name_some(labels: list[str]) -> str:
    """Return the first few labels in quotation marks, and the number of the others."""
    shown = ", ".join(f"'{label}'" for label in labels[:5])
    return shown if len(labels) <= 5 else f"{shown} and {len(labels) - 5} more"
