"""Where tokens are kept beyond a registration: the cache on disk, and the memory of the GPU."""

from __future__ import annotations

import numpy as np

from ..config.parameters import RegistrationConfig
from ..device.choice import Device
from ..device.limits import cache_folder
from ..device.shared import end_of_use, shared_empty
from ..types import Array
from .cache import TokenCache
from .open_encoders import EncoderPool
from .token_writer import WRITER
from .tokens import PatchTokens


class TokenStores:
    """Finds and keeps the tokens of one registration's images.

    At its end as a context manager, it orders later uses of the tokens' memory after the work here.
    """

    def __init__(self, encoders: EncoderPool, config: RegistrationConfig, device: Device) -> None:
        self._encoders, self._config, self._device = encoders, config, device
        self._cache = token_cache(config)
        self._keeps = encoders.keeps and device.kind == "cuda"
        self._used: list[Array] = []

    def wants_key(self, *, fixed: bool) -> bool:
        """Return whether the tokens of an image may be kept anywhere, which needs their name."""
        return self._cache is not None or (fixed and self._keeps)

    def room(self, shape: tuple[int, int, int, int]) -> Array:
        """Return an array for tokens on the device, which other registrations may use later."""
        array = shared_empty(self._device, shape, np.float16)
        self._used.append(array)
        return array

    def find(self, key: str, shape: tuple[int, int, int, int], *, keep: bool) -> Array | None:
        """Return tokens that are kept on the device, on their way to the cache, or in it.

        With `keep`, those from the cache stay on the device.
        """
        found = self._encoders.kept.find(key, self._device) if self._keeps else None
        if found is None and self._cache is not None:
            found = WRITER.find(self._cache, key, self._device)
        if found is not None:
            self._used.append(found)
            return found
        stored = None if self._cache is None else self._cache.load(key, shape)
        if stored is None or not (keep and self._keeps):
            return stored
        found = self.room(shape)
        for i, part in enumerate(stored):
            found[i] = self._device.upload(part, np.float16)
        self.keep(key, found)
        return found

    def write(self, key: str, tokens: PatchTokens) -> None:
        """Begin to write tokens to the cache, if there is one."""
        if self._cache is not None:
            budget = int(self._config.token_memory_gb * 2**30)
            WRITER.write(self._cache, key, tokens, self._device, budget, self._encoders.within)

    def keep(self, key: str, tokens: Array) -> None:
        """Keep finite tokens of a fixed image if they lie on the device."""
        if self._keeps and not isinstance(tokens, np.ndarray):
            limit = self._config.gpu_memory_gb
            budget = None if limit is None else int(limit * 2**30)
            self._encoders.kept.keep(key, tokens, self._device, budget)

    def release(self) -> None:
        """Note that nothing more will be queued here that reads the tokens handed out so far."""
        for array in self._used:
            end_of_use(array, self._device)
        self._used.clear()

    def __enter__(self) -> TokenStores:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def token_cache(config: RegistrationConfig) -> TokenCache | None:
    """Return the token cache of a configuration, if it wants one."""
    return TokenCache(cache_folder(), int(config.cache_gb * 2**30)) if config.cache else None
