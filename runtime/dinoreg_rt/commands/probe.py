"""`dinoreg-rt probe`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import rich_click as click

from ..cli import EXIT_CODE_TEXT
from ..config_files import preset_names
from ..demands import check_used
from ..progress import reporting
from ..stdout import print_result
from .options import FilePath, given_config, read_config, some_config_options

if TYPE_CHECKING:
    from ..encoder.probe import ProbeResult, ProbeRow

_PATH = FilePath()
_IMAGES = "Images"
#: Distance of the encoded slices where neither an option nor a preset nor a file says otherwise.
_SLICE_SPACING_MM = 12.0
#: What decides which slices and tokens are looked at, and what MIND-SSC is. The standardisations
#: vary from row to row, and nothing is registered.
_USED = {
    "device",
    "threads",
    "gpu_memory_gb",
    "initial",
    "linear",
    "fixed_modality",
    "moving_modality",
    "body_mask",
    "ct_window_hu",
    "mr_percentile",
    "working_megavoxels",
    "control_spacing_mm",
    "search_spacing_mm",
    "search_radius_mm",
    "engine",
    "encoder_depth",
    "token_grid",
    "slice_padding",
    "slice_scale",
    "slice_stride",
    "slice_spacing_mm",
    "axis",
    "components",
    "layers",
    "token_smoothing_mm",
    "position_components",
    "encoder_ct_window_hu",
    "encoder_normalisation",
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
@click.option("-f", "--fixed", type=_PATH, required=True, panel=_IMAGES, help="Fixed image.")
@click.option("-m", "--moving", type=_PATH, required=True, panel=_IMAGES, help="Moving image.")
@click.option("--fixed-labels", type=_PATH, panel=_IMAGES, help="Organs of the fixed image.")
@click.option("--moving-labels", type=_PATH, panel=_IMAGES, help="The same organs, moving image.")
@click.option("--config", "config_file", type=_PATH, panel=_IMAGES, help="TOML file of parameters.")
@click.option("--preset", panel=_IMAGES, help=f"Set of parameters: {', '.join(preset_names())}.")
@click.option("--encoder", hidden=True)
@some_config_options(_USED)
@click.option("--json", "as_json", is_flag=True, help="Print the whole table as JSON on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="Print only the result and errors.")
def probe(**options: Any) -> None:
    """Find out which layer of an encoder suits your images, and how to standardise its tokens.

    For up to 1000 tokens of each labelled organ of the fixed image, the three most similar tokens
    of the moving image are looked up within 48 mm along each axis. The table shows how often they
    lie in the same organ, for each layer in the bundle and each standardisation, next to MIND-SSC
    and chance. To compare layers, export several: 'dinoreg-rt export onnx --layer 11 --layer 15'.

    The column 'consistent', the only one without labels, is the share of tokens whose best match
    leads back to where it began. Slices are encoded 12 mm apart, unless --slice-stride,
    --slice-spacing-mm, --preset or --config is given.
    """
    if (options["fixed_labels"] is None) != (options["moving_labels"] is None):
        raise click.UsageError("give both --fixed-labels and --moving-labels, or neither")
    if options["encoder"] is not None:
        raise click.UsageError("the encoder is the command's argument, not --encoder")
    options["encoder"] = options["bundle"]
    sources = ("slice_stride", "slice_spacing_mm", "preset", "config_file")
    if all(options[name] is None for name in sources):
        options["slice_spacing_mm"] = _SLICE_SPACING_MM
    config = read_config(options, trust=False)
    # The smoothing is that of a row of the table, whatever a preset has.
    check_used(config, set(given_config(options)) - {"token_smoothing_mm"})
    from ..io import read_labels, read_volume
    from ..probing import probe_images

    with reporting(quiet=options["quiet"]) as reporter:
        labels = None
        if options["fixed_labels"] is not None:
            labels = (read_labels(options["fixed_labels"]), read_labels(options["moving_labels"]))
        fixed, moving = read_volume(options["fixed"]), read_volume(options["moving"])
        result = probe_images(fixed, moving, labels, config, reporter)
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
    return {"rows": rows, "chance_of": chance, "tokens": list(result.tokens)}


def _print(result: ProbeResult) -> None:
    from rich.console import Console
    from rich.table import Table

    labels = len(result.chance)
    table = Table(box=None, padding=(0, 1))
    for heading in ("features", "centre", "scale"):
        table.add_column(heading, no_wrap=True)
    for heading in (*(["same label"] if labels else []), "consistent"):
        table.add_column(heading, justify="right", no_wrap=True)
    # The best last, where the eye is when the table has scrolled by.
    for row in sorted(result.rows, key=_merit):
        shares = [share for share in (row.mean, row.consistent) if share is not None]
        table.add_row(row.features, row.centre, row.scale, *[f"{share:.3f}" for share in shares])
    console = Console(highlight=False, soft_wrap=True)
    console.print(table)
    if labels:
        mean = sum(result.chance.values()) / labels
        console.print(
            f"same label: mean of {labels} labels, by chance {mean:.3f}; --json has each of them; "
            "the best row is the last"
        )


def _merit(row: ProbeRow) -> float:
    return row.consistent if row.mean is None else row.mean
