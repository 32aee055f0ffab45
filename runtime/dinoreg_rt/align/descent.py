"""Levenberg-Marquardt steps of a linear map on an objective given by its normal equations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..config.image_parameters import LinearModel
from ..types import AffineTransform, FloatArray
from .linear_models import generators, stepped
from .normal_equations import NormalEquations

#: Damping at first, in shares of the curvature's diagonal; steps that help divide it by ten.
_DAMPING = 1e-3
_LARGEST_DAMPING = 1e3


@dataclass(frozen=True, eq=False)
class Frame:
    """The frame of the steps: their centre and axes, and the size of what they move.

    Attributes:
        centre_mm: LPS mm.
        axes: (3, 3), columns are the LPS directions of x, y and z of the grid.
        radius_mm: root mean square distance of the compared points from the centre.
    """

    centre_mm: FloatArray
    axes: FloatArray
    radius_mm: float

    def in_lps(self, step: FloatArray) -> FloatArray:
        """Convert a step (3, 4) from the grid's axes to LPS."""
        matrix = self.axes @ step[:, :3] @ self.axes.T
        return np.column_stack([matrix, self.axes @ step[:, 3]])

    def length_mm(self, step: FloatArray) -> float:
        """Return how far a step moves a typical point, in mm."""
        turned = float(np.linalg.norm(step[:, :3])) * self.radius_mm / np.sqrt(3)
        return float(np.hypot(turned, np.linalg.norm(step[:, 3])))


@dataclass(frozen=True, eq=False)
class Descent:
    """The map that a descent found.

    Attributes:
        transform: map from fixed points to moving points.
        before: value of the objective at the start.
        after: value at the end; not above `before`.
        evaluations: number of times that the objective was evaluated.
    """

    transform: AffineTransform
    before: float
    after: float
    evaluations: int


def descend(
    objective: Callable[[AffineTransform], NormalEquations],
    start: AffineTransform,
    model: LinearModel,
    frame: Frame,
    *,
    least_step_mm: float,
    most_evaluations: int,
) -> Descent:
    """Minimise an objective from `start` within a model; only steps that lower it are taken.

    Args:
        objective: returns the value at a map, with gradient and curvature with respect to small
            steps of its points.
        start: map of the model, fixed points to moving points.
        model: model that all steps keep.
        frame: frame in which the objective gives its derivatives.
        least_step_mm: a step that moves a typical point by less ends the descent.
        most_evaluations: limit on the evaluations of the objective.
    """
    basis = generators(model)
    current, transform = objective(start), start
    before, damping, evaluations = current.value, _DAMPING, 1
    while evaluations < most_evaluations and damping <= _LARGEST_DAMPING:
        step = solved(current, basis, damping)
        length = frame.length_mm(step)
        if length < least_step_mm:
            break
        moved = stepped(transform, frame.in_lps(step), model, frame.centre_mm)
        found = objective(moved)
        evaluations += 1
        if found.value < current.value:
            current, transform, damping = found, moved, damping / 10
        else:
            damping *= 10
    return Descent(transform, before, current.value, evaluations)


def solved(equations: NormalEquations, basis: FloatArray, damping: float) -> FloatArray:
    """Return the damped Gauss-Newton step (3, 4) within the span of `basis` (K, 3, 4)."""
    gradient = np.einsum("kia,ia->k", basis, equations.gradient)
    curvature = np.einsum("kia,iajb,ljb->kl", basis, equations.curvature, basis)
    diagonal = np.diag(curvature)
    # Keeps directions in which nothing changes, such as across a single slice, at zero.
    floor = 1e-9 * max(float(diagonal.max()), 1e-30)
    damped = curvature + np.diag(damping * diagonal + floor)
    parameters = -np.linalg.solve(damped, gradient)
    return np.asarray(np.einsum("k,kia->ia", parameters, basis))
