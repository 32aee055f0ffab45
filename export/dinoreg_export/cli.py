"""`dinoreg-rt export`: encoders as bundles. Found by the program through an entry point."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from dinoreg_rt.console.stdout import print_result
from dinoreg_rt.errors import DeviceError

from .bundle.preset_choice import encoder_presets, preset_choice
from .engine.commands import engine_command
from .progress import progress_bars

if TYPE_CHECKING:
    from dinoreg_rt.bundle.manifest import Manifest, Source

    from .checkpoint.architecture import Architecture, Weights

_BUNDLE = click.Path(path_type=Path)


@click.group()
def export() -> None:
    """Make an encoder bundle out of a checkpoint (`onnx`: graphs, weights, manifest), build
    TensorRT engines of a bundle (`engine`), and check a bundle. Needs no torch.
    """


export.add_command(engine_command)


@export.command("onnx")
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="Checkpoint: .safetensors, .pth, .onnx (an export of Hugging Face's module), or a folder "
    "with model.safetensors or its index, as Hugging Face's cache has it.",
)
@click.option(
    "--model", default="auto", show_default=True, help="Its name; auto: by the tensors' shapes."
)
@click.option(
    "--size",
    "sizes",
    multiple=True,
    metavar="HEIGHTxWIDTH",
    help="Input size in pixels, a multiple of the patch, such as 1792x1536; may be given several "
    "times. Default: that of the preset.",
)
@click.option(
    "--preset",
    type=click.Choice(encoder_presets()),
    help="Size and layer that this preset of registrations wants, where --size and --layer do not "
    "say them; without --size and --preset, those of best-encoder, else of balanced.",
)
@click.option(
    "--layer",
    "layers",
    multiple=True,
    metavar="LAYER",
    help="Whose tokens: final (the default: the last block after the final norm), or the number of "
    "a block, from 0 or, negative, from the end; its output before any norm. Several are joined "
    "along the channels. Blocks beyond the deepest one are left out.",
)
@click.option("-o", "--output", "folder", type=_BUNDLE, required=True, help="Folder to make.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16", "int8"]),
    default="fp32",
    show_default=True,
    help="Of matrix products. fp32, int8: CPUs; fp16, bf16: GPUs. Sums and norms stay float32.",
)
@click.option(
    "--normalisation",
    type=click.Choice(["auto", "imagenet", "satellite", "none"]),
    default="auto",
    show_default=True,
    help="Mean and deviation of the training's pixels; auto: satellite for a checkpoint with "
    "sat493m in its name, else imagenet.",
)
@click.option(
    "--random-seed", type=int, help="Random weights for --model instead of --weights, for tests."
)
@click.option("--force", is_flag=True, help="Replace a bundle that is there.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print errors alone.")
def onnx_command(**options: Any) -> None:
    """Turn a checkpoint of DINOv3 (ViT, ConvNeXt) or DINOv2 into a verified bundle.

    Every export is checked with ONNX Runtime against a forward pass in NumPy. Released DINOv3
    weights have a licence of their own, which the bundle names and which goes with it.
    """
    _need_onnx()
    from dinoreg_rt.bundle.manifest import Source

    from .checkpoint.models import named
    from .checkpoint.random_weights import RandomWeights
    from .checkpoint.read import open_checkpoint

    seed = options["random_seed"]
    if (seed is None) == (options["weights"] is None):
        raise click.UsageError("give --weights, or --random-seed with --model")
    if seed is not None and options["model"] == "auto":
        raise click.UsageError("--random-seed needs --model: there are no tensors to go by")
    if seed is not None:
        random = RandomWeights(named(options["model"]), seed)
        source = Source(
            checkpoint=f"random seed {seed}", sha256="0" * 64, layout="none", random_weights=True
        )
        _export(random, source, options)
        return
    with open_checkpoint(options["weights"], options["model"]) as checkpoint:
        source = Source(
            checkpoint=checkpoint.name, sha256=checkpoint.sha256, layout=checkpoint.layout
        )
        _export(checkpoint, source, options)


def _export(weights: Weights, source: Source, options: dict[str, Any]) -> None:
    """Write the bundle, and say so."""
    from .bundle.write import export_bundle, normalisation_of

    sizes, layers, said = _sizes_and_layers(weights.architecture, options)
    normalisation = options["normalisation"]
    if normalisation == "auto":
        normalisation = normalisation_of(weights.files)
    with progress_bars(shown=not (options["quiet"] or options["as_json"])) as progress:
        manifest = export_bundle(
            weights,
            source,
            sizes,
            options["folder"],
            layers=layers,
            precision=options["precision"],
            normalisation=normalisation,
            force=options["force"],
            progress=progress,
        )
    if options["as_json"]:
        text = manifest.model_dump_json(indent=2) + "\n"
    else:
        text = f"written: {options['folder']}, {manifest.layers_text}, "
        text += f"normalisation {normalisation}\n"
        text += said + _describe(manifest)
    if options["as_json"] or not options["quiet"]:
        print_result(text, written=options["folder"])


def _sizes_and_layers(
    a: Architecture, options: dict[str, Any]
) -> tuple[list[tuple[int, int]], Sequence[str], str]:
    """What was asked for, else what a preset wants; and a line that says so."""
    sizes = [parse_size(text) for text in options["sizes"]]
    layers: Sequence[str] = options["layers"]
    if options["preset"] is None and sizes:
        return sizes, layers, ""
    choice = preset_choice(options["preset"])
    taken = []
    if not sizes:
        sizes = [choice.size(a)]
        taken.append("size {}x{}".format(*sizes[0]))
    if not layers:
        layers = choice.layers(a)
        taken.append(f"layer {layers[0]}")
    said = f"{' and '.join(taken)}: of the preset {choice.preset}\n" if taken else ""
    return sizes, layers, said


@export.command()
@click.argument("bundle", type=_BUNDLE)
@click.option(
    "--golden",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Picture whose tokens are published; the bundle needs the size 224x224.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def check(bundle: Path, golden: Path | None, *, as_json: bool) -> None:
    """Check a bundle's hashes, and its published tokens with --golden.

    The picture of the published values is COCO's 000000039769.
    """
    _need_onnx()
    from dinoreg_rt.bundle.manifest import check_files, read_manifest

    manifest = read_manifest(bundle)
    check_files(manifest, bundle)
    result: dict[str, Any] = {
        "bundle": str(bundle),
        "model": manifest.model,
        "files": "as exported",
    }
    if golden is not None:
        from .verify.golden import golden_error

        result["golden_max_error"] = golden_error(bundle, manifest, golden)
    if as_json:
        print_result(json.dumps(result, indent=2) + "\n")
        return
    text = f"{bundle}: {manifest.model}, all files as exported\n{_describe(manifest)}"
    if golden is not None:
        text += f"published tokens: largest error {result['golden_max_error']:.1e}\n"
    print_result(text)


def parse_size(text: str) -> tuple[int, int]:
    """``HEIGHTxWIDTH`` as two numbers.

    Raises:
        click.BadParameter: anything else.
    """
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and len(part) < 100 for part in parts):
        raise click.BadParameter(f"'{text}' is no size; wanted HEIGHTxWIDTH, such as 1792x1536")
    return int(parts[0]), int(parts[1])


def _describe(manifest: Manifest) -> str:
    """A line about the verification, if there was one."""
    found = manifest.verification
    if found is None:
        return ""
    return (
        f"{manifest.model} against the NumPy reference at {found.height}x{found.width}: "
        f"largest error {found.max_error:.1e}, token cosine {found.mean_cosine:.6f} on average, "
        f"{found.first_percentile_cosine:.6f} at the first percentile\n"
    )


def _need_onnx() -> None:
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise DeviceError(
            "exporting needs the onnx package; pip install 'dinoreg-rt[export,cpu]'"
        ) from error
