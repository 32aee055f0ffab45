"""The decisions of a plan as values, in the result and in the report."""

from __future__ import annotations

import json
from datetime import datetime, timezone

import numpy as np
import pytest
from phantoms import make_grid

import dinoreg_rt
from dinoreg_rt.geometry import centre_lps_mm
from dinoreg_rt.images.phantom import phantom_grid, phantom_pair
from dinoreg_rt.registration.decisions import Decisions, describe_alignment
from dinoreg_rt.run.report import build_report
from dinoreg_rt.types import AffineTransform

GRID = make_grid((20, 24, 28), (4.0, 3.0, 2.0), "oblique")


def turn(axis: int, degrees: float) -> np.ndarray:
    """Return the rotation about axis x, y or z by the right-hand rule."""
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    matrix = np.eye(3)
    one, other = (axis + 1) % 3, (axis + 2) % 3
    matrix[[one, other], [one, other]] = c
    matrix[one, other], matrix[other, one] = -s, s
    return matrix


def test_an_alignment_taken_apart() -> None:
    angles, scales = (10.0, -20.0, 30.0), (1.2, 1.1, 0.9)
    rotation = turn(2, angles[2]) @ turn(1, angles[1]) @ turn(0, angles[0])
    axes = turn(0, 33.0) @ turn(2, 12.0)
    matrix = rotation @ axes @ np.diag(scales) @ axes.T
    shift, middle = np.array([5.0, -6.0, 7.0]), centre_lps_mm(GRID)
    affine = AffineTransform(matrix, middle + shift - matrix @ middle)
    found = describe_alignment("auto", affine, GRID)
    assert found.rotation_deg == pytest.approx(angles)
    assert found.scales == pytest.approx(scales)
    assert found.shift_mm == pytest.approx(shift)
    assert np.allclose(np.array(found.matrix)[:3, :3], matrix)
    assert not found.mirrored
    about_z = describe_alignment("x.tfm", AffineTransform(turn(2, 40.0), np.zeros(3)), GRID)
    assert about_z.turn_deg == pytest.approx(40.0)


def test_a_mirrored_alignment_says_so() -> None:
    flip = AffineTransform(np.diag([-1.0, 1.0, 1.0]), np.zeros(3))
    found = describe_alignment("flip.tfm", flip, GRID)
    assert found.mirrored
    assert found.scales == pytest.approx((1.0, 1.0, 1.0))


def test_a_result_and_its_report_hold_them() -> None:
    fixed, moving = phantom_pair(phantom_grid((20, 24, 28), 4.0))
    config = dinoreg_rt.RegistrationConfig(iterations=(2,), moving_modality="mr", initial="centre")
    result = dinoreg_rt.register(fixed, moving, config=config)
    found = result.decisions
    assert isinstance(found, Decisions)
    assert (found.device, found.alignment.method) == (result.config.device, "centre")
    assert (found.fixed.modality, found.moving.modality) == (
        result.config.fixed_modality,
        result.config.moving_modality,
    )
    low, high = found.moving.window
    assert low < high
    assert found.control_grid.shape_xyz == result.deformable.geometry.shape_xyz
    assert found.search_features == ("mind",)
    assert found.encoder is None
    report = build_report(
        result,
        command=[],
        started_at=datetime.now(timezone.utc),  # noqa: UP017
        inputs={},
        outputs={},
        timings_ms=result.timings_ms,
    )
    document = json.loads(report.to_json())["decisions"]
    assert document["alignment"]["matrix"][3] == [0, 0, 0, 1]
    assert document["moving"]["window"] == list(found.moving.window)
    assert document["working_grid"]["spacing_mm"] == [4.0, 4.0, 4.0]
    assert {"plan", "modality", "alignment", "solve"} <= result.timings_ms.keys()
