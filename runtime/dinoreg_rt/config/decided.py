"""`DecidedConfig`: a configuration in which planning has left nothing open."""

from __future__ import annotations

from typing import Literal

from ..types import Modality
from .parameters import RegistrationConfig


class DecidedConfig(RegistrationConfig):
    """The parameters of one registration after planning: every default is a value.

    Planning makes one for each pair, by `RegistrationConfig` and what it has found in the images.
    What is still optional has a meaning when it is None, such as no encoder.
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
