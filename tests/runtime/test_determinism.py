"""Results have the same bits for any number of threads, and from run to run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from phantoms import Phantom, make_grid, make_phantom

import dinoreg_rt
from dinoreg_rt import RegistrationConfig, RegistrationResult, io
from dinoreg_rt.commands.main import cli

#: Prime numbers, mostly: sizes that no factor divides.
PHANTOM_GRIDS = (
    make_grid((29, 43, 37), (2.0, 2.0, 2.0)),
    make_grid((31, 35, 41), (2.1, 2.3, 2.2), "oblique"),
)


@pytest.fixture(scope="module")
def phantom() -> Phantom:
    return make_phantom(*PHANTOM_GRIDS, multimodal=True)


def register(phantom: Phantom, threads: int) -> RegistrationResult:
    config = RegistrationConfig(initial="moments", threads=threads, inverse=True)
    return dinoreg_rt.register(phantom.fixed, phantom.moving, config=config)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_same_bits_for_any_number_of_threads(phantom: Phantom, threads: int) -> None:
    first, second = register(phantom, 1), register(phantom, threads)
    np.testing.assert_array_equal(first.displacement.vectors_mm, second.displacement.vectors_mm)
    np.testing.assert_array_equal(first.warped.array, second.warped.array)
    np.testing.assert_array_equal(first.inverse.vectors_mm, second.inverse.vectors_mm)
    np.testing.assert_array_equal(first.initial.translation_mm, second.initial.translation_mm)
    assert first.quality == second.quality
    assert first.hashes == second.hashes


def test_inputs_are_not_changed(phantom: Phantom) -> None:
    fixed, moving = phantom.fixed.array.copy(), phantom.moving.array.copy()
    register(phantom, 2)
    np.testing.assert_array_equal(phantom.fixed.array, fixed)
    np.testing.assert_array_equal(phantom.moving.array, moving)


def test_files_of_two_runs_are_the_same(phantom: Phantom, tmp_path: Path) -> None:
    """All bytes agree but the reports', whose dates, times, memory and command differ."""
    io.write_volume(tmp_path / "f.nii.gz", phantom.fixed)
    io.write_volume(tmp_path / "m.nii.gz", phantom.moving)
    for name, threads in (("a", 1), ("b", 2)):
        arguments = ["run", "-f", tmp_path / "f.nii.gz", "-m", tmp_path / "m.nii.gz", "--quiet"]
        arguments += ["-o", tmp_path / name, "--save", "displacement,inverse", "--threads", threads]
        outcome = CliRunner().invoke(cli, [str(a) for a in arguments])
        assert outcome.exit_code == 0, outcome.output
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert "report.html" in files
    for name in files:
        if name not in ("report.json", "report.html"):
            assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), (
                name
            )
    first, second = (json.loads((tmp_path / n / "report.json").read_text()) for n in "ab")
    assert first["outputs"].pop("report.html")
    assert second["outputs"].pop("report.html")
    assert first["configuration"].pop("threads") != second["configuration"].pop("threads")
    for key in ("started_at", "finished_at", "timings_ms", "total_ms", "peak_memory_mb", "command"):
        first.pop(key, None)
        second.pop(key, None)
    assert first == second
