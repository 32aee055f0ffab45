"""Rotated poses of the moving image, from which a search over all shifts may start.

Searches and fits find rotations of up to about 20 degrees. Beyond that, rotations about each axis
are tried and, if one of them fits better than none, combinations of them. This uses cells of twice
the usual size, which takes an eighth of the work.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np

from ..device.choice import Device
from ..device.unread import read_all
from ..geometry import coarsened_grid
from ..types import FloatArray
from .boxes import coarser
from .shifts import Candidate, search_positions
from .sides import Side, make_sides

#: Angle between neighbouring poses about each axis. With 30 degrees the nearest pose was the most
#: similar one in all 21 cases: T1 with T2, a T1 and a CT, rotated by up to 45 degrees.
_STEP_DEG = 30.0
_COARSER = (2, 2, 2)
#: Number of rotated poses that are searched again on cells of the usual size.
_KEPT = 2


def turned_poses(fixed: Side, moving: Side, device: Device) -> list[FloatArray]:
    """Return the rotations (3, 3) from fixed to moving points that are worth a search.

    The list is empty if the images are most similar as their headers orient them.
    """
    sides = make_sides(
        [
            replace(
                side.coarse,
                cells=coarsened_grid(side.coarse.cells, _COARSER),
                body_box=coarser(side.coarse.body_box, _COARSER),
            )
            for side in (fixed, moving)
        ],
        device,
    )

    def search(angles: list[tuple[float, ...]]) -> list[Candidate]:
        poses = [rotation(np.deg2rad(vector)) for vector in angles]
        found = search_positions(sides[0], sides[1], poses, device, best_of_each=True)
        return read_all([found], device)[0]

    angles = list(itertools.product((-_STEP_DEG, 0.0, _STEP_DEG), repeat=3))
    found = search([vector for vector in angles if np.count_nonzero(vector) < 2])
    if not found or _unturned(found[0]):
        return []
    found += search([vector for vector in angles if np.count_nonzero(vector) > 1])
    found.sort(key=lambda candidate: -candidate.similarity)
    turned: list[FloatArray] = []
    for candidate in found[:_KEPT]:
        if _unturned(candidate):
            break
        turned.append(candidate.transform.matrix)
    return turned


def _unturned(candidate: Candidate) -> bool:
    return np.allclose(candidate.transform.matrix, np.eye(3))


def rotation(vector: FloatArray) -> FloatArray:
    """Return the rotation about a vector (x, y, z) by its length in radians (Rodrigues)."""
    angle = float(np.linalg.norm(vector))
    x, y, z = np.asarray(vector) / max(angle, 1e-12)
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    return np.asarray(np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross)
