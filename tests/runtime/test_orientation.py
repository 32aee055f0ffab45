"""`--orientation` in the commands and in Python, on an image whose forms lie 7 mm apart."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from phantoms import make_grid, make_phantom

import dinoreg_rt
from dinoreg_rt import RegistrationConfig, io
from dinoreg_rt.commands.main import cli
from dinoreg_rt.types import AffineTransform, LabelMap


@pytest.fixture
def conflict(tmp_path: Path) -> Path:
    """A phantom pair whose moving image is moved away by its qform, and an identity."""
    grid = make_grid((20, 22, 24), (4.0, 4.0, 4.0))
    pair = make_phantom(grid, grid)
    io.write_volume(tmp_path / "fixed.nii", pair.fixed)
    io.write_volume(tmp_path / "moving.nii", pair.moving)
    labels = LabelMap(np.ones(grid.shape_zyx, np.int32), grid)
    io.write_labels(tmp_path / "labels.nii", labels)
    raw = bytearray((tmp_path / "moving.nii").read_bytes())
    struct.pack_into("<h", raw, 254, 2)
    x, y, z = struct.unpack_from("<3f", raw, 268)
    struct.pack_into("<3f", raw, 268, x + 7, y, z)
    (tmp_path / "moving.nii").write_bytes(raw)
    io.write_affine(tmp_path / "identity.tfm", AffineTransform.identity())
    return tmp_path


def invoke(*arguments: str | Path) -> Any:
    result = CliRunner().invoke(cli, [str(a) for a in arguments])
    assert result.exit_code in (0, 9), result.output
    return result


def test_run_says_it_and_reports_it(conflict: Path) -> None:
    command = ["run", "-f", conflict / "fixed.nii", "-m", conflict / "moving.nii", "--no-qc"]
    command += ["--save", "displacement"]
    command += ["--initial", "none", "-o", conflict / "out", "--accept-untrusted"]
    fields = {}
    for choice in ("sform", "qform"):
        result = invoke(*command, "--orientation", choice)
        wanted = f"the {choice} (code {2 if choice == 'sform' else 1}) was taken"
        assert result.stderr.count(f"warning: {conflict / 'moving.nii'}: {wanted}") == 1
        assert "up to 7 mm away" in result.stderr
        report = json.loads((conflict / "out" / "report.json").read_text())
        assert sum(wanted in warning for warning in report["warnings"]) == 1
        assert report["configuration"]["orientation"] == choice
        assert wanted in report["inputs"]["moving"]["warnings"][0]
        assert report["inputs"]["fixed"]["warnings"] == []
        fields[choice] = io.read_displacement(conflict / "out" / "displacement.nii.gz").vectors_mm
    moved = np.median(fields["qform"] - fields["sform"], axis=(0, 1, 2))
    assert abs(moved[0] + 7) < 1  # the qform's x points to the right, LPS to the left
    dry = invoke(*command, "--dry-run")
    assert "the sform (code 2) was taken" in dry.stderr


def test_apply_and_evaluate_say_it(conflict: Path) -> None:
    moving, fixed = conflict / "moving.nii", conflict / "fixed.nii"
    result = invoke(
        *("apply", "-t", conflict / "identity.tfm", "--image", moving, "--json"),
        *("--reference", moving, "-o", conflict / "o.nii", "--orientation", "qform"),
    )
    assert result.stderr.count("the qform (code 1) was taken") == 1
    assert len(json.loads(result.stdout)["warnings"]) == 1
    assert io.read_geometry(conflict / "o.nii").notes == ()
    raw = (conflict / "moving.nii").read_bytes()
    image = io.read_labels(conflict / "labels.nii")
    (conflict / "m.nii").write_bytes(raw[:352] + np.asarray(image.array, np.float32).tobytes())
    result = invoke(
        *("evaluate", "-f", conflict / "labels.nii", "-m", conflict / "m.nii", "--json", "-"),
        *("-t", conflict / "identity.tfm", "--orientation", "qform"),
    )
    assert result.stderr.count("the qform (code 1) was taken") == 1
    (pair,) = json.loads(result.stdout)["pairs"]
    assert len(pair["warnings"]) == 1
    assert pair["labels"][0]["dice_after"] < 0.99  # 7 mm apart
    assert fixed.exists()


def test_python_has_it_in_the_result(conflict: Path) -> None:
    config = RegistrationConfig(initial="none", iterations=(1,), orientation="qform")
    paths = conflict / "fixed.nii", conflict / "moving.nii"
    result = dinoreg_rt.register(*paths, config=config)
    assert "the qform (code 1) was taken" in result.warnings[0]
    fixed = io.read_volume(paths[0])
    assert dinoreg_rt.register(fixed, fixed, config=config).warnings == []
