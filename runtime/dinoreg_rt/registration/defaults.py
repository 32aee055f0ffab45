"""Defaults that depend on the images: lengths and the weights of the objective."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..config.decided import DecidedConfig
from ..config.parameters import RegistrationConfig
from ..images.contrast import Contrast
from ..types import Geometry, Modality


def default_lengths(
    config: RegistrationConfig, working: Geometry, modalities: Sequence[Modality]
) -> dict[str, float]:
    """Return every length that follows from the working grid, by the name of its parameter.

    Lengths given in the configuration are kept. The others are multiples of the finest voxel of
    the working grid, so that structures are sought at the scale that the image shows. Two MR images
    are compared in small patches and all other pairs in larger ones, as noise and contrast demand
    (measured on the pairs in docs/benchmarks.md).
    """
    voxel_mm = min(working.spacing_mm)
    control = config.control_spacing_mm or 2 * voxel_mm
    step = config.search_spacing_mm or 6 * voxel_mm
    defaults = {
        "mind_radius_mm": voxel_mm if set(modalities) == {"mr"} else 2 * voxel_mm,
        "mind_dilation_mm": 2 * voxel_mm,
        "control_spacing_mm": control,
        "search_spacing_mm": step,
        "search_radius_mm": 4 * step,
        "learning_rate_mm": control / 2,
    }
    given = {name: getattr(config, name) for name in defaults}
    return {n: round(v, 6) if given[n] is None else given[n] for n, v in defaults.items()}


def decide(
    config: RegistrationConfig,
    working: Geometry,
    lengths: dict[str, float],
    modalities: tuple[Modality, Modality],
    contrast: Contrast,
    **found: Any,
) -> DecidedConfig:
    """Fill in everything that a configuration leaves open.

    The evidence, as Dice on the pairs in docs/benchmarks.md: for two close MR images
    (`Contrast.close`) intensities tell more than features, and small contrasts matter. Their
    defaults raise Dice from 0.804 to 0.817 on the brain pair and from 0.802 to 0.821 on the cine
    pair; the abdominal MR pair, which is not close, would lose 0.02. Twice the iterations on the
    finest level gain another 0.011 on the cine pair. A second search level gains 0.007 to 0.013 for
    CT with CT and 0.007 to 0.021 for the abdominal MR pair; it gains nothing for MR with CT, and
    close pairs need only one.

    Args:
        config: the configuration as the caller gave it.
        working: the working grid.
        lengths: the result of `default_lengths`.
        modalities: modality of the fixed and of the moving image.
        contrast: how the contrasts of both images compare.
        **found: further decisions, by the name of the parameter.
    """
    voxel_mm, control, close = (
        min(working.spacing_mm),
        lengths["control_spacing_mm"],
        contrast.close,
    )
    alone = config.correlation_weight == 0  # only features drive the refinement
    window = 1.25 if set(modalities) == {"ct"} else 2.0
    levels = 2 if contrast.alike and not close else 1
    defaults = {
        "intensity_windows_mm": (round(4 * voxel_mm, 6), round(8 * voxel_mm, 6)),
        "search_levels": max(levels, len(config.search_features or ())),
        "feature_weight": 0.1 if close and not alone else 1.0,
        "correlation_weight": 3.0 if close else 2.5,
        "iterations": (40, 40) if close else (40, 20),
        "correlation_window_mm": round(window * control, 6),
        "correlation_noise": 0.01 if close else 0.1,
        "smoothing_mm": round(math.sqrt(2) * control, 6),
    }
    missing = {name: value for name, value in defaults.items() if getattr(config, name) is None}
    found |= {"fixed_modality": modalities[0], "moving_modality": modalities[1]}
    if config.intensity == "auto":
        found["intensity"] = "on" if contrast.alike and config.computes_mind else "off"
    return DecidedConfig.model_validate(dict(config) | lengths | missing | found)


def describe_objective(config: DecidedConfig) -> str:
    """Describe the terms that the refinement compares in one line."""
    features, correlation = config.feature_weight, config.correlation_weight
    names = {
        "mse": "squared feature difference",
        "cosine": "cosine of features",
        "lncc": "local correlation of features",
    }
    terms = [f"{features:g} x {names[config.feature_similarity]}"] if features else []
    if correlation:
        window, noise = config.correlation_window_mm, config.correlation_noise
        terms.append(
            f"{correlation:g} x local correlation (windows of {window:g} mm, noise {noise:g})"
        )
    return " + ".join(terms)


def describe_stages(config: DecidedConfig) -> str:
    """Return what search and refinement compare: ``search: encoder, then MIND-SSC; ...``."""
    names = {
        "encoder": "encoder",
        "mind": "MIND-SSC",
        "joined": f"both, joined with MIND-SSC of weight {config.mind_weight:g}",
    }
    search, refinement = config.stage_features
    levels = ", then ".join(names[name] for name in search[: config.search_levels])
    if set(search) == {refinement}:
        return f"search and refinement: {names[refinement]}"
    return f"search: {levels}; refinement: {names[refinement]}"
