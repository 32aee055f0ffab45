"""Planning without images, for tests that need grids and a decided configuration."""

from __future__ import annotations

from dataclasses import replace

from dinoreg_rt import RegistrationConfig
from dinoreg_rt.config.decided import DecidedConfig
from dinoreg_rt.images.contrast import Contrast
from dinoreg_rt.images.grids import WorkingGrids, plan_grids, working_grid
from dinoreg_rt.registration.defaults import decide, default_lengths
from dinoreg_rt.types import Geometry, Modality

UNLIKE = Contrast(alike=False, close=False, reason="a CT and an MR")


def decided(
    fixed: Geometry,
    config: RegistrationConfig | None = None,
    modalities: tuple[Modality, Modality] = ("mr", "ct"),
    contrast: Contrast = UNLIKE,
) -> tuple[WorkingGrids, DecidedConfig]:
    """The grids and the configuration that planning would make for a fixed grid."""
    config = config or RegistrationConfig()
    working = working_grid(fixed, config.working_megavoxels)
    lengths = default_lengths(config, working, modalities)
    names = ("control_spacing_mm", "search_spacing_mm", "search_radius_mm")
    grids = plan_grids(working, *(lengths[name] for name in names))
    filled = decide(config, working, lengths, modalities, contrast)
    return replace(grids, search_levels=filled.search_levels), filled
