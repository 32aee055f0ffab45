"""The structs of dinoreg.h for ctypes, field by field; tests/capi compares both."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_double, c_float, c_int, c_int32, c_int64, c_size_t, c_void_p
from typing import Any

_Int3 = c_int32 * 3
_Double3 = c_double * 3
_Double9 = c_double * 9
_Double12 = c_double * 12

PROGRESS = ctypes.CFUNCTYPE(c_int, c_void_p, c_int, c_float)


def _each(kind: Any, *names: str) -> list[tuple[str, Any]]:
    """Consecutive fields of one type."""
    return [(name, kind) for name in names]


class _Sized(ctypes.Structure):
    """A struct that begins with its size, as the functions of the library take them."""

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        self.struct_size = ctypes.sizeof(self)


_SIZE = ("struct_size", c_size_t)
_WORKSPACE = (("workspace", c_void_p), ("workspace_bytes", c_size_t))
# The field `in` of the structs is a keyword of Python, and called `input` here.
_IN_AND_OUT = (("input", c_void_p), ("in_shape", _Int3), ("out", c_void_p), ("out_shape", _Int3))


class Execution(_Sized):
    """`dr_execution`."""

    _fields_ = (
        _SIZE,
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


class ResampleArgs(_Sized):
    """`dr_resample_args`."""

    _fields_ = (
        _SIZE,
        *_IN_AND_OUT,
        ("inside", c_void_p),
        ("map", PointMap),
        ("samples", _Int3),
        ("outside", c_float),
        *_each(c_int32, "extend", "reserved"),
    )


class LabelsArgs(_Sized):
    """`dr_labels_args`."""

    _fields_ = (
        _SIZE,
        *_IN_AND_OUT,
        ("map", PointMap),
        *_each(c_int32, "nearest", "outside"),
    )


class SlicesArgs(_Sized):
    """`dr_slices_args`."""

    _fields_ = (
        _SIZE,
        ("image", c_void_p),
        *_each(_Int3, "shape", "strides"),
        ("slices", POINTER(c_int32)),
        ("count", c_int32),
        *_each(c_int32 * 2, "size", "samples"),
        ("window", c_double * 2),
        ("channels", c_int32),
        *_each(POINTER(c_double), "mean", "std"),
        ("out", c_void_p),
    )


class MapArgs(_Sized):
    """`dr_map_args`."""

    _fields_ = (_SIZE, ("out", c_void_p), ("out_shape", _Int3), ("map", PointMap))


class JacobianArgs(_Sized):
    """`dr_jacobian_args`."""

    _fields_ = (
        _SIZE,
        *_each(c_void_p, "field", "out"),
        ("shape", _Int3),
        ("index_from_unit", _Double9),
    )


class ComposeArgs(_Sized):
    """`dr_compose_args`."""

    _fields_ = (
        _SIZE,
        ("first", c_void_p),
        ("shape", _Int3),
        ("second", c_void_p),
        ("second_shape", _Int3),
        ("to_second", _Double12),
        ("spacing_mm", _Double3),
        ("out", c_void_p),
    )


class InvertArgs(_Sized):
    """`dr_invert_args`."""

    _fields_ = (
        _SIZE,
        ("field", c_void_p),
        ("field_shape", _Int3),
        ("matrix", _Double9),
        ("spacing_mm", _Double3),
        ("target", _Double12),
        ("wanted", c_void_p),
        *_each(_Double12, "from_point", "from_index"),
        *_each(c_void_p, "out", "residual_mm"),
        ("out_shape", _Int3),
        ("iterations", c_int32),
        ("tolerance_mm", c_double),
    )


class MindArgs(_Sized):
    """`dr_mind_args`."""

    _fields_ = (
        _SIZE,
        ("image", c_void_p),
        *_each(_Int3, "shape", "radius", "dilation", "pool"),
        *_each(c_void_p, "out", "structure"),
        ("channels", c_int32),
        ("scale", c_float),
        *_WORKSPACE,
    )


class LocalArgs(_Sized):
    """`dr_local_args`."""

    _fields_ = (
        _SIZE,
        ("image", c_void_p),
        *_each(_Int3, "shape", "pool"),
        ("spacing_mm", _Double3),
        ("sigma_mm", POINTER(c_double)),
        ("windows", c_int32),
        *_each(c_double, "noise", "scale"),
        ("out", c_void_p),
        *_each(c_int32, "channels", "first_channel"),
        *_WORKSPACE,
    )


class PoolArgs(_Sized):
    """`dr_pool_args`."""

    _fields_ = (
        _SIZE,
        *_each(c_void_p, "features", "weight"),
        ("shape", _Int3),
        ("channels", c_int32),
        *_each(_Int3, "factor", "offset"),
        *_each(c_void_p, "out", "out_weight"),
    )


class FeaturePair(ctypes.Structure):
    """`dr_feature_pair`."""

    _fields_ = (
        *_each(c_void_p, "fixed", "fixed_weight", "moving", "moving_weight"),
        *_each(c_int32, "stride", "channels"),
    )


class SolverArgs(_Sized):
    """`dr_solver_args`."""

    _fields_ = (
        _SIZE,
        *_each(c_void_p, "fixed", "fixed_weight"),
        ("fixed_shape", _Int3),
        *_each(c_void_p, "moving", "moving_weight"),
        *_each(_Int3, "moving_shape", "moving_offset"),
        *_each(c_int32, "stride", "channels"),
        ("spacing_mm", _Double3),
        *_each(_Int3, "search_factor", "search_radius"),
        ("search_levels", c_int32),
        *_each(c_double, "search_trust_cost", "cost_smoothing_mm", "field_smoothing_mm"),
        ("coupling", POINTER(c_double)),
        *_each(c_int32, "coupling_rounds", "kept_costs_mb", "consistency_rounds"),
        ("search_features", POINTER(FeaturePair)),
        ("iterations", POINTER(c_int32)),
        ("levels", c_int32),
        *_each(c_double, "learning_rate_mm", "adam_epsilon"),
        *_each(c_double, "smoothing_mm", "smoothness", "feature_weight"),
        ("feature_similarity", c_int32),
        ("trust_cost", c_double),
        *_each(c_void_p, "fixed_image", "moving_image"),
        *_each(c_double, "correlation_weight", "correlation_window_mm", "correlation_noise"),
        *_each(c_double, "fold_penalty", "fold_margin"),
        ("squarings", c_int32),
        *_each(c_void_p, "field", "inverse", "spread", "feature_distance"),
        *_WORKSPACE,
    )


class SessionCounts(ctypes.Structure):
    """`dr_session_counts`."""

    _fields_ = (*_each(c_int64, "as_it_is", "recorded", "updated", "lost"),)


class TokensArgs(_Sized):
    """`dr_tokens_args`."""

    _fields_ = (
        _SIZE,
        *_each(c_void_p, "tokens", "offsets", "places"),
        *_each(c_int32, "encoded", "stride"),
        *_each(_Int3, "shape", "samples"),
        ("map", _Double12),
        ("out", c_void_p),
        ("out_shape", _Int3),
        *_each(c_int32, "channels", "first_channel"),
        ("factor", c_float),
    )


class TissueArgs(_Sized):
    """`dr_tissue_args`."""

    _fields_ = (
        _SIZE,
        ("image", c_void_p),
        *_each(_Int3, "shape", "first", "last", "samples"),
        ("map", _Double12),
        ("out", c_void_p),
        ("out_shape", _Int3),
        ("above", c_float),
    )


class JoinArgs(_Sized):
    """`dr_join_args`."""

    _fields_ = (
        _SIZE,
        ("features", c_void_p),
        ("shape", _Int3),
        *_each(c_int32, "stride", "used", "channels", "first_channel"),
        ("factor", c_float),
        ("out", c_void_p),
    )
