"""`plan` decides how a registration will run, before any heavy work."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from dinoreg_kernels import shared_workspace

from ..align.coarse import coarse_pair
from ..align.initial import SEARCHES, Alignment, initial_alignment, search_alignment
from ..align.linear_models import nearest_map
from ..config.decided import DecidedConfig
from ..config.image_parameters import LinearModel
from ..config.parameters import RegistrationConfig, checked_config
from ..device.choice import Device, StageTimer, kernel_errors, library_errors
from ..device.streams import working_stream
from ..encoder.encoding import EncodingPlan
from ..encoder.open_encoders import EncoderPool
from ..encoder.planning import plan_encoding
from ..geometry import centre_lps_mm
from ..images.contrast import compare_contrast
from ..images.fixed_work import NOTHING_KEPT
from ..images.grids import WorkingGrids, plan_grids, working_grid
from ..images.moving_grids import Region, compared_regions, plan_moving_grids
from ..images.pair import Findings, Pair, PairImage, Role, examine, side_by_side
from ..images.resample import uploaded
from ..io.arrays import check_device
from ..summaries import DeviceMemory
from ..types import AffineTransform, Array, Volume
from .case import Case
from .defaults import decide, default_lengths, describe_objective, describe_stages
from .demands import check_demands, choose_machine
from .memory import (
    describe_search_memory,
    describe_storage,
    device_memory_errors,
    fit_to_device,
)
from .needs import predict_host
from .plan import Plan
from .sizes import Sizes

if TYPE_CHECKING:
    from ..io import ImageLike, LabelsLike


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
    """Decide everything that can be decided without searching for matches.

    The arguments are those of `register`. Voxels outside the masks count neither for the intensity
    windows nor for the centres of mass; weights are only checked. Images are uploaded to the
    device of the registration; those on a CUDA device stay there.

    Raises:
        DinoregError: inputs, device or parameters cannot be used, or the images do not overlap.
    """
    config = checked_config(config)
    check_demands(config)
    case = Case.of(
        fixed, moving, config, fixed_mask=fixed_mask, moving_mask=moving_mask, weights=weights
    )
    return plan_case(case, config, encoders or EncoderPool())


def plan_case(case: Case, config: RegistrationConfig, encoders: EncoderPool) -> Plan:
    """Plan a registration of checked inputs; raises the errors of `plan`."""
    timer = StageTimer(Device("cpu"))
    with timer.stage("plan"):
        device, device_reason = choose_machine(config)
        for role, volume in (("fixed", case.fixed), ("moving", case.moving)):
            check_device(volume.array, device.name, f"the {role} image")
    with (
        device.active(),
        working_stream(device),
        library_errors(device),
        device_memory_errors(None, device, timer),
    ):
        return _plan_on(device, device_reason, case, config, encoders, timer)


def _plan_on(
    device: Device,
    device_reason: str,
    case: Case,
    config: RegistrationConfig,
    encoders: EncoderPool,
    timer: StageTimer,
) -> Plan:
    """Plan a registration on a device, which is the current one."""
    given = device.downloading(case.fixed.array, case.moving.array)
    choices = {"device": device_reason}
    if config.threads > device.threads:
        choices["threads"] = (
            f"{device.threads} of the {config.threads} requested: this process may use no more CPUs"
        )
    with timer.stage("modality"):
        pair, warnings = _examine_both(case, config, device, choices)
    with timer.stage("alignment"), shared_workspace():
        pair, alignment = _align(pair, config, case.initial, device, choices)
    fixed, moving = pair[0].volume, pair[1].volume
    with timer.stage("plan"):
        grids, decided = _decide(pair, alignment, config, device, choices)
        moving_grids = plan_moving_grids(grids, moving.geometry, alignment.transform)
        regions = compared_regions(grids, moving_grids, alignment.transform)
        shown = _as_given(pair, case)
        encoding = _plan_features(shown, regions, decided, device, encoders, choices)
        on_gpu = device.kind == "cuda"
        sizes = Sizes(
            fixed.geometry, moving.geometry, grids, moving_grids, decided, encoding, on_gpu
        )
        device_memory = None
        if on_gpu:
            images = sum(int(image.volume.array.nbytes) for image in pair)
            sizes, device_memory = _fit(sizes, images, device, encoders, choices)
    return Plan(
        pair=pair,
        device=device,
        config=sizes.config,
        alignment=alignment,
        grids=grids,
        moving_grids=moving_grids,
        encoding=sizes.encoding,
        choices=choices,
        warnings=warnings,
        memory_bytes=predict_host(sizes),
        device_memory=device_memory,
        timings_ms=timer.finish(),
        given=given,
    )


def _fit(
    sizes: Sizes, held: int, device: Device, encoders: EncoderPool, choices: dict[str, str]
) -> tuple[Sizes, DeviceMemory]:
    """Fit a registration to its GPU, which holds its images, and record the reductions."""
    encoding = sizes.encoding
    if encoding is not None and encoders.holds(encoding.bundle, encoding.engine):
        held += sizes.engine
    fitted, memory = fit_to_device(device, sizes, held)
    if _is_reduced(fitted, sizes, memory) and encoders.make_room():
        fitted, memory = fit_to_device(device, sizes, held)
    if fitted.config.search_memory_mb < sizes.config.search_memory_mb:
        choices["search memory"] = describe_search_memory(memory)
    if fitted.encoding is not None:
        choices["GPU memory"] = describe_storage(fitted.encoding, memory)
    return fitted, memory


def _is_reduced(fitted: Sizes, sizes: Sizes, memory: DeviceMemory) -> bool:
    """Return whether a registration was reduced to fit on its GPU, or does not fit at all."""
    encoding, wanted = fitted.encoding, sizes.encoding
    slower = encoding is not None and not encoding.tokens_on_device
    if encoding is not None and wanted is not None:
        slower |= encoding.batch < wanted.batch
    return slower or fitted.config != sizes.config or memory.peak_bytes > memory.available_bytes


def _examine_both(
    case: Case, config: RegistrationConfig, device: Device, choices: dict[str, str]
) -> tuple[Pair, tuple[str, ...]]:
    """Upload and examine each image by itself; return warnings and fill in `choices`."""
    given: tuple[tuple[Role, Volume, Array | None], tuple[Role, Volume, Array | None]] = (
        ("fixed", uploaded(case.fixed, device), case.fixed_mask),
        ("moving", uploaded(case.moving, device), case.moving_mask),
    )

    def examined(
        image: tuple[Role, Volume, Array | None], share: Device
    ) -> tuple[PairImage, Findings]:
        kept = case.kept if image[0] == "fixed" else NOTHING_KEPT
        found, findings = kept.once("examined", (), lambda: examine(*image, config, share))
        return replace(found, kept=kept), findings

    one, other = side_by_side(examined, given, device)
    for image, findings in (one, other):
        if image.volume.notes:
            choices[f"{image.role} image"] = "; ".join(image.volume.notes)
        choices[f"{image.role} modality"] = findings.modality
    return (one[0], other[0]), one[1].warnings + other[1].warnings


def _decide(
    pair: Pair,
    alignment: Alignment,
    config: RegistrationConfig,
    device: Device,
    choices: dict[str, str],
) -> tuple[WorkingGrids, DecidedConfig]:
    """Lay the grids over the fixed image and fill in every open parameter."""
    modalities = (pair[0].modality, pair[1].modality)
    working = working_grid(pair[0].volume.geometry, config.working_megavoxels)
    lengths = default_lengths(config, working, modalities)
    grids = plan_grids(
        working,
        lengths["control_spacing_mm"],
        lengths["search_spacing_mm"],
        lengths["search_radius_mm"],
    )
    choices["working grid"] = working.summary()
    contrast = compare_contrast(pair, alignment.transform, grids, device)
    machine = {"device": device.name, "threads": device.threads}
    decided = decide(config, working, lengths, modalities, contrast, **machine)
    choices["objective"] = f"{describe_objective(decided)}: {contrast.reason}"
    if config.intensity == "auto" and config.computes_mind:
        choices["local intensities"] = f"{decided.intensity}: {contrast.reason}"
    return replace(grids, search_levels=decided.search_levels), decided


def _align(
    pair: Pair,
    config: RegistrationConfig,
    given: AffineTransform | None,
    device: Device,
    choices: dict[str, str],
) -> tuple[Pair, Alignment]:
    """Find bodies and initial alignment, both on coarse images, and record them in `choices`."""
    searched = given is None and config.initial in SEARCHES
    if searched or config.body_mask == "auto":
        coarse = coarse_pair(pair, device)
    if searched:
        turns = config.linear_transform is not None
        alignment = search_alignment(
            coarse, config.initial, config.initial_model, device, turns=turns
        )
    elif given is not None:
        alignment = Alignment(given, "given by the caller")
    else:
        alignment = initial_alignment(pair, config.initial, device)
    alignment = _within_model(alignment, config.linear_transform, pair[0].volume)
    choices["initial alignment"] = alignment.method
    if config.body_mask == "off":
        return pair, alignment
    images = []
    for image, seen in zip(pair, coarse, strict=True):
        choices[f"{image.role} body mask"] = f"off: {seen.doubt}" if seen.doubt else "on"
        images.append(image if seen.doubt else replace(image, body=seen.mask()))
    return (images[0], images[1]), alignment


def _within_model(alignment: Alignment, model: LinearModel | None, fixed: Volume) -> Alignment:
    """Return the nearest alignment of a linear registration's model, and say if it differs."""
    if model is None:
        return alignment
    near = nearest_map(alignment.transform, model, centre_lps_mm(fixed.geometry))
    if np.allclose(near.matrix, alignment.transform.matrix, rtol=0, atol=1e-6):
        return replace(alignment, transform=near)
    return replace(alignment, transform=near, method=f"{alignment.method}; its {model} part")


def _as_given(pair: Pair, case: Case) -> Pair:
    """Return the images where the caller has them: the names of cached tokens are their hashes."""
    one, other = (
        image if image.padded else replace(image, volume=volume)
        for image, volume in zip(pair, (case.fixed, case.moving), strict=True)
    )
    return one, other


def _plan_features(
    pair: Pair,
    regions: tuple[Region, Region],
    config: DecidedConfig,
    device: Device,
    encoders: EncoderPool,
    choices: dict[str, str],
) -> EncodingPlan | None:
    """Plan the encoding, if there is an encoder, and record the features in `choices`."""
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
