"""`Run`: what all stages of a registration share, and the device, stream and session they use."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

from ..device.choice import StageTimer, library_errors
from ..device.recording import Sessions
from ..device.streams import working_stream
from .memory import device_memory_errors
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
        with (
            device.active(),
            working_stream(device),
            library_errors(device),
            device_memory_errors(self.plan.device_memory, device, self.timer),
            (sessions or Sessions(0)).borrowed(device) as session,
            nullcontext() if session is None else session.memory(),
        ):
            self.timer.session, self.timer.key = session, _kernels_key(self.plan)
            yield


def _kernels_key(plan: Plan) -> Hashable:
    """Return what decides which kernels are queued: not the numbers that they are given."""
    fixed, moving = (image.volume.geometry.shape_zyx for image in plan.pair)
    return repr(plan.config), fixed, moving, plan.grids.control.shape_zyx
