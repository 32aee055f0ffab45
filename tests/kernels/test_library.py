"""Which libdinoreg is loaded: this package's, or that of the distribution with CUDA kernels."""

from __future__ import annotations

import sys
from importlib import metadata
from pathlib import Path

import pytest

from dinoreg_kernels import KernelUnavailable, _library

OWN = metadata.version("dinoreg-rt")


def install_cuda(monkeypatch: pytest.MonkeyPatch, site: Path, version: str) -> Path:
    """What pip would leave of dinoreg-kernels-cu13; returns its library."""
    package = site / "dinoreg_kernels_cu13"
    information = site / f"dinoreg_kernels_cu13-{version}.dist-info"
    package.mkdir()
    information.mkdir()
    (package / "__init__.py").touch()
    (package / "libdinoreg.so.1").touch()
    (information / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: dinoreg-kernels-cu13\nVersion: {version}\n"
    )
    monkeypatch.syspath_prepend(str(site))
    return package / "libdinoreg.so.1"


def test_own_library_without_the_cuda_kernels(monkeypatch):
    monkeypatch.setitem(sys.modules, "dinoreg_kernels_cu13", None)  # on a GPU's machine it is there
    assert _library.library_file().parent.name == "dinoreg_kernels"


def test_cuda_kernels_of_the_same_version_are_loaded(monkeypatch, tmp_path):
    library = install_cuda(monkeypatch, tmp_path, OWN)
    assert _library.library_file() == library


def test_cuda_kernels_of_another_version_are_refused(monkeypatch, tmp_path):
    install_cuda(monkeypatch, tmp_path, "9.8.7")
    wanted = (
        rf"dinoreg-kernels-cu13 9\.8\.7 is installed beside dinoreg-rt {OWN}; wanted the same "
        rf"version: pip install 'dinoreg-kernels-cu13=={OWN}'"
    )
    with pytest.raises(KernelUnavailable, match=wanted):
        _library.library_file()
