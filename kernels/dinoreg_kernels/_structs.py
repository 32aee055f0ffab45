"""The structs of dinoreg.h for ctypes, field by field."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_double, c_float, c_int, c_int32, c_size_t, c_void_p

_Int3 = c_int32 * 3
_Double3 = c_double * 3
_Double9 = c_double * 9
_Double12 = c_double * 12

PROGRESS = ctypes.CFUNCTYPE(c_int, c_void_p, c_int, c_float)


class Execution(ctypes.Structure):
    """`dr_execution`."""

    _fields_ = (
        ("device", c_int),
        ("threads", c_int32),
        ("stream", c_void_p),
        ("progress", PROGRESS),
        ("progress_user", c_void_p),
    )


class PointMap(ctypes.Structure):
    """`dr_point_map`."""

    _fields_ = (
        ("affine", _Double12),
        ("field", c_void_p),
        ("field_shape", _Int3),
        ("to_field", _Double12),
        ("matrix", _Double9),
    )


class ResampleArgs(ctypes.Structure):
    """`dr_resample_args`."""

    _fields_ = (
        ("input", c_void_p),
        ("in_shape", _Int3),
        ("out", c_void_p),
        ("out_shape", _Int3),
        ("inside", c_void_p),
        ("map", PointMap),
        ("samples", _Int3),
        ("outside", c_float),
        ("extend", c_int32),
    )


class LabelsArgs(ctypes.Structure):
    """`dr_labels_args`."""

    _fields_ = (
        ("input", c_void_p),
        ("in_shape", _Int3),
        ("out", c_void_p),
        ("out_shape", _Int3),
        ("map", PointMap),
        ("nearest", c_int32),
        ("outside", c_int32),
    )


class SlicesArgs(ctypes.Structure):
    """`dr_slices_args`."""

    _fields_ = (
        ("image", c_void_p),
        ("shape", _Int3),
        ("strides", _Int3),
        ("slices", POINTER(c_int32)),
        ("count", c_int32),
        ("size", c_int32 * 2),
        ("samples", c_int32 * 2),
        ("window", c_double * 2),
        ("channels", c_int32),
        ("mean", POINTER(c_double)),
        ("std", POINTER(c_double)),
        ("out", c_void_p),
    )


class MapArgs(ctypes.Structure):
    """`dr_map_args`."""

    _fields_ = (("out", c_void_p), ("out_shape", _Int3), ("map", PointMap))


class JacobianArgs(ctypes.Structure):
    """`dr_jacobian_args`."""

    _fields_ = (
        ("field", c_void_p),
        ("out", c_void_p),
        ("shape", _Int3),
        ("index_from_unit", _Double9),
    )


class ComposeArgs(ctypes.Structure):
    """`dr_compose_args`."""

    _fields_ = (
        ("first", c_void_p),
        ("shape", _Int3),
        ("second", c_void_p),
        ("second_shape", _Int3),
        ("to_second", _Double12),
        ("spacing_mm", _Double3),
        ("out", c_void_p),
    )


class InvertArgs(ctypes.Structure):
    """`dr_invert_args`."""

    _fields_ = (
        ("field", c_void_p),
        ("field_shape", _Int3),
        ("matrix", _Double9),
        ("spacing_mm", _Double3),
        ("target", _Double12),
        ("wanted", c_void_p),
        ("from_point", _Double12),
        ("from_index", _Double12),
        ("out", c_void_p),
        ("residual_mm", c_void_p),
        ("out_shape", _Int3),
        ("iterations", c_int32),
        ("tolerance_mm", c_double),
    )


class MindArgs(ctypes.Structure):
    """`dr_mind_args`."""

    _fields_ = (
        ("image", c_void_p),
        ("shape", _Int3),
        ("radius", _Int3),
        ("dilation", _Int3),
        ("pool", _Int3),
        ("out", c_void_p),
        ("structure", c_void_p),
        ("channels", c_int32),
        ("scale", c_float),
        ("workspace", c_void_p),
        ("workspace_bytes", c_size_t),
    )


class LocalArgs(ctypes.Structure):
    """`dr_local_args`."""

    _fields_ = (
        ("image", c_void_p),
        ("shape", _Int3),
        ("pool", _Int3),
        ("spacing_mm", _Double3),
        ("sigma_mm", POINTER(c_double)),
        ("windows", c_int32),
        ("noise", c_double),
        ("scale", c_double),
        ("out", c_void_p),
        ("channels", c_int32),
        ("first_channel", c_int32),
        ("workspace", c_void_p),
        ("workspace_bytes", c_size_t),
    )


class PoolArgs(ctypes.Structure):
    """`dr_pool_args`."""

    _fields_ = (
        ("features", c_void_p),
        ("weight", c_void_p),
        ("shape", _Int3),
        ("channels", c_int32),
        ("factor", _Int3),
        ("offset", _Int3),
        ("out", c_void_p),
        ("out_weight", c_void_p),
    )


class FeaturePair(ctypes.Structure):
    """`dr_feature_pair`."""

    _fields_ = (
        ("fixed", c_void_p),
        ("fixed_weight", c_void_p),
        ("moving", c_void_p),
        ("moving_weight", c_void_p),
        ("stride", c_int32),
        ("channels", c_int32),
    )


class SolverArgs(ctypes.Structure):
    """`dr_solver_args`."""

    _fields_ = (
        ("fixed", c_void_p),
        ("fixed_weight", c_void_p),
        ("fixed_shape", _Int3),
        ("moving", c_void_p),
        ("moving_weight", c_void_p),
        ("moving_shape", _Int3),
        ("moving_offset", _Int3),
        ("stride", c_int32),
        ("channels", c_int32),
        ("spacing_mm", _Double3),
        ("search_factor", _Int3),
        ("search_radius", _Int3),
        ("search_levels", c_int32),
        ("search_trust_cost", c_double),
        ("cost_smoothing_mm", c_double),
        ("field_smoothing_mm", c_double),
        ("search_edges", c_double),
        ("coupling", POINTER(c_double)),
        ("coupling_rounds", c_int32),
        ("kept_costs_mb", c_int32),
        ("consistency_rounds", c_int32),
        ("search_features", POINTER(FeaturePair)),
        ("iterations", POINTER(c_int32)),
        ("levels", c_int32),
        ("learning_rate_mm", c_double),
        ("adam_epsilon", c_double),
        ("smoothing_mm", c_double),
        ("smoothness", c_double),
        ("feature_weight", c_double),
        ("feature_similarity", c_int32),
        ("trust_cost", c_double),
        ("fixed_image", c_void_p),
        ("moving_image", c_void_p),
        ("correlation_weight", c_double),
        ("correlation_window_mm", c_double),
        ("correlation_noise", c_double),
        ("fold_penalty", c_double),
        ("fold_margin", c_double),
        ("squarings", c_int32),
        ("field", c_void_p),
        ("inverse", c_void_p),
        ("spread", c_void_p),
        ("feature_distance", c_void_p),
        ("workspace", c_void_p),
        ("workspace_bytes", c_size_t),
    )
