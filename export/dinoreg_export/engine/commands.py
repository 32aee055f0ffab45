"""`dinoreg-rt export engine`: TensorRT engines of a bundle, on the machine that will run them."""

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
    help="TensorRT, or TensorRT-RTX for GPUs of workstations.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp16", "bf16", "fp32", "fp8", "int8"]),
    help="Of the matrix products; the bundle's own if not given. fp8 and int8 of the linear layers "
    "alone, the rest in fp16; they need --calibration.",
)
@click.option(
    "--calibration",
    "images",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="IMAGE",
    help="For fp8 and int8: an image such as will be registered, file or DICOM folder; may be "
    "given several times.",
)
@click.option(
    "--calibration-slices",
    "slices",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Slices of each image that the scales are set by.",
)
@click.option(
    "--batch",
    "batches",
    default=",".join(map(str, DEFAULT_BATCHES)),
    show_default=True,
    metavar="N,N,...",
    help="Slices that are encoded at once; each number gets kernels of its own. A registration "
    f"takes {max(DEFAULT_BATCHES)}, fewer where memory is short.",
)
@click.option(
    "--workspace-gb",
    type=click.FloatRange(min=0, min_open=True),
    default=4.0,
    show_default=True,
    help="Scratch memory that one layer may take.",
)
@click.option("--device", type=click.IntRange(min=0), default=0, help="CUDA device [default: 0].")
@click.option(
    "--compile-for",
    "capability",
    metavar="N.N",
    help="With --backend rtx: try to compile for this compute capability, with or without a GPU; "
    "nothing is kept.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the records as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors alone.")
def engine_command(**options: Any) -> None:
    """Build TensorRT engines of BUNDLE, verify them on this GPU and keep them for `--engine`.

    Each engine's tokens are compared with ONNX Runtime's on the CPU in float32; one that differs
    is refused, and the error says which precision passes. fp8 (from compute capability 8.9 on) and
    int8 are checked on the CPU too before anything is built. Engines lie in
    ~/.cache/dinoreg/engines (DINOREG_ENGINES names another folder) and hold for this GPU, driver
    and TensorRT alone.
    """
    if options["capability"] and options["backend"] != "rtx":
        raise click.UsageError("--compile-for goes with --backend rtx: TensorRT needs the GPU")
    options["batches"] = parse_batches(options["batches"])
    with _bars(shown=not (options["quiet"] or options["as_json"])) as progress:
        if options["capability"]:
            _compile(options, progress)
        else:
            _build(options, progress)


def parse_batches(text: str) -> tuple[int, ...]:
    """``N,N,...`` as numbers.

    Raises:
        click.BadParameter: anything else.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise click.BadParameter(f"'{text}' are no batch sizes; wanted such as 1,8")
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
                f"{file}: compiles for {options['capability']}, {size / 2**20:.0f} MiB; not kept, "
                "because it has not run on such a GPU\n"
            )


def _images(options: dict[str, Any]) -> CalibrationImages:
    from .job import CalibrationImages

    return CalibrationImages(options["images"], options["slices"])


def _describe(path: Path, record: EngineRecord) -> str:
    """Lines about an engine, each with its end."""
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
