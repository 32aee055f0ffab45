"""`dinoreg-rt probe`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import rich_click as click

from ..console.progress import reporting
from ..console.stdout import print_result
from ..registration.demands import OF_AN_ENCODER, check_demands, check_used
from .main import EXIT_CODE_TEXT
from .options import (
    INPUTS,
    given_config,
    json_option,
    path_option,
    quiet_option,
    read_config,
    some_config_options,
)

if TYPE_CHECKING:
    from ..evaluate.probe import ProbeResult, ProbeRow

#: Distance of the encoded slices, unless an option, a preset or a file sets it.
_SLICE_SPACING_MM = 12.0
#: Parameters that determine the slices and tokens examined, and MIND-SSC. The standardisations
#: vary from row to row, and nothing is registered.
_USED = set(OF_AN_ENCODER) - {"mind_weight", "token_centre", "token_scale"}
_USED |= {
    "device",
    "threads",
    "gpu_memory_gb",
    "initial",
    "linear",
    "fixed_modality",
    "moving_modality",
    "body_mask",
    "orientation",
    "ct_window_hu",
    "mr_percentile",
    "working_megavoxels",
    "control_spacing_mm",
    "search_spacing_mm",
    "search_radius_mm",
    "engine",
    "token_memory_gb",
    "cache",
    "cache_gb",
    "mind_radius_mm",
    "mind_dilation_mm",
    "intensity",
    "intensity_windows_mm",
    "intensity_scale",
}


@click.command("probe", epilog=EXIT_CODE_TEXT)
@click.argument("bundle", metavar="ENCODER")
@path_option("-f", "--fixed", required=True, panel=INPUTS, help="Fixed image.")
@path_option("-m", "--moving", required=True, panel=INPUTS, help="Moving image.")
@path_option("--fixed-labels", panel=INPUTS, help="Organ labels of the fixed image.")
@path_option("--moving-labels", panel=INPUTS, help="Organ labels of the moving image.")
@click.option("--encoder", hidden=True)
@some_config_options(_USED)
@json_option("the table")
@quiet_option
def probe(**options: Any) -> None:
    """Find out which layer of an encoder suits your images, and how to standardise its tokens.

    For up to 1000 tokens of each labelled organ of the fixed image, the three most similar tokens
    of the moving image are looked up within 48 mm along each axis. The table shows how often they
    lie in the same organ, for each layer in the bundle and each standardisation, next to MIND-SSC
    and chance. To compare layers, export several: 'dinoreg-rt export onnx --layer 11 --layer 15'.

    The column 'consistent' is the share of tokens whose best match leads back to where it began;
    without labels it is the only one. Slices are encoded 12 mm apart, unless --slice-stride,
    --slice-spacing-mm, --preset or --config is given.
    """
    if (options["fixed_labels"] is None) != (options["moving_labels"] is None):
        raise click.UsageError("give both --fixed-labels and --moving-labels, or neither")
    if options["encoder"] is not None:
        raise click.UsageError("give the encoder as the command's argument, without --encoder")
    options["encoder"] = options["bundle"]
    sources = ("slice_stride", "slice_spacing_mm", "preset", "config_file")
    if all(options[name] is None for name in sources):
        options["slice_spacing_mm"] = _SLICE_SPACING_MM
    config = read_config(options, trust=False)
    # The smoothing is that of a row of the table, whatever a preset has.
    check_used(config, set(given_config(options)) - {"token_smoothing_mm"})
    check_demands(config)  # before an image is read
    from ..evaluate.probe import probe_images
    from ..io import read_labels, read_volume

    with reporting(quiet=options["quiet"]) as reporter:
        labels, take = None, config.orientation
        if options["fixed_labels"] is not None:
            labels = (
                read_labels(options["fixed_labels"], orientation=take),
                read_labels(options["moving_labels"], orientation=take),
            )
        fixed = read_volume(options["fixed"], orientation=take)
        moving = read_volume(options["moving"], orientation=take)
        for volume in (fixed, moving, *(labels or ())):
            for note in volume.geometry.notes:
                reporter.say("warning", note)
        result = probe_images(fixed, moving, labels, config, reporter)
        for warning in result.warnings:
            reporter.say("warning", warning)
    if options["as_json"]:
        print_result(json.dumps(_as_json(result), indent=2) + "\n")
    else:
        _print(result)


def _as_json(result: ProbeResult) -> dict[str, Any]:
    rows = [
        {
            "features": row.features,
            "token_centre": row.centre or None,
            "token_scale": row.scale or None,
            "same_label": row.mean,
            "same_label_of": {str(label): share for label, share in row.found.items()},
            "consistent": row.consistent,
        }
        for row in result.rows
    ]
    chance = {str(label): share for label, share in result.chance.items()}
    return {
        "rows": rows,
        "chance_of": chance,
        "tokens": list(result.tokens),
        "warnings": list(result.warnings),
    }


def _print(result: ProbeResult) -> None:
    from rich.console import Console
    from rich.table import Table

    labels = len(result.chance)
    table = Table(box=None, padding=(0, 1))
    for heading in ("features", "centre", "scale"):
        table.add_column(heading, no_wrap=True)
    for heading in (*(["same label"] if labels else []), "consistent"):
        table.add_column(heading, justify="right", no_wrap=True)
    # The best row comes last, where it is visible after the table has scrolled by.
    for row in sorted(result.rows, key=_merit):
        shares = [share for share in (row.mean, row.consistent) if share is not None]
        table.add_row(row.features, row.centre, row.scale, *[f"{share:.3f}" for share in shares])
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    if labels:
        mean = sum(result.chance.values()) / labels
        console.print(
            f"same label: mean of {labels} labels, by chance {mean:.3f}; --json lists each label; "
            "the best row is the last"
        )


def _merit(row: ProbeRow) -> float:
    return row.consistent if row.mean is None else row.mean
