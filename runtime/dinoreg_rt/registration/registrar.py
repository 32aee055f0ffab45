"""`Registrar`: everything loaded once, for programs that register many pairs."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

from ..config.parameters import RegistrationConfig, checked_config
from ..device.choice import Device
from ..device.streams import caller_stream
from ..encoder.open_encoders import EncoderPool
from ..errors import ConfigError, DinoregError
from ..images.phantom import phantom_grid, phantom_pair
from ..io import as_labels, as_volume
from ..types import Geometry
from .demands import check_demands
from .plan import Plan
from .register import ProgressCallback, register
from .result import RegistrationResult

if TYPE_CHECKING:
    from ..device.placement import Placement
    from ..io import ImageLike, LabelsLike

_WARM_UP_SHAPE_ZYX = (48, 48, 48)
#: What else of a caller's is taken when it is submitted, and how.
_TAKEN: dict[str, Callable[..., Any]] = {
    "fixed_mask": partial(as_labels, mask=True),
    "moving_mask": partial(as_labels, mask=True),
    "weights": partial(as_volume, constant=True),
}


def _taken(image: Any, take: Callable[[Any], Any]) -> Any:
    """An image that no longer depends on the caller's object; a path as it is."""
    return image if isinstance(image, str | os.PathLike) else take(image)


class RegistrationFuture(Future[RegistrationResult]):
    """A result that is on its way. `cancel` also ends a registration that is already running.

    It ends at the next report of progress: between stages, slices and iterations of the solver.
    """

    # While the work runs the future stays pending for its base class, which lets nothing else be
    # cancelled; `running` says what is true.
    _started = False

    def running(self) -> bool:
        """Whether a thread is working on it."""
        return self._started and not self.done()

    def _run(self, work: Callable[[], RegistrationResult]) -> None:
        self._started = True
        result, error = None, None
        try:
            if not self.cancelled():
                result = work()
        except BaseException as problem:  # whatever it is belongs to who asked for the result
            error = problem
        if not self.set_running_or_notify_cancel():
            return
        if error is not None:
            self.set_exception(error)
        elif result is not None:
            self.set_result(result)

    def _stop_if_cancelled(self) -> None:
        if self.cancelled():
            raise CancelledError


class Registrar:
    """Registers many pairs with one configuration; the encoder is opened once and kept.

    May be used from several threads at once. As a context manager it is closed at the end::

        with dinoreg_rt.Registrar(config) as registrar:
            registrar.warm_up()
            for fixed, moving in pairs:
                result = registrar.register(fixed, moving)

    Args:
        config: parameters of all registrations (default: the preset ``mind``).
        workers: threads that work on what `submit` takes. On a CPU a registration uses all threads
            of the configuration by itself, so that more than one worker gains little there.
        cuda_context: makes a device's primary CUDA context current while a thread works here, as
            a host program wants it; see `dinoreg_rt.device.pycuda_context`.

    Raises:
        DeviceError: the device or the engine that the configuration names cannot be used.
        InputError: it names an encoder that is not there.
        ConfigError: an option that would have no effect there, or no worker.
    """

    def __init__(
        self,
        config: RegistrationConfig | None = None,
        *,
        workers: int = 1,
        cuda_context: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> None:
        config = checked_config(config)
        if not isinstance(workers, int) or workers < 1:
            raise ConfigError(f"workers = {workers!r}; wanted a whole number from 1")
        self._entered = cuda_context or nullcontext
        with self._entered():
            self._device = check_demands(config)
        self._config = config
        self._encoders = EncoderPool()
        self._workers = ThreadPoolExecutor(workers, thread_name_prefix="registrar")
        self._pending: set[RegistrationFuture] = set()
        self._lock = threading.Lock()
        self._closed = False

    @property
    def device(self) -> Device:
        """Where the work is done; what ``auto`` chose."""
        return self._device

    @property
    def config(self) -> RegistrationConfig:
        """Of all registrations."""
        return self._config

    def warm_up(self, fixed: Geometry | None = None, moving: Geometry | None = None) -> None:
        """Open the encoder, load the kernels and reserve memory, by registering a made-up pair.

        Args:
            fixed: grid of the images to come (default: a small one). Memory is reserved for
                its size, and the encoder's graph chosen by the shape of its slices.
            moving: of the moving images (default: as `fixed`).
        """
        grid = fixed or phantom_grid(_WARM_UP_SHAPE_ZYX, 4.0)
        # From the cache of tokens nothing would have to be encoded.
        config = self._config.changed(cache=False, initial="none")
        first, second = phantom_pair(grid, moving)
        self._check_open()
        with self._working(None):
            register(first, second, config=config, encoders=self._encoders)

    def register(  # noqa: PLR0913 - all but the images by name
        self,
        fixed: ImageLike,
        moving: ImageLike,
        *,
        fixed_mask: LabelsLike | None = None,
        moving_mask: LabelsLike | None = None,
        weights: ImageLike | None = None,
        progress: ProgressCallback | None = None,
        on_plan: Callable[[Plan], None] | None = None,
        keep_features: bool = False,
        placement: Placement | None = None,
        stream: Any = None,
    ) -> RegistrationResult:
        """Register `moving` to `fixed`; other arguments as of `dinoreg_rt.register`.

        Args:
            stream: CUDA stream of the caller on which the work is done: a handle, or a stream of
                CuPy, PyTorch, Numba or PyCUDA (default: CuPy's current one; if that is a default
                stream, one of ours behind it). The result is complete when this returns.

        Raises:
            DinoregError: as `dinoreg_rt.register`; also when this was closed.
        """
        self._check_open()
        return self._register(
            fixed,
            moving,
            stream=stream,
            fixed_mask=fixed_mask,
            moving_mask=moving_mask,
            weights=weights,
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
        """As `register`, at once: the result comes later, from a thread of this registrar.

        Files are read in that thread. Everything else is checked and taken here: a SimpleITK image
        may be changed afterwards. Arrays are used where they are, so they must stay as they are
        until the result is there.

        Args:
            fixed: the fixed image.
            moving: the moving image.
            progress: called in that thread.
            more: further arguments of `register`.

        Raises:
            DinoregError: this was closed, or images, masks or weights that cannot be used.
        """
        self._check_open()
        with self._entered():
            fixed, moving = _taken(fixed, as_volume), _taken(moving, as_volume)
            more |= {
                name: _taken(more[name], take)
                for name, take in _TAKEN.items()
                if more.get(name) is not None
            }
        future = RegistrationFuture()

        def report(stage: str, fraction: float) -> None:
            future._stop_if_cancelled()
            if progress is not None:
                progress(stage, fraction)

        def work() -> RegistrationResult:
            return self._register(fixed, moving, progress=report, **more)

        with self._lock:
            self._check_open()
            self._pending.add(future)
            self._workers.submit(future._run, work)
        future.add_done_callback(self._forget)
        return future

    def close(self, *, cancel: bool = False) -> None:
        """Wait for what was submitted, then let go of the encoder. May be called again.

        Calls of `register` in other threads are left to end by themselves.

        Args:
            cancel: end what was submitted instead of waiting for its results.
        """
        with self._lock:
            self._closed = True
            pending = list(self._pending) if cancel else []
        for future in pending:
            future.cancel()
        self._workers.shutdown(wait=True)
        with self._entered():
            self._encoders.close()

    def __enter__(self) -> Registrar:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(cancel=kind is not None)

    def _register(
        self, fixed: ImageLike, moving: ImageLike, *, stream: Any = None, **more: Any
    ) -> RegistrationResult:
        with self._working(stream):
            return register(fixed, moving, config=self._config, encoders=self._encoders, **more)

    @contextmanager
    def _working(self, stream: Any) -> Iterator[None]:
        """In the right CUDA context and on the right stream."""
        with self._entered(), caller_stream(stream, self._device):
            yield

    def _check_open(self) -> None:
        if self._closed:
            raise DinoregError("this registrar is closed; make a new one")

    def _forget(self, future: Future[RegistrationResult]) -> None:
        with self._lock:
            self._pending.discard(future)
