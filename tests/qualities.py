"""A `RunQuality` of a good registration, for tests of what is reported about it."""

from dinoreg_rt.summaries import RunQuality

GOOD = RunQuality(
    feature_distance_before=0.2,
    feature_distance_after=0.1,
    folded_percent=0.0,
    jacobian_min=0.5,
    jacobian_max=1.5,
    sdlogj=0.05,
    inverse_consistency_mean_mm=0.1,
    inverse_consistency_max_mm=0.9,
    overlap_percent=98.0,
)
