"""The whole solver against the reference, step by step, and on problems with a known answer."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
import reference
from phantoms import waves
from solving import solver_options

from dinoreg_kernels import SearchFeatures, SolverOptions, solve, solver_workspace_bytes

#: A search alone, without smoothing of the field, whose result is exact.
SEARCH = solver_options(
    search_factor=(2, 2, 2),
    search_radius=(3, 3, 3),
    cost_smoothing_mm=1.0,
    field_smoothing_mm=0.0,
    consistency_rounds=0,
    iterations=(0,),
    smoothing_mm=0.0,
)
#: A small search with another factor and radius along each axis.
SMALL = solver_options(search_factor=(2, 3, 2), search_radius=(1, 2, 2))
#: The same with smoothing widths of its size.
SMOOTHED = replace(SMALL, cost_smoothing_mm=4.0, field_smoothing_mm=3.0, smoothing_mm=2.0)
#: A refinement alone.
REFINE = solver_options(
    search_radius=(0, 0, 0),
    iterations=(60, 80),
    learning_rate_mm=0.1,
    smoothing_mm=3.0,
    smoothness=0.01,
)
#: The same, with windows of correlation as wide as the waves of a volume.
WIDE = replace(REFINE, correlation_window_mm=14.0, correlation_noise=0.01)


def run(device, problem: reference.Problem, options: SolverOptions, **more):
    if problem.search is not None:
        types = (np.float16, np.float16, np.float32, np.float32)
        more["search"] = [
            SearchFeatures(*(device.put(a, t) for a, t in zip(level, types, strict=True)))
            for level in problem.search
        ]
    return solve(
        device.put(problem.fixed, np.float16),
        device.put(problem.moving, np.float16),
        device.put(problem.fixed_weight, np.float32),
        device.put(problem.moving_weight, np.float32),
        spacing_mm=problem.spacing_mm,
        moving_offset=problem.moving_offset,
        images=problem.images and tuple(device.put(i, np.float32) for i in problem.images),
        options=options,
        threads=1,
        **more,
    )


def check(device, problem: reference.Problem, options: SolverOptions, **more):
    """Compare a solve with the reference; returns the solution and the reference's tuple."""
    solution, expected = run(device, problem, options, **more), reference.solve(problem, options)
    device.check(solution.field, expected[0], "field_mm")
    return solution, expected


def check_distance(device, solution, expected):
    """Compare a solution's feature distances and overlap with the reference."""
    names = ("feature_distance_before", "feature_distance_after", "overlap")
    device.check(np.array([getattr(solution, n) for n in names]), np.array(expected), "float32")


def shifted_pair(shape, shift, *, spacing_mm=(2.0, 2.0, 2.0), grow=0, **options):
    """Make a volume and a copy of it that is moved by `shift` voxels.

    The moving grid reaches `grow` voxels further on every side; if that is enough, every fixed
    voxel has a match.
    """
    moving_shape = tuple(n + 2 * grow for n in shape)
    start = np.array([-grow] * 3)
    return reference.Problem(
        fixed=np.float16(waves(shape, **options)),
        moving=np.float16(waves(moving_shape, np.asarray(shift) - start, **options)),
        fixed_weight=np.ones(shape, np.float32),
        moving_weight=np.ones(moving_shape, np.float32),
        spacing_mm=spacing_mm,
        moving_offset=tuple(int(s) for s in start),
    )


def worst(device, solution, shift, spacing_mm, cut=0):
    """Return the largest error of a constant shift, in voxels along each axis."""
    inner = (slice(cut, -cut or None),) * 3
    found = device.get(solution.field)[inner] / np.asarray(spacing_mm)
    return np.abs(found - shift).reshape(-1, 3).max(0)


# ---- against the reference ------------------------------------------------------------------


def random_problem(rng, channels=8):
    """Make a problem with unequal grids, an offset, weights with holes and anisotropic voxels.

    The moving weight varies gently: it is read at the nearest voxel, where rounding may choose
    either of two neighbours.
    """
    shape, moving_shape, offset = (9, 11, 13), (15, 16, 20), np.array([-3, -2, -4])
    holes = np.float32(rng.random(shape) * (rng.random(shape) > 0.2))
    gentle = 0.6 + 0.4 * waves(moving_shape, channels=1, wavelengths=(30, 60))[..., 0]
    return reference.Problem(
        fixed=np.float16(waves(shape, channels=channels)),
        moving=np.float16(waves(moving_shape, (0.8, -0.6, 1.3) - offset, channels=channels)),
        fixed_weight=holes,
        moving_weight=np.float32(np.clip(gentle, 0, 1)),
        spacing_mm=(2.5, 1.25, 1.5),
        moving_offset=tuple(offset.tolist()),
    )


def test_search_equals_reference(device, rng):
    """With sizes that the factor does not divide, and another factor and radius along each axis."""
    problem = random_problem(rng)
    options = replace(SMOOTHED, iterations=(0,), consistency_rounds=3)
    for change in (
        {},
        {"consistency_rounds": 0},
        {"coupling": ()},
        {"smoothing_mm": 0.0},
        {"search_trust_cost": 1.5},
    ):
        solution, (field, *distance) = check(device, problem, replace(options, **change))
        assert np.abs(field).max() > 1
        check_distance(device, solution, distance)


@pytest.mark.parametrize("levels", [2, 3])
def test_levels_of_the_search_equal_reference(device, rng, levels):
    """With odd and even factors, an offset that no factor divides and holes in the fixed weight."""
    problem = replace(random_problem(rng), moving_offset=(-3, -1, -5))
    options = replace(SMOOTHED, search_factor=(2, 3, 4), search_levels=levels, iterations=(0,))
    for rounds in (3, 0):
        case = replace(options, consistency_rounds=rounds)
        _, (field, *_) = check(device, problem, case)
        one = reference.solve(problem, replace(case, search_levels=1))[0]
        assert np.abs(field - one).max() > 0.5


def test_refinement_equals_reference(device, rng):
    problem = random_problem(rng)
    options = solver_options(
        search_radius=(0, 0, 0),
        iterations=(12,),
        learning_rate_mm=0.5,
        smoothing_mm=2.0,
        smoothness=0.5,
        fold_penalty=2.0,
        fold_margin=0.9,
    )
    solution, (field, *distance) = check(device, problem, options)
    assert np.abs(field).max() > 1
    check_distance(device, solution, distance)


@pytest.mark.parametrize("levels", [(0, 0), (5, 4), (3, 3, 2)])
def test_levels_equal_reference(device, rng, levels):
    """With coarser grids, partly covered voxels and an offset that no factor divides."""
    problem = replace(random_problem(rng), moving_offset=(-3, -1, -5))
    options = solver_options(
        search_radius=(0, 0, 0),
        iterations=levels,
        learning_rate_mm=0.4,
        smoothing_mm=1.5,
        smoothness=0.5,
    )
    check(device, problem, options)


@pytest.mark.parametrize(
    "terms",
    [
        # Without epsilon, Adam carries rounding along at full length (TOLERANCES): 0.009 mm here.
        {"correlation_weight": 1.5, "adam_epsilon": 0.3},
        {"adam_epsilon": 0.1, "squarings": 5},
        {"correlation_weight": 1.0, "feature_weight": 0.0, "adam_epsilon": 0.3},
        {"correlation_weight": 0.5, "feature_weight": 0.3, "trust_cost": 1.0},
        {"trust_cost": 2.0},
        {"feature_similarity": "cosine"},
        {"feature_similarity": "cosine", "trust_cost": 2.0, "correlation_weight": 0.5},
        {"feature_similarity": "lncc"},
        {"feature_similarity": "lncc", "feature_weight": 0.4, "correlation_weight": 0.5},
        {
            "feature_similarity": "lncc",
            "feature_weight": 0.0,
            "correlation_weight": 1.0,
            "adam_epsilon": 0.3,
        },
    ],
)
def test_similarities_equal_reference(device, rng, terms):
    """Correlation of intensities and all distances of features, alone and combined, on 2 levels."""
    problem = replace(random_problem(rng), moving_offset=(-3, -1, -5))
    images = tuple(
        np.float32(0.5 + 0.3 * waves(i.shape[:3], channels=1, wavelengths=(6, 14))[..., 0])
        for i in (problem.fixed, problem.moving)
    )
    problem = replace(problem, images=images)
    options = solver_options(
        search_radius=(0, 0, 0),
        iterations=(4, 4),
        learning_rate_mm=0.4,
        smoothing_mm=1.5,
        smoothness=0.5,
        correlation_window_mm=3.0,
        **terms,
    )
    _, (field, *_) = check(device, problem, options)
    assert np.abs(field).max() > 0.5


@pytest.mark.parametrize("similarity", ["cosine", "lncc"])
def test_other_similarities_find_a_shift_at_another_brightness(device, similarity):
    """The moving features are twice as strong; for the channels' correlation they are also shifted.

    The squared difference cannot allow for either.
    """
    shift = (1.3, -0.7, 0.45)
    problem = shifted_pair((14, 16, 18), shift, grow=4, wavelengths=(14, 40))
    moving = np.float16(2 * problem.moving.astype(float) + 3 * (similarity == "lncc"))
    problem = replace(problem, moving=moving)
    options = replace(WIDE, feature_similarity=similarity)
    found, plain = (
        device.get(run(device, problem, o).field)[3:-3, 3:-3, 3:-3].reshape(-1, 3).mean(0) / 2
        for o in (options, replace(options, feature_similarity="mse"))
    )
    np.testing.assert_allclose(found, shift, atol=0.03)
    assert np.abs(plain - shift).max() > 0.1


@pytest.mark.parametrize("similarity", ["cosine", "lncc"])
@pytest.mark.parametrize("what", ["constant", "zero", "no fixed weight", "no moving weight"])
def test_other_similarities_with_nothing_to_go_by(device, rng, similarity, what):
    problem = random_problem(rng)
    if what in ("constant", "zero"):
        value = 0.3 if what == "constant" else 0.0
        problem = replace(
            problem,
            fixed=np.full_like(problem.fixed, value),
            moving=np.full_like(problem.moving, value),
        )
    else:
        name = what[3:].replace(" ", "_")
        problem = replace(problem, **{name: np.zeros_like(getattr(problem, name))})
    options = replace(
        REFINE, iterations=(2, 2), learning_rate_mm=0.1, feature_similarity=similarity
    )
    field = device.get(run(device, problem, options).field)
    assert np.isfinite(field).all()
    # Adam takes full steps along rounding errors, but no more than it has iterations.
    assert np.abs(field).max() <= 0.7
    if what != "constant":
        assert not field.any()


@pytest.mark.parametrize("similarity", ["cosine", "lncc"])
def test_other_similarities_do_not_look_at_unused_channels(device, rng, similarity):
    """With 12 of 16 stored channels, the mean over channels is that of the used ones."""
    problem = random_problem(rng, channels=16)
    problem.fixed[..., 12:] = problem.moving[..., 12:] = 0
    options = solver_options(search_radius=(0, 0, 0), iterations=(3, 2), learning_rate_mm=0.4,
                            smoothing_mm=1.5, feature_similarity=similarity)  # fmt: skip
    field = run(device, problem, options, channels=12).field
    cut = replace(problem, fixed=problem.fixed[..., :12], moving=problem.moving[..., :12])
    device.check(field, reference.solve(cut, options)[0], "field_mm")


def test_correlation_alone_finds_a_shift_of_an_inverted_image(device):
    """With windows as wide as the waves; in smaller ones a wave is a ramp, which fits any other."""
    shift = (1.3, -0.7, 0.45)
    problem = shifted_pair((14, 16, 18), shift, grow=4, wavelengths=(14, 40))
    fixed, moving = (np.float32(i[..., 0]) for i in (problem.fixed, problem.moving))
    problem = replace(problem, images=(fixed, np.float32(1 - 2 * moving)))
    options = replace(WIDE, feature_weight=0.0, correlation_weight=1.0)
    found = device.get(run(device, problem, options).field)[3:-3, 3:-3, 3:-3]
    # Measured: 0.10; the squared correlation of a slow wave is flat around its maximum.
    np.testing.assert_allclose(found.reshape(-1, 3).mean(0) / 2, shift, atol=0.15)


def test_unused_channels_are_not_looked_at_by_the_search(device, rng):
    """With 12 of 16 stored channels, as MIND-SSC has."""
    problem = random_problem(rng, channels=16)
    options = solver_options(search_factor=(2, 2, 2), search_radius=(1, 2, 2), iterations=(0,))
    problem.fixed[..., 12:] = problem.moving[..., 12:] = 0
    all_channels = run(device, problem, options)
    used = run(device, problem, options, channels=12)
    np.testing.assert_array_equal(device.get(all_channels.field), device.get(used.field))


def test_whole_solve_equals_reference(device, rng):
    problem = random_problem(rng)
    options = replace(SMOOTHED, iterations=(6,), learning_rate_mm=0.5)
    check(device, problem, options)


def test_spread_equals_reference(device, rng):
    problem = random_problem(rng)
    options = replace(SMOOTHED, iterations=(0,))
    expected = reference.search(problem, options, spread=True)
    assert expected.min() < 0.8 * expected.max()
    device.check(run(device, problem, options, spread=True).spread, expected, "field_mm")


@pytest.mark.parametrize("squarings", [3, 4])
def test_velocity_equals_reference(device, rng, squarings):
    """An odd and an even number of squarings, which end in different memory."""
    problem = random_problem(rng)
    options = replace(SMOOTHED, iterations=(4, 4), learning_rate_mm=0.4, squarings=squarings)
    _, (field, *_) = check(device, problem, options)
    assert np.abs(field).max() > 1


def test_negative_velocity_is_the_inverse(device, rng):
    """To a tenth of a voxel wherever the match lies inside, and without a fold."""
    problem = shifted_pair((20, 22, 24), (1.3, -0.7, 2.4), grow=4)
    moved = np.float16(problem.moving + 0.3 * waves(problem.moving.shape[:3], 1.7))
    problem = replace(problem, moving=moved)
    solution = run(device, problem, replace(REFINE, squarings=6, smoothness=1.0))
    field, inverse = device.get(solution.field), device.get(solution.inverse)
    spacing = np.array(problem.spacing_mm)
    points = reference.indices(field.shape[:3]) + field / spacing
    loop = field / spacing + reference.sample(inverse, points) / spacing
    inner = np.all((points >= 3) & (points <= np.array(field.shape[:3]) - 4), axis=-1)
    assert np.abs(field / spacing).max() > 1
    # The measured error is just below the bound; it stems from the interpolation of both fields.
    assert np.linalg.norm(loop, axis=-1)[inner].max() < 0.1
    jacobian = reference.forward_jacobian(field.astype(float), spacing)
    assert np.linalg.det(jacobian)[inner].min() > 0


def test_displacement_has_no_closed_inverse(device):
    problem = shifted_pair((7, 8, 9), (1, 0, 0))
    assert run(device, problem, replace(REFINE, iterations=(2,))).inverse is None


# ---- known answers --------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [(4, -2, 6), (0, 0, 0), (-6, 6, -6)])
def test_search_finds_whole_search_voxels_exactly_up_to_the_faces(device, shift):
    """A constant displacement is found in every voxel, including the corners, without shrinking."""
    problem = shifted_pair((16, 18, 20), shift, grow=8)
    solution = run(device, problem, SEARCH)
    assert worst(device, solution, shift, problem.spacing_mm).max() < 1e-5
    assert solution.overlap == 1
    assert solution.feature_distance_after < 1e-5


@pytest.mark.parametrize("shape", [(17, 19, 23), (16, 18, 20), (9, 7, 25)])
def test_search_with_sizes_that_the_factor_does_not_divide(device, shape):
    """The last search voxels cover fewer voxels, but their shifts are as long as all others."""
    shift = (3, -3, 6)
    options = replace(SEARCH, search_factor=(3, 3, 3), cost_smoothing_mm=6.0)
    problem = shifted_pair(shape, shift, grow=12, wavelengths=(14, 40))
    solution = run(device, problem, options)
    assert worst(device, solution, shift, (2, 2, 2)).max() < 1e-5


@pytest.mark.parametrize("shift", [(5, -3, 7), (3, 6, -1)])
def test_every_level_finds_more_of_what_lies_between_whole_search_voxels(device, shift):
    """With search voxels of four voxels, then two, then one; mean errors in voxels were measured.

    They are 1.0 to 1.2, 0.47 to 0.54 and 0.17 to 0.20. The result is not exact, because the mean
    over a search voxel between two others is not the mean of theirs.
    """
    problem = shifted_pair((16, 18, 20), shift, grow=12, wavelengths=(14, 40))
    options = replace(SEARCH, search_factor=(4, 4, 4), search_radius=(2, 2, 2),
                                  cost_smoothing_mm=4.0, field_smoothing_mm=4.0)  # fmt: skip
    errors = []
    for levels in (1, 2, 3):
        field = run(device, problem, replace(options, search_levels=levels)).field
        errors.append(np.abs(device.get(field) / 2 - shift).mean())
    assert errors[1] < 0.6 * errors[0]
    assert errors[2] < 0.5 * errors[1]


def test_further_levels_reach_beyond_the_first(device):
    """Ten voxels are two search voxels of four and one of the second level, which is exact."""
    shift = (10, 0, -10)
    problem = shifted_pair((16, 18, 20), shift, grow=14, wavelengths=(14, 40))
    options = replace(
        SEARCH, search_factor=(4, 4, 4), search_radius=(2, 2, 2), cost_smoothing_mm=4.0
    )
    errors = [
        worst(device, run(device, problem, replace(options, search_levels=levels)),
              shift, problem.spacing_mm).max()
        for levels in (1, 2)
    ]  # fmt: skip
    assert errors[0] >= 1.9
    assert errors[1] < 1e-4


def test_one_level_is_the_default_and_spread_is_the_first_levels(device, rng):
    problem = random_problem(rng)
    options = replace(SMALL, iterations=(3,))
    assert options.search_levels == 1
    one = run(device, problem, options, spread=True)
    two = run(device, problem, replace(options, search_levels=2), spread=True)
    np.testing.assert_array_equal(device.get(one.spread), device.get(two.spread))
    assert (device.get(one.field) != device.get(two.field)).any()


def test_costs_that_are_not_kept_are_computed_again_for_the_same_bits(device, rng):
    problem = random_problem(rng)
    options = replace(SMALL, search_levels=2, iterations=(2,))
    fields, bytes_ = [], []
    for kept_costs_mb in (0, 256):
        case = replace(options, kept_costs_mb=kept_costs_mb)
        solution = run(device, problem, case, spread=True)
        fields.append([device.get(array) for array in (solution.field, solution.spread)])
        shapes = (problem.fixed.shape[:3], problem.moving.shape[:3])
        sizes = (problem.fixed.shape[3], problem.spacing_mm, case)
        bytes_.append(solver_workspace_bytes(*shapes, *sizes))
    for again, kept in zip(*fields, strict=True):
        np.testing.assert_array_equal(again, kept)
    assert bytes_[0] < bytes_[1]


def test_search_per_axis_with_anisotropic_spacing_on_nine_slices(device):
    """A cardiac stack, with whole slices along z and wide search voxels in the plane."""
    spacing, shift = (8.0, 1.5, 1.5), (-1, 8, -4)
    problem = shifted_pair((9, 24, 28), shift, spacing_mm=spacing, grow=12)
    options = replace(
        SEARCH, search_factor=(1, 4, 4), search_radius=(2, 3, 3), cost_smoothing_mm=4.0
    )
    assert worst(device, run(device, problem, options), shift, spacing).max() < 1e-5


def test_coarse_to_fine_keeps_voxel_centres(device):
    """A displacement that grows linearly over coarse voxels is resampled without a shift."""
    field = reference.indices((4, 5, 6)) * (3.0, 2.0, 1.0)  # at the centres of coarse voxels
    factor = np.array([2, 3, 4])
    fine = reference.resize_field(field, (8, 15, 24), factor)
    for coarse in itertools.product(range(4), range(5), range(6)):
        voxels = fine[tuple(slice(c * f, (c + 1) * f) for c, f in zip(coarse, factor, strict=True))]
        if all(0 < c < n - 1 for c, n in zip(coarse, (4, 5, 6), strict=True)):
            np.testing.assert_allclose(voxels.mean((0, 1, 2)), field[coarse], atol=1e-12)


@pytest.mark.parametrize("shift", [(1.3, -0.7, 0.45), (1, -1, 2)])
@pytest.mark.parametrize("levels", [(200,), (60, 80), (60, 60, 80)])
def test_refinement_finds_a_shift_up_to_the_faces(device, shift, levels):
    """To a fraction of a voxel, and not 3-4 % short as with coordinates scaled by n / (n - 1).

    The waves are at least 14 voxels long: linear interpolation flattens a wave by
    (pi / length)^2 / 2 at most, which locally looks like a shift of a few hundredths.
    """
    problem = shifted_pair((14, 16, 18), shift, grow=4, wavelengths=(14, 40))
    solution = run(device, problem, replace(REFINE, iterations=levels))
    assert worst(device, solution, shift, problem.spacing_mm).max() < 0.1
    mean = device.get(solution.field).reshape(-1, 3).mean(0) / problem.spacing_mm
    np.testing.assert_allclose(mean, shift, atol=0.01)


def test_refinement_with_anisotropic_spacing(device):
    spacing, shift = (5.0, 1.5, 2.0), (0.6, -1.2, 0.8)
    problem = shifted_pair((9, 16, 18), shift, spacing_mm=spacing, grow=4, wavelengths=(14, 40))
    solution = run(device, problem, REFINE)
    assert worst(device, solution, shift, spacing).max() < 0.1
    mean = device.get(solution.field).reshape(-1, 3).mean(0) / spacing
    np.testing.assert_allclose(mean, shift, atol=0.01)


def test_search_and_refinement_together_have_no_scale_error(device):
    """A shift of 6.5 voxels is found to within half a per cent."""
    shift = np.array([6.5, -4.5, 2.25])
    problem = shifted_pair((18, 20, 22), shift, grow=10)
    options = replace(REFINE, search_factor=(2, 2, 2), search_radius=(4, 4, 4),
                                  cost_smoothing_mm=4.0, field_smoothing_mm=4.0)  # fmt: skip
    solution = run(device, problem, options)
    mean = device.get(solution.field).reshape(-1, 3).mean(0) / problem.spacing_mm
    np.testing.assert_allclose(mean / shift, 1, atol=0.005)
    assert solution.feature_distance_after < 0.01 * solution.feature_distance_before


def test_moving_grid_of_another_shape_and_place(device):
    """The offset belongs to the grid, not to the displacement."""
    shape, shift = (14, 16, 18), (2, -4, 2)
    start, moving_shape = np.array([-6, -9, -5]), (29, 33, 30)
    problem = reference.Problem(
        fixed=np.float16(waves(shape)),
        moving=np.float16(waves(moving_shape, np.array(shift) - start)),
        fixed_weight=np.ones(shape, np.float32),
        moving_weight=np.ones(moving_shape, np.float32),
        spacing_mm=(2, 2, 2),
        moving_offset=tuple(start.tolist()),
    )
    solution = run(device, problem, SEARCH)
    assert worst(device, solution, shift, (2, 2, 2)).max() < 1e-5


# ---- trust in the search ----------------------------------------------------------------------


def test_what_disagrees_pulls_less_in_a_search_with_trust(device):
    """Every tenth plane of the moving image is bright, and tells nothing about a match.

    The squares of such differences drown all others.
    """
    problem = shifted_pair((16, 18, 20), (4, -2, 4), grow=8)
    moving = problem.moving.copy()
    moving[:, :, 4::10] += 6
    spoilt = replace(problem, moving=moving)
    options = replace(
        SEARCH, search_factor=(1, 1, 1), search_radius=(4, 2, 4), cost_smoothing_mm=4.0
    )
    errors = [
        worst(device, run(device, spoilt, case), (4, -2, 4), problem.spacing_mm).max()
        for case in (options, replace(options, search_trust_cost=0.3))
    ]
    assert errors[0] > 1
    assert errors[1] < 0.1


def test_immense_trust_in_the_search_is_none_at_all(device, rng):
    problem = random_problem(rng)
    options = replace(SMALL, iterations=(0,))
    plain, immense, small = (
        device.get(run(device, problem, replace(options, search_trust_cost=t)).field)
        for t in (0.0, 1e9, 0.1)
    )
    np.testing.assert_array_equal(plain, immense)
    assert (plain != small).any()


# ---- features of its own for each level of the search -----------------------------------------


def arrays_of(problem):
    return problem.fixed, problem.moving, problem.fixed_weight, problem.moving_weight


def test_search_with_features_of_its_own_equals_reference(device, rng):
    """With channels and weights of its own at each level, other than those of the refinement."""
    problem = replace(random_problem(rng), moving_offset=(-3, -1, -5))
    levels = tuple(arrays_of(random_problem(rng, channels=channels)) for channels in (16, 24))
    problem = replace(problem, search=levels)
    options = replace(SMOOTHED, search_factor=(2, 3, 4), search_levels=2, consistency_rounds=3,
                      iterations=(3,), learning_rate_mm=0.4)  # fmt: skip
    solution, (field, *distance) = check(device, problem, options)
    plain = reference.solve(replace(problem, search=None), options)
    assert np.abs(field - plain[0]).max() > 0.5
    check_distance(device, solution, distance)
    assert solution.feature_distance_before == pytest.approx(plain[1], rel=1e-5)


@pytest.mark.parametrize("levels", [1, 2])
def test_search_features_that_are_the_refinements_change_no_bit(device, rng, levels):
    problem = random_problem(rng)
    options = replace(SMALL, search_levels=levels, iterations=(3,))
    plain = run(device, problem, options, spread=True)
    same = replace(problem, search=(arrays_of(problem),) * levels)
    given = run(device, same, options, spread=True)
    for name in ("field", "spread", "feature_distance"):
        np.testing.assert_array_equal(
            device.get(getattr(plain, name)), device.get(getattr(given, name))
        )


def test_search_features_and_a_second_level_find_what_the_refinements_cannot(device):
    """The refinement's features repeat every 8 voxels, so that a shift of 16 looks like none.

    Those of the first level do not repeat.
    """
    shape, shift = (12, 14, 40), np.array([0, 0, 16])
    problem = shifted_pair(shape, shift, grow=24, wavelengths=(30, 60))
    x = np.arange(shape[2] + 48) - 24
    stripes = np.stack([np.sin(2 * np.pi * x / 8 + phase) for phase in np.arange(8)], axis=-1)
    fixed, moving = (
        np.float16(np.broadcast_to(stripes[start : start + n[2]], (*n[:3], 8)))
        for n, start in ((problem.fixed.shape, 24), (problem.moving.shape, 0))
    )
    fine = replace(problem, fixed=fixed, moving=moving)
    options = replace(
        SEARCH,
        search_factor=(4, 4, 4),
        search_radius=(1, 1, 5),
        search_levels=2,
        cost_smoothing_mm=4.0,
    )
    errors = [
        worst(device, run(device, case, options), shift, problem.spacing_mm).max()
        for case in (
            fine,
            replace(fine, search=(arrays_of(problem), arrays_of(fine))),
        )
    ]
    assert errors[0] > 15
    assert errors[1] < 0.5


def test_search_features_with_unused_channels(device, rng):
    problem = random_problem(rng, channels=16)
    problem.fixed[..., 12:] = problem.moving[..., 12:] = 0
    options = solver_options(search_factor=(2, 2, 2), search_radius=(1, 2, 2), iterations=(0,))
    fields = []
    for channels in (12, 16):
        arrays = zip(arrays_of(problem), (np.float16,) * 2 + (np.float32,) * 2, strict=True)
        level = SearchFeatures(*(device.put(a, t) for a, t in arrays), channels=channels)
        fields.append(device.get(run(device, problem, options, search=[level]).field))
    np.testing.assert_array_equal(*fields)


@pytest.mark.parametrize("levels", [1, 2])
def test_workspace_with_search_features_is_what_the_solver_asks_for(levels):
    options = solver_options(search_factor=(2, 2, 2), search_radius=(3, 3, 3), search_levels=levels)
    sizes = ((20, 22, 24), (22, 20, 24), 16, (2, 2, 2), options)
    plain = solver_workspace_bytes(*sizes)
    assert solver_workspace_bytes(*sizes, search_strides=(16,) * levels) == plain
    more = solver_workspace_bytes(*sizes, search_strides=(128,) * levels)
    # For one level at a time: both images on its grid with margin, and sums over each row of them.
    assert more > plain
    if levels == 1:
        padded = np.array([10 + 6, 11 + 6, 12 + 6])
        assert more - plain == pytest.approx(
            2 * 4 * 112 * (np.prod(padded) + 3 * np.prod(padded[:2])), rel=0.01
        )
    else:
        # The second level has eight times as many voxels.
        assert solver_workspace_bytes(*sizes, search_strides=(16, 128)) == more
        assert solver_workspace_bytes(*sizes, search_strides=(128, 16)) == plain


# ---- weights --------------------------------------------------------------------------------


def test_masked_structures_do_not_attract(device):
    """Wrong features under zero weight change no bit of the result."""
    problem = shifted_pair((14, 16, 18), (2, 0, -2), grow=4)
    fixed_weight, moving_weight = problem.fixed_weight.copy(), problem.moving_weight.copy()
    fixed_weight[3:7, 4:9, 5:9] = 0
    moving_weight[12:15, 6:12, 3:9] = 0
    fixed, moving = problem.fixed.copy(), problem.moving.copy()
    fixed[fixed_weight == 0] = 30
    moving[moving_weight == 0] = -30
    options = replace(SEARCH, iterations=(0,))
    masked = {"fixed_weight": fixed_weight, "moving_weight": moving_weight}
    clean = run(device, replace(problem, **masked), options)
    spoilt = run(device, replace(problem, fixed=fixed, moving=moving, **masked), options)
    np.testing.assert_array_equal(device.get(clean.field), device.get(spoilt.field))


def test_masked_fixed_voxels_do_not_attract_in_the_refinement(device):
    problem = shifted_pair((14, 16, 18), (0.8, 0, -0.6), grow=4)
    fixed_weight = problem.fixed_weight.copy()
    fixed_weight[3:7, 4:9, 5:9] = 0
    fixed = problem.fixed.copy()
    fixed[fixed_weight == 0] = 30
    options = replace(REFINE, iterations=(10,))
    clean = run(device, replace(problem, fixed_weight=fixed_weight), options)
    spoilt = run(device, replace(problem, fixed=fixed, fixed_weight=fixed_weight), options)
    np.testing.assert_array_equal(device.get(clean.field), device.get(spoilt.field))


@pytest.mark.parametrize("what", ["constant image", "no fixed weight", "no moving weight"])
@pytest.mark.parametrize(("consistency_rounds", "levels"), [(0, 1), (3, 1), (3, 2)])
def test_nothing_to_go_by_means_no_displacement(device, what, consistency_rounds, levels):
    """Equal costs are no reason to move, neither to the corner of the search nor anywhere else."""
    problem = shifted_pair((12, 13, 14), (2, 2, 2))
    if what == "constant image":
        flat = np.full(problem.fixed.shape, 0.3, np.float16)
        problem = replace(problem, fixed=flat, moving=flat)
    else:
        name = "fixed_weight" if what == "no fixed weight" else "moving_weight"
        problem = replace(problem, **{name: np.zeros((12, 13, 14), np.float32)})
    options = replace(
        SEARCH, consistency_rounds=consistency_rounds, search_levels=levels, iterations=(3,)
    )
    solution = run(device, problem, options)
    assert not device.get(solution.field).any()
    assert solution.overlap == (1 if what == "constant image" else 0)


def test_empty_margin_does_not_drag_the_body(device):
    """Far from the body nothing favours any shift; the search's corner must not affect the body.

    When equal costs were resolved in favour of the first shift, the body was off by 21 mm (with a
    radius of 24 mm).
    """
    shape, shift = (28, 28, 28), np.array([2, 0, -2])
    problem = shifted_pair(shape, shift)
    distance = np.linalg.norm(reference.indices(shape) - 13.5, axis=-1)
    body = np.float32(distance < 8)
    moved = np.float32(np.linalg.norm(reference.indices(shape) - 13.5 - shift, axis=-1) < 8)
    problem = replace(problem, fixed_weight=body, moving_weight=moved)
    options = replace(SEARCH, cost_smoothing_mm=4.0, field_smoothing_mm=3.0)
    found = device.get(run(device, problem, options).field)
    inner = distance < 6
    assert np.abs(found[inner] - 2 * shift).max() < 1.0
    # The corner of the volume, far outside, may follow the body or stay, but not move elsewhere.
    assert np.abs(found[0, 0, 0]).max() <= 4 + 1e-4


def test_leaving_the_field_of_view_does_not_pay(device):
    """Half of the fixed image lies outside the moving one, which ends at x = 20.

    Matches end at 18, and those that lie a filter's reach before that are not disturbed.
    """
    shape, shift = (14, 16, 32), (0, 0, 2)
    whole = shifted_pair(shape, shift, grow=8)
    moving = np.ascontiguousarray(whole.moving[8:-8, 8:-8, 8:28])
    problem = replace(
        whole,
        moving=moving,
        moving_weight=np.ones(moving.shape[:3], np.float32),
        moving_offset=(0, 0, 0),
    )
    options = replace(SEARCH, cost_smoothing_mm=4.0, field_smoothing_mm=4.0)
    solution = run(device, problem, options)
    found = device.get(solution.field)[2:-2, 2:-2, :11]
    assert np.abs(found - (0, 0, 4)).max() < 0.5
    assert 0.5 < solution.overlap < 1


def test_folding_is_held_down(device, rng):
    """Noise against noise folds without the penalty, and hardly with it."""
    shape = (12, 13, 14)
    fixed, moving = np.float16(0.5 * rng.normal(size=(2, *shape, 8)))
    ones = np.ones(shape, np.float32)
    problem = reference.Problem(fixed, moving, ones, ones, (2, 2, 2))
    options = replace(
        REFINE, iterations=(40,), smoothing_mm=1.2, smoothness=0.05, learning_rate_mm=0.4
    )

    def folded(penalty):
        field = run(device, problem, replace(options, fold_penalty=penalty)).field
        jacobian = reference.forward_jacobian(device.get(field).astype(float), (2, 2, 2))
        return (np.linalg.det(jacobian) <= 0).mean()

    assert folded(0.0) > 0.005
    assert folded(300.0) < 0.2 * folded(0.0)


def test_more_smoothness_gives_smaller_gradients(device, rng):
    problem = random_problem(rng)
    roughness = []
    for smoothness in (0.0, 1.0, 30.0):
        options = replace(REFINE, iterations=(30,), smoothness=smoothness)
        field = device.get(run(device, problem, options).field)
        roughness.append(reference.smoothness_energy(field, problem.spacing_mm))
    assert roughness[0] > 1.2 * roughness[1] > 1.2 * roughness[2]


# ---- edges ----------------------------------------------------------------------------------


def test_no_search_and_no_iterations_give_the_zero_field(device):
    problem = shifted_pair((7, 8, 9), (1, 0, 0))
    solution = run(device, problem, replace(REFINE, iterations=(0,)))
    assert not device.get(solution.field).any()
    assert solution.feature_distance_before == solution.feature_distance_after > 0
    assert solution.overlap == 1


@pytest.mark.parametrize(
    ("shape", "radius"),
    [((1, 16, 18), (0, 3, 3)), ((14, 1, 18), (3, 0, 3)), ((14, 16, 1), (3, 3, 0))],
)
def test_one_voxel_axes(device, shape, radius):
    """A single slice is registered within its plane and stays in it."""
    shift = np.array([2, -2, 4]) * (np.array(shape) > 1)
    problem = shifted_pair(shape, shift, grow=0)
    options = replace(REFINE, search_factor=(2, 2, 2), search_radius=radius,
                                  cost_smoothing_mm=3.0, field_smoothing_mm=3.0,
                                  iterations=(40,))  # fmt: skip
    solution = run(device, problem, options)
    found = device.get(solution.field)
    thin = int(np.argmin(shape))
    assert not found[..., thin].any()
    assert np.isfinite(found).all()
    inner = tuple(slice(5, -5) if n > 1 else slice(None) for n in shape)
    assert np.abs(found[inner].reshape(-1, 3).mean(0) / 2 - shift).max() < 0.3


def test_single_voxel_volume(device):
    problem = shifted_pair((1, 1, 1), (0, 0, 0))
    solution = run(device, problem, replace(REFINE, iterations=(3,)))
    assert not device.get(solution.field).any()


def test_nan_features_do_not_crash(device):
    """Features must be finite; otherwise the field may be lost, but the process must not crash."""
    problem = shifted_pair((10, 11, 12), (2, 0, 0))
    problem.fixed[4, 5, 6] = np.nan
    for options in (SEARCH, replace(SEARCH, iterations=(3,))):
        assert device.get(run(device, problem, options).field).shape == (10, 11, 12, 3)


def test_nan_under_zero_weight_is_ignored_by_the_refinement(device):
    problem = shifted_pair((10, 11, 12), (0.5, 0, 0), grow=2)
    problem.fixed[4, 5, 6] = np.nan
    problem.fixed_weight[4, 5, 6] = 0
    solution = run(device, problem, replace(REFINE, iterations=(5,)))
    assert np.isfinite(device.get(solution.field)).all()
    assert np.isfinite(solution.feature_distance_after)


# ---- how well a match is determined -----------------------------------------------------------


def test_spread_is_nothing_where_one_shift_matches_and_all_where_none_does(device):
    """It is 0 in a structured half, and the standard deviation of all shifts in a flat one."""
    problem = shifted_pair((16, 16, 40), (2, -2, 2), grow=8)
    fixed, moving = problem.fixed.copy(), problem.moving.copy()
    fixed[:, :, 20:] = 0
    moving[:, :, 20 + 8 - 8 :] = 0
    problem = replace(problem, fixed=fixed, moving=moving)
    spread = device.get(run(device, problem, SEARCH, spread=True).spread)
    assert spread[4:12, 4:12, 4:8].max() < 0.5
    # Seven shifts per axis of two voxels of 2 mm each: the deviation of -3 ... 3 is 2 steps.
    np.testing.assert_allclose(spread[4:12, 4:12, 32:], 2.0 * 4.0, rtol=1e-5)


def test_spread_knows_along_which_axis_a_match_may_slide(device):
    """If features change along z alone, all shifts along y and x are equally good."""
    problem = shifted_pair((16, 16, 16), (0, 0, 0))
    layers = np.broadcast_to(problem.fixed[:, :1, :1], problem.fixed.shape)
    problem = replace(problem, fixed=layers.copy(), moving=layers.copy())
    z, y, x = device.get(run(device, problem, SEARCH, spread=True).spread)[8, 8, 8]
    assert z < 1.0
    assert min(y, x) > 4.0


def test_spread_is_all_where_nothing_counts(device):
    problem = shifted_pair((12, 12, 12), (0, 0, 0))
    nothing = np.zeros((12, 12, 12), np.float32)
    problem = replace(problem, fixed_weight=nothing)
    spread = device.get(run(device, problem, SEARCH, spread=True).spread)
    np.testing.assert_allclose(spread, 8.0, rtol=1e-5)


def test_spread_changes_no_bit_of_the_field_and_is_off_by_default(device, rng):
    problem = random_problem(rng)
    options = replace(SMALL, iterations=(3,))
    plain, more = run(device, problem, options), run(device, problem, options, spread=True)
    np.testing.assert_array_equal(device.get(plain.field), device.get(more.field))
    assert plain.spread is None


def test_spread_without_a_search_is_zero(device, rng):
    problem = random_problem(rng)
    assert not device.get(run(device, problem, REFINE, spread=True).spread).any()
