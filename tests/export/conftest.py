"""Fixtures of the export's tests, which are skipped without its packages."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
_NEEDED = {"onnx": "`export`", "onnxruntime": "`cpu` (or `gpu`)"}


def pytest_pycollect_makemodule() -> None:
    """Skip the folder if a package is missing; a conftest itself cannot be skipped."""
    for package, extra in _NEEDED.items():
        if find_spec(package) is None:
            pytest.skip(f"{package}, of the extra {extra}, is not installed")


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A fake TensorRT on a machine with an H100 and engines in ``tmp_path / "engines"``."""
    from gpu_fakes import pretend_gpu_server

    from dinoreg_export.engine import formats

    return pretend_gpu_server(monkeypatch, tmp_path / "engines", formats)[0]


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """Files of the fixed and the moving image of a small phantom."""
    from phantoms import make_grid, make_phantom

    from dinoreg_rt.io.images import write_volume

    grid = make_grid((16, 20, 24), (4.0, 4.0, 4.0))
    pair, folder = make_phantom(grid, grid), tmp_path_factory.mktemp("images")
    paths = folder / "fixed.nii.gz", folder / "moving.nii.gz"
    for path, volume in zip(paths, (pair.fixed, pair.moving), strict=True):
        write_volume(path, volume)
    return paths
