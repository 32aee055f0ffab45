"""The functions that `libdinoreg_host` calls, one for each of its own.

Each returns a status of ``dinoreg_host.h``, a text (an error message, or the report), and an object
that the library keeps. None raises. The library has checked that the structs at the given addresses
have the layout of this version.
"""

from __future__ import annotations

import ctypes
import functools
import sys
import threading
import tomllib
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from typing import Any

import numpy as np

from ..config.parameters import RegistrationConfig
from ..device.choice import Device
from ..device.placement import Placement
from ..errors import ConfigError, DeviceError, DinoregError, is_for_want_of_memory
from ..fields.warp import warp_labels
from ..io.arrays import as_numpy
from ..io.inputs import as_labels
from ..registration.future import RegistrationFuture
from ..registration.plan import Plan
from ..registration.registrar import Registrar
from ..registration.result import RegistrationResult
from ..run.report import build_report
from ..types import AffineTransform, Array, LabelMap, Volume
from .structs import (
    LOG,
    PROGRESS,
    Arguments,
    Result,
    VolumeStruct,
    affine_of,
    grid_of,
    host_output,
    volume_at,
)

#: Status, text, and the object that the library keeps.
Reply = tuple[int, str, Any]

_UNEXPECTED, _INVALID, _RESOURCE, _CANCELLED = 1, 2, 6, 130
_INFO, _WARNING = 20, 30
#: The volumes of `dr_registration_args` that `Registrar.register` takes by the same names.
_MASKS = ("fixed_mask", "moving_mask")
_INPUTS = ("fixed", "moving", *_MASKS, "weights")


#: Whether this thread is inside a callback of the host, from which a call could wait for itself.
_in_callback = threading.local()


def _replies(function: Callable[..., tuple[str, Any]]) -> Callable[..., Reply]:
    """Turn what a function returns or raises into a `Reply`."""

    @functools.wraps(function)
    def reply(*arguments: Any) -> Reply:
        if getattr(_in_callback, "now", False):
            return _INVALID, "a progress or log callback must not call this library", None
        try:
            return (0, *function(*arguments))
        except DinoregError as error:
            return error.exit_code, str(error), None
        except (CancelledError, KeyboardInterrupt):
            return _CANCELLED, "cancelled", None
        except BaseException as error:  # none may cross the C interface
            status = _RESOURCE if is_for_want_of_memory(error) else _UNEXPECTED
            return status, f"{type(error).__name__}: {error}", None

    return reply


@dataclass(frozen=True)
class _Request:
    """The content of `dr_registration_args`, as arguments of `Registrar.register`."""

    images: dict[str, Any]
    labels: LabelMap | None
    labels_at: int | None
    copies: dict[str, tuple[int, tuple[int, ...]]]
    log: Callable[[int, str], None]

    @classmethod
    def of(cls, address: int) -> _Request:
        """Read the struct; its pointers stay valid as `dinoreg_host.h` says."""
        args = Arguments.from_address(address)
        given = {name: getattr(args, name) for name in (*_INPUTS, "labels")}
        volumes = {name: volume_at(at[0], name) for name, at in given.items() if at}
        labels = volumes.pop("labels", None)
        masks = {name: _labels_of(volumes[name]) for name in _MASKS if name in volumes}
        more: dict[str, Any] = {"progress": _progress(args)}
        if args.initial:
            more["initial"] = AffineTransform(*affine_of(args.initial))
        if args.has_stream:
            more["stream"] = int(args.stream or 0)
        fixed, moving = (volumes[name].geometry.shape_zyx for name in ("fixed", "moving"))
        outputs = {"displacement": (*fixed, 3), "warped": fixed, "inverse": (*moving, 3)}
        copies = {}
        if args.outputs_on_cuda:
            more["placement"] = Placement(on_device=True)
            copies = {n: (getattr(args, n), s) for n, s in outputs.items() if getattr(args, n)}
        else:
            more["placement"] = Placement(
                displacement=host_output(args.displacement, *fixed, 3),
                warped=host_output(args.warped, *fixed),
                inverse=host_output(args.inverse, *moving, 3),
            )
        log = _log(args)
        more["on_plan"] = functools.partial(_log_choices, log)
        return cls(
            images=volumes | masks | more,
            labels=None if labels is None else as_labels(_labels_of(labels)),
            labels_at=args.warped_labels,
            copies=copies,
            log=log,
        )

    def finish(self, result: RegistrationResult, out: Result) -> str:
        """Fill in the remaining outputs and `out`, and return the report."""
        arrays = {
            "displacement": result.displacement.vectors_mm,
            "warped": result.warped.array,
            "inverse": None if result.inverse is None else result.inverse.vectors_mm,
        }
        for name, (address, shape) in self.copies.items():
            _copy_on_device(arrays[name], address, shape)
        if self.labels is not None and self.labels_at:
            device = Device("cpu", threads=max(1, result.config.threads))
            warped = warp_labels(self.labels, result.displacement, device=device).array
            labels = np.ascontiguousarray(warped, np.int32)
            ctypes.memmove(self.labels_at, labels.ctypes.data, labels.nbytes)
        for warning in result.warnings:
            self.log(_WARNING, warning)
        out.trusted = result.trust.verdict == "trusted"
        rows = np.column_stack([result.initial.matrix, result.initial.translation_mm])
        out.initial = (ctypes.c_double * 12)(*rows.ravel())
        report = build_report(
            result,
            command=[],
            started_at=datetime.now().astimezone(),
            inputs={},
            outputs={},
            timings_ms=result.timings_ms,
        )
        return report.to_json()


@dataclass(frozen=True)
class _Submitted:
    request: _Request
    future: RegistrationFuture


@_replies
def create(options: str, workers: int, library: str) -> tuple[str, Any]:
    """Make a `Registrar`.

    Args:
        options: parameters in TOML; `preset` names a preset to start from.
        workers: threads for submitted registrations.
        library: version of the C library, which must be that of this package.
    """
    if library != metadata.version("dinoreg-rt"):
        raise DeviceError(
            f"libdinoreg_host {library} was loaded beside dinoreg-rt "
            f"{metadata.version('dinoreg-rt')}; use the library that this package installed"
        )
    if not hasattr(sys, "argv"):
        sys.argv = [""]  # some libraries expect it, and an embedded interpreter has none
    try:
        values = tomllib.loads(options)
    except ValueError as error:
        raise ConfigError(f"the options are not TOML: {str(error)[:200]}") from error
    preset = values.pop("preset", None)
    if preset is not None and not isinstance(preset, str):
        raise ConfigError(f"preset = {preset!r}; wanted the name of a preset as a string")
    config = RegistrationConfig.from_sources(preset, overrides=values)
    return "", Registrar(config, workers=workers)


@_replies
def warm_up(registrar: Registrar, fixed: int, moving: int) -> tuple[str, Any]:
    """Prepare for grids like those of the volumes at two addresses, each of which may be 0."""
    grids = [
        grid_of(VolumeStruct.from_address(at), name) if at else None
        for at, name in ((fixed, "fixed"), (moving, "moving"))
    ]
    registrar.warm_up(*grids)
    return "", None


@_replies
def run(registrar: Registrar, arguments: int, result: int) -> tuple[str, Any]:
    """Register, and fill in the caller's outputs and the `Result` at an address."""
    request = _Request.of(arguments)
    registered = registrar.register(**request.images)
    return request.finish(registered, Result.from_address(result)), None


@_replies
def submit(registrar: Registrar, arguments: int) -> tuple[str, Any]:
    """Start a registration in a thread of the registrar."""
    request = _Request.of(arguments)
    return "", _Submitted(request, registrar.submit(**request.images))


@_replies
def wait(submitted: _Submitted, result: int) -> tuple[str, Any]:
    """Wait for a registration, and fill in its outputs and the `Result` at an address."""
    try:
        registered = submitted.future.result()
    finally:
        submitted.future.wait_until_idle()  # the caller's memory is in use until then
    return submitted.request.finish(registered, Result.from_address(result)), None


@_replies
def cancel(submitted: _Submitted) -> tuple[str, Any]:
    """Stop a registration at its next report of progress."""
    submitted.future.cancel()
    return "", None


@_replies
def abandon(submitted: _Submitted) -> tuple[str, Any]:
    """Stop a registration and wait until it no longer uses the caller's memory."""
    submitted.future.cancel()
    submitted.future.wait_until_idle()
    return "", None


@_replies
def close(registrar: Registrar) -> tuple[str, Any]:
    """Cancel what was submitted, wait for its end, and close the encoder."""
    registrar.close(cancel=True)
    return "", None


def _labels_of(volume: Volume) -> LabelMap:
    return LabelMap(as_numpy(volume.array), volume.geometry, volume.pixel_type, volume.name)


def _progress(args: Arguments) -> Callable[[str, float], None] | None:
    if not args.progress:
        return None
    call, user = PROGRESS(args.progress), args.user

    def report(stage: str, fraction: float) -> None:
        if _called(call, user, stage.encode(), fraction):
            raise CancelledError

    return report


def _log(args: Arguments) -> Callable[[int, str], None]:
    if not args.log:
        return lambda level, text: None
    call, user = LOG(args.log), args.user
    return lambda level, text: _called(call, user, level, text.encode())


def _called(callback: Callable[..., Any], *arguments: Any) -> Any:
    _in_callback.now = True
    try:
        return callback(*arguments)
    finally:
        _in_callback.now = False


def _log_choices(log: Callable[[int, str], None], plan: Plan) -> None:
    for name, choice in plan.choices.items():
        log(_INFO, f"{name}: {choice}")


def _copy_on_device(array: Array | None, address: int, shape: tuple[int, ...]) -> None:
    """Copy a result on a GPU into the caller's memory there, once it is computed."""
    import cupy

    if array is None:
        return
    memory = cupy.cuda.UnownedMemory(address, array.nbytes, owner=None)
    out = cupy.ndarray(shape, np.float32, cupy.cuda.MemoryPointer(memory, 0))
    cupy.copyto(out, array)
    cupy.cuda.get_current_stream().synchronize()
