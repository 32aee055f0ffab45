"""On a GPU, every call of CuPy costs the host some 12 us: the features of a pair take few calls.

The calls are counted in host memory (`cuda_on_host`), with 1024 channels, 24 components, masks and
the default standardisation, up to features joined to MIND-SSC.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import cuda_on_host
import numpy as np
import pytest
from cuda_on_host import DeviceArray
from phantoms import make_grid

from dinoreg_rt.config.parameters import RegistrationConfig
from dinoreg_rt.device.choice import Device, StageTimer
from dinoreg_rt.encoder import features as features_module
from dinoreg_rt.encoder.encoding import EncodingPlan
from dinoreg_rt.encoder.features import encoder_features
from dinoreg_rt.encoder.open_encoders import EncoderPool
from dinoreg_rt.encoder.pair_tokens import PairTokens
from dinoreg_rt.encoder.slice_stack import PlaneStacks, plan_slices
from dinoreg_rt.encoder.standardise import Standardisation
from dinoreg_rt.encoder.tokens import PatchTokens
from dinoreg_rt.features.joined import Joined, add_features
from dinoreg_rt.features.mind import FeaturePair
from dinoreg_rt.types import AffineTransform, Volume

CHANNELS, COMPONENTS = 1024, 24
GRID = make_grid((12, 32, 40), (4.0, 4.0, 4.0))
#: Calls of CuPy and reads by the host that a pair with one plane may take. Measured: 58 and 2.
MOST = 60


def tokens_like_a_transformer(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Return correlated float16 channels whose variance falls quickly, around a common mean."""
    values = rng.normal(size=(*shape, 64)) * np.geomspace(10, 0.1, 64)
    mixing, _ = np.linalg.qr(rng.normal(size=(CHANNELS, 64)))
    noise = 0.01 * rng.normal(size=(*shape, CHANNELS))
    return (values @ mixing.T + noise + rng.normal(size=CHANNELS)).astype(np.float16)


class Case:
    """A pair whose tokens lie on a device, without images that matter and without an encoder."""

    def __init__(self, rng: np.random.Generator, device: Device, kind: Standardisation) -> None:
        self.device, put = device, device.xp.asarray
        images = [Volume(rng.random(GRID.shape_zyx).astype(np.float32), GRID) for _ in range(2)]
        stacks = [plan_slices(image, (0.2, 1.0), "axial", (32, 40), 4, 2) for image in images]
        self.plane = PlaneStacks("axial", SimpleNamespace(), (stacks[0], stacks[1]), 1.0)
        manifest = SimpleNamespace(model="m", precision="p", layers=("final",), hash=lambda: "0")
        manifest.source = SimpleNamespace(random_weights=True)
        bundle: Any = SimpleNamespace(manifest=manifest)
        self.plan = EncodingPlan(
            bundle, "ort-cuda", (self.plane,), 8, SimpleNamespace(), COMPONENTS, (0,), kind, True
        )
        shape = (len(stacks[0].encoded), 8, 10)
        self.made = PairTokens(
            [
                PatchTokens(
                    replace(stack, volume=replace(image, array=put(image.array))),
                    put(tokens_like_a_transformer(rng, shape)),
                )
                for image, stack in zip(images, stacks, strict=True)
            ],
            None,
            [False, False],
        )
        mask = np.zeros(GRID.shape_zyx, np.float32)
        mask[2:, 4:-4, 4:-4] = 1
        self.sides: Any = [
            SimpleNamespace(
                image=SimpleNamespace(volume=image, mask=mask, body=None, role="fixed"),
                control=GRID,
                affine=AffineTransform.identity(),
            )
            for image in images
        ]

    def run(self, beside: Joined) -> FeaturePair:
        config = RegistrationConfig(threads=1)
        timer = StageTimer(self.device)
        found, summary = encoder_features(
            self.plan,
            self.sides,
            config,
            self.device,
            timer,
            lambda *_: None,
            EncoderPool(),
            beside,
        )
        assert sum(summary().planes[0].explained_variance) > 0.5
        return found


@pytest.fixture
def calls(cupy, monkeypatch) -> Counter[str]:
    """The number of calls of CuPy, and of reads by the host."""
    count: Counter[str] = Counter()
    used, read, linalg = cuda_on_host._used, DeviceArray._read_by_host, dict(vars(cupy.linalg))

    def counted(what: str, real: Any) -> Any:
        def call(*args: Any) -> Any:
            count[what] += 1
            return real(*args)

        return call

    monkeypatch.setattr(cuda_on_host, "_used", counted("CuPy", used))
    monkeypatch.setattr(DeviceArray, "_read_by_host", counted("reads", read))
    for name, real in linalg.items():
        monkeypatch.setattr(cupy.linalg, name, counted("CuPy", real))
    return count


DEFAULT = Standardisation("smooth", "deviation", 20.0, 0)


def mind_like(device: Device) -> FeaturePair:
    xp = device.xp
    features = xp.asarray(np.full((*GRID.shape_zyx, 16), 0.5, np.float16))
    weight = xp.asarray(np.ones(GRID.shape_zyx, np.float32))
    return FeaturePair(features, features, weight, weight, 12)


def test_calls_of_a_pair(rng, calls, monkeypatch) -> None:
    device = Device("cuda")
    case, mind = Case(rng, device, DEFAULT), mind_like(device)
    monkeypatch.setattr(features_module, "tokens_of_pair", lambda *_: case.made)
    calls.clear()
    found = case.run(Joined(12, 0.5))
    joined = add_features(found, mind, (0.5 / 1.5) ** 0.5, device)
    assert calls["reads"] <= 2
    assert calls["CuPy"] + calls["reads"] <= MOST
    assert joined.channels == COMPONENTS + 12
    assert joined.fixed.shape[-1] == 40


def test_a_cpu_gives_the_same_features(cupy, monkeypatch) -> None:
    """Products of more tokens round otherwise: half precision hides all of it but one unit."""
    found = []
    for device in (Device("cuda"), Device("cpu", threads=2)):
        case = Case(np.random.default_rng(5), device, DEFAULT)
        monkeypatch.setattr(features_module, "tokens_of_pair", lambda *_, case=case: case.made)
        pair = case.run(Joined(0, 0.0))
        found.append([device.download(a) for a in (pair.fixed, pair.moving, pair.fixed_weight)])
    for on_device, on_cpu in zip(*found, strict=True):
        largest = np.abs(on_cpu.astype(np.float32)).max()
        assert largest > 0.1
        np.testing.assert_allclose(on_device, on_cpu, atol=2e-3 * largest, rtol=0)
