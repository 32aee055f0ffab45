"""Parameters of the solver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FeatureSimilarity = Literal["mse", "cosine", "lncc"]


@dataclass(frozen=True, kw_only=True)
class SolverOptions:
    """Parameters of `solve`.

    Lengths are in mm along the grid's axes, and smoothing widths are standard deviations. A
    registration takes the parameters without a default from its configuration. The defaults of the
    others switch a part of the solver off.

    Attributes:
        search_factor: Control voxels per voxel of the search grid, z, y, x.
        search_radius: Reach of the search in search voxels; 0 along all axes skips the search.
        search_levels: Number of search grids. Every further one halves the search voxels, to whole
            control voxels, and searches up to two of them around the last result; smoothing widths
            shrink with them.
        search_trust_cost: Features that differ by d cost d / (1 + d / search_trust_cost) in the
            search, before costs are smoothed, so that what disagrees pulls less; 0 trusts all
            differences alike.
        cost_smoothing_mm: Smoothing of the search's costs.
        field_smoothing_mm: Smoothing of the search's displacements between coupled rounds.
        coupling: Weights of the coupled-convex rounds.
        kept_costs_mb: Limit in MiB up to which the costs of all shifts are kept in memory for those
            rounds. Above it, every round computes them again: the same result, but slower. With 0,
            a GPU also makes no copies of the features to load them faster.
        consistency_rounds: Rounds of inverse consistency; 0 searches in one direction only.
        iterations: Iterations of Adam, one number for each level from coarse to fine. Every level
            halves the voxels of the one before it, and the last works on the control grid itself.
        learning_rate_mm: Learning rate of Adam on the last level. On coarser levels it is larger by
            the same factor as the voxels.
        adam_epsilon: Gradients smaller than this share of those with the images one voxel out of
            register make shorter steps, so that what matches stays in place; 0 makes all steps
            equally long.
        smoothing_mm: The displacement is the smoothed variable of Adam. Scales with the voxels, as
            the learning rate does.
        smoothness: Weight of mean |du/dp|^2 (lambda).
        feature_weight: Weight of the difference of features.
        feature_similarity: Which difference that is: "mse", |M - F|^2; "cosine", s (1 - cos of the
            angle between F and M); "lncc", s (1 - rho), where rho is the local correlation of each
            channel, averaged over channels. s is twice the mean of |F|^2, so that vectors of this
            length cost the same with "mse" and "cosine".
        trust_cost: A voxel whose features differ by v costs v / (1 + v / trust_cost), so that what
            disagrees pulls less; 0, which "lncc" requires, trusts all differences alike.
        correlation_weight: Weight of 1 - rho^2, where rho is the local correlation of the images; 0
            needs no images.
        correlation_window_mm: Width of the correlation's windows, also of those of "lncc", on the
            last level; scales with the voxels.
        correlation_noise: Structure weaker than this fades out; in units of the images, or of the
            channels' root mean square.
        fold_penalty: Weight of mean max(0, fold_margin - det J)^2 in the last iteration; it grows
            from 0 with the square of the share of iterations done.
        fold_margin: The value of det J below which a voxel is penalised.
        squarings: 0 refines a displacement. K > 0 refines a stationary velocity, whose exponential
            by K squarings is the displacement, and whose negative gives the inverse.
    """

    search_factor: tuple[int, int, int]
    search_radius: tuple[int, int, int]
    search_levels: int = 1
    search_trust_cost: float = 0.0
    cost_smoothing_mm: float
    field_smoothing_mm: float
    coupling: tuple[float, ...]
    kept_costs_mb: int = 0
    consistency_rounds: int
    iterations: tuple[int, ...]
    learning_rate_mm: float
    adam_epsilon: float = 0.0
    smoothing_mm: float
    smoothness: float
    feature_weight: float = 1.0
    feature_similarity: FeatureSimilarity = "mse"
    trust_cost: float = 0.0
    correlation_weight: float = 0.0
    correlation_window_mm: float = 0.0
    correlation_noise: float = 0.0
    fold_penalty: float
    fold_margin: float
    squarings: int = 0
