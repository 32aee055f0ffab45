"""Planning of a probe: the two images as a registration would see them."""

from __future__ import annotations

from collections.abc import Callable

from ..config.parameters import RegistrationConfig
from ..device.choice import library_errors, stage_timer
from ..device.streams import working_stream
from ..encoder.open_encoders import EncoderPool
from ..images.resample import uploaded
from ..registration.planning import plan
from ..types import LabelMap, Volume
from .probe import ProbeResult, probe


def probe_images(
    fixed: Volume,
    moving: Volume,
    labels: tuple[LabelMap, LabelMap] | None,
    config: RegistrationConfig,
    report: Callable[[str, float], None],
) -> ProbeResult:
    """Probe the encoder that a configuration names on two images.

    Args:
        fixed: the fixed image.
        moving: the moving image.
        labels: of both, if there are any.
        config: as for a registration; `layers`, `token_centre` and `token_scale` are what varies.
        report: called with a stage's name and its finished fraction.

    Raises:
        DinoregError: as `register`, or labels that have nothing in common.
    """
    encoders = EncoderPool()
    plan_ = plan(fixed, moving, config, encoders=encoders)
    device, timer = plan_.device, stage_timer(plan_.device)
    with device.active(), working_stream(device), library_errors(device):
        sides = plan_.sides(uploaded(fixed, device), uploaded(moving, device))
        return probe(plan_, sides, labels, timer, report, encoders)
