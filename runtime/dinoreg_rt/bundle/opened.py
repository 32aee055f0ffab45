"""Encoder bundles on disk: by path or by name, opened only after every hash has been checked."""

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

    From `open_bundle` its files are those of the manifest; from `find_named` they are only there.

    Attributes:
        exported_from: the checkpoint that the user gave instead of a bundle.
    """

    folder: Path
    manifest: Manifest
    exported_from: str | None = None

    @property
    def name(self) -> str:
        """For messages and reports: model, layers, and whether the weights mean anything."""
        about = [self.manifest.precision, self.folder.name]
        if self.manifest.layers != FINAL_ONLY:
            about.insert(0, self.manifest.layers_text)
        text = f"{self.manifest.model} ({', '.join(about)})"
        random = self.manifest.source.random_weights
        return f"{text}, RANDOM WEIGHTS: its features mean nothing" if random else text

    def doubt_about_layer(self, depth: float | None) -> str | None:
        """What to say where the bundle's tokens are not those at the wanted relative depth."""
        blocks, have = self.manifest.blocks, self.manifest.layers
        if depth is None or (blocks is None and have != FINAL_ONLY):
            return None
        wanted = layer_at(depth, blocks or 1000)
        if have == (wanted,):
            return None
        where = f"block {wanted}" if blocks and wanted != FINAL_LAYER else f"depth {depth:g}"
        return (
            f"{self.manifest.layers_text}, as the bundle has it, where the configuration means "
            f"that at {where}; 'dinoreg-rt export onnx' makes another with --preset or --layer"
        )

    def token_grid(self, graph: Graph) -> tuple[int, int]:
        """Rows and columns of tokens that a graph gives."""
        return graph.height // self.manifest.patch, graph.width // self.manifest.patch

    def layers(self, wanted: tuple[str, ...] | None) -> tuple[int, ...]:
        """Places of the wanted layers among those that the tokens hold; None wants all of them.

        Raises:
            ConfigError: the bundle does not hold one of them.
        """
        held = self.manifest.layers
        missing = [layer for layer in wanted or () if layer not in held]
        if missing:
            raise ConfigError(
                f"--layers {missing[0]}: {self.name} holds tokens of layer {', '.join(held)}; "
                "'dinoreg-rt export onnx --layer' chooses them"
            )
        return tuple(held.index(layer) for layer in wanted or held)

    def graph_for(
        self, token_grid: tuple[int, int] | None, aspect: float, padding: int = 0
    ) -> tuple[Graph, str]:
        """The graph of the wanted size, and why.

        Args:
            token_grid: rows and columns, in either order; None takes what fits the slices.
            aspect: height of a slice divided by its width, in mm.
            padding: tokens at each edge that are no part of the slice.

        Raises:
            ConfigError: the bundle has no graph of that size, or the padding leaves nothing of it.
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
                f"{self.name}; wanted at most {most}, or a bundle of a larger --size"
            )
        # Largest first: among sizes of one shape the finer one keeps more of the image.
        fitting.sort(key=lambda grid: (_distortion(grid, aspect, padding), -grid[0] * grid[1]))
        if fitting:
            why = "which fits the slices best" if token_grid is None else "as asked"
            return graphs[fitting[0]], f"{fitting[0][0]} x {fitting[0][1]} tokens, {why}"
        assert token_grid is not None  # a bundle has graphs
        patch = self.manifest.patch
        raise ConfigError(
            f"{self.folder}: holds no graph of {token_grid[0]} x {token_grid[1]} tokens; choose "
            f"--token-grid of {have}, or export it with "
            f"--size {token_grid[0] * patch}x{token_grid[1] * patch}"
        )

    def check_components(self, components: int, layers: tuple[int, ...]) -> None:
        """Check that the tokens of some of the layers have as many channels as components.

        Raises:
            ConfigError: they have fewer.
        """
        channels = len(layers) * self.manifest.layer_channels
        if components > channels:
            raise ConfigError(
                f"--components {components}: {self.name} gives {channels} channels; wanted at most "
                "as many components"
            )


def _distortion(grid: tuple[int, int], aspect: float, padding: int) -> float:
    """Stretch of a slice that is fitted into the padded grid: 1 is none; in steps of 5 %."""
    ratio = (grid[0] - 2 * padding) / (grid[1] - 2 * padding) / aspect
    return round(max(ratio, 1 / ratio) * 20) / 20


def models_folder() -> Path:
    """Where encoders are looked for by name: ``DINOREG_MODELS``, else the user's cache.

    Raises:
        InputError: as `user_folder`.
    """
    return user_folder("DINOREG_MODELS", "models")


def bundle_names(folder: Path) -> list[str]:
    """Names of the bundles in `folder`: folders with a manifest, or that cannot be looked into.

    Those whose names begin with a dot are none: an export under way, or one that was killed.

    Raises:
        InputError: `folder` is there and cannot be read.
    """
    try:
        names = [name for name in os.listdir(folder) if not name.startswith(".")]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(
            f"{folder}: the folder of models cannot be read: {error.strerror}; DINOREG_MODELS "
            "names another one"
        ) from error
    return sorted(name for name in names if _holds_manifest(folder / name) is not False)


def _holds_manifest(folder: Path) -> bool | None:
    """Whether it does; None where that cannot be seen for lack of permission."""
    try:
        return stat.S_ISREG((folder / MANIFEST_NAME).stat().st_mode)
    except PermissionError:
        return None
    except (OSError, ValueError):  # not there, or no possible name
        return False


def bundle_around(file: Path) -> Path | None:
    """The folder of the bundle that a file belongs to; None if it belongs to none."""
    if not _holds_manifest(file.parent) or not os.path.isfile(file):
        return None
    try:
        manifest = read_manifest(file.parent)
    except InputError:  # another program's file of that name
        return None
    names = {MANIFEST_NAME, *(listed.name for listed in manifest.files)}
    return file.parent if file.name in names else None


def find_bundle(encoder: str) -> Path:
    """The folder that a user means: a path, or a name in the folder of models.

    Raises:
        InputError: neither; the message lists the names there are.
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
        raise InputError(f"{encoder}: cannot be looked into: no permission")
    around = bundle_around(path)
    if around is not None:
        raise InputError(
            f"{encoder}: is a file of the encoder bundle in {around}; give the folder: {around}"
        )
    if os.path.exists(path):  # Path.exists raises for a name that is too long
        raise InputError(
            f"{encoder}: no encoder bundle: {MANIFEST_NAME} is not in it; "
            "'dinoreg-rt export onnx' makes one from a checkpoint"
        )
    there = f"there are: {', '.join(names)}" if names else "there is none yet"
    raise InputError(
        f"no encoder '{encoder}': no such folder, and no such name in {models} ({there}); "
        "'dinoreg-rt export onnx' makes a bundle, DINOREG_MODELS names the folder to look in"
    )


def find_named(encoder: str) -> Bundle:
    """Find a bundle by path or name and read its manifest: quick, for checks before the work.

    Raises:
        InputError: no bundle, not of this version's schema, or without one of its files.
    """
    folder = find_bundle(encoder)
    manifest = read_manifest(folder)
    for file in manifest.files:
        if not os.path.exists(folder / file.name):
            raise InputError(
                f"{folder}: {file.name}, which its manifest names, is not there; export it again"
            )
    return Bundle(folder, manifest)


def open_bundle(folder: Path) -> Bundle:
    """Read the manifest and compare every file with it.

    Raises:
        InputError: no bundle, not of this version's schema, or changed since its export.
    """
    manifest = read_manifest(folder)
    check_files(manifest, folder)
    return Bundle(folder, manifest)
