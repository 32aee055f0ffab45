"""`DecidedConfig`: a configuration in which planning has replaced every open default."""

from __future__ import annotations

from typing import Literal

from ..types import Modality
from .parameters import RegistrationConfig


class DecidedConfig(RegistrationConfig):
    """The parameters of one registration after planning.

    Planning makes one for each pair, from a `RegistrationConfig` and the two images. A parameter
    that may still be None has a meaning then, such as no encoder.
    """

    fixed_modality: Modality
    moving_modality: Modality
    intensity: Literal["on", "off"]
    intensity_windows_mm: tuple[float, ...]
    mind_radius_mm: float
    mind_dilation_mm: float
    control_spacing_mm: float
    search_spacing_mm: float
    search_radius_mm: float
    search_levels: int
    iterations: tuple[int, ...]
    learning_rate_mm: float
    smoothing_mm: float
    feature_weight: float
    correlation_weight: float
    correlation_window_mm: float
    correlation_noise: float
