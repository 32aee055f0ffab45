"""`dinoreg-rt models`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import rich_click as click

from ..bundle.manifest import Manifest, read_manifest
from ..bundle.opened import bundle_names, find_bundle, models_folder, open_bundle
from ..console.stdout import print_result
from ..errors import InputError
from .main import EXIT_CODE_TEXT


@click.group("models", epilog=EXIT_CODE_TEXT)
def models() -> None:
    """List and check the encoders in the models folder, which 'run --encoder' finds by name.

    The folder is DINOREG_MODELS, or .cache/dinoreg/models in the home directory.
    """


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print the list as JSON on stdout.")
def list_models(*, as_json: bool) -> None:
    """List the encoders with their layers, precision and input sizes, without reading the files."""
    folder = models_folder()
    found = {name: _description(folder / name) for name in bundle_names(folder)}
    if as_json:
        print_result(json.dumps({"folder": str(folder), "models": found}, indent=2) + "\n")
    elif not found:
        print_result(f"no encoder in {folder}; make one with 'dinoreg-rt export onnx'\n")
    else:
        print_result(_table(folder, found))


@models.command("check")
@click.argument("encoders", nargs=-1)
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON on stdout.")
def check_models(encoders: tuple[str, ...], *, as_json: bool) -> None:
    """Compare every file of ENCODERS (names or folders; by default all) with its hash.

    All encoders are checked. The exit code is 3 if any of them has changed or cannot be read.
    """
    results = {name: _check(name) for name in encoders}
    if not encoders:
        folder = models_folder()
        results = {name: _check(str(folder / name)) for name in bundle_names(folder)}
    if as_json:
        print_result(json.dumps({"models": results}, indent=2) + "\n")
    else:
        lines = [
            f"{name}: {problem or 'all files as exported'}" for name, problem in results.items()
        ]
        print_result("\n".join(lines or [f"no encoder in {models_folder()}"]) + "\n")
    bad = [name for name, problem in results.items() if problem is not None]
    if bad:
        raise InputError(f"{len(bad)} of {len(results)} encoders cannot be used: {', '.join(bad)}")


def _check(encoder: str) -> str | None:
    try:
        open_bundle(find_bundle(encoder))
    except InputError as error:
        return str(error)
    return None


def _description(folder: Path) -> dict[str, Any]:
    try:
        manifest = read_manifest(folder)
    except InputError as error:
        return {"problem": str(error)}
    return {
        "model": manifest.model,
        "precision": manifest.precision,
        "layers": list(manifest.layers),
        "sizes": [f"{graph.height}x{graph.width}" for graph in manifest.graphs],
        "megabytes": round(sum(file.size_bytes for file in manifest.files) / 1e6, 1),
        "licence": manifest.licence,
        "random_weights": manifest.source.random_weights,
        "verified": _verified(manifest),
    }


def _verified(manifest: Manifest) -> str:
    found = manifest.verification
    return "no" if found is None else f"token cosine {found.mean_cosine:.5f}"


def _table(folder: Path, found: dict[str, dict[str, Any]]) -> str:
    """Return the table as it will be printed, with colours if stdout is a terminal."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    title = Text(f"Encoders in {folder}", "table.title")
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1))
    for heading in ("name", "model", "layers", "precision", "input sizes", "MB", "weights"):
        table.add_column(heading, overflow="fold")
    for name, entry in found.items():
        if "problem" in entry:
            table.add_row(Text(name), Text(entry["problem"], "red"))
            continue
        weights = "random: features mean nothing" if entry["random_weights"] else "trained"
        sizes, megabytes = ", ".join(entry["sizes"]), f"{entry['megabytes']:g}"
        # As Text, because the user's names may look like markup.
        layers = ", ".join(entry["layers"])
        cells = (name, entry["model"], layers, entry["precision"], sizes, megabytes, weights)
        table.add_row(*map(Text, cells))
    console = Console(highlight=False)
    with console.capture() as text:
        console.print(table)
    return text.get()
