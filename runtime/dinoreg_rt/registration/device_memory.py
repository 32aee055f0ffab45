"""Peak of a GPU's memory, stage by stage, predicted before a registration's work begins.

Each number follows the arrays of its stage: what is alive when most is. Counted is what this
registration allocates, uploaded images among it; not the CUDA context, nor what a memory pool keeps
beside or loses between its blocks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ..config.decided import DecidedConfig
from ..config.feature_parameters import FeatureSet
from ..device.choice import Device, StageTimer
from ..errors import ResourceError
from ..features.mind import MindFeatures, padded_channels, stored_channels
from ..fields.solve import solution_fields, solver_options, solver_workspace_bytes
from ..images.grids import WorkingGrids
from ..images.moving_grids import MovingGrids
from ..quality.mirror_test import decoy_workspace_bytes
from ..types import DeviceMemory, Geometry, Volume

if TYPE_CHECKING:
    from ..encoder.encoding import EncodingPlan
    from ..encoder.slice_stack import PlaneStacks

#: Sizes of single numbers.
_HALF, _FLOAT, _DOUBLE = 2, 4, 8


@dataclass(frozen=True, eq=False)
class _Sizes:
    """Voxels of the grids, fixed and moving; stored channels of the sets that are compared."""

    images: tuple[int, int]
    working: tuple[int, int]
    control: tuple[int, int]
    strides: dict[FeatureSet, int]

    @property
    def weights(self) -> int:
        """Bytes of one weight for each control voxel of both images."""
        return _FLOAT * sum(self.control)

    @property
    def features(self) -> int:
        """Bytes of all sets, each with its weights."""
        return sum(_HALF * n + _FLOAT for n in self.strides.values()) * sum(self.control)


def predict_device_memory(
    volumes: tuple[Volume, Volume],
    grids: WorkingGrids,
    moving_grids: MovingGrids,
    config: DecidedConfig,
    encoding: EncodingPlan | None,
) -> dict[str, int]:
    """Bytes on the device that each stage needs at its peak, in the order of the stages."""
    strides = stored_channels(config, 0 if encoding is None else encoding.channels)
    size = _Sizes(
        (volumes[0].array.size, volumes[1].array.size),
        (_voxels(grids.working), _voxels(moving_grids.working)),
        (_voxels(grids.control), _voxels(moving_grids.control)),
        {name: strides[name] for name in config.feature_sets},
    )
    stages = {"field of view": size.weights}
    engine = 0
    if encoding is not None:
        engine = encoding.engine_bytes()
        stages["encode"] = size.weights + engine + _encode(encoding)
    stages["features"] = (
        size.weights + engine + _features(size, grids, moving_grids, config, encoding)
    )
    # Weights of the fields of view, the features' own, and the products of both.
    compared = size.weights + engine + size.features + _intensities(size, grids, config)
    compared += len(size.strides) * size.weights
    if config.trust and "mind" not in size.strides:
        compared += _mind(config) * sum(size.control)
    found = 3 * _FLOAT * size.control[0] * solution_fields(config)
    workspace = solver_workspace_bytes(config, grids, moving_grids.control, strides)
    stages["solve"] = compared + found + workspace
    if config.trust:
        stages["trust"] = compared + found + _trust(size, grids, moving_grids, config)
    kept = size.weights + engine + found
    stages["warp"] = kept + _warp(size, config)
    stages["quality"] = kept + _quality(size, config)
    images = _FLOAT * sum(size.images)
    return {stage: images + needed for stage, needed in stages.items()}


def fit_to_device(
    device: Device,
    encoding: EncodingPlan | None,
    predict: Callable[[DecidedConfig, EncodingPlan | None], dict[str, int]],
    config: DecidedConfig,
    held_bytes: int,
) -> tuple[EncodingPlan | None, DecidedConfig, DeviceMemory]:
    """The prediction, and what fits: the encoding's batch and storage, the search's memory.

    The search keeps no costs before tokens go to the host, and they go there before the batch
    becomes smaller: the first two change no bit, and the batch may change the rounding of the
    encoder's sums.

    Args:
        device: CUDA.
        encoding: as it would be best; None without an encoder.
        predict: `predict_device_memory` of a configuration and an encoding.
        config: has the budget.
        held_bytes: of the encoder, where it is open already.
    """
    available, budget = _available(device, config, held_bytes)
    lean = config.changed(search_memory_mb=0)
    encodings = [encoding] if encoding is None else list(_alternatives(encoding))
    for candidate, settings in itertools.product(encodings, (config, lean)):
        memory = DeviceMemory(predict(settings, candidate), available, budget)
        if memory.peak_bytes <= available:
            break
    return candidate, settings, memory


def describe_device_memory(memory: DeviceMemory) -> str:
    """One line: the peak, its stage, and what there is."""
    what = "of the budget" if memory.budget else "free"
    return (
        f"about {memory.peak_bytes / 2**20:.0f} MiB in the stage '{memory.largest_stage}', "
        f"{memory.available_bytes / 2**20:.0f} MiB {what}"
    )


def describe_storage(encoding: EncodingPlan, memory: DeviceMemory) -> str:
    """One line: where tokens are kept and how many slices go through the encoder at once."""
    where = "on the device" if encoding.tokens_on_device else "on the host"
    return f"tokens {where}, {encoding.batch} slices at once, {_because(memory)}"


def describe_search_memory(memory: DeviceMemory) -> str:
    """One line: why the search keeps no costs."""
    return f"0 MiB, {_because(memory)}: costs are computed again in each coupled round"


def _because(memory: DeviceMemory) -> str:
    what = "budget" if memory.budget else "free memory"
    return f"because of the {what} of {memory.available_bytes / 2**20:.0f} MiB"


def _alternatives(encoding: EncodingPlan) -> Iterator[EncodingPlan]:
    batch = encoding.batch
    while True:
        yield replace(encoding, batch=batch, tokens_on_device=True)
        yield replace(encoding, batch=batch, tokens_on_device=False)
        if batch == 1 or not encoding.on_gpu:
            return
        batch //= 2


def _available(device: Device, config: DecidedConfig, held_bytes: int) -> tuple[int, bool]:
    """Bytes, and whether they are a budget."""
    free = _free_bytes(device) + held_bytes
    if config.gpu_memory_gb is None:
        return free, False
    return min(int(config.gpu_memory_gb * 2**30), free), True


def _free_bytes(device: Device) -> int:
    """What CuPy's pool holds for later counts as free."""
    cuda = device.xp.cuda.Device(device.index)
    with cuda:
        return int(cuda.mem_info[0]) + int(device.xp.get_default_memory_pool().free_bytes())


@contextmanager
def device_memory_errors(
    memory: DeviceMemory | None, device: Device, timer: StageTimer
) -> Iterator[None]:
    """Errors of CUDA, CuPy and ONNX Runtime for want of memory become ours, with the stage.

    Raises:
        ResourceError: names the stage, the bytes predicted for it and those that are free.
    """
    try:
        yield
    except Exception as error:
        if memory is None or isinstance(error, ResourceError) or not _is_for_want(error):
            raise
        predicted = memory.stages.get(timer.running, memory.peak_bytes)
        now = (predicted, memory.available_bytes, _free_bytes(device))
        sizes = [size / 2**20 for size in now]
        raise ResourceError(
            f"{device.name} ran out of memory in the stage '{timer.running}': about "
            "{:.0f} MiB were predicted for it, {:.0f} MiB were available at the start and "
            "{:.0f} MiB are now; something else may use this GPU; --gpu-memory or a smaller "
            "--working-megavoxels needs less ({})".format(
                *sizes, str(error).strip().splitlines()[0]
            )
        ) from error


def _is_for_want(error: Exception) -> bool:
    # By name and text: CuPy need not be there, and ONNX Runtime's errors share no base class.
    # NumPy's MemoryError is the host's.
    text = str(error).lower()
    words = ("out of memory", "cudaerrormemoryallocation", "failed to allocate memory", "bfcarena")
    return type(error).__name__ == "OutOfMemoryError" or any(word in text for word in words)


def _voxels(grid: Geometry) -> int:
    return int(np.prod(grid.shape_zyx, dtype=np.int64))


def _intensities(size: _Sizes, grids: WorkingGrids, config: DecidedConfig) -> int:
    if not (config.correlation_weight or config.trust):
        return 0
    return size.weights if grids.pool_zyx != (1, 1, 1) else _FLOAT * sum(size.working)


def _encode(encoding: EncodingPlan) -> int:
    """Tokens of one plane and a batch on its way; the engine counts elsewhere."""
    needed = 0
    for plane in encoding.planes:
        pixels = _FLOAT * 3 * plane.graph.height * plane.graph.width
        # Tokens as they come, in half precision, also those of the batch before on their way to the
        # host, and in single.
        batch = encoding.batch * (pixels + 12 * encoding.slice_tokens(plane))
        needed = max(needed, encoding.token_bytes(plane) + batch)
    return needed


def _features(
    size: _Sizes,
    grids: WorkingGrids,
    moving_grids: MovingGrids,
    config: DecidedConfig,
    encoding: EncodingPlan | None,
) -> int:
    parts, peak = 0, 0  # finished sets; the most that was alive
    if encoding is not None:
        for plane in encoding.planes:
            stored = padded_channels(encoding.components)
            made = (_HALF * stored + _FLOAT) * sum(size.control)
            peak = max(peak, parts + made + _sampling(encoding, plane, size))
            parts += made
        if len(encoding.planes) > 1:  # the planes joined beside each of them
            joined = padded_channels(encoding.channels)
            made = (_HALF * joined + _FLOAT) * sum(size.control)
            peak = max(peak, parts + made + 2 * _HALF * joined * max(size.control))
            parts = made
    images = 0
    if config.computes_mind or config.correlation_weight:
        images = _FLOAT * sum(size.working)
        peak = max(peak, parts + images)
    if config.computes_mind:
        mind = MindFeatures.of(config)
        for image, grid in enumerate((grids.working, moving_grids.working)):
            parts += _mind(config) * size.control[image]
            peak = max(peak, parts + images + mind.workspace_bytes(grid, grids.pool_zyx))
    parts += _intensities(size, grids, config)
    if "joined" in size.strides:
        # Joined beside its parts, one of which is multiplied by its weight at a time.
        stride = size.strides["joined"]
        parts += (_HALF * stride + _FLOAT) * sum(size.control) + 2 * _HALF * stride * max(
            size.control
        )
    return max(peak, parts + images)


def _mind(config: DecidedConfig) -> int:
    """MIND-SSC of one control voxel, and its weight."""
    return _HALF * MindFeatures.of(config).stored_channels + _FLOAT


def _sampling(encoding: EncodingPlan, plane: PlaneStacks, size: _Sizes) -> int:
    """Projected tokens of one image, and one channel of all its slices, beside the tokens."""
    needed = 0
    for image in (0, 1):
        count, rows, columns, channels = encoding.token_shape(plane, image)
        slices = plane.stacks[image].tokens.shape_zyx[0]
        # Of a slice: in half precision, chosen, and in single precision once more for its moments.
        moments = rows * columns * channels * (2 * _HALF + 2 * _FLOAT) + 6 * _DOUBLE * channels**2
        projected = _FLOAT * count * rows * columns * encoding.components
        project = projected + rows * columns * channels * (_HALF + _FLOAT)
        sample = projected + _FLOAT * rows * columns * (count + 4 * slices)
        sample += _FLOAT * size.control[image]
        tissue = projected + 5 * size.images[image] + 3 * _FLOAT * size.control[image]
        # Moments of both images and together; covariance, vectors and the solver's workspace.
        basis = 10 * _DOUBLE * channels**2
        needed = max(needed, moments, basis, project, sample, tissue)
    return needed + encoding.token_bytes(plane)


def _trust(
    size: _Sizes, grids: WorkingGrids, moving_grids: MovingGrids, config: DecidedConfig
) -> int:
    """Pooling (padded copies beside a mean and one summand of it), then a small search."""
    shapes = [
        tuple(-(-n // 2) + 1 for n in grid.control.shape_zyx) for grid in (grids, moving_grids)
    ]
    small = [int(np.prod(shape)) for shape in shapes]
    stride = MindFeatures.of(config).stored_channels
    pooled = _mind(config) * sum(small)
    pool = max(_mind(config) * 8 * cells + _FLOAT * (2 * stride + 2) * cells for cells in small)
    # Intensities, and those of the mirror image; then warped, with bins and counts.
    images = _FLOAT * (small[0] + 2 * small[1]) + 10 * _FLOAT * small[0]
    mirrored = 2 * _mind(config) * small[1] + images
    search = mirrored + 3 * _FLOAT * small[0]
    search += decoy_workspace_bytes(
        shapes[0],
        shapes[1],
        stride,
        grids.control.spacing_mm[::-1],
        solver_options(config, grids),
    )
    return pooled + max(pool, search)


def _warp(size: _Sizes, config: DecidedConfig) -> int:
    fixed, moving = (_FLOAT * n for n in size.images)
    made = 3 * fixed
    certainty = 3 * fixed + 3 * fixed if config.confidence else 0
    peak = made + certainty
    made += fixed * config.confidence
    if config.inverse:
        # By iteration also the misses, and where they count: a byte each.
        misses = 0 if config.transform == "velocity" else moving + moving // _FLOAT
        peak = max(peak, made + 3 * moving + misses)
        made += 3 * moving
    return max(peak, made + fixed)


def _quality(size: _Sizes, config: DecidedConfig) -> int:
    fixed, moving, control = size.images[0], size.images[1], size.control[0]
    results = _FLOAT * (fixed * (4 + config.confidence) + 3 * moving * config.inverse)
    # The determinant, where it is positive and those values; or its loops on the control grid.
    return results + _FLOAT * fixed + max(5 * fixed, 48 * control)
