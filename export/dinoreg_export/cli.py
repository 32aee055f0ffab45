"""The `dinoreg-rt export` commands, which the program finds through an entry point."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from dinoreg_rt.console.stdout import print_result

from .bundle.preset_choice import encoder_presets, preset_choice
from .engine.commands import engine_command
from .progress import progress_bars

if TYPE_CHECKING:
    from dinoreg_rt.bundle.manifest import Manifest, Source

    from .checkpoint.architecture import Architecture, Weights

_BUNDLE = click.Path(path_type=Path)


@click.group()
def export() -> None:
    """Turn checkpoints into encoder bundles, check bundles, and build TensorRT engines from them.

    A bundle holds ONNX graphs, weights and a manifest. None of the commands needs torch.
    """


export.add_command(engine_command)


@export.command("onnx")
@click.option(
    "--weights",
    type=click.Path(path_type=Path),
    help="Checkpoint: a .safetensors or .pth file, an .onnx file exported from Hugging Face's "
    "module, or a folder with model.safetensors or its index, as in Hugging Face's cache.",
)
@click.option(
    "--model",
    default="auto",
    show_default=True,
    help="Name of the model; auto recognises it by the shapes of the tensors.",
)
@click.option(
    "--size",
    "sizes",
    multiple=True,
    metavar="HEIGHTxWIDTH",
    help="Input size in pixels, multiples of the patch, such as 1792x1536; may be repeated. "
    "Default: the size of the preset.",
)
@click.option(
    "--preset",
    type=click.Choice(encoder_presets()),
    help="Use the size and the layer of this registration preset unless --size and --layer are "
    "given. Without --size and --preset, the preset is best-encoder, or balanced if there is none.",
)
@click.option(
    "--layer",
    "layers",
    multiple=True,
    metavar="LAYER",
    help="Layer that gives the tokens: final (the default: the last block after the final norm), "
    "or the number of a block, from 0 or, if negative, from the end; a block's output is taken "
    "before any norm. Repeat the option to join several layers along the channels. Blocks beyond "
    "the deepest layer are left out.",
)
@click.option("-o", "--output", "folder", type=_BUNDLE, required=True, help="Folder to create.")
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16", "int8"]),
    default="fp32",
    show_default=True,
    help="Precision of matrix products: fp32 or int8 for CPUs, fp16 or bf16 for GPUs. Sums and "
    "norms stay in float32.",
)
@click.option(
    "--normalisation",
    type=click.Choice(["auto", "imagenet", "satellite", "none"]),
    default="auto",
    show_default=True,
    help="Mean and standard deviation of the pixels in training; auto: satellite if the "
    "checkpoint's name contains sat493m, else imagenet.",
)
@click.option(
    "--random-seed",
    type=int,
    help="Seed of random weights for --model, instead of --weights; for tests.",
)
@click.option("--force", is_flag=True, help="Replace an existing bundle.")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="Print only errors.")
def onnx_command(**options: Any) -> None:
    """Turn a DINOv3 (ViT, ConvNeXt) or DINOv2 checkpoint into a verified bundle.

    Every export is compared in ONNX Runtime with a forward pass in NumPy. Released DINOv3 weights
    have their own licence, which the bundle names and which also applies to the bundle.
    """
    _need_onnx()
    from dinoreg_rt.bundle.manifest import Source

    from .checkpoint.models import named
    from .checkpoint.random_weights import RandomWeights
    from .checkpoint.read import open_checkpoint

    seed = options["random_seed"]
    if (seed is None) == (options["weights"] is None):
        raise click.UsageError("give either --weights, or --random-seed with --model")
    if seed is not None and options["model"] == "auto":
        raise click.UsageError("--random-seed needs --model; random weights do not name one")
    if seed is not None:
        random = RandomWeights(named(options["model"]), seed)
        source = Source(
            checkpoint=f"random seed {seed}", sha256="0" * 64, layout="none", random_weights=True
        )
        _export(random, source, options)
        return
    with open_checkpoint(options["weights"], options["model"]) as checkpoint:
        _export(checkpoint, checkpoint.source, options)


def _export(weights: Weights, source: Source, options: dict[str, Any]) -> None:
    """Write the bundle and print what was written."""
    from .bundle.write import export_bundle, normalisation_of

    sizes, layers, preset_text = _sizes_and_layers(weights.architecture, options)
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
        text += preset_text + _describe(manifest)
    if options["as_json"] or not options["quiet"]:
        print_result(text, written=options["folder"])


def _sizes_and_layers(
    a: Architecture, options: dict[str, Any]
) -> tuple[list[tuple[int, int]], Sequence[str], str]:
    """Return the requested sizes and layers, else a preset's, and a line that names the preset."""
    sizes = [parse_size(text) for text in options["sizes"]]
    layers: Sequence[str] = options["layers"]
    if options["preset"] is None and sizes:
        return sizes, layers, ""
    choice = preset_choice(options["preset"])
    from_preset = []
    if not sizes:
        sizes = [choice.size(a)]
        from_preset.append("size {}x{}".format(*sizes[0]))
    if not layers:
        layers = choice.layers(a)
        from_preset.append(f"layer {layers[0]}")
    text = f"{' and '.join(from_preset)}: from the preset {choice.preset}\n" if from_preset else ""
    return sizes, layers, text


@export.command()
@click.argument("bundle", type=_BUNDLE)
@click.option(
    "--golden",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Picture whose tokens are published; the bundle needs a graph for 224x224 pixels.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
def check(bundle: Path, golden: Path | None, *, as_json: bool) -> None:
    """Check the hashes of a bundle and, with --golden, compare its tokens with published ones.

    The published tokens are those of the COCO picture 000000039769.
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
    """Parse ``HEIGHTxWIDTH``.

    Raises:
        click.BadParameter: the text has another form.
    """
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and len(part) < 100 for part in parts):
        raise click.BadParameter(
            f"'{text}' is not a size; give HEIGHTxWIDTH in pixels, such as 1792x1536"
        )
    return int(parts[0]), int(parts[1])


def _describe(manifest: Manifest) -> str:
    """Return a line about the verification, or nothing if there was none."""
    found = manifest.verification
    if found is None:
        return ""
    return (
        f"{manifest.model} against the NumPy reference at {found.height}x{found.width}: "
        f"largest error {found.max_error:.1e}, token cosine {found.mean_cosine:.6f} on average, "
        f"{found.first_percentile_cosine:.6f} at the first percentile\n"
    )


def _need_onnx() -> None:
    from .graph.builder import need_onnx

    need_onnx("exporting")
