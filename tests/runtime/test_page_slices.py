"""The slices of the picture and the page: in patient orientation, and of the right voxels."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from qualities import GOOD

from dinoreg_rt.config.parameters import RegistrationConfig
from dinoreg_rt.fields.inversion import voxel_centres
from dinoreg_rt.geometry import index_to_lps, sample_linear, transform_points
from dinoreg_rt.page.layout import (
    MOST_LINES,
    MOST_MAP_PIXELS,
    MOST_PIXELS,
    MOST_SLICES,
    PlaneLayout,
    content_box,
    plane_layouts,
)
from dinoreg_rt.page.stacks import cut_stacks, grey_windows
from dinoreg_rt.quality.metrics import jacobian_determinant
from dinoreg_rt.registration.result import RegistrationResult
from dinoreg_rt.types import (
    AffineTransform,
    DisplacementField,
    FloatArray,
    Geometry,
    LabelMap,
    Volume,
)

SHAPE = (9, 11, 13)
DIRECTIONS = [
    np.array(np.eye(3)[list(order)] * signs)
    for order in permutations(range(3))
    for signs in product((1, -1), repeat=3)
]
#: LPS axis and sign along which slices, rows and columns are counted.
UPRIGHT = {
    "axial": ((2, 1), (1, 1), (0, 1)),
    "coronal": ((1, 1), (2, -1), (0, 1)),
    "sagittal": ((0, 1), (2, -1), (1, 1)),
}


def make_grid(direction: FloatArray | None = None, shape: tuple[int, int, int] = SHAPE):
    return Geometry(
        shape, (2.0, 2.5, 4.0), (5.0, -7.0, 11.0), direction if direction is not None else np.eye(3)
    )


def make_result(
    grid: Geometry,
    vectors_mm: FloatArray,
    start: AffineTransform | None = None,
    warped: Volume | None = None,
    **more,
) -> RegistrationResult:
    vectors = vectors_mm.reshape(*grid.shape_zyx, 3).astype(np.float32)
    return RegistrationResult(
        displacement=DisplacementField(vectors, grid),
        initial=start or AffineTransform.identity(),
        warped=warped or Volume(np.zeros(grid.shape_zyx, np.float32), grid),
        inverse=None,
        quality=GOOD,
        config=RegistrationConfig(fixed_modality="ct", moving_modality="mr"),
        **more,
    )


def coordinate_image(grid: Geometry, axis: int) -> Volume:
    """An image whose values are the LPS coordinate of each voxel along `axis`."""
    values = voxel_centres(grid)[:, axis].astype(np.float32)
    return Volume(values.reshape(grid.shape_zyx), grid)


def whole(grid: Geometry) -> tuple[slice, slice, slice]:
    z, y, x = (slice(0, n) for n in grid.shape_zyx)
    return z, y, x


def shown(layout: PlaneLayout, array: np.ndarray) -> np.ndarray:
    return layout.view(array[np.ix_(*layout.voxels(MOST_MAP_PIXELS))])


@pytest.mark.parametrize("direction", DIRECTIONS, ids=lambda d: str(d.astype(int).tolist()))
def test_slices_stand_upright(direction: FloatArray) -> None:
    grid = make_grid(direction)
    for layout in plane_layouts(grid, whole(grid)):
        for axis in range(3):
            values = shown(layout, coordinate_image(grid, axis).array)
            for along, (lps, sign) in enumerate(UPRIGHT[layout.plane]):
                steps = np.diff(values, axis=along)
                assert (np.sign(steps) == (sign if lps == axis else 0)).all()
        across = UPRIGHT[layout.plane][0][0]
        positions = shown(layout, coordinate_image(grid, across).array)[:, 0, 0]
        np.testing.assert_allclose(positions, layout.positions_mm, rtol=1e-5)


@pytest.mark.parametrize("direction", [DIRECTIONS[0], DIRECTIONS[17], DIRECTIONS[38]])
def test_pixels_are_square_and_cover_the_box(direction: FloatArray) -> None:
    grid = make_grid(direction)
    box = (slice(1, 8), slice(2, 11), slice(0, 12))
    for layout in plane_layouts(grid, box):
        pixels, index = layout.grid, index_to_lps(layout.grid)
        assert pixels.spacing_mm[:2] == pytest.approx((2.0, 2.0), rel=0.2)
        first = transform_points(index, np.array([[-0.5, -0.5, 0.0]]))[0]
        voxels = [axis[[0, -1]] for axis in layout.voxels(MOST_MAP_PIXELS)]
        corners = layout.view(np.stack(np.meshgrid(*voxels, indexing="ij"), -1))
        half = np.array([0.0, 0.0, 0.0])
        corner = corners[0, 0, 0][::-1].astype(float)
        for lps, sign in UPRIGHT[layout.plane][1:]:
            file_axis = int(np.abs(direction[lps]).argmax())
            half[file_axis] = -0.5 * sign * np.sign(direction[lps, file_axis])
        expected = transform_points(index_to_lps(grid), (corner + half)[None])[0]
        np.testing.assert_allclose(first, expected, atol=1e-6)


@pytest.mark.parametrize("shape", [(300, 512, 512), (9, 256, 216), (1, 40, 30), (700, 3, 5)])
def test_number_of_slices_and_pixels_is_limited(shape: tuple[int, int, int]) -> None:
    grid = Geometry(shape, (0.7, 0.7, 1.5), (0.0, 0.0, 0.0), np.eye(3))
    for layout in plane_layouts(grid, whole(grid)):
        slices, rows, columns = layout.grid.shape_zyx
        assert slices <= MOST_SLICES
        assert max(rows, columns) <= MOST_PIXELS
        # Evenly spaced, and as far from the first border as from the last.
        assert len(set(np.diff(layout.slices))) <= 1
        for most in (MOST_MAP_PIXELS, MOST_LINES):
            counts = sorted(len(axis) for axis in layout.voxels(most))
            assert counts[-1] <= max(most, MOST_SLICES)


def test_every_voxel_has_its_pixel() -> None:
    grid = Geometry((40, 200, 150), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3))
    for layout in plane_layouts(grid, (slice(3, 40), slice(0, 190), slice(10, 150))):
        voxels, pixels = layout.voxels(MOST_MAP_PIXELS), layout.pixel_of(MOST_MAP_PIXELS)
        for voxel, pixel in zip(voxels, pixels, strict=True):
            np.testing.assert_array_equal(pixel[voxel], np.arange(len(voxel)))
            inside = pixel[pixel >= 0]
            assert (np.diff(np.sort(inside)) <= 1).all()


def test_before_and_after_follow_the_transforms() -> None:
    grid = make_grid()
    image = coordinate_image(grid, 0)
    start = AffineTransform(np.eye(3), np.array([2.0, 0.0, 0.0]))
    warped = Volume(image.array + 3.0, grid)
    result = make_result(grid, np.tile([3.0, 0.0, 0.0], (9 * 11 * 13, 1)), start, warped)
    axial = cut_stacks(result, image, image)[0]
    low, high = grey_windows(result, image, image)[0]
    per_mm = 255 / (high - low)
    inner = np.s_[:, :, 2:-4]
    before = (axial.before.astype(float) - axial.fixed)[inner]
    after = (axial.after.astype(float) - axial.fixed)[inner]
    np.testing.assert_allclose(before, 2 * per_mm, atol=1.01)
    np.testing.assert_allclose(after, 3 * per_mm, atol=1.01)
    nodes = axial.maps.nodes_mm
    _, rows, columns, _ = nodes.shape
    height, width = 11 * 2.5, 13 * 2.0
    # Beyond the initial alignment every line moves by 1 mm along the columns.
    along = (np.arange(columns) + 0.5) * width / columns + 1.0
    np.testing.assert_allclose(nodes[..., 1], np.broadcast_to(along, nodes.shape[:3]), atol=1e-3)
    down = ((np.arange(rows) + 0.5) * height / rows)[:, None]
    np.testing.assert_allclose(nodes[..., 0], np.broadcast_to(down, nodes.shape[:3]), atol=1e-3)


@pytest.mark.parametrize("direction", [DIRECTIONS[0], DIRECTIONS[17]])
def test_jacobian_and_folds_are_those_of_the_whole_field(direction: FloatArray) -> None:
    grid = make_grid(direction)
    rng = np.random.default_rng(0)
    start = AffineTransform(np.diag([1.0, 1.1, 0.9]), np.zeros(3))
    result = make_result(grid, rng.normal(size=(9 * 11 * 13, 3)), start)
    determinant = jacobian_determinant(result.displacement)
    image = Volume(rng.random(SHAPE).astype(np.float32), grid)
    assert (determinant <= 0).any()
    for stack in cut_stacks(result, image, image):
        expected = shown(stack.layout, determinant)
        np.testing.assert_allclose(stack.maps.jacobian, expected / 0.99, rtol=1e-4, atol=1e-4)
        np.testing.assert_array_equal(stack.maps.folds, expected <= 0)


def test_a_fold_between_the_slices_is_shown() -> None:
    grid = Geometry((60, 8, 8), (1.0, 1.0, 1.0), (0.0, 0.0, 0.0), np.eye(3))
    vectors = np.zeros((60, 8, 8, 3))
    layout = plane_layouts(grid, whole(grid))[0]
    between = next(z for z in range(5, 50) if z not in layout.slices)
    vectors[between, 4, 4, 0] = -4.0
    stack = cut_stacks(make_result(grid, vectors), *[coordinate_image(grid, 0)] * 2)[0]
    nearest = int(np.abs(stack.layout.slices - between).argmin())
    assert np.flatnonzero(stack.maps.folds.any(axis=(1, 2))).tolist() == [nearest]


def test_inverse_consistency_is_that_of_the_fields() -> None:
    grid = make_grid()
    there = np.tile([5.0, 0.0, 0.0], (9 * 11 * 13, 1))
    back = DisplacementField(np.full((*SHAPE, 3), [-5.0, 0.0, 0.5], np.float32), grid)
    image = coordinate_image(grid, 0)
    result = make_result(grid, there)
    object.__setattr__(result, "inverse", back)
    for stack in cut_stacks(result, image, image):
        found = stack.maps.inverse_mm
        assert found is not None
        known = np.isfinite(found)
        assert 0.8 < known.mean() < 1
        np.testing.assert_allclose(found[known], 0.5, atol=1e-3)


def test_labels_are_warped_like_the_image() -> None:
    grid = make_grid()
    labels = np.zeros(SHAPE, np.int32)
    labels[4, 4:7, 6] = 7
    result = make_result(grid, np.tile([2.0, 0.0, 0.0], (9 * 11 * 13, 1)))
    image = coordinate_image(grid, 0)
    axial = cut_stacks(result, image, image, {"a": LabelMap(labels, grid)})[0]
    before, after = axial.labels_before["a"], axial.labels_after["a"]
    assert np.unique(np.nonzero(before)[2]).tolist() == [6]
    assert np.unique(np.nonzero(after)[2]).tolist() == [5]
    assert set(np.unique(after)) == {0, 7}


def test_slices_are_cropped_to_the_body() -> None:
    grid = Geometry((60, 80, 90), (2.0, 2.0, 2.0), (0.0, 0.0, 0.0), np.eye(3))
    image = np.zeros(grid.shape_zyx, np.float32)
    image[15:45, 20:50, 30:70] = 1.0
    box = content_box(Volume(image, grid), (0.0, 1.0))
    for part, (first, last) in zip(box, ((15, 45), (20, 50), (30, 70)), strict=True):
        assert first - 8 <= part.start <= first
        assert last <= part.stop <= last + 8
    assert content_box(Volume(np.zeros_like(image), grid), (0.0, 1.0)) == whole(grid)


def test_sampling() -> None:
    array = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    at = np.array([[0, 0, 0], [3, 2, 1], [1.5, 1, 0.5], [-0.4, 0, 0], [-0.6, 0, 0], [np.nan, 0, 0]])
    found = sample_linear(array, at)
    np.testing.assert_allclose(found[:4], [0, 23, 1.5 + 4 + 6, 0])
    assert np.isnan(found[4:]).all()


def test_sampling_of_vectors() -> None:
    array = np.random.default_rng(0).normal(size=(2, 3, 4, 3)).astype(np.float32)
    at = np.random.default_rng(1).uniform(-1, [4, 3, 2], (40, 3))
    found = sample_linear(array, at, outside=0.0)
    for channel in range(3):
        expected = np.nan_to_num(sample_linear(array[..., channel], at))
        np.testing.assert_array_equal(found[:, channel], expected)
    assert (found == 0).all(axis=1).any()
