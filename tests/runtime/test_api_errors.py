"""Wrong arguments, or calls at a wrong time, are errors of ours that say what to do."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from phantoms import make_grid, make_phantom

import dinoreg_kernels
import dinoreg_rt
from dinoreg_kernels import KernelCancelled, KernelError, KernelUnavailable
from dinoreg_rt import Geometry, RegistrationConfig, Volume
from dinoreg_rt.device.limits import usable_cpus
from dinoreg_rt.errors import ConfigError, DeviceError, DinoregError, InputError
from dinoreg_rt.quality.trust import judge
from dinoreg_rt.run.report import Quality

GRID = make_grid((24, 28, 32), (4.0, 4.0, 4.0))
QUICK = RegistrationConfig(initial="none", iterations=(2,))


@pytest.fixture(scope="module")
def pair():
    return make_phantom(GRID, GRID)


def register(pair, **more):
    return dinoreg_rt.register(pair.fixed, pair.moving, **({"config": QUICK} | more))


# ---- arguments ------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [dinoreg_rt.register, dinoreg_rt.plan])
def test_a_dict_is_not_a_configuration(pair, call):
    with pytest.raises(ConfigError, match="config is a dict; wanted a RegistrationConfig"):
        call(pair.fixed, pair.moving, config={"smoothness": 1})
    with pytest.raises(ConfigError, match="config is a dict"):
        dinoreg_rt.Registrar({"smoothness": 1})


@pytest.mark.parametrize("call", [dinoreg_rt.register, dinoreg_rt.plan])
def test_a_copy_with_impossible_values_is_found_before_the_work(pair, call):
    config = QUICK.model_copy(update={"smoothness": -5, "smothness": 1})
    with pytest.raises(ConfigError, match=r"smoothness = -5: wanted .*did you mean smoothness"):
        call(pair.fixed, pair.moving, config=config)
    with pytest.raises(ConfigError, match="smoothness = -5"):
        dinoreg_rt.Registrar(config)


def test_nothing_to_compare_is_found_before_the_work(pair):
    config = QUICK.model_copy(update={"feature_weight": 0.0, "correlation_weight": 0.0})
    with pytest.raises(ConfigError, match="nothing is compared"):
        dinoreg_rt.plan(pair.fixed, pair.moving, config=config)


@pytest.mark.parametrize("workers", [0, -1, 1.5, "2"])
def test_a_registrar_needs_workers(workers):
    with pytest.raises(ConfigError, match=r"workers = .*; wanted a whole number of at least 1"):
        dinoreg_rt.Registrar(workers=workers)


def test_a_placement_is_a_placement(pair):
    with pytest.raises(ConfigError, match="placement is a str; wanted a Placement"):
        register(pair, placement="x")


def test_masked_arrays_are_refused(pair):
    image = np.ma.array(pair.fixed.array, mask=pair.fixed.array > 500)
    for fixed in ((image, GRID), Volume(image, GRID)):
        with pytest.raises(InputError, match=r"is a masked array.*give array\.filled"):
            dinoreg_rt.register(fixed, pair.moving, config=QUICK)


# ---- geometries -----------------------------------------------------------------------------


def test_a_geometry_of_lists_or_arrays_is_that_of_tuples(pair):
    plain = GRID.direction
    for make in (list, np.array):
        grid = Geometry(
            make(GRID.shape_zyx), make(GRID.spacing_mm), make(GRID.origin_mm), plain.tolist()
        )
        assert (grid.shape_zyx, grid.spacing_mm) == (GRID.shape_zyx, GRID.spacing_mm)
        assert {type(n) for n in grid.shape_zyx} == {int}
        assert {type(v) for v in (*grid.spacing_mm, *grid.origin_mm)} == {float}
        result = dinoreg_rt.register((pair.fixed.array, grid), pair.moving, config=QUICK)
        expected = register(pair).displacement.vectors_mm
        np.testing.assert_array_equal(result.displacement.vectors_mm, expected)
    assert pickle.loads(pickle.dumps(grid)).shape_zyx == GRID.shape_zyx


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape_zyx": (1, 2)}, r"shape_zyx = \(1, 2\); wanted three whole numbers"),
        ({"shape_zyx": (1.5, 2, 3)}, "shape_zyx = .*; wanted three whole numbers"),
        ({"spacing_mm": 2.0}, "spacing_mm = 2.0; wanted three numbers"),
        ({"origin_mm": ("x", 0, 0)}, "origin_mm = .*; wanted three numbers"),
        ({"direction": [1, 2]}, "wanted a 3x3 matrix"),
    ],
)
def test_anything_but_a_geometry_is_refused(change, message):
    values = {"shape_zyx": (4, 5, 6), "spacing_mm": (1, 1, 1), "origin_mm": (0, 0, 0)}
    with pytest.raises(InputError, match=message):
        Geometry(**(values | {"direction": np.eye(3)} | change))


# ---- images that say nothing ----------------------------------------------------------------


@pytest.mark.parametrize("role", ["fixed", "moving"])
def test_a_mask_over_one_value_is_refused_by_its_role(pair, role):
    mask = np.zeros(GRID.shape_zyx, np.uint8)
    mask[12, 14, 16] = 1
    image = pair.fixed if role == "fixed" else pair.moving
    value = f"{image.array[12, 14, 16]:g}"
    with pytest.raises(InputError, match=f"{role} image has only the value {value} inside the"):
        register(pair, **{f"{role}_mask": (mask, GRID)})


def test_values_that_float32_cannot_tell_apart_are_refused(pair):
    image = np.zeros(GRID.shape_zyx, np.float32)
    image[5:9] = 1e-42
    with pytest.raises(InputError, match="fixed image has only the value 0: there is nothing"):
        dinoreg_rt.register((image, GRID), pair.moving, config=QUICK)


def test_an_image_without_mirror_images_is_not_trusted(pair, rng):
    """Two voxels a side lie within one voxel of the mirror test's grid."""
    origin = np.add(GRID.origin_mm, 40.0)
    small = Geometry((2, 2, 2), GRID.spacing_mm, origin, GRID.direction)
    image = rng.random((2, 2, 2)).astype(np.float32)
    quality = dinoreg_rt.register(pair.fixed, (image, small), config=QUICK).quality
    assert np.isnan(quality.decoy_ratio)
    assert np.isfinite(quality.unrelated_ratio)
    assert any("too small to be compared with its mirror" in r for r in judge(quality).reasons)
    written = Quality(**vars(quality)).model_dump_json()
    assert json.loads(written)["decoy_ratio"] is None


# ---- threads and processes ------------------------------------------------------------------


def test_threads_are_limited_to_the_cpus_and_that_is_reported(pair):
    usable, _ = usable_cpus()
    plan = dinoreg_rt.plan(
        pair.fixed, pair.moving, config=QUICK.model_copy(update={"threads": 1024})
    )
    assert plan.device.threads == plan.config.threads == usable
    assert plan.choices["threads"].startswith(f"{usable} of the 1024 requested")
    assert "threads" not in dinoreg_rt.plan(pair.fixed, pair.moving, config=QUICK).choices


FORK = """
import multiprocessing
import dinoreg_rt
from dinoreg_rt.images.phantom import phantom_grid, phantom_pair

PAIR = phantom_pair(phantom_grid((24, 28, 32), 4.0))
CONFIG = dinoreg_rt.RegistrationConfig(initial="none", iterations=(2,), threads=2)


def child(queue):
    try:
        queue.put(dinoreg_rt.register(*PAIR, config=CONFIG).displacement.vectors_mm.tobytes())
    except dinoreg_rt.DinoregError as error:
        queue.put(f"{error.exit_code} {error}")


here = dinoreg_rt.register(*PAIR, config=CONFIG).displacement.vectors_mm.tobytes()
context = multiprocessing.get_context("fork")
queue = context.Queue()
context.Process(target=child, args=(queue,), daemon=True).start()
there = queue.get()
print("the same" if there == here else there, flush=True)
"""


@pytest.mark.skipif(usable_cpus()[0] < 2, reason="one CPU: no threads that could be missing")
def test_a_registration_in_a_forked_process_gives_the_same():
    command = [sys.executable, "-c", FORK]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        said, _ = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert said == "the same\n"


# ---- kernels --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("problem", "kind"), [(KernelError, DinoregError), (KernelUnavailable, DeviceError)]
)
def test_errors_of_the_kernels_are_ours(pair, monkeypatch, problem, kind):
    def fails(*_, **__):
        raise problem("dr_test: no")

    field = register(pair).displacement
    labels = dinoreg_rt.LabelMap((pair.moving.array > 300).astype(np.int32), GRID)
    for name in ("solve", "resample", "resample_labels", "map_field"):
        monkeypatch.setattr(dinoreg_kernels, name, fails)
    for call in (
        lambda: register(pair),
        lambda: dinoreg_rt.warp_volume(pair.moving, field),
        lambda: dinoreg_rt.warp_labels(labels, field),
    ):
        with pytest.raises(DinoregError, match="dr_test: no") as error:
            call()
        assert type(error.value) is kind
        assert isinstance(error.value.__cause__, problem)


def test_a_request_to_stop_stays_one(pair, monkeypatch):
    def stopped(*_, **__):
        raise KernelCancelled("stop")

    monkeypatch.setattr(dinoreg_kernels, "solve", stopped)
    with pytest.raises(KernelCancelled):
        register(pair)


# ---- what is submitted ----------------------------------------------------------------------


def test_what_was_submitted_may_be_changed_by_simpleitk(pair):
    def image_of(volume):
        image = sitk.GetImageFromArray(volume.array)
        image.SetSpacing(GRID.spacing_mm)
        image.SetOrigin(GRID.origin_mm)
        return image

    whole = sitk.Cast(image_of(Volume(np.ones(GRID.shape_zyx, np.float32), GRID)), sitk.sitkUInt8)
    given = {"fixed_mask": whole, "weights": sitk.Cast(whole, sitk.sitkFloat32)}
    fixed, moving = image_of(pair.fixed), image_of(pair.moving)
    with dinoreg_rt.Registrar(QUICK) as registrar:
        expected = registrar.register(fixed, moving, **given)
        futures = [registrar.submit(fixed, moving, **given) for _ in range(3)]
        for image in (fixed, moving, *given.values()):
            image[:, :, :] = 0
        fields = [future.result(60).displacement.vectors_mm for future in futures]
    for vectors in fields:
        np.testing.assert_array_equal(vectors, expected.displacement.vectors_mm)


def test_unusable_inputs_are_reported_at_once_and_files_later(pair, tmp_path: Path):
    with dinoreg_rt.Registrar(QUICK) as registrar:
        with pytest.raises(InputError, match="cannot use a int as an image"):
            registrar.submit(3, pair.moving)
        with pytest.raises(InputError, match="no such file"):
            registrar.submit(pair.fixed, pair.moving, fixed_mask=str(tmp_path / "no.nii")).result(9)
