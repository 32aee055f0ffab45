"""Parameters of the solver, the discrete search and the refinement, and of what is returned."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

FeatureSimilarity = Literal["mse", "cosine", "lncc"]


class SolverParameters(BaseModel):
    """How matches are searched, how the field is refined and what comes beside it."""

    search_spacing_mm: float | None = Field(
        None, gt=0, le=200, description="step of the discrete search; default: 6 working voxels"
    )
    search_radius_mm: float | None = Field(
        None, ge=0, le=500, description="reach of the discrete search; default: 4 steps"
    )
    search_levels: int | None = Field(
        None,
        ge=1,
        le=4,
        description="levels of the discrete search: every further one halves the step and searches "
        "two steps around what was found; default: 1, for two images of one contrast 2, if close "
        "1, and at least as many as --search-features has values",
    )
    search_trust_cost: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="limit that large feature differences approach in the discrete search: a cost "
        "d becomes d / (1 + d / this), so that outliers pull less; 0: no limit",
    )
    cost_smoothing: float = Field(
        1.15, ge=0, le=3, description="width (sigma) of the search's smoothing, in its steps"
    )
    field_smoothing: float = Field(
        0.82, ge=0, le=3, description="width of the smoothing between coupled rounds, in steps"
    )
    search_edges: float = Field(
        0.0,
        ge=0,
        le=1e3,
        description="how much --field-smoothing is reduced between unlike tissues: cells whose "
        "features are unrelated count exp(-this) for each other; 0: all are smoothed alike",
    )
    coupling: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.03, 0.3),
        max_length=32,
        description="weights of the coupled-convex rounds, growing",
    )
    search_memory_mb: int = Field(
        256,
        ge=0,
        le=1 << 20,
        description="where the costs of all shifts take no more, they are kept for the coupled "
        "rounds, which else compute them again: the same result, slower",
    )
    inverse_consistency_rounds: int = Field(
        15, ge=0, le=100, description="rounds that make the coarse fields each other's inverse"
    )
    control_spacing_mm: float | None = Field(
        None,
        gt=0,
        le=100,
        description="spacing of the refined displacement field; default: 2 working voxels",
    )
    iterations: tuple[Annotated[int, Field(ge=0, le=10_000)], ...] | None = Field(
        None,
        min_length=1,
        max_length=6,
        description="Adam iterations of each level, coarse to fine; default: 40 and 20, for two "
        "close MR 40 and 40",
    )
    learning_rate_mm: float | None = Field(
        None,
        gt=0,
        le=100,
        description="Adam step of the finest level; default: half a control voxel",
    )
    adam_epsilon: float = Field(
        0.3,
        ge=0,
        le=10,
        description="gradients that are smaller than this share of those with the images one "
        "voxel off make shorter steps; 0: all steps are as long",
    )
    smoothing_mm: float | None = Field(
        None,
        ge=0,
        le=200,
        description="width (sigma) of the field's smoothing; default: 1.4 control voxels",
    )
    smoothness: float = Field(
        0.8, ge=0, le=1e4, description="weight of the smoothness term (lambda in the paper)"
    )
    feature_weight: float | None = Field(
        None,
        ge=0,
        le=1e3,
        description="weight of the features' difference in the refinement; default: 1, for two "
        "close MR 0.1 (without correlation: 1)",
    )
    feature_similarity: FeatureSimilarity = Field(
        "mse",
        description="how features are compared: mse (squared difference), cosine (of the angle "
        "between the vectors), or lncc (local correlation of each channel, in the windows of the "
        "intensities' correlation)",
    )
    correlation_weight: float | None = Field(
        None,
        ge=0,
        le=1e3,
        description="weight of 1 - rho^2 beside the features, rho the local correlation of the "
        "intensities; 0: features alone; default: 2.5, for two close MR 3",
    )
    correlation_window_mm: float | None = Field(
        None,
        gt=0,
        le=200,
        description="width (sigma) of the local correlation's windows; default: 2 control voxels, "
        "for two CT 1.25",
    )
    correlation_noise: float | None = Field(
        None,
        gt=0,
        le=1,
        description="windowed intensities (of lncc: features, as a share of their root mean "
        "square) that differ less say little; default: 0.1, for two close MR 0.01",
    )
    trust_cost: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="adaptive weighting: a voxel whose features differ by so much pulls a quarter "
        "as hard; 0: all pull alike; not with lncc",
    )
    fold_penalty: float = Field(
        800.0, ge=0, le=1e6, description="weight of the penalty on det J below the margin"
    )
    fold_margin: float = Field(
        0.2, ge=0, lt=1, description="a det J below this is penalised: room before a fold"
    )
    transform: Literal["displacement", "velocity"] = Field(
        "displacement",
        description="what is refined: a displacement, or a stationary velocity whose exponential "
        "it is, with the exponential of its negative as the inverse",
    )
    trust: bool = Field(
        default=True,
        description="compare with mirror images of the moving image by MIND-SSC, for the verdict "
        "on trust",
    )
    confidence: bool = Field(
        default=False, description="also tell how well the match of each voxel is determined"
    )
    inverse: bool = Field(default=False, description="also compute the inverse field")
