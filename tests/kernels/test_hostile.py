"""Hostile values in every field of the C structs: the call refuses them and names the field."""

from __future__ import annotations

import ctypes
import math

import numpy as np
import pytest

from dinoreg_kernels import _measure_structs, _structs
from dinoreg_kernels._library import library

LOWEST, HIGHEST = -(2**31), 2**31 - 1
INVALID, TOO_SMALL = 1, 2
INTS = (LOWEST, -1, HIGHEST, HIGHEST - 7)
NUMBERS = (math.nan, math.inf, -math.inf, 1e300, -1e300)
#: Also refused where a number must be positive, or must not be negative.
POSITIVE = (0.0, -1.0, 1e-320, 1e-40, 1e20)
NOT_NEGATIVE = (-1.0, 1e-320, 1e-40, 1e20)
SHAPE, IDENTITY = (4, 5, 6), tuple(np.eye(3, 4).ravel())
#: The memory of the structs below, which does not belong to them.
KEPT: list[np.ndarray] = []


def new(*shape: int) -> int:
    """Return the address of zeroed memory for 8-byte numbers, at a multiple of 64 bytes."""
    memory = np.zeros(8 * math.prod(shape) + 64, np.uint8)
    KEPT.append(memory)
    return memory.ctypes.data + -memory.ctypes.data % 64


def doubles(*values: float):
    return (ctypes.c_double * len(values))(*values)


def ints(*values: int):
    return (ctypes.c_int32 * len(values))(*values)


def point_map() -> _structs.PointMap:
    return _structs.PointMap(IDENTITY, new(*SHAPE, 3), SHAPE, IDENTITY, tuple(np.eye(3).ravel()))


def solver_fields() -> dict:
    arrays = "fixed fixed_weight moving moving_weight fixed_image moving_image field inverse"
    fields = {name: new(*SHAPE, 8) for name in arrays.split()}
    fields |= {"fixed_shape": SHAPE, "moving_shape": SHAPE, "stride": 8, "channels": 8}
    fields |= {"spacing_mm": (1.0,) * 3, "search_factor": (2,) * 3, "search_radius": (1,) * 3}
    fields |= {"search_levels": 1, "coupling": doubles(0.1), "coupling_rounds": 1}
    fields |= {"iterations": ints(1), "levels": 1, "learning_rate_mm": 1.0, "smoothness": 1.0}
    fields |= {"feature_weight": 1.0, "correlation_weight": 1.0, "correlation_window_mm": 2.0}
    return fields | {"correlation_noise": 0.1, "squarings": 1} | WORKSPACE


def arrays(count: int):
    return (_measure_structs.Array * count)(*[(new(*SHAPE), 120)] * count)


def pair_fields() -> dict:
    names = [f"{side}{part}" for side in ("fixed", "moving") for part in ("", "_weight", "_image")]
    fields = {name: new(*SHAPE, 8) for name in names}
    fields |= {"fixed_shape": SHAPE, "moving_shape": SHAPE, "stride": 8}
    return fields | {"spacing_mm": (1.0,) * 3} | WORKSPACE


WORKSPACE = {"workspace": new(1 << 20), "workspace_bytes": 8 << 20}
VALID = {
    "dr_image_resample": (_structs.ResampleArgs, {
        "input": new(*SHAPE), "in_shape": SHAPE, "out": new(*SHAPE), "out_shape": SHAPE,
        "map": point_map(), "samples": (1, 1, 1)}),
    "dr_labels_resample": (_structs.LabelsArgs, {
        "input": new(*SHAPE), "in_shape": SHAPE, "out": new(*SHAPE), "out_shape": SHAPE,
        "map": point_map()}),
    "dr_slices_cut": (_structs.SlicesArgs, {
        "image": new(*SHAPE), "shape": SHAPE, "strides": (30, 6, 1), "slices": ints(0), "count": 1,
        "size": (5, 6), "samples": (1, 1), "window": (0.0, 1.0), "channels": 1,
        "mean": doubles(0.5), "std": doubles(0.2), "out": new(5, 6)}),
    "dr_field_map": (_structs.MapArgs, {
        "out": new(*SHAPE, 3), "out_shape": SHAPE, "map": point_map()}),
    "dr_field_jacobian": (_structs.JacobianArgs, {
        "field": new(*SHAPE, 3), "out": new(*SHAPE), "shape": SHAPE}),
    "dr_field_compose": (_structs.ComposeArgs, {
        "first": new(*SHAPE, 3), "shape": SHAPE, "second": new(*SHAPE, 3), "second_shape": SHAPE,
        "to_second": IDENTITY, "spacing_mm": (1.0,) * 3, "out": new(*SHAPE, 3)}),
    "dr_field_invert": (_structs.InvertArgs, {
        "field": new(*SHAPE, 3), "field_shape": SHAPE, "spacing_mm": (1.0,) * 3,
        "target": IDENTITY, "from_point": IDENTITY, "out": new(*SHAPE, 3), "out_shape": SHAPE,
        "iterations": 1, "tolerance_mm": 0.1}),
    "dr_mind_compute": (_structs.MindArgs, {
        "image": new(*SHAPE), "shape": SHAPE, "dilation": (1,) * 3, "pool": (1,) * 3,
        "out": new(*SHAPE, 16), "channels": 16, "scale": 1.0} | WORKSPACE),
    "dr_local_compute": (_structs.LocalArgs, {
        "image": new(*SHAPE), "shape": SHAPE, "pool": (1,) * 3, "spacing_mm": (1.0,) * 3,
        "sigma_mm": doubles(1.0), "windows": 1, "noise": 0.1, "scale": 1.0,
        "out": new(*SHAPE, 8), "channels": 8} | WORKSPACE),
    "dr_features_pool": (_structs.PoolArgs, {
        "features": new(*SHAPE, 8), "weight": new(*SHAPE), "shape": SHAPE, "channels": 8,
        "factor": (2, 2, 2), "out": new(*SHAPE, 8), "out_weight": new(*SHAPE)}),
    "dr_solver_run": (_structs.SolverArgs, solver_fields()),
    "dr_weights_multiply": (_measure_structs.MultiplyArgs, {
        **{name: new(*SHAPE) for name in ("a", "b", "c", "out")}, "shape": SHAPE}),
    "dr_values_sum": (_measure_structs.SumsArgs, {
        "arrays": arrays(1), "count": 1, "out": new(1), **WORKSPACE}),
    "dr_quality_measure": (_measure_structs.QualityArgs, {
        **{name: new(*SHAPE, 3) for name in ("displacement", "field", "inverse", "misses")},
        "shape": SHAPE, "field_shape": SHAPE, "iterations": 1, "spacing_mm": (1.0,) * 3,
        "tolerance_mm": 0.1, "miss_count": 120, "miss_limit": 0.1, "out": new(12), **WORKSPACE}),
    "dr_agreement_measure": (_measure_structs.AgreementArgs, pair_fields() | {
        "before": new(*SHAPE, 3), "after": new(*SHAPE, 3), "step": 1, "parts": (2, 2, 3),
        "region_factor": (6, 3, 1), "out": new(1 << 15)}),
    "dr_mirror_compare": (_measure_structs.MirrorArgs, pair_fields() | {
        "channels": 8, "factor": 2, "order": ints(*[0, 1] * 3), "ordered": 2, "sides": 2,
        "search_factor": (1,) * 3, "search_radius": (1,) * 3, "coupling": doubles(0.1),
        "coupling_rounds": 1, "out": new(1 << 15)}),
    "dr_tokens_sample": (_structs.TokensArgs, {
        "tokens": new(2, 5, 6, 8), "places": new(4, 2), "encoded": 2, "stride": 8, "shape": SHAPE,
        "samples": (1, 1, 1), "map": IDENTITY, "out": new(*SHAPE, 8), "out_shape": SHAPE,
        "channels": 8, "factor": 1.0}),
    "dr_tissue_cover": (_structs.TissueArgs, {
        "image": new(*SHAPE), "shape": SHAPE, "last": (3, 4, 5), "samples": (1, 1, 1),
        "map": IDENTITY, "out": new(*SHAPE), "out_shape": SHAPE, "above": 0.5}),
    "dr_features_join": (_structs.JoinArgs, {
        "features": new(*SHAPE, 8), "shape": SHAPE, "stride": 8, "used": 3, "channels": 8,
        "factor": 0.5, "out": new(*SHAPE, 8)}),
}  # fmt: skip
#: Fields of which every value is allowed, and allowed values of the others.
FREE = {"strides", "outside"}
ALLOWED = {("moving_offset", -1), ("kept_costs_mb", HIGHEST), ("kept_costs_mb", HIGHEST - 7)}
ALLOWED |= {("dr_quality_measure.field", None), ("dr_mirror_compare.ordered", 0)}
#: Pointers that may be NULL in the structs above.
OPTIONAL = {"inside", "wanted", "residual_mm", "structure", "search_features", "inverse", "spread"}
OPTIONAL |= {"feature_distance", "map.field", "offsets"}
OPTIONAL |= {"c", "displacement", "misses", "before"}


def valid(name: str) -> ctypes.Structure:
    kind, fields = VALID[name]
    args = kind()
    for field, value in fields.items():
        wanted = dict(kind._fields_)[field]
        setattr(args, field, wanted(*value) if isinstance(value, tuple) else value)
    return args


def places(args: ctypes.Structure, prefix=""):
    """Yield each field, of an array the last element: name, type, what holds it, and its key."""
    for name, kind in args._fields_:
        if issubclass(kind, ctypes.Structure):
            yield from places(getattr(args, name), f"{prefix}{name}.")
        elif issubclass(kind, ctypes.Array):
            last = kind._length_ - 1
            yield prefix + name, kind._type_, getattr(args, name), last
        else:
            yield prefix + name, kind, args, name


def hostile_values(kind: type) -> tuple:
    """Values that no field of this type allows, apart from `FREE` and `ALLOWED`."""
    if kind is ctypes.c_int32:
        return INTS
    if kind is ctypes.c_int64:
        return (-(2**63), -1, 0, 2**62)
    if kind in (ctypes.c_float, ctypes.c_double):
        return NUMBERS
    return (None,) if kind is not ctypes.c_size_t else (0, 1)


def run(name: str, args: ctypes.Structure | None, device=0, threads=1) -> tuple[int, str]:
    execution = _structs.Execution(device=device, threads=threads)
    given = None if args is None else ctypes.byref(args)
    status = getattr(library(), name)(ctypes.byref(execution), given)
    return status, library().dr_last_error_message().decode()


def set_value(target, key, value) -> None:
    if isinstance(target, ctypes.Array):
        target[key] = value
    else:
        setattr(target, key, value)


@pytest.mark.parametrize("name", VALID)
def test_every_field_is_checked(name):
    """Integers, numbers, sizes and pointers at their extremes."""
    assert run(name, valid(name))[0] == 0, run(name, valid(name))[1]
    count = len(list(places(valid(name))))
    missed = []
    for i in range(count):
        args = valid(name)
        field, kind, target, key = list(places(args))[i]
        last = field.rpartition(".")[2]
        if last in FREE or (field in OPTIONAL and hostile_values(kind) == (None,)):
            continue
        for value in hostile_values(kind):
            if {(last, value), (f"{name}.{field}", value)} & ALLOWED:
                continue
            set_value(target, key, value)
            status, message = run(name, args)
            wanted = TOO_SMALL if last == "workspace_bytes" else INVALID
            named = last in message or last in ("input", "size", "count", "workspace_bytes")
            if status != wanted or not named:
                missed.append(f"{field} = {value}: status {status}, {message!r}")
    assert not missed


WEIGHTS = [
    "search_trust_cost",
    "cost_smoothing_mm",
    "field_smoothing_mm",
    "smoothing_mm",
    "adam_epsilon",
    "smoothness",
    "fold_penalty",
    "fold_margin",
    "feature_weight",
    "trust_cost",
    "correlation_weight",
]
LENGTHS = [
    ("dr_field_compose", "spacing_mm", POSITIVE),
    ("dr_field_invert", "spacing_mm", POSITIVE),
    ("dr_field_invert", "tolerance_mm", POSITIVE),
    ("dr_local_compute", "spacing_mm", POSITIVE),
    ("dr_local_compute", "noise", POSITIVE),
    ("dr_solver_run", "spacing_mm", POSITIVE),
    ("dr_solver_run", "learning_rate_mm", POSITIVE),
    ("dr_solver_run", "correlation_window_mm", POSITIVE),
    ("dr_solver_run", "correlation_noise", POSITIVE),
    ("dr_quality_measure", "spacing_mm", POSITIVE),
    ("dr_quality_measure", "tolerance_mm", POSITIVE),
    ("dr_quality_measure", "miss_limit", NOT_NEGATIVE),
    ("dr_agreement_measure", "spacing_mm", POSITIVE),
    ("dr_mirror_compare", "spacing_mm", POSITIVE),
    *[("dr_mirror_compare", name, NOT_NEGATIVE) for name in WEIGHTS[1:4]],
    *[("dr_solver_run", name, NOT_NEGATIVE) for name in WEIGHTS],
]


@pytest.mark.parametrize(("name", "field", "values"), LENGTHS)
def test_lengths_and_weights(name, field, values):
    """What would become 0 or infinity in single precision is refused as well."""
    for value in values:
        args = valid(name)
        _, _, target, key = next(p for p in places(args) if p[0] == field)
        set_value(target, key, value)
        status, message = run(name, args)
        assert (status, field in message) == (INVALID, True), (value, message)


@pytest.mark.parametrize(
    ("name", "field", "values", "words"),
    [
        ("dr_local_compute", "sigma_mm", doubles(1e300), "sigma_mm[0] = 1e+300"),
        ("dr_slices_cut", "slices", ints(HIGHEST), "slices[0] = 2147483647; wanted 0..3"),
        ("dr_slices_cut", "mean", doubles(math.nan), "mean[0] is not a finite number"),
        ("dr_slices_cut", "std", doubles(1e-320), "std[0] = 9.99989e-321; wanted 1e-15..1e15"),
        ("dr_solver_run", "coupling", doubles(math.inf), "coupling[0] is not a finite number"),
        ("dr_solver_run", "iterations", ints(-1), "iterations[0] = -1; wanted >= 0"),
        ("dr_mirror_compare", "order", ints(0, 1, 0, 2, 0, 1), "order[3] = 2; wanted 0..1"),
        ("dr_mirror_compare", "coupling", doubles(math.nan), "coupling[0] is not a finite number"),
    ],
)
def test_arrays_in_host_memory(name, field, values, words):
    args = valid(name)
    setattr(args, field, ctypes.cast(values, dict(args._fields_)[field]))
    status, message = run(name, args)
    assert status == INVALID
    assert words in message


def refused_by_solver(**fields) -> str:
    args = valid("dr_solver_run")
    for field, value in fields.items():
        setattr(args, field, value)
    assert library().dr_solver_workspace_bytes(ctypes.byref(args)) == 0
    return library().dr_last_error_message().decode()


def test_sums_and_products_do_not_overflow():
    """Each of these fits into an int, but their sum or product does not."""
    args = valid("dr_local_compute")
    args.first_channel = HIGHEST
    assert "first_channel = 2147483647 with 1 windows" in run("dr_local_compute", args)[1]
    text = refused_by_solver(iterations=ints(HIGHEST, 1), levels=2)
    assert text == "the sum of iterations = 2147483648; wanted at most 2147483647"
    text = refused_by_solver(moving_shape=(32768,) * 3)
    assert text.endswith("16 bytes per voxel; wanted at most 4 TiB")
    assert "67108864 lines" in refused_by_solver(fixed_shape=(32768, 32768, 1))
    assert "stride = 32776; wanted at most 32768" in refused_by_solver(stride=32776)
    args = valid("dr_solver_run")
    args.fixed_shape = (32768, 2048, 4096)  # just allowed
    assert library().dr_solver_workspace_bytes(ctypes.byref(args)) > 32768 * 2048 * 4096 * 12


@pytest.mark.parametrize("sigma_mm", [10.0, 8.7e8, 1e15])
def test_wide_gaussians_are_truncated(sigma_mm):
    """Three times as wide as what a voxel's taps reach, or beyond the largest int."""
    args = valid("dr_local_compute")
    args.sigma_mm = doubles(sigma_mm)
    assert run("dr_local_compute", args)[0] == 0
    args = valid("dr_solver_run")
    for field in ("cost_smoothing_mm", "field_smoothing_mm", "smoothing_mm"):
        setattr(args, field, sigma_mm)
    args.correlation_window_mm = sigma_mm
    assert run("dr_solver_run", args)[0] == 0


@pytest.mark.parametrize("device", [LOWEST, -1, 2, HIGHEST])
def test_unknown_devices(device):
    status, message = run("dr_field_map", valid("dr_field_map"), device=device)
    assert (status, message) == (INVALID, f"device = {device}; wanted DR_DEVICE_CPU or _CUDA")


def test_null_structs_and_flags():
    for name in VALID:
        assert run(name, None) == (INVALID, "args is NULL")
    args = valid("dr_image_resample")
    args.extend = 2
    assert run("dr_image_resample", args) == (INVALID, "extend = 2; wanted 0..1")
    args = valid("dr_solver_run")
    args.squarings = 0
    assert "inverse with squarings = 0" in run("dr_solver_run", args)[1]
