"""The one orchestrator: `register` reads like the method. `plan` decides beforehand.

No file is read here but a transform named as the initial alignment, and nothing is printed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dinoreg_kernels import Solution

from ..config.parameters import RegistrationConfig, checked_config
from ..device.choice import StageTimer, kernel_errors, library_errors, stage_timer
from ..device.placement import Placement, checked_placement, deliver
from ..device.streams import working_stream
from ..encoder.open_encoders import EncoderPool
from ..engines.open import ENGINE_PACKAGES
from ..features.mind import FeaturePair
from ..fields.solve import (
    confidence,
    inverse_displacement,
    inverse_misses,
    negative_displacement,
    solve,
    solver_options,
    whole_displacement,
)
from ..fields.warp import warp_volume
from ..images.pair import Sides
from ..images.resample import uploaded
from ..io.arrays import check_device
from ..io.hashes import content_hash, versions
from ..quality.finite import check_finite
from ..quality.metrics import run_quality
from ..quality.mirror_test import DecoySearches, search_decoys
from ..types import Array, DisplacementField, EncodingSummary, RunQuality, Volume
from .case import Case
from .demands import check_demands
from .device_memory import device_memory_errors
from .features import Extracted, extract_features, field_of_view
from .host_memory import check_memory
from .plan import Plan
from .planning import plan_case
from .result import KeptFeatures, RegistrationResult

if TYPE_CHECKING:
    from ..io import ImageLike, LabelsLike

#: Called with the stage's name and its finished fraction; an exception in it stops the run.
ProgressCallback = Callable[[str, float], None]


@kernel_errors()
def register(  # noqa: PLR0913 - all but the images by name
    fixed: ImageLike,
    moving: ImageLike,
    *,
    config: RegistrationConfig | None = None,
    fixed_mask: LabelsLike | None = None,
    moving_mask: LabelsLike | None = None,
    weights: ImageLike | None = None,
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
        weights: how much each voxel of the fixed image counts in search and refinement, on its
            grid, 0 to 10000; 1 changes nothing. To follow some organs more closely than others.
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
    config, placement = checked_config(config), checked_placement(placement)
    check_demands(config)  # what is not there is said before an image is read
    case = Case.of(
        fixed, moving, config, fixed_mask=fixed_mask, moving_mask=moving_mask, weights=weights
    )
    encoders = encoders or EncoderPool()
    plan_ = plan_case(case, config, encoders)
    if on_plan is not None:
        on_plan(plan_)
    _check_places(case, plan_, placement)
    check_memory(plan_)
    report = progress or (lambda stage, fraction: None)
    device, timer = plan_.device, stage_timer(plan_.device)
    with (
        device.active(),
        working_stream(device),
        library_errors(device),
        device_memory_errors(plan_.device_memory, device, timer),
    ):
        with timer.stage("field of view"):
            images = uploaded(case.fixed, device), uploaded(case.moving, device)
            sides = plan_.sides(*images)
            counts = field_of_view(sides, case.weights, device)
        match = _match(sides, counts, plan_, timer, report, encoders, keep=keep_features)
        with timer.stage("warp"):
            report("warp", 0.0)
            fields = _fields(match.solution, *images, plan_)
            report("warp", 1.0)
        # A GPU is at work still: nothing has waited for it since the features. By its events this
        # lasts as long as it waits for the host here.
        with timer.stage("hash"):
            hashes = {str(image.role): content_hash(image.volume) for image in plan_.pair}
        with timer.stage("quality"):
            quality = _quality(match, fields, plan_)
            encoding = None if match.encoding is None else match.encoding()
        with timer.stage("deliver"):
            displacement, warped, inverse, certainty = deliver(
                placement,
                device,
                fields.displacement,
                fields.warped,
                fields.inverse,
                fields.confidence,
            )
            check_finite(device, displacement, warped, inverse, certainty)
        timings_ms = timer.finish()
    return RegistrationResult(
        displacement=displacement,
        initial=plan_.initial,
        warped=warped,
        inverse=inverse,
        confidence=None if certainty is None else Volume(certainty, case.fixed.geometry),
        quality=quality,
        config=plan_.config,
        encoding=encoding,
        features=match.features,
        choices=plan_.choices,
        alignment=plan_.alignment.numbers(),
        device_memory=plan_.device_memory,
        timings_ms=timings_ms,
        versions=versions(*([] if encoding is None else [ENGINE_PACKAGES[encoding.engine]])),
        hashes=hashes,
        warnings=(*case.fixed.geometry.notes, *case.moving.geometry.notes),
    )


@dataclass(frozen=True, eq=False)
class _Match:
    """What was compared and found, on the control grid."""

    solution: Solution
    decoys: DecoySearches | None
    encoding: Callable[[], EncodingSummary] | None
    features: KeptFeatures | None


@dataclass(frozen=True, eq=False)
class _Fields:
    """What becomes of a solution on the grids of the images."""

    displacement: DisplacementField
    warped: Volume
    inverse: DisplacementField | None
    inverse_misses: tuple[Array, Array] | None
    confidence: Array | None


def _match(
    sides: Sides,
    counts: tuple[Array, Array],
    plan_: Plan,
    timer: StageTimer,
    report: ProgressCallback,
    encoders: EncoderPool,
    *,
    keep: bool,
) -> _Match:
    """Features, the solver on them, and its search once more in mirror images."""
    config, device = plan_.config, plan_.device
    grids, moving_grids = plan_.grids, plan_.moving_grids
    extracted = extract_features(sides, plan_, timer, report, encoders)
    features, mind = extracted.features, extracted.mind
    options = solver_options(config, grids)
    with timer.stage("solve"):
        solution = solve(
            features,
            _weights(counts, features),
            grids,
            moving_grids.offset_zyx,
            options,
            device,
            report,
            search=_search(extracted, counts),
            images=extracted.intensities if config.correlation_weight > 0 else None,
            spread=config.confidence,
        )
    decoys = None
    if mind is not None and extracted.intensities is not None:
        with timer.stage("trust"):
            decoys = search_decoys(
                mind,
                extracted.intensities,
                _weights(counts, mind),
                grids,
                moving_grids.offset_zyx,
                options,
                device,
            )
    kept = None
    if keep:
        # What leads the search: the refinement may compare MIND-SSC alone.
        shown = extracted.search[0]
        kept = KeptFeatures.of(shown, _weights(counts, shown), solution.field, plan_)
    return _Match(solution, decoys, extracted.encoding, kept)


def _search(
    extracted: Extracted, counts: tuple[Array, Array]
) -> list[tuple[FeaturePair, tuple[Array, Array]]] | None:
    """Features and weights for each level of the search; None: those of the refinement."""
    if all(pair is extracted.features for pair in extracted.search):
        return None
    weights = {id(pair): _weights(counts, pair) for pair in extracted.search}
    return [(pair, weights[id(pair)]) for pair in extracted.search]


def _weights(counts: tuple[Array, Array], features: FeaturePair) -> tuple[Array, Array]:
    """How much each control voxel counts, where the features say something."""
    return counts[0] * features.fixed_weight, counts[1] * features.moving_weight


def _fields(solution: Solution, fixed: Volume, moving: Volume, plan_: Plan) -> _Fields:
    """Displacement and warped image, and inverse and confidence where they are asked for."""
    config, device, control = plan_.config, plan_.device, plan_.grids.control
    displacement = whole_displacement(
        solution.field, control, fixed.geometry, plan_.initial, device
    )
    certainty = None
    if solution.spread is not None:
        options = solver_options(config, plan_.grids)
        certainty = confidence(solution.spread, plan_.grids, options, fixed.geometry, device)
    inverse = misses = None
    if config.inverse and solution.inverse is not None:
        inverse = negative_displacement(
            solution.inverse, control, moving.geometry, plan_.initial, device
        )
    elif config.inverse:
        inverse, missed_mm = inverse_displacement(
            solution.field, control, moving.geometry, plan_.initial, device
        )
        misses = inverse_misses(missed_mm, device)
    warped = warp_volume(
        moving,
        displacement,
        device=device,
        download=False,
        outside=min(0.0, plan_.pair[1].lowest),
        known=True,
    )
    return _Fields(displacement, warped, inverse, misses, certainty)


def _quality(match: _Match, fields: _Fields, plan_: Plan) -> RunQuality:
    """What is known of the result; waits for it, once."""
    quality = run_quality(
        match.solution,
        plan_.grids.control,
        fields.displacement,
        plan_.device,
        inverse_misses=fields.inverse_misses,
    )
    if plan_.alignment.similarity is not None:
        quality = replace(quality, alignment_similarity=plan_.alignment.similarity)
    if match.decoys is None:
        return quality
    return replace(quality, **vars(match.decoys.measures()))


def _check_places(case: Case, plan_: Plan, placement: Placement) -> None:
    for role, volume in (("fixed", case.fixed), ("moving", case.moving)):
        check_device(volume.array, plan_.device.name, f"the {role} image")
    placement.check(case.fixed.geometry, case.moving.geometry, inverse=plan_.config.inverse)
