"""What a registration will do, decided before any heavy work: `plan`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from .align import SEARCHES, Alignment, initial_alignment, search_alignment
from .coarse import coarse_pair
from .config import RegistrationConfig
from .contrast import compare_contrast, fill_by_contrast
from .demands import choose_machine
from .device import Device, choose_device
from .device_memory import (
    describe_device_memory,
    describe_storage,
    fit_to_device,
    predict_device_memory,
)
from .encoder.encoding import EncodingPlan, plan_encoding
from .encoder.pool import EncoderPool
from .geometry import describe
from .io import as_mask, as_volume
from .io.arrays import as_numpy, device_of
from .memory import predict_memory
from .moving_lattice import MovingLattice, plan_moving_lattice
from .preprocess import (
    WorkingGrids,
    describe_objective,
    detect_modality,
    intensity_window,
    plan_grids,
)
from .types import AffineTransform, Array, DeviceMemory, Modality, Volume

if TYPE_CHECKING:
    from .io import ImageLike, LabelsLike


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
        moving_lowest: the moving image's smallest intensity.
        encoding: what an encoder will be shown; None without one.
        choices: what was decided for the user, and why.
        memory_bytes: predicted peak on the host beside what the caller holds.
        device_memory: the same on the GPU, stage by stage; None on a CPU.
    """

    device: Device
    config: RegistrationConfig
    alignment: Alignment
    bodies: tuple[Volume | None, Volume | None]
    grids: WorkingGrids
    lattice: MovingLattice
    windows: tuple[tuple[float, float], tuple[float, float]]
    moving_lowest: float
    encoding: EncodingPlan | None
    choices: dict[str, str]
    memory_bytes: int
    device_memory: DeviceMemory | None = None

    @property
    def initial(self) -> AffineTransform:
        """Fixed points to moving points where the registration begins."""
        return self.alignment.transform

    def describe(self) -> str:
        """Several lines for people: grids, search, memory."""
        search = " x ".join(f"{2 * r + 1}" for r in self.grids.search_radius_zyx[::-1])
        levels = self.grids.search_levels
        further = f", {levels} levels" if levels > 1 else ""
        lines = [
            f"working grid   {describe(self.grids.working)}",
            f"control grid   {describe(self.grids.control)}",
            f"search         {search} shifts of {self.config.search_spacing_mm:g} mm{further}",
            f"memory         about {self.memory_bytes / 2**20:.0f} MiB",
        ]
        if self.device_memory is not None:
            lines.append(f"GPU memory     {describe_device_memory(self.device_memory)}")
        return "\n".join(lines)


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
    fixed, moving = host_volume(as_volume(fixed)), host_volume(as_volume(moving))
    masks = as_masks(fixed, moving, fixed_mask, moving_mask)
    config = config or RegistrationConfig()
    device, device_reason = choose_machine(config)
    choices = {"device": device_reason}
    modalities, windows = _intensities((fixed, moving), masks, config, choices)
    alignment, bodies = _align(fixed, moving, config, windows, masks, choices)
    initial = alignment.transform
    grids, config = plan_grids(fixed.geometry, config, modalities)
    choices["working grid"] = describe(grids.working)
    host = choose_device("cpu", config.threads)[0]
    contrast = compare_contrast((fixed, moving), modalities, windows, initial, grids, host)
    grids, config = fill_by_contrast(grids, config, modalities, contrast)
    lattice = plan_moving_lattice(grids, moving.geometry, initial)
    choices["objective"] = f"{describe_objective(config)}: {contrast.reason}"
    encoders = encoders or EncoderPool()
    encoding, said = _plan_features((fixed, moving), modalities, windows, config, device, encoders)
    choices |= said
    if config.intensity == "auto" and config.computes_mind:
        intensity = "on" if contrast.alike else "off"
        choices["local intensities"] = f"{intensity}: {contrast.reason}"
        config = config.model_copy(update={"intensity": intensity})
    config = config.model_copy(
        update={
            "device": device.name,
            "threads": device.threads,
            "fixed_modality": modalities[0],
            "moving_modality": modalities[1],
        }
    )
    device_memory = None
    if device.kind == "cuda":
        held = encoding.engine_bytes() if encoding is not None and encoders.holds(encoding) else 0
        predict = partial(predict_device_memory, (fixed, moving), grids, lattice, config)
        encoding, device_memory = fit_to_device(device, encoding, predict, config, held)
        if encoding is not None:
            choices["GPU memory"] = describe_storage(encoding, device_memory)
    return Plan(
        device=device,
        config=config,
        alignment=alignment,
        bodies=bodies,
        grids=grids,
        lattice=lattice,
        windows=windows,
        moving_lowest=float(moving.array.min()),
        encoding=encoding,
        choices=choices,
        memory_bytes=predict_memory(fixed, moving, grids, lattice, config, encoding, device),
        device_memory=device_memory,
    )


def _intensities(
    volumes: tuple[Volume, Volume],
    masks: tuple[Array | None, Array | None],
    config: RegistrationConfig,
    choices: dict[str, str],
) -> tuple[tuple[Modality, Modality], tuple[tuple[float, float], tuple[float, float]]]:
    """Modalities of both images and the intensities that count as 0 and 1; `choices` says why."""
    modalities, windows = [], []
    wanted = (config.fixed_modality, config.moving_modality)
    for role, volume, mask, choice in zip(("fixed", "moving"), volumes, masks, wanted, strict=True):
        modality, choices[f"{role} modality"] = detect_modality(volume, choice)
        modalities.append(modality)
        windows.append(intensity_window(volume, modality, config, mask))
    return (modalities[0], modalities[1]), (windows[0], windows[1])


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
    if config.trust:
        choices["trust"] = "judged by MIND-SSC, not by the encoder's features"
    return encoding, {"features": text} | choices


def as_masks(
    fixed: Volume,
    moving: Volume,
    fixed_mask: LabelsLike | None,
    moving_mask: LabelsLike | None,
) -> tuple[Array | None, Array | None]:
    """Both masks as arrays on the grids of their images; None where none is given."""
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


def host_volume(volume: Volume) -> Volume:
    """The same image with its voxels on the host; the image itself where they are there."""
    if device_of(volume.array) == "cpu":
        return volume
    return replace(volume, array=as_numpy(volume.array))
