"""`dinoreg-rt bench`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import rich_click as click

from ..console.progress import reporting
from ..console.stdout import print_result
from ..registration.demands import check_demands, check_used, choose_machine
from .main import EXIT_CODE_TEXT
from .options import (
    INPUTS,
    config_options,
    given_config,
    json_option,
    path_option,
    quiet_option,
    read_config,
)

if TYPE_CHECKING:
    from ..bench.tables import BenchReport
    from ..config.parameters import RegistrationConfig
    from ..types import Volume

_PHANTOM_SPACING_MM = 2.0
_COMPARISON = "Comparison"


@click.command("bench", epilog=EXIT_CODE_TEXT)
@path_option("-f", "--fixed", panel=INPUTS, help="Fixed image. [default: a synthetic phantom]")
@path_option("-m", "--moving", panel=INPUTS, help="Moving image; requires --fixed.")
@click.option(
    "--size",
    type=click.IntRange(16, 1024),
    nargs=3,
    default=(192, 160, 192),
    metavar="X Y Z",
    show_default=True,
    panel=INPUTS,
    help="Size of the phantom, in voxels of 2 mm.",
)
@click.option(
    "--runs",
    type=click.IntRange(2, 10_000),
    default=10,
    show_default=True,
    panel="Measurement",
    help="Number of warm registrations after the first, cold one.",
)
@config_options
@click.option(
    "--against",
    type=click.Choice(["convexadam"]),
    panel=_COMPARISON,
    help="Also run this published package, on the same images and device.",
)
@path_option(
    "--peer-python",
    panel=_COMPARISON,
    help="Python interpreter of the environment that has the package.",
)
@click.option(
    "--peer-runs",
    type=click.IntRange(1, 100),
    default=1,
    show_default=True,
    panel=_COMPARISON,
    help="Number of calls of the package.",
)
@json_option("all results")
@quiet_option
def bench(**options: Any) -> None:
    """Time registrations on this machine, cold and warm, stage by stage.

    The table compares each stage with its floor: the least time in which this machine could move
    the stage's bytes and do its multiply-adds, at rates measured in the same run. Encoders have a
    floor only if they are vision transformers that 'dinoreg-rt export' knows.

    Encoded slices are not taken from the cache. Stages on a GPU are timed by CUDA events. The row
    'without encoder' is the time from upload to download, without planning, encoding and hashing;
    percentiles of the stages do not add up to it.
    """
    if (options["fixed"] is None) != (options["moving"] is None):
        raise click.UsageError("give both --fixed and --moving, or neither to use a phantom")
    if (options["against"] is None) != (options["peer_python"] is None):
        raise click.UsageError("--against and --peer-python belong together; give both or neither")
    config = read_config(options)
    check_used(config, given_config(options))
    # The comparison refuses every encoder, so only the machine is checked then.
    check = choose_machine if options["against"] else check_demands
    check(config)
    # These imports take half of the start-up time, and a missing device is reported without them.
    from ..bench.measure import BenchRequest, run_bench

    with reporting(quiet=options["quiet"]) as reporter:
        fixed, moving = _pair(options, config)
        for note in (*fixed.geometry.notes, *moving.geometry.notes):
            reporter.say("warning", note)
        request = BenchRequest(
            fixed, moving, config, options["runs"], options["peer_python"], options["peer_runs"]
        )
        report = run_bench(request, reporter)
        for warning in report.warnings:
            reporter.say("warning", warning)
    if options["as_json"]:
        print_result(report.model_dump_json(indent=2) + "\n")
    else:
        _print(report)


def _pair(options: dict[str, Any], config: RegistrationConfig) -> list[Volume]:
    from ..images.phantom import phantom_grid, phantom_pair
    from ..io import read_volume

    if options["fixed"] is not None:
        paths = (options["fixed"], options["moving"])
        return [read_volume(path, orientation=config.orientation) for path in paths]
    x, y, z = options["size"]
    return phantom_pair(phantom_grid((z, y, x), _PHANTOM_SPACING_MM))


def _print(report: BenchReport) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    console.print(f"dinoreg-rt {report.version} on {report.device}; {report.threads} thread(s)")
    console.print(f"fixed {report.fixed_grid}; moving {report.moving_grid}")
    console.print(Text(f"features: {report.features}"))  # a folder's name may look like markup
    _print_stages(report, console)
    ceilings = report.ceilings
    console.print(
        f"measured rates: {ceilings['gigabytes_per_s']} GB/s, "
        f"{ceilings['vector_giga_operations_per_s']} G multiply-adds/s in float32, for the encoder "
        f"{ceilings['matrix_giga_operations_per_s']} in {ceilings['matrix_type']} "
        f"({ceilings['how']})"
    )
    memory = ", ".join(f"{name} {value:.0f}" for name, value in report.memory.items())
    console.print(f"memory: {memory}")
    console.print(f"{report.pairs_per_second:.3g} pairs per second")
    if report.peer is not None:
        seconds = ", ".join(f"{value:.2f}" for value in report.peer["wall_s"])
        console.print(
            f"convexAdam {report.peer['version']} (torch {report.peer['torch']}): {seconds} s per "
            f"call, {report.times_faster_than_peer:.3g} times dinoreg-rt's p50; on given features, "
            f"{report.solver_times_faster:.3g} times the p50 of solve"
        )


def _print_stages(report: BenchReport, console: Any) -> None:
    from rich.table import Table

    table = Table(box=None, padding=(0, 1))
    table.add_column("stage, ms", no_wrap=True)
    for heading in ("cold", "p50", "p95", "p99", "floor", "ratio", "GB/s", "Gop/s"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, stage in report.stages.items():
        warm = stage.warm_ms
        cells = [f"{v:.1f}" for v in (stage.cold_ms, warm.p50, warm.p95, warm.p99)]
        if stage.floor_ms > 0:
            cells += [f"{stage.floor_ms:.1f}", f"{warm.p50 / stage.floor_ms:.1f}"]
            cells += [f"{stage.gigabytes_per_s:.2f}", f"{stage.giga_operations_per_s:.2f}"]
        table.add_row(name, *cells)
    sums = {
        "without encoder": (report.cold_without_encoder_ms, report.without_encoder_ms),
        "total": (report.cold_ms, report.warm_ms),
    }
    for name, (cold, warm) in sums.items():
        values = (cold, warm.p50, warm.p95, warm.p99)
        table.add_row(name, *[f"{v:.1f}" for v in values], style="bold")
    console.print(table)
