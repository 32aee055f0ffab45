"""Measures of a result against the reference, and what holds for any input."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import reference
import reference_measures
from phantoms import waves
from solving import solver_options

from dinoreg_kernels import (
    Agreement,
    KernelError,
    MirrorTest,
    Quality,
    WeighedImages,
    agreement_workspace_bytes,
    compare_mirrored,
    invert,
    measure_agreement,
    measure_quality,
    mirror_workspace_bytes,
    multiply_weights,
    numbers_of,
    quality_workspace_bytes,
    sum_values,
)

SPACING = (2.5, 1.25, 1.5)
#: Any permutation of the twelve channels along each axis.
ORDER = np.array([np.roll(np.arange(12), k) for k in (1, 4, 7)])
OPTIONS = solver_options(
    search_factor=(1, 2, 1),
    search_radius=(1, 2, 2),
    cost_smoothing_mm=6.0,
    field_smoothing_mm=5.0,
    consistency_rounds=0,
    iterations=(0,),
    smoothing_mm=3.0,
)


def struct(kind, array, device):
    return kind.from_buffer_copy(device.get(array).tobytes())


def counts(values):
    return np.frombuffer(values, np.uint64).astype(float)


def image_pair(shape=(14, 17, 19), moving_shape=(16, 15, 21), offset=(-3, 1, 2)) -> WeighedImages:
    """Make two images that nearly match, on unequal grids, with holes in the weights."""
    rng = np.random.default_rng(3)
    shift = np.array([0.4, 1.3, -0.8])
    arrays = {}
    for side, grid, moved in (
        ("fixed", shape, np.zeros(3)),
        ("moving", moving_shape, shift - np.array(offset)),
    ):
        wave = waves(grid, moved, channels=16, wavelengths=(12, 30))
        arrays[side] = np.float16(wave)
        arrays[f"{side}_image"] = np.float32(np.clip(0.5 + 0.4 * wave[..., 3], 0, 1))
        weight = 0.6 + 0.4 * waves(grid, moved, channels=1, wavelengths=(30, 60))[..., 0]
        arrays[f"{side}_weight"] = np.float32(np.clip(weight, 0, 1))
    arrays["fixed_weight"][rng.random(shape) < 0.1] = 0
    return WeighedImages(**arrays, spacing_mm=SPACING, moving_offset=offset)


def put(images: WeighedImages, device) -> WeighedImages:
    return dataclasses.replace(images, **{k: device.put(a) for k, a in images.arrays().items()})


def field_of(shape, seed=2, size=2.0):
    return np.float32(size * waves((*shape,), channels=3, seed=seed, wavelengths=(9, 25)))


# ---- products and sums ----------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (4, 9, 40)])
def test_products(device, rng, shape):
    a, b, c = (rng.random(shape, np.float32) for _ in range(3))
    of_two = multiply_weights(device.put(a), device.put(b))
    np.testing.assert_array_equal(device.get(of_two), a * b)
    here = device.put(b.copy())
    assert multiply_weights(device.put(a), here, device.put(c), out=here) is here
    np.testing.assert_array_equal(device.get(here), a * (b * c))


@pytest.mark.parametrize("size", [1, 31, 2048, 2049, 70_001])
def test_sums(device, rng, size):
    first, second = rng.random(size, np.float32), np.float32(rng.normal(size=(size, 3)))
    found = device.get(sum_values([device.put(first), device.put(second)]))
    expected = [first.sum(dtype=float), second.sum(dtype=float)]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6 * np.sqrt(size))


@pytest.mark.parametrize("at", [0, 2047, 2048, 4999])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_sums_show_what_is_not_finite(device, bad, at):
    values = np.full(5000, 3e38, np.float32)  # whose sum single precision cannot hold
    assert np.isfinite(device.get(sum_values([device.put(values)]))[0])
    values[at] = bad
    assert not np.isfinite(device.get(sum_values([device.put(values)]))[0])


# ---- quality --------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 1), (9, 10, 33), (70, 130, 131)])
def test_jacobian_equals_reference(device, shape):
    """The last shape takes more than one slab."""
    field = field_of(shape, size=1.5)
    matrix = np.array([[0.9, 0.1, 0], [0, 0.8, 0], [0.05, 0, 1.1]])
    found = measure_quality(displacement=device.put(field), index_from_unit=matrix)
    found = struct(Quality, found, device)
    j = reference.jacobian_determinant(field, matrix)
    assert abs(found.folded - (j <= 0).sum()) <= 1e-5 * j.size
    assert found.regular == j.size - found.folded
    np.testing.assert_allclose([found.largest, -found.largest_negative], [j.max(), j.min()],
                               atol=1e-5)  # fmt: skip
    mean = found.log_sum / found.regular
    deviation = np.sqrt(max(found.log_square_sum / found.regular - mean**2, 0))
    assert deviation == pytest.approx(np.log(j[j > 0]).std(), rel=1e-4, abs=1e-6)


def test_jacobian_of_a_linear_map_does_not_deviate(device):
    """A common logarithm far from 0 must not drown the deviation in rounding errors."""
    index = reference.indices((20, 21, 22))
    field = np.float32(index @ np.diag([1.5, 2.0, 0.5]))
    found = struct(Quality, measure_quality(displacement=device.put(field)), device)
    mean = found.log_sum / found.regular
    assert np.sqrt(abs(found.log_square_sum / found.regular - mean**2)) < 1e-6
    assert found.largest == pytest.approx(2.5 * 3.0 * 1.5, rel=1e-5)


def test_folds_are_counted(device):
    field = np.zeros((6, 7, 8, 3), np.float32)
    field[3] = [-4, 0, 0]
    found = struct(Quality, measure_quality(displacement=device.put(field)), device)
    j = reference.jacobian_determinant(field, np.eye(3))
    assert found.folded == (j <= 0).sum() > 0
    assert found.consistency_count == found.inside == 0


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("shape", [(9, 10, 33), (3, 12, 40)])
def test_consistency_equals_reference(device, shape, given):
    field = field_of(shape)
    inverse, _ = invert(device.put(field), shape, spacing_mm=SPACING,
                        matrix=np.diag(1 / np.array(SPACING)), target=np.eye(3, 4),
                        from_point=np.diag(SPACING) @ np.eye(3, 4),
                        from_index=-np.diag(SPACING) @ np.eye(3, 4),
                        tolerance_mm=0.01)  # fmt: skip
    found = measure_quality(field=device.put(field), spacing_mm=SPACING,
                            inverse=inverse if given else None)  # fmt: skip
    found = struct(Quality, found, device)
    error, inside = reference_measures.consistency(field, device.get(inverse), SPACING)
    assert found.consistency_count == inside.sum() > 0
    assert found.consistency_sum == pytest.approx(error[inside].sum(), rel=1e-4)
    assert found.consistency_max == pytest.approx(error[inside].max(), rel=1e-4)


def test_misses(device, rng):
    misses = np.float32(rng.normal(size=(7, 20, 31)))
    found = struct(Quality, measure_quality(misses=device.put(misses), miss_limit=0.5), device)
    assert (found.inside, found.missed) == ((misses >= 0).sum(), (misses > 0.5).sum())
    assert found.largest_miss == misses.max()


# ---- agreement ------------------------------------------------------------------------------


#: Parts, factors and directions along z, y, x: two from right to left, two from front to back and
#: three from bottom to top.
ORIENTATIONS = {
    "LPS": ((3, 2, 2), (1, 3, 6), (0, 0, 0)),
    "RAS": ((3, 2, 2), (1, 3, 6), (0, 1, 1)),
    "sagittal": ((2, 2, 3), (6, 3, 1), (0, 0, 0)),
    "coronal, upside down": ((2, 3, 2), (3, 1, 6), (1, 1, 0)),
}


@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_agreement_equals_reference(device, step, orientation):
    parts, factor, reverse = ORIENTATIONS[orientation]
    images = image_pair()
    before, after = (field_of(images.fixed.shape[:3], seed) for seed in (5, 6))
    found = measure_agreement(
        put(images, device), device.put(after), device.put(before), step=step, parts=parts,
        region_factor=factor, reversed_parts=reverse,
    )  # fmt: skip
    found = struct(Agreement, found, device)
    sampled = images.fixed_weight[::step, ::step, ::step]
    region = reference_measures.region_index(sampled, parts, factor, reverse)
    weights = np.bincount(region.ravel(), np.rint(sampled * 255).ravel(), minlength=12)
    np.testing.assert_array_equal(np.array(found.region_weight), weights)
    total, weight, samples = reference_measures.agreement(images, before, step)
    assert (found.before, found.before_weight) == pytest.approx((total, weight), rel=1e-5)
    expected = reference_measures.joint_histogram(*samples)
    np.testing.assert_array_equal(counts(found.joint_before), expected.ravel())
    total, weight, samples = reference_measures.agreement(images, after, step)
    assert (found.after, found.after_weight) == pytest.approx((total, weight), rel=1e-5)
    for k, joint in enumerate(counts(found.joint_after).reshape(12, -1)):
        parted = [values[region == k] for values in samples]
        expected = reference_measures.joint_histogram(*parted)
        np.testing.assert_array_equal(joint, expected.ravel())


def test_agreement_without_a_field_before(device):
    images = put(image_pair(), device)
    none = device.put(np.zeros((*images.fixed.shape[:3], 3), np.float32))
    found = struct(Agreement, measure_agreement(images, none), device)
    assert (found.before, found.before_weight) == (found.after, found.after_weight)
    after = counts(found.joint_after).reshape(12, -1)
    np.testing.assert_array_equal(counts(found.joint_before), after[0])
    assert not after[1:].any()


# ---- mirror test ----------------------------------------------------------------------------


def check_search(found, expected, joint):
    for name, value in expected.items():
        actual = getattr(found, name)
        actual = np.array(actual) if name == "moved_mm" else actual
        np.testing.assert_allclose(actual, value, rtol=2e-4, atol=2e-3, err_msg=name)
    # A weight or an intensity at the limit of a step or a bin may fall on either side.
    assert np.abs(counts(found.joint) - joint.ravel()).sum() < 0.01 * joint.sum()


@pytest.mark.parametrize(("factor", "offset"), [(2, (-3, 1, 2)), (1, (0, -2, 1)), (3, (1, 0, -1))])
def test_mirror_test_equals_reference(device, factor, offset):
    images, sides = image_pair(offset=offset), 2
    coarse_mm = factor * np.array(SPACING)
    found = compare_mirrored(
        put(images, device), options=OPTIONS, order=ORDER, sides=sides, factor=factor
    )
    found = struct(MirrorTest, found, device)
    parts = [
        (images.fixed, images.fixed_weight, images.fixed_image, np.zeros(3, int)),
        (images.moving, images.moving_weight, images.moving_image, np.array(offset)),
    ]
    (*fixed, _), (*moving, first) = (reference_measures.averaged(*p, factor) for p in parts)
    assert found.unrelated == pytest.approx(reference_measures.unrelated(fixed, moving), rel=1e-4)

    def check(one, tested, start):
        check_search(one, *reference_measures.search_in(fixed, tested, start, coarse_mm, OPTIONS))

    check(found.own, moving, first)
    middle = reference_measures.centroid(images.moving_image, images.moving_weight)
    for axis in range(3):
        tested = reference_measures.mirrored(moving, axis, ORDER[axis])
        start = first.copy()
        start[axis] += reference_measures.mirror_shift(
            middle, offset, moving[1].shape, factor, axis
        )
        check(found.mirrored[axis], tested, start)
        if axis == sides:
            check(found.about_middle, tested, first)
    tested = reference_measures.mirrored(fixed, sides, ORDER[sides])
    check(found.itself, tested, np.zeros(3, int))


def test_the_mirror_plane_lies_at_the_centroid(device):
    """Content at one end of the grid is mirrored in place, not to the other end."""
    images = image_pair((20, 12, 14), (20, 12, 14), (0, 0, 0))
    content = np.zeros((20, 12, 14), np.float32)
    content[2:8] = 1
    images = dataclasses.replace(images, moving_image=content, moving_weight=np.ones_like(content))
    still = dataclasses.replace(OPTIONS, search_radius=(0, 0, 0))
    found = compare_mirrored(put(images, device), options=still, order=ORDER, sides=2, factor=2)
    found = struct(MirrorTest, found, device)
    # The mirror image covers the fixed voxels -1 to 8 of ten: voxel 9 has no counterpart.
    weight = images.fixed_weight.reshape(10, 2, 6, 2, 7, 2).mean(axis=(1, 3, 5))
    moved = 2 * 4.5 - 9 - 5  # the centroid 4.5 is 2.0 on the coarser grid
    assert round(2 * (4.5 - 0.5) / 2) - 9 == moved + 0 == -5
    assert found.mirrored[0].before_weight == pytest.approx(weight[:5].sum(), rel=1e-5)
    assert found.own.before_weight == pytest.approx(weight.sum(), rel=1e-5)


def test_axes_of_one_voxel_have_no_mirror_image(device):
    images = image_pair((2, 9, 10), (2, 9, 10), (0, 0, 0))
    found = compare_mirrored(put(images, device), options=OPTIONS, order=ORDER, sides=0, factor=2)
    found = struct(MirrorTest, found, device)
    assert found.own.fixed_weight > 0
    assert found.mirrored[0].fixed_weight == found.itself.fixed_weight == 0
    assert found.about_middle.fixed_weight == 0
    assert found.mirrored[1].fixed_weight == found.mirrored[2].fixed_weight > 0


def test_images_without_content_or_weight(device):
    images = image_pair()
    nothing = {
        name: np.zeros_like(array) for name, array in images.arrays().items() if "weight" in name
    }
    images = put(dataclasses.replace(images, **nothing), device)
    found = compare_mirrored(images, options=OPTIONS, order=ORDER, sides=2, factor=2)
    assert not device.get(found).any()
    field = device.put(np.zeros((*images.fixed.shape[:3], 3), np.float32))
    assert not device.get(measure_agreement(images, field)).any()


# ---- any input ------------------------------------------------------------------------------


def all_measures(images, field, threads):
    return [
        multiply_weights(images.fixed_weight, images.fixed_image, threads=threads),
        sum_values([field, images.fixed_weight], threads=threads),
        measure_quality(displacement=field, field=field, spacing_mm=SPACING,
                        misses=images.fixed_image, threads=threads),
        measure_agreement(images, field, step=2, parts=(2, 2, 3), region_factor=(6, 3, 1),
                          threads=threads),
        compare_mirrored(images, options=OPTIONS, order=ORDER, sides=2, factor=2, threads=threads),
    ]  # fmt: skip


def test_same_bits_for_any_number_of_threads():
    images = image_pair((41, 44, 45), (43, 40, 47))
    field = field_of((41, 44, 45))
    expected = all_measures(images, field, 1)
    for threads in (2, 3, 16):
        for one, other in zip(all_measures(images, field, threads), expected, strict=True):
            np.testing.assert_array_equal(one.view(np.uint8), other.view(np.uint8))


def test_workspaces():
    shape = (41, 44, 45)
    whole = quality_workspace_bytes(shape, shape, inverted=False, misses=1000)
    assert whole > quality_workspace_bytes(shape, shape, inverted=True) > 0
    assert agreement_workspace_bytes(shape, 1) > agreement_workspace_bytes(shape, 2) > 0
    assert mirror_workspace_bytes(shape, shape, (0, 0, 0), 16, SPACING, OPTIONS, 2) > 0
    assert numbers_of(MirrorTest) == 1 + 6 * (11 + 1024)


REFUSED = {
    "nothing to measure": (lambda _: measure_quality(), "nothing to measure"),
    "no arrays": (lambda _: sum_values([]), "arrays is empty"),
    "many arrays": (lambda i: sum_values([i.fixed_weight] * 17), "count = 17; wanted 1..16"),
    "weights": (lambda i: multiply_weights(i.fixed_weight, i.moving_weight), "b has shape"),
    "step": (lambda i: measure_agreement(i, FIELD, step=0), "step = 0; wanted 1..64"),
    "regions": (
        lambda i: measure_agreement(i, FIELD, parts=(2, 2, 4), region_factor=(8, 4, 1)),
        "parts and region_factor give a region 15; wanted at most 11",
    ),
    "field": (lambda i: measure_agreement(i, FIELD[1:]), "after has shape"),
    "sides": (lambda i: mirror(i, sides=3), "sides = 3; wanted 0..2"),
    "factor": (lambda i: mirror(i, factor=0), "factor = 0; wanted 1..64"),
    "order": (lambda i: mirror(i, order=ORDER + 1), r"order\[\d+\] = 12; wanted 0..11"),
    "channels": (lambda i: mirror(i, channels=17), "channels = 17; wanted 1..stride = 16"),
    "orders": (lambda i: mirror(i, order=ORDER[:2]), "order has 24 numbers; wanted 36"),
}
FIELD = np.zeros((14, 17, 19, 3), np.float32)


def mirror(images, **change):
    given = {"options": OPTIONS, "order": ORDER, "sides": 2, "factor": 2} | change
    return compare_mirrored(images, **given)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, message = REFUSED[name]
    with pytest.raises(KernelError, match=message):
        call(image_pair())
