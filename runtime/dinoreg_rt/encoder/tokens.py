"""Encoding of slices: tokens in half precision, on the device, in memory or in a file."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from ..bundle.manifest import Graph, Normalisation
from ..device.choice import Device
from ..engines.open import Encoder
from ..errors import InputError, ResourceError
from ..io.arrays import device_of
from ..types import Array
from .slice_stack import SliceStack

_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class PatchTokens:
    """The tokens of the encoded slices of a stack.

    Attributes:
        stack: the slices.
        tokens: (n, rows, columns, C) float16, in the order of ``stack.encoded``; on the device or
            on the host, where tokens beyond the memory budget are a memory-mapped file.
        total: () float32, the sum of all tokens on the device, finite only if every token is; None
            if they are known to be finite.
    """

    stack: SliceStack
    tokens: Array
    total: Array | None = None


def token_array(shape: tuple[int, int, int, int], budget_bytes: int) -> Array:
    """Return a float16 array for tokens: in memory or, beyond the budget, in an unnamed file.

    The file is in the temporary folder and vanishes with the array, even if the program is killed.

    Raises:
        ResourceError: the disk has too little space, or no temporary folder exists.
    """
    size = 2 * int(np.prod(shape, dtype=np.int64))
    if size <= budget_bytes:
        return np.empty(shape, np.float16)
    try:
        folder = Path(tempfile.gettempdir())
    except OSError as error:
        raise _no_room(size, f"no temporary folder is available ({error.strerror})") from error
    try:
        free = shutil.disk_usage(folder).free
        if size > free:
            raise _no_room(size, f"only {free / 2**30:.1f} GiB are free in {folder}")
        with tempfile.TemporaryFile(dir=folder) as file:
            _allocate(file.fileno(), size)
            return np.memmap(file, np.float16, "w+", shape=shape)
    except OSError as error:
        raise _no_room(size, f"{folder} cannot hold them ({error.strerror})") from error


def _allocate(file: int, size: int) -> None:
    """Reserve the file's disk space: a page written later without space would end the program."""
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        # On file systems that cannot reserve space the file stays sparse.
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV, errno.ENOSYS):
            raise


def _no_room(size: int, reason: str) -> ResourceError:
    return ResourceError(
        f"the tokens of one image take {size / 2**30:.1f} GiB, more than --token-memory-gb, and "
        f"{reason}; use a larger --slice-stride, a smaller --token-grid or another TMPDIR"
    )


def encode(
    stack: SliceStack,
    encoder: Encoder,
    normalisation: Normalisation,
    out: Array,
    *,
    batch: int,
    device: Device,
    queued: bool = False,
    progress: Callable[[float], None],
) -> PatchTokens:
    """Encode the slices of a stack into `out`, without the tokens of their margins.

    The host prepares one batch while the encoder works on another. Any exception, Ctrl-C included,
    stops the encoder in the middle of a run.

    Args:
        stack: the slices.
        encoder: takes NumPy arrays, or with `queued` arrays on the device.
        normalisation: mean and standard deviation of the pixels.
        out: (n, rows, columns, C) float16 on the device or on the host. On the host, each batch of
            tokens is waited for, with `queued` after the next one was queued.
        batch: number of slices in one run.
        device: runs the registration and cuts the pixels.
        queued: leave pixels and tokens on the device without waiting for them. The caller must then
            check that tokens are finite (`check_finite`), and progress counts queued slices.
        progress: called with the finished fraction.

    Raises:
        InputError: a token is not finite.
    """
    batches = _queued if queued else _overlapped
    total, done = device.xp.zeros((), np.float32), 0
    stays = device_of(out) == device.name
    halves = _in_half(batches(stack, encoder, normalisation, batch, device), device, stays=stays)
    if queued and not stays:
        halves = _one_behind(halves)
    try:
        # NumPy would warn of what `check_finite` reports.
        with closing(halves), np.errstate(over="ignore", invalid="ignore"):
            for half, values in halves:
                out[done : done + len(half)] = half if values is None else values()[0]
                part = half.sum(dtype=np.float32)
                if not queued:
                    check_finite(device.download(part), stack)
                total = total + part
                done += len(half)
                progress(done / len(stack.encoded))
    except BaseException:
        encoder.cancel()
        raise
    return PatchTokens(stack, out, total)


def encode_constant(encoder: Encoder, graph: Graph, device: Device, *, queued: bool) -> Array:
    """Encode a picture of mean pixels: tokens (rows, columns, C) float16 on `device`."""
    xp = device.xp if queued else np
    pixels = xp.zeros((1, 3, graph.height, graph.width), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        tokens = device.upload(encoder.encode(pixels)[0], np.float16)
        _check_total(device.download(tokens.sum(dtype=np.float32)), "an empty picture")
    return tokens


def check_finite(total: Array, stack: SliceStack) -> None:
    """Check that the half-precision tokens of a stack are finite, by their sum () on the host.

    Raises:
        InputError: a token is not finite: the encoder cannot be used, whatever the images are.
    """
    _check_total(total, stack.volume.name or "an image")


def _check_total(total: Array, what: str) -> None:
    if not np.isfinite(total).all():
        raise InputError(
            f"the encoder gives tokens of {what} that are not finite in half precision; use "
            "another --engine or a bundle of --precision fp32, or export the bundle again"
        )


def _in_half(
    batches: Iterator[Array], device: Device, *, stays: bool
) -> Generator[tuple[Array, Callable[[], list[Any]] | None]]:
    """Yield batches of float16 tokens, each with its download, or None if it stays."""
    for tokens in batches:
        half = device.upload(tokens, np.float16)
        yield half, None if stays else device.downloading(half)


def _one_behind(parts: Iterator[_T]) -> Generator[_T]:
    """Yield each part after the next one has been made."""
    last: list[_T] = []
    for part in parts:
        yield from last
        last = [part]
    yield from last


def _queued(
    stack: SliceStack, encoder: Encoder, normalisation: Normalisation, batch: int, device: Device
) -> Iterator[Array]:
    """Yield the tokens of each batch, all work queued on the device's current stream."""
    for start in range(0, len(stack.encoded), batch):
        yield stack.inner(encoder.encode(stack.batch(start, batch, normalisation, device)))


def _overlapped(
    stack: SliceStack, encoder: Encoder, normalisation: Normalisation, batch: int, device: Device
) -> Iterator[Array]:
    """Yield the tokens of each batch on the host; the next slices are cut meanwhile."""
    count = len(stack.encoded)
    with ThreadPoolExecutor(1, thread_name_prefix="encode") as worker:
        pending: Future[Array] | None = None
        try:
            for start in range(0, count + batch, batch):
                pixels = None
                if start < count:
                    pixels = device.download(stack.batch(start, batch, normalisation, device))
                done = None if pending is None else pending.result()
                pending = None if pixels is None else worker.submit(encoder.encode, pixels)
                if done is not None:
                    yield stack.inner(done)
        except BaseException:
            encoder.cancel()  # before the worker is waited for
            raise
