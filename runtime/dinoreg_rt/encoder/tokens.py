"""Slices through the encoder: tokens in half precision, in memory or in a file."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..device import Device
from ..errors import RegistrationError, ResourceError
from ..manifest import Normalisation
from ..types import Array
from .engines import Encoder
from .pca import TokenMoments
from .slice_stack import SliceStack


@dataclass(frozen=True, eq=False)
class PatchTokens:
    """What an encoder says about the encoded slices of a stack.

    Attributes:
        stack: the slices; `tokens` holds ``stack.encoded`` in that order.
        tokens: (n, rows, columns, C) float16; a memory-mapped file beyond the memory budget.
        moments: of all of them.
    """

    stack: SliceStack
    tokens: Array
    moments: TokenMoments


def token_array(shape: tuple[int, int, int, int], budget_bytes: int, folder: Path) -> Array:
    """Room for tokens, float16: memory, or a file without a name in `folder` beyond the budget.

    The file is gone with the array, whatever ends the program.

    Raises:
        ResourceError: the disk has too little room.
    """
    size = 2 * int(np.prod(shape, dtype=np.int64))
    if size <= budget_bytes:
        return np.empty(shape, np.float16)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ResourceError(
            f"the tokens of one image take {size / 2**30:.1f} GiB: more than --token-memory-gb "
            f"and than the {free / 2**30:.1f} GiB free in {folder}; a larger --slice-stride, a "
            "smaller --token-grid or another TMPDIR helps"
        )
    with tempfile.TemporaryFile(dir=folder) as file:
        return np.memmap(file, np.float16, "w+", shape=shape)


def encode(
    stack: SliceStack,
    encoder: Encoder,
    normalisation: Normalisation,
    out: Array,
    *,
    batch: int,
    device: Device,
    progress: Callable[[float], None],
) -> PatchTokens:
    """Encode the slices of a stack into `out`, (n, rows, columns, C) float16.

    The next slices are cut while the encoder works on the last ones. An exception, Ctrl-C among
    them, stops a run of the encoder in the middle.
    """
    count = len(stack.encoded)
    moments = TokenMoments.none(out.shape[-1])
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
                    first = start - batch
                    out[first : first + len(done)] = done
                    kept = out[first : first + len(done)].reshape(-1, out.shape[-1])
                    _check_finite(kept, stack)
                    moments = moments.merged(TokenMoments.of(kept))
                    progress(min(start, count) / count)
        except BaseException:
            encoder.cancel()
            raise
    return PatchTokens(stack, out, moments)


def _check_finite(tokens: Array, stack: SliceStack) -> None:
    if not np.isfinite(tokens).all():
        raise RegistrationError(
            f"the encoder gives tokens of {stack.volume.name or 'an image'} that are not finite in "
            "half precision; another --engine or a bundle of --precision fp32 may not"
        )
