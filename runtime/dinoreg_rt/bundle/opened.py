"""Encoder bundles on disk, found by path or name and opened after a check of all hashes."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from ..device.limits import user_folder
from ..errors import ConfigError, InputError
from .manifest import (
    FINAL_LAYER,
    FINAL_ONLY,
    MANIFEST_NAME,
    Graph,
    Manifest,
    check_files,
    layer_at,
    read_manifest,
)


@dataclass(frozen=True)
class Bundle:
    """A folder with an encoder, and its manifest.

    `open_bundle` has checked the hashes of its files; `find_named` only that they exist.

    Attributes:
        exported_from: checkpoint that the user gave instead of a bundle, if any.
    """

    folder: Path
    manifest: Manifest
    exported_from: str | None = None

    @property
    def name(self) -> str:
        """Name for messages and reports: model, layers, and whether the weights are random."""
        about = [self.manifest.precision, self.folder.name]
        if self.manifest.layers != FINAL_ONLY:
            about.insert(0, self.manifest.layers_text)
        text = f"{self.manifest.model} ({', '.join(about)})"
        random = self.manifest.source.random_weights
        return f"{text}, RANDOM WEIGHTS: its features mean nothing" if random else text

    def doubt_about_layer(self, depth: float | None) -> str | None:
        """Return a warning if the bundle's tokens are not those at the wanted relative depth."""
        blocks, have = self.manifest.blocks, self.manifest.layers
        if depth is None or (blocks is None and have != FINAL_ONLY):
            return None
        wanted = layer_at(depth, blocks or 1000)
        if have == (wanted,):
            return None
        where = f"block {wanted}" if blocks and wanted != FINAL_LAYER else f"depth {depth:g}"
        return (
            f"{self.manifest.layers_text}, as the bundle has it, where the configuration means "
            f"that at {where}; export another bundle with --preset or --layer"
        )

    def token_grid(self, graph: Graph) -> tuple[int, int]:
        """Return the rows and columns of tokens of a graph."""
        return graph.height // self.manifest.patch, graph.width // self.manifest.patch

    def layers(self, wanted: tuple[str, ...] | None) -> tuple[int, ...]:
        """Return the indices of layers among those of the bundle; None means all of them.

        Raises:
            ConfigError: the bundle lacks one of the layers.
        """
        held = self.manifest.layers
        missing = [layer for layer in wanted or () if layer not in held]
        if missing:
            raise ConfigError(
                f"--layers {missing[0]}: {self.name} holds tokens of layer {', '.join(held)}; "
                "choose one of these, or export the layer with 'dinoreg-rt export onnx --layer'"
            )
        return tuple(held.index(layer) for layer in wanted or held)

    def graph_for(
        self, token_grid: tuple[int, int] | None, aspect: float, padding: int = 0
    ) -> tuple[Graph, str]:
        """Return the graph to use and the reason for the choice.

        Args:
            token_grid: rows and columns of tokens, in either order; None means the grid that fits
                the slices best.
            aspect: height of a slice in mm divided by its width in mm.
            padding: number of tokens at each edge that do not belong to the slice.

        Raises:
            ConfigError: the bundle has no graph of that size, or the padding leaves no tokens.
        """
        graphs = {self.token_grid(graph): graph for graph in self.manifest.graphs}
        have = ", ".join(f"{rows} {columns}" for rows, columns in sorted(graphs))
        wanted = set(graphs) if token_grid is None else {token_grid, token_grid[::-1]}
        held = [grid for grid in wanted if grid in graphs]
        fitting = [grid for grid in held if min(grid) > 2 * padding]
        if held and not fitting:
            most = max((min(grid) - 1) // 2 for grid in held)
            raise ConfigError(
                f"--slice-padding {padding}: leaves no token of a slice on the grids ({have}) of "
                f"{self.name}; use at most {most}, or export a bundle with a larger --size"
            )
        # Largest first: among grids of one shape, the finer one preserves more of the image.
        fitting.sort(key=lambda grid: (_distortion(grid, aspect, padding), -grid[0] * grid[1]))
        if fitting:
            why = "which fits the slices best" if token_grid is None else "as asked"
            return graphs[fitting[0]], f"{fitting[0][0]} x {fitting[0][1]} tokens, {why}"
        assert token_grid is not None  # a bundle has graphs
        patch = self.manifest.patch
        raise ConfigError(
            f"{self.folder}: holds no graph of {token_grid[0]} x {token_grid[1]} tokens; choose a "
            f"--token-grid of {have}, or export a bundle with "
            f"--size {token_grid[0] * patch}x{token_grid[1] * patch}"
        )

    def check_components(self, components: int, layers: tuple[int, ...]) -> None:
        """Check that there are no more components than channels of the given layers.

        Raises:
            ConfigError: there are more.
        """
        channels = len(layers) * self.manifest.layer_channels
        if components > channels:
            raise ConfigError(
                f"--components {components}: {self.name} gives {channels} channels; use at "
                "most that many components"
            )


def _distortion(grid: tuple[int, int], aspect: float, padding: int) -> float:
    """Return the stretch of a slice in the padded grid, in steps of 5 %; 1 means none."""
    ratio = (grid[0] - 2 * padding) / (grid[1] - 2 * padding) / aspect
    return round(max(ratio, 1 / ratio) * 20) / 20


def models_folder() -> Path:
    """Return the folder of named encoders: ``DINOREG_MODELS``, else a folder in the user's cache.

    Raises:
        InputError: as for `user_folder`.
    """
    return user_folder("DINOREG_MODELS", "models")


def bundle_names(folder: Path) -> list[str]:
    """Return the names of the folders in `folder` that have a manifest or cannot be inspected.

    Names that begin with a dot are skipped: they belong to running or killed exports.

    Raises:
        InputError: `folder` exists and cannot be read.
    """
    try:
        names = [name for name in os.listdir(folder) if not name.startswith(".")]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(
            f"{folder}: the models folder cannot be read: {error.strerror}; DINOREG_MODELS "
            "names another one"
        ) from error
    return sorted(name for name in names if _holds_manifest(folder / name) is not False)


def _holds_manifest(folder: Path) -> bool | None:
    """Return whether a folder holds a manifest; None without permission to look."""
    try:
        return stat.S_ISREG((folder / MANIFEST_NAME).stat().st_mode)
    except PermissionError:
        return None
    except (OSError, ValueError):  # does not exist, or cannot be a path
        return False


def bundle_around(file: Path) -> Path | None:
    """Return the folder of the bundle that a file belongs to; None if it belongs to none."""
    if not _holds_manifest(file.parent) or not os.path.isfile(file):
        return None
    try:
        manifest = read_manifest(file.parent)
    except InputError:  # another program's file of that name
        return None
    names = {MANIFEST_NAME, *(listed.name for listed in manifest.files)}
    return file.parent if file.name in names else None


def find_bundle(encoder: str) -> Path:
    """Return the folder of a bundle, given by path or by name in the models folder.

    Raises:
        InputError: there is no such bundle; the message lists the known names.
    """
    path = Path(encoder)
    held = _holds_manifest(path)
    if held:
        return path
    models = models_folder()
    names = bundle_names(models)
    if encoder in names:
        return models / encoder
    if held is None:
        raise InputError(f"{encoder}: cannot be read: no permission; grant access to it")
    around = bundle_around(path)
    if around is not None:
        raise InputError(
            f"{encoder}: is a file of the encoder bundle in {around}; give the folder: {around}"
        )
    if os.path.exists(path):  # Path.exists raises for a name that is too long
        raise InputError(
            f"{encoder}: is not an encoder bundle: it has no {MANIFEST_NAME}; export one from a "
            "checkpoint with 'dinoreg-rt export onnx'"
        )
    there = f"there are: {', '.join(names)}" if names else "there is none yet"
    raise InputError(
        f"no encoder '{encoder}': no such folder, and no such name in {models} ({there}); export a "
        "bundle with 'dinoreg-rt export onnx', or set DINOREG_MODELS to the folder to search"
    )


def find_named(encoder: str) -> Bundle:
    """Find a bundle by path or name and read its manifest, for fast checks before the work.

    Raises:
        InputError: there is no such bundle, or its manifest has another schema, or a file is
            missing.
    """
    folder = find_bundle(encoder)
    manifest = read_manifest(folder)
    for file in manifest.files:
        if not os.path.exists(folder / file.name):
            raise InputError(f"{folder}: its file {file.name} is missing; export the bundle again")
    return Bundle(folder, manifest)


def open_bundle(folder: Path) -> Bundle:
    """Read the manifest of a bundle and compare every file with it.

    Raises:
        InputError: the folder is not a bundle, or its manifest has another schema, or a file has
            changed since the export.
    """
    manifest = read_manifest(folder)
    check_files(manifest, folder)
    return Bundle(folder, manifest)
