"""Small steps of the linear models: rigid, similarity and affine maps, and the nearest of each."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ..config.image_parameters import LinearModel
from ..geometry import compose_affines, transform_points
from ..types import AffineTransform, FloatArray


def generators(model: LinearModel) -> FloatArray:
    """Return the directions in which a map can change, (K, 3, 4) over (x, y, z, 1).

    K is 6 for a rigid map (three rotations, three shifts), 7 for a similarity (and the scale) and
    12 for an affine map (all elements of the matrix, then the shifts).
    """
    shifts = np.eye(4)[:3, None, :3].transpose(0, 2, 1) * np.eye(4)[3]
    if model == "affine":
        elements = np.concatenate([np.eye(9).reshape(9, 3, 3), np.zeros((9, 3, 1))], axis=2)
        return np.concatenate([elements, shifts])
    turns = np.zeros((3, 3, 4))
    for axis in range(3):
        one, other = (axis + 1) % 3, (axis + 2) % 3
        turns[axis, other, one], turns[axis, one, other] = 1.0, -1.0
    size = [np.eye(3, 4)[None]] if model == "similarity" else []
    return np.concatenate([turns, *size, shifts])


def nearest_matrix(matrix: FloatArray, model: LinearModel) -> FloatArray:
    """Return the rotation, scaled rotation or matrix of the model that is nearest to `matrix`."""
    if model == "affine":
        return matrix
    left, values, right = np.linalg.svd(matrix)
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(left @ right))])
    rotation: FloatArray = (left * signs) @ right
    return rotation if model == "rigid" else rotation * float((values * signs).mean())


def nearest_map(
    affine: AffineTransform, model: LinearModel, centre_mm: FloatArray
) -> AffineTransform:
    """Return the map of the model that is nearest to `affine` and maps `centre_mm` as it does."""
    matrix = nearest_matrix(affine.matrix, model)
    there = transform_points(affine, centre_mm[None])[0]
    return AffineTransform(matrix, there - matrix @ centre_mm)


def stepped(
    affine: AffineTransform, step: FloatArray, model: LinearModel, centre_mm: FloatArray
) -> AffineTransform:
    """Return `affine` after a small step of its points.

    Args:
        affine: map from fixed points to moving points.
        step: (3, 4) over (x, y, z, 1), displacement in mm of a point at (x, y, z) mm from the
            centre, in LPS.
        model: model that the step keeps: its matrix is replaced by the nearest of the model.
        centre_mm: LPS mm.
    """
    matrix = nearest_matrix(np.eye(3) + step[:, :3], model)
    moved = AffineTransform(matrix, centre_mm + step[:, 3] - matrix @ centre_mm)
    return compose_affines(affine, moved)


@dataclass(frozen=True)
class LinearSummary:
    """The numbers of a linear map ``p -> matrix @ (p - centre) + centre + translation``, in LPS.

    Attributes:
        model: rigid, similarity or affine.
        matrix: rows of the 3 x 3 matrix.
        centre_mm: centre of the fixed image's box.
        translation_mm: shift of that centre.
        rotation_deg: rotation vector of the nearest rotation: its axis (x, y, z) times the angle.
        angle_deg: the angle, 0 to 180.
        scale: cube root of the determinant, moving mm per fixed mm.
        scales: singular values of the matrix, largest first; all 1 for a rigid map.
    """

    model: LinearModel
    matrix: tuple[tuple[float, float, float], ...]
    centre_mm: tuple[float, float, float]
    translation_mm: tuple[float, float, float]
    rotation_deg: tuple[float, float, float]
    angle_deg: float
    scale: float
    scales: tuple[float, float, float]

    @classmethod
    def of(
        cls, affine: AffineTransform, model: LinearModel, centre_mm: FloatArray
    ) -> LinearSummary:
        """Take the numbers of `affine`, with `centre_mm` as its centre."""
        rotation = nearest_matrix(affine.matrix, "rigid")
        vector = np.rad2deg(rotation_vector(rotation))
        shift = transform_points(affine, centre_mm[None])[0] - centre_mm
        values = np.linalg.svd(affine.matrix, compute_uv=False)
        return cls(
            model,
            tuple(_three(row) for row in affine.matrix),
            _three(centre_mm),
            _three(shift),
            _three(vector),
            round(float(np.linalg.norm(vector)), 6),
            round(float(np.cbrt(np.linalg.det(affine.matrix))), 6),
            _three(values),
        )


def rotation_vector(rotation: FloatArray) -> FloatArray:
    """Return the axis of a rotation matrix times its angle in radians, x, y, z."""
    turned = rotation - rotation.T
    sine = np.array([turned[2, 1], turned[0, 2], turned[1, 0]]) / 2
    length, cosine = float(np.linalg.norm(sine)), float((np.trace(rotation) - 1) / 2)
    angle = float(np.arctan2(length, cosine))
    if length > 1e-9:
        return np.asarray(sine * (angle / length))
    # No rotation, or half a turn, whose axis is the direction that does not change.
    values, vectors = np.linalg.eigh(rotation + rotation.T)
    return np.asarray(angle * vectors[:, int(np.argmax(values))])


def _three(values: Iterable[float]) -> tuple[float, float, float]:
    x, y, z = (round(float(value), 6) for value in values)
    return (x, y, z)
