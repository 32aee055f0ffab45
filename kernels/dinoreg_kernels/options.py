"""Parameters of the solver."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

FeatureSimilarity = Literal["mse", "cosine", "lncc"]


@dataclass(frozen=True)
class SolverOptions:
    """Parameters of `solve`; lengths in mm along the grid's axes, sigma for smoothing widths.

    Attributes:
        search_factor: voxels per cell of the discrete search, z, y, x.
        search_radius: reach of the search in cells; all 0 skips it.
        search_levels: every further one halves the cells, to whole voxels, and searches two of them
            around what was found; smoothing widths shrink with the cells.
        search_trust_cost: cells whose features differ by d cost d / (1 + d / search_trust_cost) in
            the search, before costs are smoothed: what disagrees pulls less; 0 trusts all alike.
        cost_smoothing_mm: of the search's costs.
        field_smoothing_mm: of the search's displacements between coupled rounds.
        search_edges: how far that smoothing yields between unlike cells: one whose features differ
            from another's by s times what those of unrelated cells do counts exp(-s search_edges)
            there; 0 smooths all alike.
        coupling: weights of the coupled-convex rounds.
        kept_costs_mb: where the costs of all shifts take no more (MiB), they are kept in memory for
            those rounds, which else compute them again: the same result, slower.
        consistency_rounds: of inverse consistency; 0 searches in one direction only.
        iterations: of Adam, one number for each level from coarse to fine; every level halves the
            voxel size of the one before and the last works on the grid itself.
        learning_rate_mm: of Adam on the last level; coarser ones use as much more.
        adam_epsilon: gradients smaller than this share of those with the images one voxel off make
            shorter steps, so that what matches stays; with 0 all steps are as long.
        smoothing_mm: the displacement is the smoothed variable that Adam changes; of the last
            level, as the learning rate.
        smoothness: weight of mean |du/dp|^2 (lambda).
        feature_weight: of the difference of features.
        feature_similarity: what that difference is: "mse", |M - F|^2; "cosine", s (1 - cos of the
            angle between F and M); "lncc", s (1 - rho), rho the local correlation of each channel,
            its mean over channels. s is twice the mean of |F|^2, so that vectors of this length
            cost the same by "mse" and "cosine".
        trust_cost: a voxel whose features differ by v costs v / (1 + v / trust_cost): what
            disagrees pulls less; 0 trusts all alike, which "lncc" must.
        correlation_weight: of 1 - rho^2, rho the local correlation of the images; 0 needs no
            images.
        correlation_window_mm: sigma of its windows, and those of "lncc", on the last level;
            coarser ones use as much more.
        correlation_noise: in units of the images, or of the channels' root mean square; structure
            weaker than this fades out.
        fold_penalty: weight of mean max(0, fold_margin - det J)^2 at the last iteration; it grows
            from 0 with the square of the share of iterations done.
        fold_margin: det J below it is penalised.
        squarings: 0 refines a displacement; K > 0 a stationary velocity, whose exponential by K
            squarings is the displacement and whose negative gives the inverse.
    """

    search_factor: tuple[int, int, int] = (3, 3, 3)
    search_radius: tuple[int, int, int] = (4, 4, 4)
    search_levels: int = 1
    search_trust_cost: float = 0.0
    cost_smoothing_mm: float = 14.0
    field_smoothing_mm: float = 10.0
    search_edges: float = 0.0
    coupling: tuple[float, ...] = field(default=(0.003, 0.01, 0.03, 0.1, 0.3, 1.0))
    kept_costs_mb: int = 256
    consistency_rounds: int = 15
    iterations: tuple[int, ...] = (80,)
    learning_rate_mm: float = 4.0
    adam_epsilon: float = 0.0
    smoothing_mm: float = 5.66
    smoothness: float = 1.25
    feature_weight: float = 1.0
    feature_similarity: FeatureSimilarity = "mse"
    trust_cost: float = 0.0
    correlation_weight: float = 0.0
    correlation_window_mm: float = 4.0
    correlation_noise: float = 0.1
    fold_penalty: float = 1.0
    fold_margin: float = 0.1
    squarings: int = 0
