"""Moments of an image pair's tokens: exact, streamed over slices, deterministic.

Products are float32, of tokens less the mean of their slice, and the sums of several products are
float64: the magnitude of the tokens does not affect the result. The number of tokens in a product
depends on the kind of device alone, never on its memory. On a GPU, where every call costs the host
as much time as the device takes for a million products, a product has many more tokens. Large
arrays stay there; means and variances come to the host, which waits for them once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..device.choice import Device
from ..types import Array, FloatArray

#: Numbers of the tokens in one product. On a CPU 8 MiB of float32, which its caches hold; on a GPU
#: 256 MiB. The rounding of a product's float32 sums stays below 1e-6 of it (`test_pca.py`).
_NUMBERS = {"cpu": 1 << 21, "cuda": 1 << 26}


@dataclass(frozen=True, eq=False)
class PairMoments:
    """Moments of the tokens of each slice of two images, enough to standardise both exactly.

    Attributes:
        counts: for each image (n,), the number of tokens that count in each slice.
        means: for each image (n, C), the mean of those tokens; 0 for a slice without any.
        within: (2, C, C) float64 on the device: for each image, the sum over the slices of the
            scatter about each slice's mean.
        squares: (2, C), the diagonals of `within`.
    """

    counts: tuple[FloatArray, ...]
    means: tuple[FloatArray, ...]
    within: Array
    squares: FloatArray

    @classmethod
    def of(
        cls,
        images: Sequence[tuple[Array, Array | None]],
        read: Callable[[Array], Array],
        device: Device,
    ) -> PairMoments:
        """Compute the moments of the images' tokens.

        Args:
            images: for each, its tokens (n, rows, columns, C) and which of them count, (n, rows *
                columns) bool on the host; None: all.
            read: gives the compared part of some slices' tokens on the device (`read_tokens`).
            device: where to compute.
        """
        xp = device.xp
        counts = tuple(_counts(tokens, inside) for tokens, inside in images)
        parts = [
            _of_image(tokens, inside, count, read, device)
            for (tokens, inside), count in zip(images, counts, strict=True)
        ]
        within = xp.stack([scatter for scatter, _ in parts], dtype=np.float64)
        squares = within.diagonal(axis1=1, axis2=2)
        means = [mean for _, of_image in parts for mean in of_image]
        rows = device.download(xp.concatenate([*means, squares], axis=None))
        rows = rows.reshape(-1, within.shape[-1])
        *found, squares = np.split(rows, np.cumsum([len(count) for count in counts]))
        return cls(counts, tuple(found), within, squares)


def spans(tokens: Array, device: Device) -> Iterator[Array]:
    """Yield the slices of an image (n, ..., C) a few at a time, as many as one product takes."""
    step = slices_at_once(math.prod(tokens.shape[1:]), device.kind)
    if step >= len(tokens):
        yield tokens
        return
    for start in range(0, len(tokens), step):
        yield tokens[start : start + step]


def slices_at_once(numbers: int, kind: Literal["cpu", "cuda"]) -> int:
    """Return how many slices of so many numbers one product takes on a kind of device."""
    return max(1, _NUMBERS[kind] // numbers)


def _counts(tokens: Array, inside: Array | None) -> FloatArray:
    """Return the number of tokens that count in each slice."""
    if inside is None:
        return np.full(len(tokens), float(math.prod(tokens.shape[1:-1])))
    return np.asarray(inside.sum(axis=1), np.float64)


def _of_image(
    tokens: Array,
    inside: Array | None,
    counts: FloatArray,
    read: Callable[[Array], Array],
    device: Device,
) -> tuple[Array, list[Array]]:
    """Return one image's scatter within slices, (C, C), and groups of slices' means, (n, 1, C)."""
    xp, means, within, done = device.xp, [], None, 0
    for span in spans(tokens, device):
        part = slice(done, done + len(span))
        values = read(span).astype(np.float32, copy=False)  # lengths made them their own
        values = values.reshape(len(span), -1, values.shape[-1])
        kept = np.ones(values.shape[:2], bool) if inside is None else inside[part]
        shares = kept / np.maximum(counts[part, None], 1)
        mean = device.upload(shares[:, None], np.float32) @ values
        values -= mean
        values = values.reshape(-1, values.shape[-1])
        if inside is not None:
            # Indices instead of a mask: counting its set elements would make the host wait.
            values = values[device.upload(np.flatnonzero(kept), np.int64)]
        product = values.T @ values
        within = product if within is None else xp.add(within, product, dtype=np.float64)
        means.append(mean)
        done += len(span)
    return within, means
