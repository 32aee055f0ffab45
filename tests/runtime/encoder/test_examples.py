"""Example slices are cut as in a registration."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from encoders import write_bundle
from phantoms import make_grid

pytest.importorskip("onnx", reason="makes a small ONNX encoder: onnx is not installed")

from dinoreg_rt.bundle.manifest import Graph, Normalisation, read_manifest
from dinoreg_rt.config.parameters import RegistrationConfig
from dinoreg_rt.device.choice import Device
from dinoreg_rt.encoder.examples import phantom_slices, read_examples
from dinoreg_rt.encoder.slice_stack import plan_slices
from dinoreg_rt.errors import ConfigError, InputError
from dinoreg_rt.io.images import read_volume, write_volume
from dinoreg_rt.types import Volume

CPU = Device("cpu", threads=1)


@pytest.fixture
def manifest(tmp_path):
    return read_manifest(write_bundle(tmp_path / "gabor", [(24, 32)]))


def write_image(path, array):
    write_volume(path, Volume(array.astype(np.float32), make_grid(array.shape, (1.0, 1.0, 3.0))))
    return path


@pytest.mark.parametrize("kind", ["ct", "mr"])
def test_slices_are_those_of_a_registration(manifest, tmp_path, rng, kind) -> None:
    values = rng.uniform(0, 800, (17, 20, 24))
    if kind == "ct":  # air, fat and soft tissue
        values = rng.choice([-1000.0, -100.0, 40.0], values.shape) + values / 40
    path = write_image(tmp_path / "x.nii.gz", values)
    examples = read_examples([path, path], manifest, manifest.graphs[0], per_image=4)
    volume, config = read_volume(path), RegistrationConfig()
    high = float(np.percentile(volume.array, config.mr_percentile))
    window = (float(volume.array.min()), high) if kind == "mr" else config.encoder_ct_window_hu
    stack = plan_slices(volume, window, "axial", (24, 32), manifest.patch, 1)
    every = stack.batch(0, 17, manifest.normalisation, CPU)
    np.testing.assert_array_equal(examples.measured, np.concatenate([every[[0, 5, 9, 14]]] * 2))
    np.testing.assert_array_equal(examples.held_out, np.concatenate([every[[2, 11]]] * 2))


@pytest.mark.parametrize("slices", [2, 3, 5, 40])
@pytest.mark.parametrize("per_image", [1, 8])
def test_no_slice_is_both_measured_and_held_out(manifest, tmp_path, rng, slices, per_image) -> None:
    path = write_image(tmp_path / "x.nii.gz", rng.uniform(0, 1, (slices, 20, 24)))
    examples = read_examples([path], manifest, manifest.graphs[0], per_image)
    assert 1 <= len(examples.measured) <= per_image
    assert 1 <= len(examples.held_out) <= 2
    for one in examples.held_out:
        assert not (examples.measured == one).all(axis=(1, 2, 3)).any()


def test_unusable_images_are_errors(manifest, tmp_path) -> None:
    array = np.zeros((5, 20, 24))
    array[3, 4:9, 4:9] = 7
    path = write_image(tmp_path / "x.nii.gz", array)
    with pytest.raises(ConfigError, match=r"1 axial slices hold values above 0.*at least two"):
        read_examples([path], manifest, manifest.graphs[0], 4)
    with pytest.raises(InputError):
        read_examples([tmp_path / "none.nii.gz"], manifest, manifest.graphs[0], 4)


def test_slices_of_the_phantom_look_like_a_scan() -> None:
    norm = Normalisation(mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3))
    manifest = SimpleNamespace(patch=4, normalisation=norm)
    pixels = phantom_slices(manifest, Graph(file="x.onnx", height=48, width=56))
    assert (pixels.shape, pixels.dtype) == ((2, 3, 48, 56), np.float32)
    grey = pixels * np.reshape(norm.std, (3, 1, 1)) + np.reshape(norm.mean, (3, 1, 1))
    np.testing.assert_allclose(grey[:, 0], grey[:, 1], atol=1e-5)  # without colour
    assert grey.min() >= -1e-5
    assert grey.max() <= 1 + 1e-5
    dark = (grey[:, 0] < 0.01).mean(axis=(1, 2))
    assert ((dark > 0.25) & (dark < 0.75)).all()
    body = [image[image > 0.01] for image in grey[:, 0]]
    assert min(part.std() for part in body) > 0.1
    assert np.abs(grey[0] - grey[1]).mean() > 0.02
