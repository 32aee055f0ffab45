"""Tokens kept for the next pair: whole entries, limited in size, damaged ones made anew."""

from __future__ import annotations

import os

import numpy as np
import pytest

from dinoreg_rt.encoder.cache import TokenCache, cache_key
from dinoreg_rt.encoder.pca import TokenMoments

SHAPE = (3, 4, 5, 6)


@pytest.fixture
def entry(rng) -> tuple[np.ndarray, TokenMoments]:
    tokens = rng.normal(size=SHAPE).astype(np.float16)
    return tokens, TokenMoments.of(tokens.reshape(-1, SHAPE[-1]))


def size_of(cache: TokenCache) -> int:
    return sum(file.stat().st_size for file in cache.folder.iterdir())


def test_what_comes_back_is_what_was_stored(tmp_path, entry) -> None:
    cache = TokenCache(tmp_path / "cache", 1 << 20)
    assert cache.load("key", SHAPE) is None
    assert cache.store("key", *entry)
    tokens, moments = cache.load("key", SHAPE)
    np.testing.assert_array_equal(tokens, entry[0])
    np.testing.assert_array_equal(moments.scatter, entry[1].scatter)
    np.testing.assert_array_equal(moments.mean, entry[1].mean)
    assert moments.count == 60
    assert sorted(p.name for p in cache.folder.iterdir()) == ["key.npy", "key.npz"]


def test_keys_tell_everything_apart() -> None:
    base = {"image": "a", "bundle": "b", "window": [0.0, 1.0]}
    keys = {cache_key(**base)} | {cache_key(**base | {k: "other"}) for k in base}
    assert len(keys) == 4
    assert cache_key(**dict(reversed(base.items()))) == cache_key(**base)


def test_an_entry_of_another_shape_is_none(tmp_path, entry) -> None:
    cache = TokenCache(tmp_path, 1 << 20)
    cache.store("key", *entry)
    assert cache.load("key", (4, 4, 5, 6)) is None


@pytest.mark.parametrize("file", ["key.npy", "key.npz"])
@pytest.mark.parametrize("damage", [b"", b"not an array", None])
def test_a_damaged_entry_is_taken_away(tmp_path, entry, file, damage) -> None:
    cache = TokenCache(tmp_path, 1 << 20)
    cache.store("key", *entry)
    path = tmp_path / file
    path.write_bytes(path.read_bytes()[:100] if damage is None else damage)
    assert cache.load("key", SHAPE) is None
    assert not list(tmp_path.iterdir())


def test_the_oldest_make_room(tmp_path, entry) -> None:
    cache = TokenCache(tmp_path, 1 << 20)
    cache.store("a", *entry)
    one = size_of(cache)
    small = TokenCache(tmp_path, int(2.5 * one))
    small.store("b", *entry)
    for age, name in enumerate(["b", "a"]):  # a was used last
        for end in (".npy", ".npz"):
            os.utime(tmp_path / f"{name}{end}", (1000 + age, 1000 + age))
    small.store("c", *entry)
    assert small.load("b", SHAPE) is None
    assert small.load("a", SHAPE) is not None
    assert small.load("c", SHAPE) is not None
    assert size_of(small) <= 2.5 * one


def test_reading_counts_as_use(tmp_path, entry) -> None:
    cache = TokenCache(tmp_path, 1 << 20)
    cache.store("a", *entry)
    os.utime(tmp_path / "a.npy", (1000, 1000))
    cache.load("a", SHAPE)
    assert (tmp_path / "a.npy").stat().st_mtime > 1000


def test_too_large_or_unwritable_is_not_stored(tmp_path, entry) -> None:
    assert not TokenCache(tmp_path / "small", 100).store("key", *entry)
    assert not (tmp_path / "small").exists()
    (tmp_path / "file").write_text("in the way")
    assert not TokenCache(tmp_path / "file", 1 << 20).store("key", *entry)
