"""The structs of the measures in dinoreg.h, as in `_structs`."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_double, c_int32, c_int64, c_uint64, c_void_p

from ._structs import _SIZE, _WORKSPACE, _Double3, _Double9, _each, _Int3, _Sized

#: `DR_BINS` and `DR_REGIONS`.
BINS, REGIONS = 32, 12

_PAIR = (
    *_each(c_void_p, "fixed", "fixed_weight", "fixed_image"),
    *_each(c_void_p, "moving", "moving_weight", "moving_image"),
    *_each(_Int3, "fixed_shape", "moving_shape", "moving_offset"),
    ("stride", c_int32),
)
_Histogram = c_uint64 * (BINS * BINS)


class MultiplyArgs(_Sized):
    """`dr_multiply_args`."""

    _fields_ = (
        _SIZE,
        *_each(c_void_p, "a", "b", "c", "out"),
        ("shape", _Int3),
        ("reserved", c_int32),
    )


class Array(ctypes.Structure):
    """`dr_array`."""

    _fields_ = (("values", c_void_p), ("size", c_int64))


class SumsArgs(_Sized):
    """`dr_sums_args`."""

    _fields_ = (
        _SIZE,
        ("arrays", POINTER(Array)),
        ("count", c_int64),
        ("out", c_void_p),
        *_WORKSPACE,
    )


class QualityArgs(_Sized):
    """`dr_quality_args`."""

    _fields_ = (
        _SIZE,
        ("displacement", c_void_p),
        ("shape", _Int3),
        ("reserved", c_int32),
        ("index_from_unit", _Double9),
        *_each(c_void_p, "field", "inverse"),
        ("field_shape", _Int3),
        ("iterations", c_int32),
        ("spacing_mm", _Double3),
        ("tolerance_mm", c_double),
        ("misses", c_void_p),
        ("miss_count", c_int64),
        ("miss_limit", c_double),
        ("out", c_void_p),
        *_WORKSPACE,
    )


class AgreementArgs(_Sized):
    """`dr_agreement_args`."""

    _fields_ = (
        _SIZE,
        *_PAIR,
        ("spacing_mm", _Double3),
        *_each(c_void_p, "before", "after"),
        ("step", c_int32),
        *_each(_Int3, "parts", "region_factor", "reversed"),
        ("out", c_void_p),
        *_WORKSPACE,
    )


class MirrorArgs(_Sized):
    """`dr_mirror_args`."""

    _fields_ = (
        _SIZE,
        *_PAIR,
        *_each(c_int32, "channels", "factor"),
        ("spacing_mm", _Double3),
        ("order", POINTER(c_int32)),
        *_each(c_int32, "ordered", "sides"),
        *_each(_Int3, "search_factor", "search_radius"),
        *_each(c_double, "cost_smoothing_mm", "field_smoothing_mm", "smoothing_mm"),
        ("coupling", POINTER(c_double)),
        *_each(c_int32, "coupling_rounds", "kept_costs_mb"),
        ("out", c_void_p),
        *_WORKSPACE,
    )


class Quality(ctypes.Structure):
    """`dr_quality`."""

    _fields_ = (
        *_each(c_double, "folded", "regular", "log_sum", "log_square_sum"),
        *_each(c_double, "largest", "largest_negative"),
        *_each(c_double, "consistency_sum", "consistency_count", "consistency_max"),
        *_each(c_double, "inside", "missed", "largest_miss"),
    )


class Agreement(ctypes.Structure):
    """`dr_agreement`."""

    _fields_ = (
        *_each(c_double, "before", "before_weight", "after", "after_weight"),
        ("region_weight", c_double * REGIONS),
        ("joint_before", _Histogram),
        ("joint_after", c_uint64 * (REGIONS * BINS * BINS)),
    )


class MirrorSearch(ctypes.Structure):
    """`dr_mirror_search`."""

    _fields_ = (
        *_each(c_double, "after", "after_weight", "fixed_weight", "seen"),
        ("moved_mm", _Double3),
        *_each(c_double, "before", "before_weight", "shifted", "shifted_weight"),
        ("joint", _Histogram),
    )


class MirrorTest(ctypes.Structure):
    """`dr_mirror_test`."""

    _fields_ = (
        ("unrelated", c_double),
        ("own", MirrorSearch),
        ("mirrored", MirrorSearch * 3),
        *_each(MirrorSearch, "about_middle", "itself"),
    )
