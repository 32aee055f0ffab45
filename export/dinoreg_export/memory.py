"""Too little memory for an export, in its own words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dinoreg_rt.errors import DinoregError, ResourceError

#: What errors of ONNX Runtime say, which have no type for it.
_WORDS = ("bad_alloc", "allocate memory", "out of memory", "bad allocation")


@contextmanager
def memory_errors() -> Iterator[None]:
    """Report whatever is raised for want of memory as one error.

    Raises:
        ResourceError: NumPy, onnx or ONNX Runtime found too little.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, DinoregError) or not _is_for_want(error):
            raise
        raise ResourceError(
            "out of memory while the encoder was exported or checked; a smaller --size needs less, "
            "or export on a machine with more memory (bundles can be copied)"
        ) from error


def _is_for_want(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(word in str(error) for word in _WORDS)
