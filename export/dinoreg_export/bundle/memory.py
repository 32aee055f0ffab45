"""Clear errors for exports that run out of memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dinoreg_rt.errors import DinoregError, ResourceError, is_for_want_of_memory


@contextmanager
def memory_errors() -> Iterator[None]:
    """Turn any error that is raised for lack of memory into one type.

    Raises:
        ResourceError: NumPy, onnx or ONNX Runtime ran out of memory.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, DinoregError) or not is_for_want_of_memory(error):
            raise
        raise ResourceError(
            "ran out of memory while exporting or verifying the encoder; use a smaller --size, or "
            "export on a machine with more memory and copy the bundle"
        ) from error
