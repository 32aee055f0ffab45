"""What a registration will take, predicted before its work begins."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..config.decided import DecidedConfig
from ..device.choice import Device
from ..device.limits import memory_bytes
from ..errors import ResourceError
from ..features.mind import MindFeatures, stored_channels
from ..fields.solve import solution_fields, solver_workspace_bytes
from ..images.grids import WorkingGrids
from ..images.moving_grids import MovingGrids
from ..types import Volume

if TYPE_CHECKING:
    from ..encoder.encoding import EncodingPlan
    from .plan import Plan


def predict_memory(
    fixed: Volume,
    moving: Volume,
    grids: WorkingGrids,
    moving_grids: MovingGrids,
    config: DecidedConfig,
    encoding: EncodingPlan | None,
    device: Device,
) -> int:
    """Bytes on the host beside the inputs: the largest of features, solver and results at the end.

    On a GPU only an encoder that runs on the host, tokens kept there, and the results.
    """
    if device.kind == "cuda":
        tokens = 0 if encoding is None else _encoding(encoding, config)
        return tokens + _delivered(fixed, moving, config)
    mind = MindFeatures.of(config)
    strides = stored_channels(config, 0 if encoding is None else encoding.channels)
    voxels = np.prod(grids.control.shape_zyx) + np.prod(moving_grids.control.shape_zyx)
    correlates = bool(config.correlation_weight)
    # Each set has weights of its own; joined sets stand beside the ones that they are made of.
    features = voxels * (sum(2 * stride + 4 for stride in strides.values()) + 4 * correlates)
    working = (grids.working, moving_grids.working)
    needs_images = config.computes_mind or correlates
    images = 4 * sum(np.prod(grid.shape_zyx) for grid in working) if needs_images else 0
    workspace = solver_workspace_bytes(config, grids, moving_grids.control, strides)
    field = 4 * 3 * solution_fields(config) * np.prod(grids.control.shape_zyx)
    # Displacement (3), warped image, determinant, and its deviations from the mean in double
    # precision (2); the inverse adds vectors, misses, and where they count.
    results = 4 * 7 * np.prod(fixed.geometry.shape_zyx)
    results += 17 * np.prod(moving.geometry.shape_zyx) if config.inverse else 0
    results += 4 * 7 * np.prod(fixed.geometry.shape_zyx) if config.confidence else 0
    stages = [features + workspace + field, results + field]
    if config.computes_mind:
        slabs = max(mind.workspace_bytes(grid, grids.pool_zyx) for grid in working)
        stages.append(images + features + slabs)
    if encoding is not None:
        encoder = _encoding(encoding, config)
        stages.append(features + encoder)
    # Weights: of the field of view, and that times the features' own, which count above.
    return int(max(stages) + 8 * voxels)


def _encoding(encoding: EncodingPlan, config: DecidedConfig) -> int:
    return encoding.memory_bytes(int(config.token_memory_gb * 2**30), cached=config.cache)


def _delivered(fixed: Volume, moving: Volume, config: DecidedConfig) -> int:
    """Displacement and warped image, confidence and inverse where they are asked for."""
    return int(
        4 * ((4 + config.confidence) * fixed.array.size + 3 * config.inverse * moving.array.size)
    )


def check_memory(plan: Plan) -> None:
    """Stop before the work begins when it cannot fit on the host or on the device.

    Raises:
        ResourceError: more memory would be needed than is free or allowed.
    """
    advice = f"a smaller --working-megavoxels (now {plan.config.working_megavoxels:g})"
    if plan.config.search_memory_mb:
        advice += ", --search-memory-mb 0"
    free = memory_bytes()[1]
    if plan.memory_bytes > free:
        if plan.encoding is not None:
            advice += ", --token-memory-gb or --token-grid"
        raise ResourceError(
            f"about {plan.memory_bytes / 2**20:.0f} MiB would be needed on the host "
            f"and {free / 2**20:.0f} MiB are free; {advice} or a cropped image needs less"
        )
    memory = plan.device_memory
    if memory is None or memory.peak_bytes <= memory.available_bytes:
        return
    if plan.encoding is not None:
        advice += ", --token-grid"
    what = "the budget (--gpu-memory) is" if memory.budget else "free are"
    raise ResourceError(
        f"about {memory.peak_bytes / 2**20:.0f} MiB would be needed on {plan.device.name} in the "
        f"stage '{memory.largest_stage}', and {what} {memory.available_bytes / 2**20:.0f} MiB; "
        f"{advice} or a cropped image needs less"
    )
