"""`Run`: what all stages of a registration share, and the device, stream and session they use."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..device.choice import StageTimer, library_errors
from ..device.recording import Sessions
from ..device.streams import working_stream
from .memory import device_memory_errors, reserved_memory
from .plan import Plan

#: Called with a stage's name and its finished fraction; an exception in it stops the run.
ProgressCallback = Callable[[str, float], None]


@dataclass(frozen=True, eq=False)
class Run:
    """The plan, the timer and the caller's progress callback, which all stages share."""

    plan: Plan
    timer: StageTimer
    report: ProgressCallback

    @contextmanager
    def on_device(self, sessions: Sessions | None) -> Iterator[None]:
        """Work on the plan's device and translate its errors.

        If there are sessions, one is lent: the timer records stages in it, and all memory comes
        from its pool.
        """
        device = self.plan.device
        waiting = partial(self.report, "waiting for memory", 0.0)
        with (
            reserved_memory(self.plan.sizes, self.plan.device_memory, device, waiting),
            device.active(),
            working_stream(device),
            library_errors(device),
            device_memory_errors(self.plan.device_memory, device, self.timer),
            (sessions or Sessions(0)).borrowed(device) as session,
            nullcontext() if session is None else session.memory(),
        ):
            self.timer.session, self.timer.key = session, _kernels_key(self.plan)
            yield


#: Parameters that have no effect on the recorded stages.
_BEFORE = {"initial", "cache"}


def _kernels_key(plan: Plan) -> Hashable:
    """Return what decides which kernels are queued, without the numbers that they are given."""
    config = {k: _kind(v) for k, v in dict(plan.config).items() if k not in _BEFORE}
    fixed, moving = (image.volume.geometry.shape_zyx for image in plan.pair)
    return tuple(config.items()), fixed, moving, plan.grids.control.shape_zyx


def _kind(value: Any) -> Hashable:
    """Return whether a number is not 0, how long a list of numbers is, and other values as text."""
    if isinstance(value, float):
        return value != 0
    if isinstance(value, tuple) and all(isinstance(part, float) for part in value):
        return len(value)
    return repr(value)
