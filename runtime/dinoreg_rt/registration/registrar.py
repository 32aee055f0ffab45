"""`Registrar`: registers many pairs and opens the encoder only once."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from ..align.initial import SEARCHES
from ..config.parameters import RegistrationConfig, checked_config
from ..device.choice import Device
from ..device.recording import Sessions, Turns
from ..device.streams import caller_stream
from ..encoder.open_encoders import EncoderPool
from ..errors import ConfigError, DinoregError
from ..images.fixed_work import FixedWork
from ..images.phantom import phantom_grid, phantom_pair
from ..io import as_labels, as_volume
from ..types import AffineTransform, Geometry
from .demands import check_demands
from .future import PairLike, RegistrationFuture, in_order
from .plan import Plan
from .register import register
from .result import RegistrationResult
from .running import ProgressCallback

if TYPE_CHECKING:
    from ..device.placement import Placement
    from ..io import ImageLike, LabelsLike

_WARM_UP_SHAPE_ZYX = (48, 48, 48)
#: How optional inputs are read when they are submitted.
_READERS: dict[str, Callable[..., Any]] = {
    "fixed_mask": partial(as_labels, mask=True),
    "moving_mask": partial(as_labels, mask=True),
    "weights": partial(as_volume, constant=True),
}


def _read_now(image: Any, read: Callable[[Any], Any]) -> Any:
    """Return an image that no longer depends on the caller's object, or a path as it is."""
    return image if isinstance(image, str | os.PathLike) else read(image)


class Registrar:
    """Registers many pairs with one configuration and opens the encoder only once.

    Several threads may use it at once. As a context manager it is closed at the end::

        with dinoreg_rt.Registrar(config) as registrar:
            registrar.warm_up()
            for fixed, moving in pairs:
                result = registrar.register(fixed, moving)

    Args:
        config: parameters of all registrations (default: the preset ``mind``).
        workers: number of submitted pairs that are worked on at a time. On a CPU one registration
            uses all threads of the configuration, so more than one worker gains little there. On a
            GPU, one more pair is planned at the same time.
        graphs: on a GPU the stages of a registration are recorded as CUDA graphs, from the second
            pair of a shape on, except on a blocking stream of the caller. This is the number of
            graphs that are kept for each stream, those used last; each shape takes one for each
            stage. 0 records nothing.
        cuda_context: makes a CUDA context current while a thread works here, for programs that
            manage contexts themselves; see `dinoreg_rt.device.pycuda_context`.

    Raises:
        DeviceError: the device or engine of the configuration cannot be used.
        InputError: the encoder of the configuration does not exist.
        ConfigError: an option has no effect on this device, or `workers` is not positive, or
            `graphs` is not 0..1024.
    """

    def __init__(
        self,
        config: RegistrationConfig | None = None,
        *,
        workers: int = 1,
        graphs: int = 64,
        cuda_context: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> None:
        config = checked_config(config)
        if not isinstance(workers, int) or workers < 1:
            raise ConfigError(f"workers = {workers!r}; wanted a whole number of at least 1")
        if not isinstance(graphs, int) or not 0 <= graphs <= 1024:
            raise ConfigError(f"graphs = {graphs!r}; wanted a whole number from 0 to 1024")
        self._entered = cuda_context or nullcontext
        with self._entered():
            self._device = check_demands(config)
        self._config = config
        self._encoders = EncoderPool(self._entered, keeps=True)
        # A GPU's memory is for the registration; an image on the host is quickly uploaded again.
        self._fixed_work = FixedWork() if self._device.kind == "cpu" else None
        self._sessions = Sessions(graphs)
        self._most_in_flight = workers + 1
        self._turns = Turns(workers)
        # On a GPU the host can plan one pair while it waits for another.
        threads = workers if self._device.kind == "cpu" else workers + 1
        self._workers = ThreadPoolExecutor(threads, thread_name_prefix="registrar")
        self._pending: set[RegistrationFuture] = set()
        self._lock = threading.Lock()
        self._closed = False

    @property
    def device(self) -> Device:
        """The device on which registrations run; what ``auto`` chose."""
        return self._device

    @property
    def config(self) -> RegistrationConfig:
        """The parameters of all registrations."""
        return self._config

    def warm_up(self, fixed: Geometry | None = None, moving: Geometry | None = None) -> None:
        """Open the encoder, load the kernels and reserve memory by registering a synthetic pair.

        Args:
            fixed: grid of the fixed images to come (default: a small grid). Memory is reserved for
                its size, and its slices decide which graph of the encoder is opened.
            moving: grid of the moving images to come (default: `fixed`).
        """
        grid = fixed or phantom_grid(_WARM_UP_SHAPE_ZYX, 4.0)
        # On a GPU the search for the alignment has kernels of its own to load.
        searches = self._device.kind == "cuda" and self._config.initial in SEARCHES
        initial = self._config.initial if searches else "none"
        # Cached tokens would leave the encoder closed.
        config = self._config.changed(cache=False, initial=initial)
        first, second = phantom_pair(grid, moving)
        self._check_open()
        with self._working(None):
            register(first, second, config=config, **self._kept)
        self._encoders.make_room()  # the phantom's tokens are of no use

    def register(  # noqa: PLR0913 - all but the images by name
        self,
        fixed: ImageLike,
        moving: ImageLike,
        *,
        config: RegistrationConfig | None = None,
        fixed_mask: LabelsLike | None = None,
        moving_mask: LabelsLike | None = None,
        weights: ImageLike | None = None,
        initial: AffineTransform | None = None,
        progress: ProgressCallback | None = None,
        on_plan: Callable[[Plan], None] | None = None,
        keep_features: bool = False,
        placement: Placement | None = None,
        stream: Any = None,
    ) -> RegistrationResult:
        """Register `moving` to `fixed`; see `dinoreg_rt.register` for the shared arguments.

        `stream` is a CUDA stream of the caller on which the work is done: a handle, or a stream of
        CuPy, PyTorch, Numba or PyCUDA. By default it is CuPy's current stream, or, if that is a
        default stream, a new stream that waits for it. The result is complete when this returns.
        `config` replaces the registrar's parameters for this pair; the device must be the same.

        Raises:
            DinoregError: as `dinoreg_rt.register`; also if this registrar is closed.
        """
        self._check_open()
        return self._register(
            fixed,
            moving,
            config=config,
            stream=stream,
            fixed_mask=fixed_mask,
            moving_mask=moving_mask,
            weights=weights,
            initial=initial,
            progress=progress,
            on_plan=on_plan,
            keep_features=keep_features,
            placement=placement,
        )

    def submit(
        self,
        fixed: ImageLike,
        moving: ImageLike,
        *,
        progress: ProgressCallback | None = None,
        **more: Any,
    ) -> RegistrationFuture:
        """Start `register` in a thread of this registrar and return at once.

        Files are read in that thread. Everything else is checked and read here: a SimpleITK image
        may be changed afterwards. Arrays are not copied, so they must not change before the result
        is complete. The check of a device array waits for the work queued on CuPy's current stream
        (on the producer's stream with DLPack), and thereby until the array is filled.

        Args:
            fixed: the fixed image.
            moving: the moving image.
            progress: called in that thread.
            **more: further arguments of `register`.

        Raises:
            DinoregError: this registrar is closed, or an image, mask or weights cannot be used.
        """
        self._check_open()
        with self._entered():
            fixed, moving = _read_now(fixed, as_volume), _read_now(moving, as_volume)
            more |= {
                name: _read_now(more[name], read)
                for name, read in _READERS.items()
                if more.get(name) is not None
            }
        future = RegistrationFuture()

        def report(stage: str, fraction: float) -> None:
            future._stop_if_cancelled()
            if progress is not None:
                progress(stage, fraction)

        def work() -> RegistrationResult:
            with self._turns.awaited():
                return self._register(fixed, moving, progress=report, turn=self._turns, **more)

        with self._lock:
            self._check_open()
            self._pending.add(future)
            self._workers.submit(future._run, work)
        future.add_done_callback(self._forget)
        return future

    def register_many(self, pairs: Iterable[PairLike], **more: Any) -> Iterator[RegistrationFuture]:
        """Register many pairs and yield their results in order.

        ::

            for future in registrar.register_many(pairs):
                result = future.result()

        On a GPU the next pair is planned while the device works on one, and pairs of one shape run
        as graphs that are recorded once. At most `workers` + 1 pairs are taken from `pairs` before
        the result of the first of them is asked for. When the iteration is left early, those pairs
        are cancelled.

        Args:
            pairs: (fixed, moving), or dictionaries with the arguments of `register`.
            **more: further arguments of `register` for all pairs.

        Returns:
            A completed future for each pair: its `result` returns the result or raises the error
            of that pair, whichever it is, and the others are not affected.

        Raises:
            DinoregError: this registrar is closed.
        """
        self._check_open()
        return in_order(partial(self.submit, **more), pairs, self._most_in_flight)

    def close(self, *, cancel: bool = False) -> None:
        """Wait for submitted registrations, then close the encoder. May be called again.

        Calls of `register` in other threads are not waited for.

        Args:
            cancel: cancel submitted registrations instead of waiting for their results.
        """
        with self._lock:
            self._closed = True
            pending = list(self._pending) if cancel else []
        for future in pending:
            future.cancel()
        self._workers.shutdown(wait=True)
        with self._entered():
            self._encoders.close()
            self._sessions.close()

    def __enter__(self) -> Registrar:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(cancel=kind is not None)

    def _register(
        self,
        fixed: ImageLike,
        moving: ImageLike,
        *,
        config: RegistrationConfig | None = None,
        stream: Any = None,
        **more: Any,
    ) -> RegistrationResult:
        config = self._config_of_pair(config)
        with self._working(stream):
            return register(
                fixed, moving, config=config, fixed_work=self._fixed_work, **self._kept, **more
            )

    @property
    def _kept(self) -> dict[str, Any]:
        """What all registrations share, whatever the images."""
        return {"encoders": self._encoders, "sessions": self._sessions}

    def _config_of_pair(self, config: RegistrationConfig | None) -> RegistrationConfig:
        if config is None:
            return self._config
        if config.device != self._config.device:
            raise ConfigError(
                f"device = {config.device}; this registrar works on {self._config.device}: give "
                "the same device, or make another registrar"
            )
        return config

    @contextmanager
    def _working(self, stream: Any) -> Iterator[None]:
        """Enter the right CUDA context and stream."""
        with self._entered(), caller_stream(stream, self._device):
            try:
                yield
            except BaseException:
                # What was queued before it still reads the images. A success has waited for it.
                with suppress(Exception), self._device.active():
                    self._device.synchronize()
                raise

    def _check_open(self) -> None:
        if self._closed:
            raise DinoregError("this registrar is closed; make a new one")

    def _forget(self, future: Future[RegistrationResult]) -> None:
        with self._lock:
            self._pending.discard(future)
