"""Encoders that stay open from one registration to the next.

Opening an encoder reads and hashes gigabytes and compiles a graph, which takes seconds; running it
may take milliseconds.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..bundle.checkpoints import NOTHING_SPECIAL, Wanted, bundle_folder, is_checkpoint
from ..bundle.opened import Bundle, find_bundle, open_bundle
from ..engines.open import Encoder
from ..errors import DeviceError, InputError
from ..types import Array
from .kept_tokens import KeptTokens
from .token_writer import WRITER


class EncoderPool:
    """Bundles and encoder sessions, each opened once and kept until `close`.

    A session serves one thread at a time while others wait, or all threads at once if its encoder
    has a true attribute ``concurrent``. Cancelling ends a session of the first kind for good, and
    the next borrower opens a new one; a shared session stays open for its other borrowers. A
    session that failed is not used again.

    Attributes:
        within: makes the CUDA context of the registrations current in other threads.
        keeps: whether tokens of fixed images stay on the GPU between registrations.
        kept: these tokens.
    """

    def __init__(
        self,
        within: Callable[[], AbstractContextManager[Any]] | None = None,
        *,
        keeps: bool = False,
    ) -> None:
        self.within = within or nullcontext
        self.keeps, self.kept = keeps, KeptTokens()
        self._changed = threading.Condition()
        self._bundles: dict[Hashable, Bundle] = {}
        self._choices: dict[Hashable, tuple[str, str]] = {}
        self._opening = threading.Lock()
        self._open: dict[Hashable, Encoder] = {}
        self._busy: dict[Hashable, int] = {}
        self._closed = False

    def bundle(self, encoder: str, wanted: Wanted = NOTHING_SPECIAL) -> Bundle:
        """Return the bundle of a path or name; its hashes are checked the first time.

        Args:
            encoder: path or name of a bundle, or a checkpoint, which is exported into the cache
                unless it is there already.
            wanted: the token grid and layer of a checkpoint's bundle.

        Raises:
            InputError: the bundle or checkpoint does not exist, or the bundle was changed.
            DeviceError: a checkpoint was given and the export packages are not installed.
            OutputError: a checkpoint's bundle cannot be written.
        """
        with self._opening:
            if is_checkpoint(encoder):
                key: Hashable = (Path(encoder).resolve(), wanted)
                if key not in self._bundles:
                    self._bundles[key] = _exported(encoder, wanted)
            else:
                key = find_bundle(encoder).resolve()
                if key not in self._bundles:
                    self._bundles[key] = open_bundle(find_bundle(encoder))
            return self._bundles[key]

    def engine(self, key: Hashable, choose: Callable[[], tuple[str, str]]) -> tuple[str, str]:
        """Return an engine and the reason, chosen once for each key and kept until `close`.

        Args:
            key: all that the choice depends on.
            choose: chooses, which may open a session to see whether it can.
        """
        with self._opening:
            if key not in self._choices:
                self._choices[key] = choose()
            return self._choices[key]

    @contextmanager
    def borrowed(
        self, key: Hashable, make: Callable[[], Encoder], waiting: Callable[[], None]
    ) -> Iterator[Encoder]:
        """Borrow the encoder of a key while the block runs.

        Args:
            key: graph, engine and device; the same key means the same encoder.
            make: opens the encoder the first time.
            waiting: called several times a second while another thread has the encoder; may raise
                to give up.

        Raises:
            DeviceError: the pool is closed.
        """
        encoder = self._take(key, make, waiting)
        share = _Share(encoder) if _concurrent(encoder) else None
        usable = False
        try:
            yield share or encoder
            usable = True
        finally:
            self._give_back(key, encoder, usable=usable if share is None else not share.failed)

    def _take(
        self, key: Hashable, make: Callable[[], Encoder], waiting: Callable[[], None]
    ) -> Encoder:
        """Wait for the encoder of a key, or open it."""
        while not (ready := self._reserve(key)):
            waiting()
        if ready[0] is not None:
            return ready[0]
        try:
            made = make()
        except BaseException:
            self._give_back(key, None, usable=False)
            raise
        with self._changed:
            self._open[key] = made
            self._changed.notify_all()
        return made

    def _reserve(self, key: Hashable) -> tuple[Encoder | None] | None:
        """Return (encoder,) now reserved, (None,) if it must be opened, or None to try again."""
        with self._changed:
            if self._closed:
                raise DeviceError("the encoders of this registrar are closed; make a new registrar")
            encoder, users = self._open.get(key), self._busy.get(key, 0)
            if users and not (encoder is not None and _concurrent(encoder)):
                self._changed.wait(0.05)
                return None
            self._busy[key] = users + 1
            return (encoder,)

    def _give_back(self, key: Hashable, encoder: Encoder | None, *, usable: bool) -> None:
        """End a loan; an encoder that is not usable is dropped."""
        with self._changed:
            self._busy[key] -= 1
            if not usable and self._open.get(key) is encoder:
                self._open.pop(key, None)
            self._changed.notify_all()

    def holds(self, bundle: Bundle, engine: str) -> bool:
        """Return whether an encoder of this bundle is open on an engine, for any batch size."""
        with self._changed:
            keys = [key for key in self._open if isinstance(key, tuple)]
        return any((bundle.folder, engine) == (key[0], key[2]) for key in keys)

    def make_room(self) -> bool:
        """Free the GPU memory of tokens that are kept or being cached, waiting for the latter.

        Returns:
            Whether there were any.
        """
        writing = WRITER.wait()
        return self.kept.clear() or writing

    def close(self) -> None:
        """Wait until no encoder is in use, then close them all; may be called again.

        It also waits until the tokens that are being cached are written.
        """
        with self._changed:
            self._closed = True
            while any(self._busy.values()):
                self._changed.wait()
            encoders, self._open = list(self._open.values()), {}
            self._bundles, self._choices = {}, {}
        for encoder in encoders:
            with suppress(AttributeError):  # only engines with something to free have `close`
                encoder.close()  # type: ignore[attr-defined]
        self.make_room()

    def __enter__(self) -> EncoderPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _exported(encoder: str, wanted: Wanted) -> Bundle:
    """Return the bundle of a checkpoint; one that was changed in the cache is exported again."""
    folder = bundle_folder(encoder, wanted)
    try:
        opened = open_bundle(folder)
    except InputError:
        opened = open_bundle(bundle_folder(encoder, wanted, anew=True))
    return replace(opened, exported_from=encoder)


class _Share:
    """One borrower's share of a concurrent encoder; cancelling ends this share alone."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._cancelled = threading.Event()
        self.failed = False

    def encode(self, pixels: Array) -> Array:
        """Encode as `Encoder.encode` does."""
        if self._cancelled.is_set():
            raise DeviceError("the encoder was cancelled")
        try:
            return self._encoder.encode(pixels)
        except BaseException:
            self.failed = True
            raise

    def cancel(self) -> None:
        """Refuse further batches; one under way is finished."""
        self._cancelled.set()


def _concurrent(encoder: Encoder) -> bool:
    return bool(getattr(encoder, "concurrent", False))
