"""Slices through the encoder: tokens in half precision, on the device, in memory or in a file."""

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
    """What an encoder says about the encoded slices of a stack.

    Attributes:
        stack: the slices; `tokens` holds ``stack.encoded`` in that order.
        tokens: (n, rows, columns, C) float16; on the device, or on the host, there a memory-mapped
            file beyond the memory budget.
        total: () float32, the sum of all of them on the device, which is finite if they are; None
            where that is known.
    """

    stack: SliceStack
    tokens: Array
    total: Array | None = None


def token_array(shape: tuple[int, int, int, int], budget_bytes: int) -> Array:
    """Room for tokens, float16: memory, or beyond the budget a file without a name.

    The file lies in the temporary folder and is gone with the array, whatever ends the program.

    Raises:
        ResourceError: the disk has too little room, or there is no temporary folder.
    """
    size = 2 * int(np.prod(shape, dtype=np.int64))
    if size <= budget_bytes:
        return np.empty(shape, np.float16)
    try:
        folder = Path(tempfile.gettempdir())
    except OSError as error:
        raise _no_room(size, f"there is no temporary folder ({error.strerror})") from error
    try:
        free = shutil.disk_usage(folder).free
        if size > free:
            raise _no_room(size, f"than the {free / 2**30:.1f} GiB free in {folder}")
        with tempfile.TemporaryFile(dir=folder) as file:
            _allocate(file.fileno(), size)
            return np.memmap(file, np.float16, "w+", shape=shape)
    except OSError as error:
        raise _no_room(size, f"{folder} cannot hold them ({error.strerror})") from error


def _allocate(file: int, size: int) -> None:
    """Take the room on the disk now: without it a page that is written later ends the program."""
    if not hasattr(os, "posix_fallocate"):  # macOS
        return
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        # Of file systems that cannot: there the file stays sparse.
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENODEV, errno.ENOSYS):
            raise


def _no_room(size: int, what: str) -> ResourceError:
    return ResourceError(
        f"the tokens of one image take {size / 2**30:.1f} GiB: more than --token-memory-gb and "
        f"{what}; a larger --slice-stride, a smaller --token-grid or another TMPDIR helps"
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
    """Encode the slices of a stack into `out`, (n, rows, columns, C) float16, without the padding.

    What the host does for a batch it does while the encoder works on another one. An exception,
    Ctrl-C among them, stops a run of the encoder in the middle.

    Args:
        stack: the slices.
        encoder: takes NumPy arrays, or with `queued` arrays on the device.
        normalisation: of the pixels.
        out: on the device, or on the host: then each batch of tokens is waited for, with `queued`
            after the next one was queued.
        batch: slices in one run.
        device: of the registration. Pixels are cut there.
        queued: leave pixels and tokens on the device and do not look at them: whether they are
            finite is for the caller to ask (`check_finite`). Progress is that of what was queued.
        progress: called with the finished fraction.

    Raises:
        InputError: tokens that are not finite.
    """
    batches = _queued if queued else _overlapped
    total, done = device.xp.zeros((), np.float32), 0
    stays = device_of(out) == device.name
    halves = _in_half(batches(stack, encoder, normalisation, batch, device), device, stays=stays)
    if queued and not stays:
        halves = _one_behind(halves)
    try:
        # NumPy would warn of what `check_finite` is for.
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
    """Tokens of a picture whose pixels are all the mean, (rows, columns, C) float16 on `device`."""
    xp = device.xp if queued else np
    pixels = xp.zeros((1, 3, graph.height, graph.width), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        tokens = device.upload(encoder.encode(pixels)[0], np.float16)
        _check_total(device.download(tokens.sum(dtype=np.float32)), "an empty picture")
    return tokens


def check_finite(total: Array, stack: SliceStack) -> None:
    """Require that the sum of tokens is finite, which it is not if one of them is not.

    Args:
        total: () sum of tokens in half precision, as a NumPy array.
        stack: the slices that they belong to.

    Raises:
        InputError: it is the encoder that cannot be used, whatever the images are.
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
    """Batches of tokens in half precision on the device, and how the host gets them; None: not."""
    for tokens in batches:
        half = device.upload(tokens, np.float16)
        yield half, None if stays else device.downloading(half)


def _one_behind(parts: Iterator[_T]) -> Generator[_T]:
    """The same, each when the next has been made."""
    last: list[_T] = []
    for part in parts:
        yield from last
        last = [part]
    yield from last


def _queued(
    stack: SliceStack, encoder: Encoder, normalisation: Normalisation, batch: int, device: Device
) -> Iterator[Array]:
    """Tokens of each batch in turn, all of it on the device's current stream."""
    for start in range(0, len(stack.encoded), batch):
        yield stack.inner(encoder.encode(stack.batch(start, batch, normalisation, device)))


def _overlapped(
    stack: SliceStack, encoder: Encoder, normalisation: Normalisation, batch: int, device: Device
) -> Iterator[Array]:
    """The same on the host: the next slices are cut while the encoder works on the last ones."""
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
