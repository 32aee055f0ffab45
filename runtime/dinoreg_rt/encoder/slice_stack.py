"""From a volume to the pixels that an encoder sees, a few slices at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..device import Device
from ..geometry import coarsened_grid, reshaped_grid, shifted_grid
from ..manifest import Normalisation
from ..preprocess import resample_volume, window
from ..types import AffineTransform, Array, Geometry, Volume
from .planes import Plane, upright, upright_view


@dataclass(frozen=True, eq=False)
class SliceStack:
    """Which slices of a volume are encoded, and where their pixels and tokens lie.

    Attributes:
        volume: the image.
        window: its intensities that count as 0 and 1.
        plane: in which it is cut.
        pixels: lattice of all its slices at the encoder's size, (slices, height, width).
        tokens: lattice of all its slices' tokens, (slices, rows, columns).
        encoded: indices of the slices that go through the encoder, growing.
        empty: of those that would, but hold nothing; their features are unknown.
    """

    volume: Volume
    window: tuple[float, float]
    plane: Plane
    pixels: Geometry
    tokens: Geometry
    encoded: tuple[int, ...]
    empty: tuple[int, ...]

    def batch(self, start: int, count: int, norm: Normalisation, device: Device) -> Array:
        """Pixels (n, 3, height, width) float32 of the encoded slices from `start` on."""
        chosen = self.encoded[start : start + count]
        height, width = self.pixels.shape_zyx[1:]
        out = device.xp.empty((len(chosen), 3, height, width), np.float32)
        for i, index in enumerate(chosen):
            grey = self._grey(index, device)
            for channel, (mean, std) in enumerate(zip(norm.mean, norm.std, strict=True)):
                device.xp.multiply(grey, np.float32(1 / std), out=out[i, channel])
                out[i, channel] -= np.float32(mean / std)
        return out

    def _grey(self, index: int, device: Device) -> Array:
        """One slice (height, width), windowed to 0..1, antialiased where it becomes smaller.

        Cut out first: resampling the whole volume onto one slice would look at all of it each time.
        """
        _, height, width = self.pixels.shape_zyx
        grid = shifted_grid(self.pixels, (index, 0, 0), (1, height, width))
        own = upright(self.volume.geometry, self.plane)
        own = shifted_grid(own, (index, 0, 0), (1, *own.shape_zyx[1:]))
        cut = upright_view(self.volume.array, self.volume.geometry, self.plane)[index : index + 1]
        grey = resample_volume(Volume(cut, own), grid, AffineTransform.identity(), device)
        return window(grey, *self.window)[0]


def plan_slices(
    volume: Volume,
    window: tuple[float, float],
    plane: Plane,
    size: tuple[int, int],
    patch: int,
    stride: int,
) -> SliceStack:
    """Decide which slices of a volume are encoded: every `stride`-th and the last one.

    The whole slice is fitted to the encoder's size, as the paper's ancestors do: the lattice keeps
    account of the pixels' true height and width, so that features land where they belong.

    Args:
        volume: the image.
        window: its intensities that count as 0 and 1.
        plane: in which it is cut.
        size: height and width of the encoder's input.
        patch: pixels per token and axis.
        stride: distance of encoded slices.
    """
    stack = upright(volume.geometry, plane)
    count = stack.shape_zyx[0]
    pixels = reshaped_grid(stack, (count, *size))
    slices = upright_view(volume.array, volume.geometry, plane)
    wanted = sorted({*range(0, count, stride), count - 1})
    empty = tuple(i for i in wanted if not bool((slices[i] > window[0]).any()))
    return SliceStack(
        volume=volume,
        window=window,
        plane=plane,
        pixels=pixels,
        tokens=coarsened_grid(pixels, (1, patch, patch)),
        encoded=tuple(i for i in wanted if i not in empty),
        empty=empty,
    )
