"""Parameters of the solver (discrete search and refinement) and of the results."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

FeatureSimilarity = Literal["mse", "cosine", "lncc"]
TransformKind = Literal["rigid", "similarity", "affine", "displacement", "velocity"]


class SolverParameters(BaseModel, defer_build=True):
    """The discrete search, the refinement of the field and the optional results."""

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
        description="levels of the discrete search; each further level halves the step and "
        "searches two steps around the match found so far; default: 2 for two images of the same "
        "contrast that are not close MR, else 1, and no fewer than --search-features has values",
    )
    search_trust_cost: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="limit that the cost of a feature difference approaches in the discrete "
        "search: a cost d becomes d / (1 + d / limit), so that outliers pull less; 0: no limit",
    )
    cost_smoothing: float = Field(
        1.15, ge=0, le=3, description="width (sigma) of the smoothing of the costs, in search steps"
    )
    field_smoothing: float = Field(
        0.82,
        ge=0,
        le=3,
        description="width (sigma) of the smoothing of the displacements between coupled rounds, "
        "in search steps",
    )
    coupling: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.03, 0.3),
        max_length=32,
        description="increasing weights of the coupled-convex rounds",
    )
    search_memory_mb: int = Field(
        256,
        ge=0,
        le=1 << 20,
        description="memory in MiB in which the costs of all shifts are kept for the coupled "
        "rounds; larger costs are computed again in each round, which is slower but gives the "
        "same result",
    )
    inverse_consistency_rounds: int = Field(
        15,
        ge=0,
        le=100,
        description="rounds that make the forward and backward fields of the search each other's "
        "inverse",
    )
    control_spacing_mm: float | None = Field(
        None,
        gt=0,
        le=100,
        description="spacing of the control grid that is refined; default: 2 working voxels",
    )
    iterations: tuple[Annotated[int, Field(ge=0, le=10_000)], ...] | None = Field(
        None,
        min_length=1,
        max_length=6,
        description="Adam iterations of each level, coarse to fine; default: 40,20, for two close "
        "MR images 40,40",
    )
    learning_rate_mm: float | None = Field(
        None,
        gt=0,
        le=100,
        description="step of Adam on the finest level; default: half the control spacing",
    )
    adam_epsilon: float = Field(
        0.3,
        ge=0,
        le=10,
        description="share of the gradient of images that are one voxel apart: gradients below it "
        "make shorter steps, so that matched tissue stays in place; 0: all steps have the same "
        "length",
    )
    smoothing_mm: float | None = Field(
        None,
        ge=0,
        le=200,
        description="width (sigma) of the smoothing of the field; default: 1.4 times the control "
        "spacing",
    )
    smoothness: float = Field(
        0.8, ge=0, le=1e4, description="weight of the smoothness term (lambda in the paper)"
    )
    feature_weight: float | None = Field(
        None,
        ge=0,
        le=1e3,
        description="weight of the feature difference in the refinement; default: 1, for two close "
        "MR images 0.1 (1 if --correlation-weight is 0)",
    )
    feature_similarity: FeatureSimilarity = Field(
        "mse",
        description="measure by which the refinement compares features: mse (squared difference), "
        "cosine (of the angle between vectors), or lncc (local correlation of each channel, in "
        "windows of --correlation-window-mm)",
    )
    correlation_weight: float | None = Field(
        None,
        ge=0,
        le=1e3,
        description="weight in the refinement of 1 - rho^2, where rho is the local correlation of "
        "the intensities; 0: features alone; default: 2.5, for two close MR images 3",
    )
    correlation_window_mm: float | None = Field(
        None,
        gt=0,
        le=200,
        description="width (sigma) of the windows of the local correlation; default: twice the "
        "control spacing, for two CT images 1.25 times",
    )
    correlation_noise: float | None = Field(
        None,
        gt=0,
        le=1,
        description="noise level of the local correlation: structure that differs less in "
        "intensity (with lncc: in features, as a share of their root mean square) counts little; "
        "intensities are 0 to 1 after clipping; default: 0.1, for two close MR images 0.01",
    )
    trust_cost: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="feature difference at which a voxel pulls a quarter as hard in the "
        "refinement; 0: all voxels pull alike; cannot be combined with lncc",
    )
    fold_penalty: float = Field(
        800.0, ge=0, le=1e6, description="weight of the penalty on folds (see --fold-margin)"
    )
    fold_margin: float = Field(
        0.2, ge=0, lt=1, description="Jacobian determinant below which --fold-penalty acts"
    )
    transform: TransformKind = Field(
        "displacement",
        description="transform that is refined: a displacement field, a stationary velocity "
        "field, whose negative gives the inverse, or a linear map alone (rigid, similarity, "
        "affine), which is written as transform.tfm",
    )
    trust: bool = Field(
        default=True,
        description="run the mirror test (on MIND-SSC features), which decides whether the result "
        "can be trusted",
    )
    confidence: bool = Field(
        default=False, description="also compute how well the match of each voxel is determined"
    )
    inverse: bool = Field(default=False, description="also compute the inverse field")
