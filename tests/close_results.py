"""Bounds on the difference between two kinds of machine, on the shipped pair of brains.

Rounding differs between instruction sets, and the discrete search and 80 steps of Adam magnify it
where neighbouring displacements match equally well. A few voxels then lie far apart while the
registration is the same, so nothing bounds the largest difference.
`tests/runtime/test_instruction_sets.py` compares two instruction sets of one CPU with these bounds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

import dinoreg_rt
from dinoreg_rt.fields.warp import warp_labels
from dinoreg_rt.io import read_labels
from dinoreg_rt.quality.metrics import dice

BRAIN = Path(__file__).parent / "data" / "brain"
#: Measured between "generic" and "x86-64-v4" on an AMD EPYC (2026-11-30): 0.0134 voxel on average,
#: 6.0 % of the voxels above 0.05 voxel (the largest 2.8 voxels), mean Dice 0.00009 apart and one
#: structure 0.0014. The bounds of the field are twice that; those of Dice are what a user would not
#: notice.
MEAN_VOX, FAR_VOX, FAR_SHARE = 0.027, 0.05, 0.12
MEAN_DICE, ONE_DICE = 0.001, 0.003


def register_brains(device: str) -> dinoreg_rt.RegistrationResult:
    """Register the shipped pair with the default parameters."""
    config = dinoreg_rt.RegistrationConfig(device=device)
    return dinoreg_rt.register(BRAIN / "fixed_t1.nii.gz", BRAIN / "moving_t1.nii.gz", config=config)


def dice_of_structures(displacement: dinoreg_rt.DisplacementField) -> np.ndarray:
    """Return the Dice of each structure of the shipped pair under a displacement."""
    fixed, moving = (read_labels(BRAIN / f"{role}_labels.nii.gz") for role in ("fixed", "moving"))
    return np.array(list(dice(fixed.array, warp_labels(moving, displacement).array).values()))


def check_close(
    found: dinoreg_rt.DisplacementField, expected: dinoreg_rt.DisplacementField
) -> None:
    """Check two displacements of the shipped pair against the bounds."""
    apart_mm = np.linalg.norm(found.vectors_mm - expected.vectors_mm, axis=-1)
    apart_vox = apart_mm / min(expected.geometry.spacing_mm)
    assert apart_vox.mean() <= MEAN_VOX
    assert (apart_vox > FAR_VOX).mean() <= FAR_SHARE
    scores, others = dice_of_structures(found), dice_of_structures(expected)
    assert abs(scores.mean() - others.mean()) <= MEAN_DICE
    assert np.abs(scores - others).max() <= ONE_DICE
