"""How well images agree before and after a registration, compared voxel by voxel."""

from __future__ import annotations

import numpy as np
import pytest
from phantoms import make_grid

import dinoreg_kernels
from dinoreg_kernels import WeighedImages
from dinoreg_rt.device.choice import choose_device
from dinoreg_rt.quality.agreement import Agreement, measure_agreement, sampling_step
from dinoreg_rt.quality.run_quality import as_struct

SPACING = (3.0, 2.0, 2.0)
#: The moving image is the fixed image, this many voxels further along z, y, x.
SHIFT = (1, -2, 3)


def agreement(
    shape: tuple[int, int, int], offset: tuple[int, int, int], *, exchanged: bool = False
) -> Agreement:
    """Measure an image and the same image elsewhere, with the field that undoes that.

    If `exchanged`, that field comes first and none follows, as with a linear registration.
    """
    rng = np.random.default_rng(1)
    features = rng.random((*shape, 16)).astype(np.float16)
    image, weight = rng.random(shape, np.float32), np.ones(shape, np.float32)
    moved = [
        np.ascontiguousarray(np.roll(array, np.add(SHIFT, np.negative(offset)), (0, 1, 2)))
        for array in (features, image)
    ]
    field = np.broadcast_to(np.float32(SHIFT) * np.float32(SPACING), (*shape, 3)).copy()
    numbers = measure_agreement(
        WeighedImages(features, moved[0], weight, weight, image, moved[1], SPACING, offset),
        field if exchanged else None,
        np.zeros_like(field) if exchanged else field,
        make_grid(shape, SPACING[::-1]),
        choose_device("cpu", 1)[0],
    )
    return Agreement.of(as_struct(dinoreg_kernels.Agreement, numbers))


@pytest.mark.parametrize(("shape", "step"), [((12, 14, 16), 1), ((60, 60, 60), 2)])
@pytest.mark.parametrize("offset", [(0, 0, 0), (2, -1, 1)])
def test_the_right_field_makes_images_agree(shape, step, offset) -> None:
    assert sampling_step(shape) == step
    found = agreement(shape, offset)
    assert found.mind_distance_after == 0
    # Independent channels, uniform in 0..1: 16 / 6.
    assert found.mind_distance_before == pytest.approx(16 / 6, rel=0.05)
    assert found.information_after == pytest.approx(np.log(32), rel=0.05)
    assert found.information_before < 0.3 * found.information_after


def test_a_field_before_the_registration() -> None:
    usual = agreement((12, 14, 16), (2, -1, 1))
    found = agreement((12, 14, 16), (2, -1, 1), exchanged=True)
    assert found.mind_distance_before == 0
    assert found.mind_distance_after == usual.mind_distance_before
    assert found.information_before == pytest.approx(usual.information_after)
    assert found.information_after == pytest.approx(usual.information_before)


def test_images_that_share_nothing_have_no_distance() -> None:
    found = agreement((12, 14, 16), (100, 0, 0))
    assert np.isnan(found.mind_distance_before)
    assert found.information_before == 0
