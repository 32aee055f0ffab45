"""The one orchestrator: `register` reads like the method, `plan` says beforehand what it will do.

No file is read here but a transform named as the initial alignment, and nothing is printed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .align import SEARCHES, Alignment, initial_alignment, search_alignment
from .coarse import coarse_pair
from .config import RegistrationConfig
from .contrast import same_contrast
from .decoys import measure_decoys
from .device import Device, choose_device, stage_timer
from .encoder.encoding import EncodingPlan, plan_encoding
from .encoder.engines import ENGINE_PACKAGES
from .encoder.pool import EncoderPool
from .extract import extract_features, field_of_view
from .geometry import describe
from .io import as_mask, as_volume
from .io.arrays import as_numpy, check_device, device_of
from .memory import check_memory, predict_memory
from .moving_lattice import MovingLattice, plan_moving_lattice
from .placement import Placement, deliver
from .preprocess import (
    WorkingGrids,
    detect_modality,
    intensity_window,
    plan_grids,
)
from .provenance import content_hash, versions
from .quality import run_quality
from .result import KeptFeatures, RegistrationResult
from .solve import confidence, inverse_displacement, solve, solver_options, whole_displacement
from .types import AffineTransform, Array, Modality, Volume
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
        alignment: the initial alignment, how it was found and how sure it is.
        bodies: where the body is in the fixed and in the moving image, on grids of their own; None
            where no body mask is used.
        grids: the lattices of the fixed image.
        lattice: where the moving image is looked at.
        windows: intensities that count as 0 and 1, fixed and moving.
        encoding: what an encoder will be shown; None without one.
        choices: what was decided for the user, and why.
        memory_bytes: predicted peak beside what the caller holds.
    """

    device: Device
    config: RegistrationConfig
    alignment: Alignment
    bodies: tuple[Volume | None, Volume | None]
    grids: WorkingGrids
    lattice: MovingLattice
    windows: tuple[tuple[float, float], tuple[float, float]]
    encoding: EncodingPlan | None
    choices: dict[str, str]
    memory_bytes: int

    @property
    def initial(self) -> AffineTransform:
        """Fixed points to moving points where the registration begins."""
        return self.alignment.transform

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
    encoders: EncoderPool | None = None,
) -> Plan:
    """Decide everything that can be decided without looking for matches.

    Arguments as of `register`; what the masks leave out counts neither for the intensity windows
    nor for the centres of mass. Images on a CUDA device are looked at through a copy on the host.

    Raises:
        DinoregError: inputs, device or parameters that cannot be used; no overlap; not enough
            memory.
    """
    fixed, moving = _host_volume(as_volume(fixed)), _host_volume(as_volume(moving))
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
    alignment, bodies = _align(fixed, moving, config, (windows[0], windows[1]), masks, choices)
    initial = alignment.transform
    grids, config = plan_grids(fixed.geometry, config, modalities)
    lattice = plan_moving_lattice(grids, moving.geometry, initial)
    choices["working grid"] = describe(grids.working)
    encoding, said = _plan_features(
        (fixed, moving),
        modalities,
        (windows[0], windows[1]),
        config,
        device,
        encoders or EncoderPool(),
    )
    choices |= said
    if config.intensity == "auto" and config.uses_mind:
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
    return Plan(
        device=device,
        config=config,
        alignment=alignment,
        bodies=bodies,
        grids=grids,
        lattice=lattice,
        windows=(windows[0], windows[1]),
        encoding=encoding,
        choices=choices,
        memory_bytes=predict_memory(fixed, moving, grids, lattice, config, encoding),
    )


def _plan_features(
    volumes: tuple[Volume, Volume],
    modalities: Sequence[Modality],
    windows: tuple[tuple[float, float], tuple[float, float]],
    config: RegistrationConfig,
    device: Device,
    encoders: EncoderPool,
) -> tuple[EncodingPlan | None, dict[str, str]]:
    """What the features are made of, and how that is said."""
    if config.encoder is None:
        return None, {"features": "MIND-SSC, because no encoder was given"}
    encoding, choices = plan_encoding(volumes, modalities, windows, config, device, encoders)
    text = f"{config.components} components of {encoding.bundle.name}"
    if config.axis == "all":
        text += " for each axis"
    if config.uses_mind:
        text += f", joined with MIND-SSC of weight {config.mind_weight:g}"
    return encoding, {"features": text} | choices


def register(  # noqa: PLR0913 - all but the images by name
    fixed: ImageLike,
    moving: ImageLike,
    *,
    config: RegistrationConfig | None = None,
    fixed_mask: LabelsLike | None = None,
    moving_mask: LabelsLike | None = None,
    keep_features: bool = False,
    progress: ProgressCallback | None = None,
    on_plan: Callable[[Plan], None] | None = None,
    placement: Placement | None = None,
    encoders: EncoderPool | None = None,
) -> RegistrationResult:
    """Register `moving` to `fixed`. For many pairs see `Registrar`, which keeps the encoder open.

    Args:
        fixed: path, SimpleITK image, `Volume`, or (array (D, H, W), `Geometry`); arrays of NumPy,
            CuPy, PyTorch, Numba or PyCUDA, whose memory is used where it is.
        moving: the same; any size, spacing, orientation and position.
        config: parameters (default: the preset ``mind``).
        fixed_mask: voxels of the fixed image that count, on its grid; nonzero is inside.
        moving_mask: the same for the moving image.
        keep_features: leave the features of both images in the result.
        progress: called with a stage's name and its finished fraction.
        on_plan: called with what was decided, before the heavy work.
        placement: where the result's arrays go (default: new NumPy arrays).
        encoders: encoders that are open already (default: opened for this call).

    Returns:
        The mapping from fixed to moving points, the warped moving image, and a report on both.

    Raises:
        DinoregError: see `dinoreg_rt.errors`; the message says what to do.
    """
    fixed, moving = as_volume(fixed), as_volume(moving)
    on_host = _host_volume(fixed), _host_volume(moving)
    masks = _masks(fixed, moving, fixed_mask, moving_mask)
    encoders, placement = encoders or EncoderPool(), placement or Placement()
    plan_ = plan(
        *on_host, config, fixed_mask=fixed_mask, moving_mask=moving_mask, encoders=encoders
    )
    if on_plan is not None:
        on_plan(plan_)
    config, device, grids, lattice = plan_.config, plan_.device, plan_.grids, plan_.lattice
    _check_places(fixed, moving, plan_, placement)
    check_memory(plan_)
    report = progress or (lambda stage, fraction: None)
    timer = stage_timer(device)
    with device.active():
        weights = field_of_view((fixed, moving), masks, plan_)
        features, encoding = extract_features(
            (fixed, moving), masks, plan_, timer, report, encoders
        )
        weights = (weights[0] * features.fixed_weight, weights[1] * features.moving_weight)
        kept = KeptFeatures.of(features, grids, lattice, device) if keep_features else None
        with timer.stage("solve"):
            options = solver_options(config, grids)
            solution = solve(
                features,
                weights,
                grids,
                lattice.offset_zyx,
                options,
                device,
                progress,
                spread=config.confidence,
            )
            decoys = None
        if config.trust:
            with timer.stage("trust"):
                decoys = measure_decoys(
                    features, weights, grids, lattice.offset_zyx, options, device
                )
        del features, weights
        with timer.stage("warp"):
            report("warp", 0.0)
            displacement = whole_displacement(
                solution.field, grids.control, fixed.geometry, plan_.initial, device
            )
            warped = warp_volume(moving, displacement, device=device, download=False)
            certainty = None
            if solution.spread is not None:
                certainty = confidence(solution.spread, grids, options, fixed.geometry, device)
            inverse = None
            if config.inverse:
                inverse, _ = inverse_displacement(
                    solution.field, grids.control, moving.geometry, plan_.initial, device
                )
            report("warp", 1.0)
        with timer.stage("quality"):
            quality = run_quality(solution, grids.control, displacement, device)
            if decoys is not None:
                quality = replace(quality, **vars(decoys))
        with timer.stage("deliver"):
            displacement, warped, inverse, certainty = deliver(
                placement, device, displacement, warped, inverse, certainty
            )
        timings_ms = timer.finish()
    return RegistrationResult(
        displacement=displacement,
        initial=plan_.initial,
        warped=warped,
        inverse=inverse,
        confidence=None if certainty is None else Volume(certainty, fixed.geometry),
        quality=quality,
        config=config,
        encoding=encoding,
        features=kept,
        choices=plan_.choices,
        alignment=plan_.alignment.numbers(),
        timings_ms=timings_ms,
        versions=versions(*([] if encoding is None else [ENGINE_PACKAGES[encoding.engine]])),
        hashes={"fixed": content_hash(on_host[0]), "moving": content_hash(on_host[1])},
    )


def _check_places(fixed: Volume, moving: Volume, plan_: Plan, placement: Placement) -> None:
    for role, volume in (("fixed", fixed), ("moving", moving)):
        check_device(volume.array, plan_.device.name, f"the {role} image")
    placement.check(fixed.geometry, moving.geometry, inverse=plan_.config.inverse)


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


def _align(
    fixed: Volume,
    moving: Volume,
    config: RegistrationConfig,
    windows: tuple[tuple[float, float], tuple[float, float]],
    masks: tuple[Array | None, Array | None],
    choices: dict[str, str],
) -> tuple[Alignment, tuple[Volume | None, Volume | None]]:
    """The initial alignment and the bodies, both from the coarse images; `choices` says why."""
    searched = config.initial in SEARCHES
    if searched or config.body_mask == "auto":
        host = choose_device("cpu", config.threads)[0]
        coarse = coarse_pair((fixed, moving), windows, masks, host)
    if searched:
        alignment = search_alignment(coarse, config.initial, config.linear, host)
    else:
        alignment = initial_alignment(fixed, moving, config.initial, windows, masks)
    choices["initial alignment"] = alignment.method
    if config.body_mask == "off":
        return alignment, (None, None)
    bodies = []
    for role, image in zip(("fixed", "moving"), coarse, strict=True):
        bodies.append(image.mask() if image.doubt is None else None)
        choices[f"{role} body mask"] = f"off: {image.doubt}" if image.doubt else "on"
    return alignment, (bodies[0], bodies[1])


def _host_volume(volume: Volume) -> Volume:
    """The same image with its voxels on the host; the image itself where they are there."""
    if device_of(volume.array) == "cpu":
        return volume
    return replace(volume, array=as_numpy(volume.array))
