"""Slices as an encoder is shown them, to measure what it computes with: of a user's own images, and
of a phantom where there are none.
"""

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
from .encoding import shown_window
from .planes import choose_plane
from .slice_stack import plan_slices

#: Slices of one image that are held out: each costs a run of the encoder in float32 on a CPU.
_HELD_OUT = 2
#: Of the phantom: its size, its intensities that count as 0 and 1, and a slice of each image.
_PHANTOM_ZYX, _PHANTOM_WINDOW, _PHANTOM_SLICES = (9, 160, 192), (0.0, 1000.0), (3, 5)


@dataclass(frozen=True, eq=False)
class ExampleSlices:
    """Pixels (n, 3, height, width) float32, normalised as the encoder wants them.

    Attributes:
        measured: to set something by.
        held_out: to judge it by: other slices of the same images, between the measured ones.
    """

    measured: Array
    held_out: Array


def read_examples(
    images: Sequence[Path], manifest: Manifest, graph: Graph, per_image: int
) -> ExampleSlices:
    """Slices spread evenly over each image, cut, windowed and sized as a registration does it.

    Across each image's coarsest axis, with the windows of the default configuration.

    Args:
        images: files or DICOM folders, as `read_volume` takes them.
        manifest: of the encoder.
        graph: the input size.
        per_image: slices of each image that are measured, where it has so many.

    Raises:
        InputError: an image that cannot be read.
        ConfigError: an image with fewer than two slices that hold anything.
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
                "its window; wanted two at least, one to measure and one to check"
            )
        where = np.unique(np.linspace(0, count - 1, 2 * per_image).round().astype(int))
        parts = (where[::2], _spread(where[1::2], _HELD_OUT))
        for chosen, pixels in zip(parts, (measured, held_out), strict=True):
            some = replace(stack, encoded=tuple(stack.encoded[i] for i in chosen))
            pixels.append(some.batch(0, len(chosen), manifest.normalisation, device))
    return ExampleSlices(np.concatenate(measured), np.concatenate(held_out))


def phantom_slices(manifest: Manifest, graph: Graph) -> Array:
    """Two slices of a made-up pair: a grey body with structure before a dark background.

    Returns:
        Pixels (2, 3, height, width) float32, normalised as the encoder wants them.
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
    """At most `count` of them, evenly."""
    if len(values) <= count:
        return values
    return values[np.arange(count) * len(values) // count]
