"""The one orchestrator: `register` reads like the method, `plan` says beforehand what it will do.

No file is read here but a transform named as the initial alignment, and nothing is printed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING

import numpy as np

import dinoreg_kernels

from .align import initial_alignment
from .config import RegistrationConfig
from .contrast import same_contrast
from .device import Device, StageTimer, choose_device
from .errors import RegistrationError, ResourceError
from .features import WorkingImage as Image
from .features import control_intensities, feature_source, padded_channels
from .geometry import describe
from .io import as_mask, as_volume, as_weights
from .machine import memory_bytes
from .moving_lattice import MovingLattice, plan_moving_lattice
from .preprocess import (
    WorkingGrids,
    describe_similarity,
    detect_modality,
    intensity_window,
    plan_grids,
    resample_volume,
    weight_on,
    window,
)
from .quality import run_quality
from .result import RegistrationResult
from .solve import (
    inverse_displacement,
    negative_displacement,
    solve,
    solver_options,
    whole_displacement,
)
from .types import AffineTransform, Array, DisplacementField, Volume
from .warp import warp_volume

if TYPE_CHECKING:
    from .io import ImageLike, LabelsLike

#: Called with the stage's name and its finished fraction; an exception in it stops the run.
ProgressCallback = Callable[[str, float], None]


@dataclass(frozen=True, eq=False)
class Plan:
    """What a registration will do, decided before any heavy work.

    Attributes:
        device: where it will run.
        config: the configuration, nothing left open.
        initial: the initial alignment.
        grids: the lattices of the fixed image.
        lattice: where the moving image is looked at.
        windows: intensities that count as 0 and 1, fixed and moving.
        choices: what was decided for the user, and why.
        memory_bytes: predicted peak beside what the caller holds.
    """

    device: Device
    config: RegistrationConfig
    initial: AffineTransform
    grids: WorkingGrids
    lattice: MovingLattice
    windows: tuple[tuple[float, float], tuple[float, float]]
    choices: dict[str, str]
    memory_bytes: int

    def describe(self) -> str:
        """Several lines for people: grids, search, memory."""
        search = " x ".join(f"{2 * r + 1}" for r in self.grids.search_radius_zyx[::-1])
        return "\n".join(
            [
                f"working grid   {describe(self.grids.working)}",
                f"control grid   {describe(self.grids.control)}",
                f"search         {search} shifts of {self.config.search_spacing_mm:g} mm",
                f"memory         about {self.memory_bytes / 2**20:.0f} MiB",
            ]
        )


def plan(
    fixed: ImageLike,
    moving: ImageLike,
    config: RegistrationConfig | None = None,
    *,
    fixed_mask: LabelsLike | None = None,
    moving_mask: LabelsLike | None = None,
) -> Plan:
    """Decide everything that can be decided without looking for matches.

    Arguments as of `register`; what the masks leave out counts neither for the intensity windows
    nor for the centres of mass.

    Raises:
        DinoregError: inputs, device or parameters that cannot be used; no overlap; not enough
            memory.
    """
    fixed, moving = as_volume(fixed), as_volume(moving)
    masks = _masks(fixed, moving, fixed_mask, moving_mask)
    config = config or RegistrationConfig()
    device, device_reason = choose_device(config.device, config.threads)
    choices = {"device": device_reason}
    windows, modalities = [], []
    for role, volume, mask, wanted in (
        ("fixed", fixed, masks[0], config.fixed_modality),
        ("moving", moving, masks[1], config.moving_modality),
    ):
        modality, choices[f"{role} modality"] = detect_modality(volume, wanted)
        modalities.append(modality)
        windows.append(intensity_window(volume, modality, config, mask))
    initial, choices["initial alignment"] = initial_alignment(
        fixed, moving, config.initial, (windows[0], windows[1]), masks
    )
    grids, config = plan_grids(fixed.geometry, config, modalities)
    lattice = plan_moving_lattice(grids, moving.geometry, initial)
    choices["working grid"] = describe(grids.working)
    choices["similarity"] = describe_similarity(config)
    choices["features"] = "MIND-SSC, because no encoder was given"
    if config.intensity == "auto":
        alike, choices["local intensities"] = same_contrast(
            (fixed, moving),
            (modalities[0], modalities[1]),
            (windows[0], windows[1]),
            initial,
            grids,
            device,
        )
        config = config.model_copy(update={"intensity": "on" if alike else "off"})
    config = config.model_copy(
        update={
            "device": device.name,
            "threads": device.threads,
            "fixed_modality": modalities[0],
            "moving_modality": modalities[1],
        }
    )
    memory = _predict_memory(fixed, moving, grids, lattice, config)
    return Plan(device, config, initial, grids, lattice, (windows[0], windows[1]), choices, memory)


def register(
    fixed: ImageLike,
    moving: ImageLike,
    *,
    config: RegistrationConfig | None = None,
    fixed_mask: LabelsLike | None = None,
    moving_mask: LabelsLike | None = None,
    weights: ImageLike | None = None,
    progress: ProgressCallback | None = None,
    on_plan: Callable[[Plan], None] | None = None,
) -> RegistrationResult:
    """Register `moving` to `fixed`.

    Args:
        fixed: path, SimpleITK image, `Volume`, or (array (D, H, W), `Geometry`).
        moving: the same; any size, spacing, orientation and position.
        config: parameters (default: the preset ``mind``).
        fixed_mask: voxels of the fixed image that count, on its grid; nonzero is inside.
        moving_mask: the same for the moving image.
        weights: how much each voxel of the fixed image counts in search and refinement, on its
            grid, 0 or more; 1 changes nothing. To follow some organs more closely than others.
        progress: called with a stage's name and its finished fraction.
        on_plan: called with what was decided, before the heavy work.

    Returns:
        The mapping from fixed to moving points, the warped moving image, and a report on both.

    Raises:
        DinoregError: see `dinoreg_rt.errors`; the message says what to do.
    """
    fixed, moving = as_volume(fixed), as_volume(moving)
    masks = _masks(fixed, moving, fixed_mask, moving_mask)
    plan_ = plan(fixed, moving, config, fixed_mask=fixed_mask, moving_mask=moving_mask)
    if on_plan is not None:
        on_plan(plan_)
    organ_weight = None if weights is None else as_weights(weights, fixed.geometry)
    config, device, grids, lattice = plan_.config, plan_.device, plan_.grids, plan_.lattice
    check_memory(plan_)
    report = progress or (lambda stage, fraction: None)
    timer = StageTimer(device)
    with device.active():
        with timer.stage("features"):
            report("features", 0.0)
            counts = _weights(fixed, moving, masks, organ_weight, plan_)
            images = _working_images(fixed, moving, plan_)
            features = feature_source(config).compute(images[0], images[1], device)
            counts = (counts[0] * features.fixed_weight, counts[1] * features.moving_weight)
            cells = control_intensities(images, device) if config.correlation_weight else None
            del images
            report("features", 1.0)
        with timer.stage("solve"):
            options = solver_options(config, grids)
            solution = solve(
                features, counts, grids, lattice.offset_zyx, options, device, progress, cells
            )
            del features, counts, cells
        with timer.stage("warp"):
            report("warp", 0.0)
            displacement = whole_displacement(
                solution.field, grids.control, fixed.geometry, plan_.initial, device
            )
            warped = warp_volume(moving, displacement, device=device)
            inverse = None
            if config.inverse and solution.inverse is not None:
                inverse = negative_displacement(
                    solution.inverse, grids.control, moving.geometry, plan_.initial, device
                )
            elif config.inverse:
                inverse, _ = inverse_displacement(
                    solution.field, grids.control, moving.geometry, plan_.initial, device
                )
            report("warp", 1.0)
        with timer.stage("quality"):
            quality = run_quality(solution, grids.control, displacement, device)
    return RegistrationResult(
        displacement=_on_host(displacement, device),
        initial=plan_.initial,
        warped=warped,
        inverse=None if inverse is None else _on_host(inverse, device),
        quality=quality,
        config=config,
        choices=plan_.choices,
        timings_ms=timer.timings_ms,
        versions=versions(),
        hashes={"fixed": content_hash(fixed), "moving": content_hash(moving)},
    )


def check_memory(plan_: Plan) -> None:
    """Stop before the work begins when it cannot fit.

    Raises:
        ResourceError: more memory would be needed than is free.
    """
    if plan_.device.kind == "cpu":
        free = memory_bytes()[1]
    else:
        free = int(plan_.device.xp.cuda.Device(plan_.device.index).mem_info[0])
    if plan_.memory_bytes > free:
        raise ResourceError(
            f"about {plan_.memory_bytes / 2**20:.0f} MiB would be needed on {plan_.device.name} "
            f"and {free / 2**20:.0f} MiB are free; a smaller --working-megavoxels "
            f"(now {plan_.config.working_megavoxels:g}) or a cropped image needs less"
        )


def content_hash(volume: Volume) -> str:
    """sha256 of voxels and header: the same image in another file format has the same hash."""
    digest = hashlib.sha256()
    geometry = volume.geometry
    header = [*geometry.spacing_mm, *geometry.origin_mm, *geometry.direction.ravel()]
    digest.update(np.asarray(geometry.shape_zyx, np.int64).tobytes())
    digest.update(np.asarray(header, np.float64).tobytes())
    digest.update(np.ascontiguousarray(volume.array).data.cast("B"))
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Of everything that takes part in a registration."""
    info = dinoreg_kernels.build_info()
    names = ("dinoreg-rt", "numpy", "SimpleITK")
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found | {"libdinoreg": info.version, "instruction set": info.isa}


def _masks(
    fixed: Volume,
    moving: Volume,
    fixed_mask: LabelsLike | None,
    moving_mask: LabelsLike | None,
) -> tuple[Array | None, Array | None]:
    return (
        None if fixed_mask is None else as_mask(fixed_mask, fixed.geometry, "fixed"),
        None if moving_mask is None else as_mask(moving_mask, moving.geometry, "moving"),
    )


def _weights(
    fixed: Volume,
    moving: Volume,
    masks: tuple[Array | None, Array | None],
    organ_weight: Array | None,
    plan_: Plan,
) -> tuple[Array, Array]:
    """How much each control voxel of either image counts: field of view, masks, organs."""
    identity = AffineTransform.identity()
    grid, lattice, device = plan_.grids.control, plan_.lattice, plan_.device
    if masks[0] is None:
        fixed_weight = device.xp.ones(grid.shape_zyx, np.float32)
    else:
        fixed_weight = weight_on(grid, fixed, masks[0], identity, device)
    if organ_weight is not None:
        fixed_weight *= weight_on(grid, fixed, organ_weight, identity, device)
    moving_weight = weight_on(lattice.control, moving, masks[1], plan_.initial, device)
    for role, weight in (("fixed", fixed_weight), ("moving", moving_weight)):
        if not bool(weight.any()):
            raise RegistrationError(
                f"nothing of the {role} image is left to compare: its mask covers no part that "
                "the other image reaches; check the mask and the initial alignment"
            )
    return fixed_weight, moving_weight


def _working_images(fixed: Volume, moving: Volume, plan_: Plan) -> tuple[Image, Image]:
    identity = AffineTransform.identity()
    images = []
    for volume, grid, affine, (low, high) in (
        (fixed, plan_.grids.working, identity, plan_.windows[0]),
        (moving, plan_.lattice.working, plan_.initial, plan_.windows[1]),
    ):
        array = resample_volume(volume, grid, affine, plan_.device)
        images.append(Image(window(array, low, high), grid, plan_.grids.pool_zyx))
    return images[0], images[1]


def _on_host(field: DisplacementField, device: Device) -> DisplacementField:
    return DisplacementField(device.download(field.vectors_mm), field.geometry)


def _predict_memory(
    fixed: Volume,
    moving: Volume,
    grids: WorkingGrids,
    lattice: MovingLattice,
    config: RegistrationConfig,
) -> int:
    """Bytes beside the inputs: the largest of features, solver and results at the end."""
    stride = padded_channels(16)
    images = 4 * (np.prod(grids.working.shape_zyx) + np.prod(lattice.working.shape_zyx))
    voxels = np.prod(grids.control.shape_zyx) + np.prod(lattice.control.shape_zyx)
    features = voxels * (2 * stride + 4 + 4 * bool(config.correlation_weight))
    # MIND-SSC goes through an image in slabs of 32 planes: two buffers of twelve float32 channels.
    slabs = [
        2 * 4 * 12 * min(32, grid.shape_zyx[0]) * np.prod(grid.shape_zyx[1:])
        for grid in (grids.working, lattice.working)
    ]
    workspace = dinoreg_kernels.solver_workspace_bytes(
        grids.control.shape_zyx,
        lattice.control.shape_zyx,
        stride,
        grids.control.spacing_mm[::-1],
        solver_options(config, grids),
    )
    fields = 2 if config.transform == "velocity" else 1  # with the inverse
    field = 4 * 3 * fields * np.prod(grids.control.shape_zyx)
    # Displacement (3), warped image, determinant, and its deviations from the mean in double
    # precision (2); the inverse adds vectors and residual.
    results = 4 * 7 * np.prod(fixed.geometry.shape_zyx)
    results += 4 * 4 * np.prod(moving.geometry.shape_zyx) if config.inverse else 0
    stages = (images + features + max(slabs), features + workspace + field, results + field)
    return int(max(stages) + 4 * voxels)
