"""Cutting a number of slices into batches of fixed sizes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence


def pieces(count: int, batches: Sequence[int]) -> Iterator[tuple[int, slice]]:
    """Batch sizes and the slices that go into each: the largest batch, then what fits the rest.

    Args:
        count: slices in all.
        batches: sizes that an engine has; a piece smaller than its batch is to be padded.
    """
    first = 0
    while first < count:
        fitting = [batch for batch in batches if batch >= count - first]
        batch = min(fitting) if fitting else max(batches)
        yield batch, slice(first, min(first + batch, count))
        first += batch
