"""What a registration will do, decided before any heavy work: `plan`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from ..align.coarse import coarse_pair
from ..align.initial import SEARCHES, Alignment, initial_alignment, search_alignment
from ..config.parameters import RegistrationConfig, checked_config
from ..device.choice import Device, kernel_errors
from ..encoder.encoding import EncodingPlan, plan_encoding
from ..encoder.open_encoders import EncoderPool
from ..geometry import describe
from ..images.contrast import compare_contrast, fill_by_contrast
from ..images.moving_grid import MovingLattice, Region, compared_regions, plan_moving_lattice
from ..images.pair import Pair, Role, Sides, SolverSide, examine, side_by_side
from ..images.resample import WorkingGrids, describe_objective, plan_grids
from ..io import as_mask, as_volume, as_weights
from ..io.arrays import as_numpy, device_of
from ..types import AffineTransform, Array, DeviceMemory, Volume
from .demands import check_demands, choose_machine
from .device_memory import (
    describe_device_memory,
    describe_search_memory,
    describe_storage,
    fit_to_device,
    predict_device_memory,
)
from .host_memory import predict_memory

if TYPE_CHECKING:
    from ..io import ImageLike, LabelsLike


@dataclass(frozen=True, eq=False)
class Plan:
    """What a registration will do, decided before any heavy work.

    Attributes:
        pair: fixed and moving image, on the host.
        device: where the registration will run.
        config: the configuration, nothing left open.
        alignment: the initial alignment, how it was found and how sure it is.
        grids: the lattices of the fixed image.
        lattice: where the moving image is looked at.
        encoding: what an encoder will be shown; None without one.
        choices: what was decided for the user, and why.
        memory_bytes: predicted peak on the host beside what the caller holds.
        device_memory: the same on the GPU, stage by stage; None on a CPU.
    """

    pair: Pair
    device: Device
    config: RegistrationConfig
    alignment: Alignment
    grids: WorkingGrids
    lattice: MovingLattice
    encoding: EncodingPlan | None
    choices: dict[str, str]
    memory_bytes: int
    device_memory: DeviceMemory | None = None

    @property
    def initial(self) -> AffineTransform:
        """Fixed points to moving points where the registration begins."""
        return self.alignment.transform

    def sides(self, fixed: Volume, moving: Volume) -> Sides:
        """Where both images are looked at; the images themselves are on the plan's device here."""
        first, second = self.pair
        identity, grids, lattice = AffineTransform.identity(), self.grids, self.lattice
        return (
            SolverSide(replace(first, volume=fixed), grids.working, grids.control, identity),
            SolverSide(
                replace(second, volume=moving), lattice.working, lattice.control, self.initial
            ),
        )

    def describe(self) -> str:
        """Several lines for people: grids, search, memory."""
        search = " x ".join(f"{2 * r + 1}" for r in self.grids.search_radius_zyx[::-1])
        levels = self.grids.search_levels
        further = f", {levels} levels" if levels > 1 else ""
        lines = [
            f"working grid   {describe(self.grids.working)}",
            f"control grid   {describe(self.grids.control)}",
            f"search         {search} shifts of {self.config.search_spacing_mm:g} mm{further}",
            f"memory         about {self.memory_bytes / 2**20:.0f} MiB beside the images",
        ]
        if self.device_memory is not None:
            lines.append(f"GPU memory     {describe_device_memory(self.device_memory)}")
        return "\n".join(lines)


@kernel_errors()
def plan(
    fixed: ImageLike,
    moving: ImageLike,
    config: RegistrationConfig | None = None,
    *,
    fixed_mask: LabelsLike | None = None,
    moving_mask: LabelsLike | None = None,
    weights: ImageLike | None = None,
    encoders: EncoderPool | None = None,
) -> Plan:
    """Decide everything that can be decided without looking for matches.

    Arguments as of `register`; what the masks leave out counts neither for the intensity windows
    nor for the centres of mass, and weights are only checked. Images on a CUDA device are looked at
    through a copy on the host.

    Raises:
        DinoregError: inputs, device or parameters that cannot be used; no overlap; not enough
            memory.
    """
    config = checked_config(config)
    check_demands(config)
    fixed, moving = as_volume(fixed), as_volume(moving)
    if weights is not None:
        as_weights(weights, fixed.geometry)
    return plan_volumes(
        fixed,
        moving,
        config,
        fixed_mask=fixed_mask,
        moving_mask=moving_mask,
        encoders=encoders or EncoderPool(),
    )


def plan_volumes(
    fixed: Volume,
    moving: Volume,
    config: RegistrationConfig,
    *,
    fixed_mask: LabelsLike | None,
    moving_mask: LabelsLike | None,
    encoders: EncoderPool,
) -> Plan:
    """`plan` of images that `as_volume` has checked."""
    device, device_reason = choose_machine(config)
    choices = {"device": device_reason}
    if config.threads > device.threads:
        choices["threads"] = (
            f"{device.threads} of the {config.threads} asked for: this process may use no more CPUs"
        )
    pair = _examine_both(fixed, moving, fixed_mask, moving_mask, config, device.host, choices)
    modalities = (pair[0].modality, pair[1].modality)
    pair, alignment = _align(pair, config, device.host, choices)
    grids, config = plan_grids(pair[0].volume.geometry, config, modalities)
    choices["working grid"] = describe(grids.working)
    contrast = compare_contrast(pair, alignment.transform, grids, device.host)
    grids, config = fill_by_contrast(grids, config, modalities, contrast)
    lattice = plan_moving_lattice(grids, pair[1].volume.geometry, alignment.transform)
    choices["objective"] = f"{describe_objective(config)}: {contrast.reason}"
    regions = compared_regions(grids, lattice, alignment.transform)
    encoding = _plan_features(pair, regions, config, device, encoders, choices)
    if config.intensity == "auto" and config.computes_mind:
        intensity = "on" if contrast.alike else "off"
        choices["local intensities"] = f"{intensity}: {contrast.reason}"
        config = config.model_copy(update={"intensity": intensity})
    decided = {
        "device": device.name,
        "threads": device.threads,
        "fixed_modality": modalities[0],
        "moving_modality": modalities[1],
    }
    config = config.model_copy(update=decided)
    volumes = (pair[0].volume, pair[1].volume)
    device_memory = None
    if device.kind == "cuda":
        held = 0
        if encoding is not None and encoders.holds(encoding.bundle, encoding.engine):
            held = encoding.engine_bytes()
        predict = partial(predict_device_memory, volumes, grids, lattice)
        asked = config.search_memory_mb
        encoding, config, device_memory = fit_to_device(device, encoding, predict, config, held)
        if config.search_memory_mb < asked:
            choices["search memory"] = describe_search_memory(device_memory)
        if encoding is not None:
            choices["GPU memory"] = describe_storage(encoding, device_memory)
    return Plan(
        pair=pair,
        device=device,
        config=config,
        alignment=alignment,
        grids=grids,
        lattice=lattice,
        encoding=encoding,
        choices=choices,
        memory_bytes=predict_memory(*volumes, grids, lattice, config, encoding, device),
        device_memory=device_memory,
    )


def _examine_both(
    fixed: Volume,
    moving: Volume,
    fixed_mask: LabelsLike | None,
    moving_mask: LabelsLike | None,
    config: RegistrationConfig,
    host: Device,
    choices: dict[str, str],
) -> Pair:
    """Both images on the host, each by itself; `choices` says why."""
    first = None if fixed_mask is None else as_mask(fixed_mask, fixed.geometry, "fixed")
    second = None if moving_mask is None else as_mask(moving_mask, moving.geometry, "moving")
    given: tuple[tuple[Role, Volume, Array | None], tuple[Role, Volume, Array | None]] = (
        ("fixed", _on_host(fixed), first),
        ("moving", _on_host(moving), second),
    )
    one, other = side_by_side(lambda image, _: examine(*image, config), given, host)
    for image, reason in (one, other):
        choices[f"{image.role} modality"] = reason
    return one[0], other[0]


def _align(
    pair: Pair, config: RegistrationConfig, host: Device, choices: dict[str, str]
) -> tuple[Pair, Alignment]:
    """The images with their bodies, and the initial alignment: both come from coarse images."""
    searched = config.initial in SEARCHES
    if searched or config.body_mask == "auto":
        coarse = coarse_pair(pair, host)
    if searched:
        alignment = search_alignment(coarse, config.initial, config.linear, host)
    else:
        alignment = initial_alignment(pair, config.initial, host)
    choices["initial alignment"] = alignment.method
    if config.body_mask == "off":
        return pair, alignment
    images = []
    for image, seen in zip(pair, coarse, strict=True):
        choices[f"{image.role} body mask"] = f"off: {seen.doubt}" if seen.doubt else "on"
        images.append(image if seen.doubt else replace(image, body=seen.mask()))
    return (images[0], images[1]), alignment


def _plan_features(
    pair: Pair,
    regions: tuple[Region, Region],
    config: RegistrationConfig,
    device: Device,
    encoders: EncoderPool,
    choices: dict[str, str],
) -> EncodingPlan | None:
    """What an encoder will be shown, if there is one; `choices` says what features are made of."""
    if config.encoder is None:
        choices["features"] = "MIND-SSC, because no encoder was given"
        return None
    encoding, said = plan_encoding(pair, regions, config, device, encoders)
    text = f"{config.components} components of {encoding.bundle.name}"
    if config.axis == "all":
        text += " for each axis"
    text += f"; {describe_stages(config)}"
    if config.trust:
        said["trust"] = "judged by MIND-SSC, not by the encoder's features"
    choices |= {"features": text} | said
    return encoding


def describe_stages(config: RegistrationConfig) -> str:
    """What the search and the refinement compare: ``search: encoder, then MIND-SSC; ...``."""
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


def _on_host(volume: Volume) -> Volume:
    """The same image with its voxels on the host; the image itself where they are there."""
    if device_of(volume.array) == "cpu":
        return volume
    return replace(volume, array=as_numpy(volume.array))
