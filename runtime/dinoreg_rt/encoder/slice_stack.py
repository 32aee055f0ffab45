"""From a volume to the pixels that an encoder sees, a few slices at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

import dinoreg_kernels

from ..device import Device
from ..geometry import coarsened_grid, index_map, kernel_affine, reshaped_grid
from ..manifest import Normalisation
from ..preprocess import antialiasing_samples
from ..types import Array, FloatArray, Geometry, Volume
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

    @property
    def positions_mm(self) -> FloatArray:
        """(n,) position of each encoded slice along the stack."""
        return np.asarray(self.encoded) * self.tokens.spacing_mm[2]

    def batch(self, start: int, count: int, norm: Normalisation, device: Device) -> Array:
        """Pixels (n, 3, height, width) float32 of the encoded slices from `start` on.

        Windowed, antialiased where slices become smaller, and normalised; each slice is made of its
        own voxels alone. The volume belongs on the device: it would be uploaded each time.
        """
        image = device.xp.asarray(self.volume.array, np.float32)
        own = upright(self.volume.geometry, self.plane)
        _, rows, columns = antialiasing_samples(kernel_affine(index_map(self.pixels, own)))
        return dinoreg_kernels.cut_slices(
            upright_view(image, self.volume.geometry, self.plane),
            self.encoded[start : start + count],
            self.pixels.shape_zyx[1:],
            window=self.window,
            mean=norm.mean,
            std=norm.std,
            samples=(rows, columns),
            threads=device.threads,
        )


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
