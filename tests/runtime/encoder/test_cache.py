"""Tokens kept for the next pair: whole entries, limited in size, damaged ones made anew."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from dinoreg_rt.bundle.opened import models_folder
from dinoreg_rt.device.limits import cache_folder
from dinoreg_rt.encoder.cache import TokenCache, cache_key
from dinoreg_rt.engines.trt.folder import engines_folder
from dinoreg_rt.errors import InputError

SHAPE = (3, 4, 5, 6)


@pytest.fixture
def entry(rng) -> np.ndarray:
    return rng.normal(size=SHAPE).astype(np.float16)


def size_of(cache: TokenCache) -> int:
    return sum(file.stat().st_size for file in cache.folder.iterdir())


def test_what_comes_back_is_what_was_stored(tmp_path, entry) -> None:
    cache = TokenCache(tmp_path / "cache", 1 << 20)
    assert cache.load("key", SHAPE) is None
    assert cache.store("key", SHAPE, entry)
    np.testing.assert_array_equal(cache.load("key", SHAPE), entry)
    assert sorted(p.name for p in cache.folder.iterdir()) == ["key.npy", "key.npz"]


def test_keys_tell_everything_apart() -> None:
    base = {"image": "a", "bundle": "b", "window": [0.0, 1.0]}
    keys = {cache_key(**base)} | {cache_key(**base | {k: "other"}) for k in base}
    assert len(keys) == 4
    assert cache_key(**dict(reversed(base.items()))) == cache_key(**base)


def test_an_entry_of_another_shape_is_none(tmp_path, entry) -> None:
    cache = TokenCache(tmp_path, 1 << 20)
    cache.store("key", SHAPE, entry)
    assert cache.load("key", (4, 4, 5, 6)) is None


@pytest.mark.parametrize("file", ["key.npy", "key.npz"])
@pytest.mark.parametrize("damage", [b"", b"not an array", None])
def test_a_damaged_entry_is_removed(tmp_path, entry, file, damage) -> None:
    cache = TokenCache(tmp_path, 1 << 20)
    cache.store("key", SHAPE, entry)
    path = tmp_path / file
    path.write_bytes(path.read_bytes()[:100] if damage is None else damage)
    assert cache.load("key", SHAPE) is None
    assert not list(tmp_path.iterdir())


def test_the_oldest_make_room(tmp_path, entry) -> None:
    cache = TokenCache(tmp_path, 1 << 20)
    cache.store("a", SHAPE, entry)
    one = size_of(cache)
    small = TokenCache(tmp_path, int(2.5 * one))
    small.store("b", SHAPE, entry)
    for age, name in enumerate(["b", "a"]):  # a was used last
        for end in (".npy", ".npz"):
            os.utime(tmp_path / f"{name}{end}", (1000 + age, 1000 + age))
    small.store("c", SHAPE, entry)
    assert small.load("b", SHAPE) is None
    assert small.load("a", SHAPE) is not None
    assert small.load("c", SHAPE) is not None
    assert size_of(small) <= 2.5 * one


def test_reading_counts_as_use(tmp_path, entry) -> None:
    cache = TokenCache(tmp_path, 1 << 20)
    cache.store("a", SHAPE, entry)
    os.utime(tmp_path / "a.npy", (1000, 1000))
    cache.load("a", SHAPE)
    assert (tmp_path / "a.npy").stat().st_mtime > 1000


def test_too_large_or_unwritable_is_not_stored(tmp_path, entry) -> None:
    assert not TokenCache(tmp_path / "small", 100).store("key", SHAPE, entry)
    assert not (tmp_path / "small").exists()
    (tmp_path / "file").write_text("in the way")
    assert not TokenCache(tmp_path / "file", 1 << 20).store("key", SHAPE, entry)


def test_a_changed_token_invalidates_the_entry(tmp_path, entry) -> None:
    cache = TokenCache(tmp_path, 1 << 20)
    cache.store("key", SHAPE, entry)
    path = tmp_path / "key.npy"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    assert cache.load("key", SHAPE) is None
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file", ["key.npy", "key.npz"])
def test_random_damage_invalidates_the_entry(tmp_path, entry, rng, file) -> None:
    """NumPy's and zipfile's readers raise anything at all for a damaged header."""
    cache = TokenCache(tmp_path, 1 << 20)
    cache.store("key", SHAPE, entry)
    whole = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for _ in range(200):
        for path, content in whole.items():
            path.write_bytes(content)
        data = bytearray(whole[tmp_path / file])
        for place in rng.integers(0, min(len(data), 400), 3):
            data[place] = rng.integers(256)
        (tmp_path / file).write_bytes(data)
        found = cache.load("key", SHAPE)
        if found is not None:  # of no consequence: an unused byte of a header
            np.testing.assert_array_equal(found, entry)


def test_a_folder_that_cannot_be_read_holds_nothing(tmp_path, entry, monkeypatch) -> None:
    long = TokenCache(tmp_path / ("x" * 300), 1 << 20)
    assert long.load("key", SHAPE) is None
    assert not long.store("key", SHAPE, entry)

    def locked(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    cache = TokenCache(tmp_path / "locked", 1 << 20)
    cache.store("key", SHAPE, entry)
    monkeypatch.setattr(os, "stat", locked)
    assert cache.load("key", SHAPE) is None


def test_files_of_a_killed_writer_are_removed(tmp_path, entry, monkeypatch) -> None:
    cache = TokenCache(tmp_path, 1 << 20)

    def fail(*_: object) -> None:
        raise OSError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # a killed process cleans nothing up
        assert not cache.store("key", SHAPE, entry)
    (left,) = tmp_path.iterdir()
    cache.store("key", SHAPE, entry)
    assert left.exists()  # it could be another writer's
    os.utime(left, (1000, 1000))
    cache.store("key", SHAPE, entry)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["key.npy", "key.npz"]


def test_no_home_is_an_error_that_says_what_to_set(monkeypatch) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    for folder, variable in (
        (cache_folder, "DINOREG_CACHE"),
        (models_folder, "DINOREG_MODELS"),
        (engines_folder, "DINOREG_ENGINES"),
    ):
        monkeypatch.delenv(variable, raising=False)
        with pytest.raises(InputError, match=f"set HOME, or {variable} to a folder"):
            folder()
        monkeypatch.setenv(variable, "/some/where")
        assert folder() == Path("/some/where")
