"""Too little memory for an export, in its own words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dinoreg_rt.errors import DinoregError, ResourceError, is_for_want_of_memory


@contextmanager
def memory_errors() -> Iterator[None]:
    """Report whatever is raised for want of memory as one error.

    Raises:
        ResourceError: NumPy, onnx or ONNX Runtime found too little.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, DinoregError) or not is_for_want_of_memory(error):
            raise
        raise ResourceError(
            "out of memory while the encoder was exported or checked; a smaller --size needs less, "
            "or export on a machine with more memory (bundles can be copied)"
        ) from error
