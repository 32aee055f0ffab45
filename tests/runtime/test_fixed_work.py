"""One fixed image, many moving ones: its work is done once, with the same bits."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from phantoms import make_grid, make_phantom

import dinoreg_rt
import dinoreg_rt.align.coarse as coarse
import dinoreg_rt.registration.planning as planning
from dinoreg_rt.features.mind import MindFeatures
from dinoreg_rt.io.hashes import content_hash
from dinoreg_rt.run.session import Session

CONFIG = dinoreg_rt.RegistrationConfig(
    device="cpu", threads=2, iterations=(3,), working_megavoxels=0.05
)


@pytest.fixture(scope="module")
def pair():
    grid = make_grid((24, 24, 24), (4.0, 4.0, 4.0))
    return make_phantom(grid, grid)


@pytest.fixture
def counted(monkeypatch):
    """How often each kind of work is done on the fixed image."""
    counts = Counter()

    def count(module, name, is_fixed):
        real = getattr(module, name)

        def counting(*args, **more):
            counts[name] += is_fixed(args)
            return real(*args, **more)

        monkeypatch.setattr(module, name, counting)

    count(planning, "examine", lambda args: args[0] == "fixed")
    count(coarse, "coarse_image", lambda args: args[0].role == "fixed")
    count(MindFeatures, "of_image", lambda args: bool(args[1].kept.sha256))
    return counts


def bits(result):
    arrays = (result.displacement.vectors_mm, result.warped.array)
    return [np.asarray(array).tobytes() for array in arrays], repr(result.quality), result.hashes


def test_the_fixed_image_is_examined_once_and_the_bits_are_the_same(pair, counted):
    others = [pair.moving, replace(pair.moving, array=pair.moving.array[::-1].copy()), pair.fixed]
    alone = [bits(dinoreg_rt.register(pair.fixed, other, config=CONFIG)) for other in others]
    counted.clear()
    with dinoreg_rt.Registrar(CONFIG) as registrar:
        together = [bits(registrar.register(pair.fixed, other)) for other in others]
    assert together == alone
    assert counted == {"examine": 1, "coarse_image": 1, "of_image": 1}


def test_a_changed_image_mask_or_parameter_is_not_taken_for_the_earlier_one(pair, counted):
    array = pair.fixed.array.copy()
    fixed = replace(pair.fixed, array=array)
    mask = np.zeros(array.shape, np.uint8)
    mask[:, 4:] = 1
    grid = pair.fixed.geometry
    with dinoreg_rt.Registrar(CONFIG) as registrar:
        registrar.register(fixed, pair.moving)
        array += 40 * np.arange(24, dtype=np.float32)  # in place, as a caller may
        changed = registrar.register(fixed, pair.moving)
        masked = registrar.register(fixed, pair.moving, fixed_mask=(mask, grid))
        more = {"config": CONFIG.changed(mr_percentile=95.0)}
        windowed = registrar.register(fixed, pair.moving, **more)
    assert counted["examine"] == 4
    assert changed.hashes["fixed"] == content_hash(fixed)
    assert bits(changed) == bits(dinoreg_rt.register(fixed, pair.moving, config=CONFIG))
    alone = dinoreg_rt.register(fixed, pair.moving, config=CONFIG, fixed_mask=(mask, grid))
    assert bits(masked) == bits(alone)
    assert bits(windowed) == bits(dinoreg_rt.register(fixed, pair.moving, **more))


def test_parameters_of_one_pair_cannot_change_the_device(pair):
    with (
        dinoreg_rt.Registrar(CONFIG) as registrar,
        pytest.raises(dinoreg_rt.DinoregError, match="this registrar works on cpu"),
    ):
        registrar.register(pair.fixed, pair.moving, config=CONFIG.changed(device="auto"))


def test_a_session_reads_a_fixed_image_again_only_where_its_file_has_changed(tmp_path):
    file, read = tmp_path / "fixed.nrrd", []

    def reading(path):
        read.append(path)
        return path.read_bytes()

    def of(session, role="fixed", orientation="auto"):
        return session.read(orientation, role, file, reading)

    file.write_bytes(b"one")
    with dinoreg_rt.Registrar(CONFIG) as registrar:
        session = Session(registrar)
        assert [of(session), of(session)] == [b"one", b"one"]
        assert len(read) == 1
        file.write_bytes(b"another")
        assert of(session) == b"another"
        assert len(read) == 2
        of(session, orientation="qform")
        of(session, role="moving")
        of(session, role="moving")
        assert len(read) == 5
    of(Session())
    of(Session())
    assert len(read) == 7
