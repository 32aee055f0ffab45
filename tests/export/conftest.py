"""The tests of the export need its packages, and find their helpers beside them."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
_NEEDED = {"onnx": "`export`", "onnxruntime": "`cpu` (or `gpu`)"}


def pytest_pycollect_makemodule() -> None:
    """Skip the folder where a package is missing; a conftest itself cannot be skipped."""
    for package, extra in _NEEDED.items():
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed, of the extra {extra}")
