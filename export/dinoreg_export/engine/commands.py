"""The command `dinoreg-rt export engine`, for the machine that will run the engines."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from dinoreg_rt.console.stdout import print_result
from dinoreg_rt.engines.trt import DEFAULT_BATCHES

if TYPE_CHECKING:
    from dinoreg_rt.engines.trt.record import EngineRecord

    from .job import CalibrationImages


@click.command("engine")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--backend",
    type=click.Choice(["tensorrt", "rtx"]),
    default="tensorrt",
    show_default=True,
    help="TensorRT, or TensorRT-RTX for workstation GPUs.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp16", "bf16", "fp32", "fp8", "int8"]),
    help="Precision of matrix products, by default the bundle's own. fp8 and int8 apply to the "
    "linear layers only, with the other products in fp16, and need --calibration.",
)
@click.option(
    "--calibration",
    "images",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="IMAGE",
    help="For fp8 and int8: an image like those to be registered, as a file or DICOM folder; may "
    "be repeated.",
)
@click.option(
    "--calibration-slices",
    "slices",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Slices of each image that determine the scales.",
)
@click.option(
    "--batch",
    "batches",
    default=",".join(map(str, DEFAULT_BATCHES)),
    show_default=True,
    metavar="N,N,...",
    help="Slices that are encoded at once; each number gets its own kernels. A registration "
    f"uses {max(DEFAULT_BATCHES)}, or fewer if memory is short.",
)
@click.option(
    "--workspace-gb",
    type=click.FloatRange(min=0, min_open=True),
    default=4.0,
    show_default=True,
    help="Most scratch memory that a layer may use, in GiB.",
)
@click.option("--device", type=click.IntRange(min=0), default=0, help="CUDA device [default: 0].")
@click.option(
    "--compile-for",
    "capability",
    metavar="N.N",
    help="With --backend rtx: test whether the bundle compiles for this compute capability, with "
    "or without a GPU; the engines are discarded.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the records as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print only errors.")
def engine_command(**options: Any) -> None:
    """Build TensorRT engines of BUNDLE, verify them on this GPU and store them for `--engine`.

    The tokens of each engine are compared with those of ONNX Runtime on the CPU in float32. An
    engine that differs is refused, and the error says which precision passes. Graphs in fp8 (for
    compute capability 8.9 or newer) and int8 are verified on the CPU before they are built.
    Engines are stored in ~/.cache/dinoreg/engines (DINOREG_ENGINES names another folder) and are
    valid only for this GPU, driver and version of TensorRT.
    """
    if options["capability"] and options["backend"] != "rtx":
        raise click.UsageError(
            "--compile-for works only with --backend rtx: TensorRT needs the GPU itself"
        )
    options["batches"] = parse_batches(options["batches"])
    with _bars(shown=not (options["quiet"] or options["as_json"])) as progress:
        if options["capability"]:
            _compile(options, progress)
        else:
            _build(options, progress)


def parse_batches(text: str) -> tuple[int, ...]:
    """Parse ``N,N,...``.

    Raises:
        click.BadParameter: the text has another form.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise click.BadParameter(
            f"'{text}' is not a list of batch sizes; give whole numbers separated by commas, such "
            "as 1,2,4,8"
        )
    return tuple(int(part) for part in parts)


def _build(options: dict[str, Any], progress: Callable[[str, float], None] | None) -> None:
    from .formats import export_engines

    stored = export_engines(
        options["bundle"],
        "tensorrt-rtx" if options["backend"] == "rtx" else "tensorrt",
        precision=options["precision"],
        images=_images(options),
        batches=options["batches"],
        workspace_bytes=int(options["workspace_gb"] * 2**30),
        device=options["device"],
        progress=progress,
    )
    if options["as_json"]:
        text = json.dumps([record.model_dump() for _, record in stored], indent=2) + "\n"
    else:
        text = "".join(_describe(path, record) for path, record in stored)
    if options["as_json"] or not options["quiet"]:
        print_result(text, written=stored[0][0].parent)


def _compile(options: dict[str, Any], progress: Callable[[str, float], None] | None) -> None:
    from .formats import compile_only

    sizes = compile_only(
        options["bundle"],
        options["capability"],
        precision=options["precision"],
        images=_images(options),
        batches=options["batches"],
        progress=progress,
    )
    if options["as_json"]:
        print_result(json.dumps(sizes, indent=2) + "\n")
    elif not options["quiet"]:
        for file, size in sizes.items():
            print_result(
                f"{file}: compiles for {options['capability']}, {size / 2**20:.0f} MiB; discarded, "
                "because it was not verified on such a GPU\n"
            )


def _images(options: dict[str, Any]) -> CalibrationImages:
    from .job import CalibrationImages

    return CalibrationImages(options["images"], options["slices"])


def _describe(path: Path, record: EngineRecord) -> str:
    """Return lines about a stored engine."""
    key = record.key
    text = (
        f"written: {path}\n"
        f"{record.model} {key.height}x{key.width} in {key.precision}, batches "
        f"{','.join(map(str, key.batches))}, on {key.gpu}: {record.verification.describe()}\n"
    )
    if (found := record.calibration) is not None:
        text += (
            f"scales {found.scales_sha256[:12]} from {found.slices} slices of {found.images} "
            f"images; before TensorRT {found.verification.describe()}\n"
        )
    return text


def _bars(*, shown: bool) -> Any:
    if not shown:
        return nullcontext()
    from ..progress import progress_bars

    return progress_bars(shown=True)
