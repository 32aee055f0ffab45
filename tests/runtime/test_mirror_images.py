"""The mirror images of the mirror test lie where the image lies."""

from __future__ import annotations

import numpy as np
import pytest

from dinoreg_rt.device.choice import Device
from dinoreg_rt.features.mind import MIND_MIRRORED
from dinoreg_rt.quality.mirror_images import MirrorTestImage, coarser_index, content_middle

CPU = Device("cpu", threads=1)
SHAPE = (20, 24, 28)
OFFSET = (-3, 0, 5)


def off_centre(rng) -> tuple[np.ndarray, np.ndarray]:
    """Return an image with content far from the middle of its grid, and its weight."""
    image = np.zeros(SHAPE, np.float32)
    image[2:8, 4:10, 16:26] = rng.random((6, 6, 10), np.float32)
    return image, np.ones(SHAPE, np.float32)


def test_the_middle_of_the_content(rng):
    image, weight = off_centre(rng)
    index = np.argwhere(image > 0)
    expected = np.average(index, axis=0, weights=image[image > 0])
    np.testing.assert_allclose(content_middle(image, weight, CPU), expected, rtol=1e-6)
    weight[:, :, 20:] = 0
    assert content_middle(image, weight, CPU)[2] < 20
    assert content_middle(np.zeros_like(image), weight, CPU) == (9.5, 11.5, 13.5)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_mirror_image_keeps_the_middle_of_its_content(axis, rng):
    image, weight = off_centre(rng)
    features = rng.random((*SHAPE, 16)).astype(np.float16)
    tested = MirrorTestImage.of(features, image, weight, OFFSET, CPU)

    def middle(one: MirrorTestImage) -> float:
        return content_middle(one.image, one.weight, CPU)[axis] + one.offset_zyx[axis]

    control = content_middle(image, weight, CPU)[axis]
    index = coarser_index(control, OFFSET[axis])
    assert index + tested.offset_zyx[axis] == pytest.approx(middle(tested), abs=0.15)
    mirrored = tested.mirrored(axis, MIND_MIRRORED[axis], index, CPU)
    # To half a voxel of rounding, where the middle of the grid would be off by several.
    assert middle(mirrored) == pytest.approx(middle(tested), abs=0.8)
    in_the_middle = (tested.image.shape[axis] - 1) / 2
    about_the_grid = tested.mirrored(axis, MIND_MIRRORED[axis], in_the_middle, CPU)
    assert about_the_grid.offset_zyx == tested.offset_zyx
    assert abs(middle(about_the_grid) - middle(tested)) > 3
    np.testing.assert_array_equal(about_the_grid.image, mirrored.image)
