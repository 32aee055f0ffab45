"""Example slices for calibrating and verifying engines: from a user's images, or from a phantom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..bundle.manifest import Graph, Manifest
from ..config.parameters import RegistrationConfig
from ..device.choice import choose_device
from ..errors import ConfigError
from ..images.intensity import intensity_window
from ..images.modality import detect_modality
from ..images.phantom import phantom_grid, phantom_pair
from ..io.images import read_volume
from ..types import Array
from .planes import choose_plane
from .planning import shown_window
from .slice_stack import plan_slices

#: Slices held out per image; each costs a float32 run of the encoder on a CPU.
_HELD_OUT = 2
#: The phantom's size, the intensities shown as 0 and 1, and one slice index for each image.
_PHANTOM_ZYX, _PHANTOM_WINDOW, _PHANTOM_SLICES = (9, 160, 192), (0.0, 1000.0), (3, 5)


@dataclass(frozen=True, eq=False)
class ExampleSlices:
    """Pixels (n, 3, height, width) float32, normalised for the encoder.

    Attributes:
        measured: slices to calibrate with.
        held_out: slices to judge the calibration with: others of the same images, between the
            measured ones.
    """

    measured: Array
    held_out: Array


def read_examples(
    images: Sequence[Path], manifest: Manifest, graph: Graph, per_image: int
) -> ExampleSlices:
    """Read slices spread evenly over each image, cut, windowed and sized as in a registration.

    Slices are cut across each image's coarsest axis, with the default configuration's windows. At
    most `per_image` slices of each image are measured.

    Raises:
        InputError: an image cannot be read.
        ConfigError: an image has fewer than two slices that are not empty.
    """
    config = RegistrationConfig()
    device, _ = choose_device("cpu", 0)
    measured: list[Array] = []
    held_out: list[Array] = []
    for path in images:
        volume = read_volume(path)
        found = detect_modality(volume)
        window = shown_window(found.water, intensity_window(volume, found, config), config)
        plane, _ = choose_plane([volume.geometry])
        size = (graph.height, graph.width)
        stack = plan_slices(volume, window, plane, size, manifest.patch, stride=1)
        count = len(stack.encoded)
        if count < 2:
            raise ConfigError(
                f"{path}: {count} {plane} slices hold values above {window[0]:g}, the dark end of "
                "its intensity window; give an image with at least two, one to calibrate with and "
                "one to check"
            )
        positions = np.unique(np.linspace(0, count - 1, 2 * per_image).round().astype(int))
        parts = (positions[::2], _spread(positions[1::2], _HELD_OUT))
        for chosen, pixels in zip(parts, (measured, held_out), strict=True):
            some = replace(stack, encoded=tuple(stack.encoded[i] for i in chosen))
            pixels.append(some.batch(0, len(chosen), manifest.normalisation, device))
    return ExampleSlices(np.concatenate(measured), np.concatenate(held_out))


def phantom_slices(manifest: Manifest, graph: Graph) -> Array:
    """Make two slices of a phantom pair: a structured grey body on a dark background.

    Returns:
        Pixels (2, 3, height, width) float32, normalised for the encoder.
    """
    device, _ = choose_device("cpu", 0)
    size, pixels = (graph.height, graph.width), []
    pair = phantom_pair(phantom_grid(_PHANTOM_ZYX, 2.0))
    for volume, index in zip(pair, _PHANTOM_SLICES, strict=True):
        stack = plan_slices(volume, _PHANTOM_WINDOW, "axial", size, manifest.patch, stride=1)
        some = replace(stack, encoded=(index,))
        pixels.append(some.batch(0, 1, manifest.normalisation, device))
    return np.concatenate(pixels)


def _spread(values: Array, count: int) -> Array:
    """Return at most `count` of the values, evenly spread."""
    if len(values) <= count:
        return values
    return values[np.arange(count) * len(values) // count]
