"""`register` runs the stages of a registration in the order of the method.

`planning` makes the decisions beforehand. This module prints nothing and reads no files except the
images and a transform that is given as the initial alignment.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from dinoreg_kernels import Solution

from ..config.parameters import RegistrationConfig, checked_config
from ..device.choice import StageTimer, kernel_errors, library_errors, stage_timer
from ..device.placement import Placement, checked_placement
from ..device.streams import working_stream
from ..encoder.open_encoders import EncoderPool
from ..engines.open import ENGINE_PACKAGES
from ..fields.solve import affine_field, solve, solver_options, without_steps
from ..geometry import compose_affines, invert_affine
from ..images.fixed_work import FixedWork
from ..io.arrays import check_device
from ..io.hashes import versions
from ..quality.metrics import run_quality
from ..quality.mirror_images import content_middle
from ..quality.mirror_test import DecoySearches, search_decoys
from ..summaries import EncodingSummary, RegionQuality, RunQuality
from ..types import AffineTransform, Array, Volume
from .case import Case
from .decisions import Decisions
from .demands import check_demands
from .features import extract_features, field_of_view, weigh
from .fields import Fields, compute_fields
from .linear import moved_mm, refine_linear
from .memory import check_memory, device_memory_errors, reserved_memory
from .plan import Plan
from .planning import plan_case
from .result import KeptFeatures, RegistrationResult

if TYPE_CHECKING:
    from ..io import ImageLike, LabelsLike

#: Called with a stage's name and its finished fraction; an exception in it stops the run.
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
    initial: AffineTransform | None = None,
    keep_features: bool = False,
    progress: ProgressCallback | None = None,
    on_plan: Callable[[Plan], None] | None = None,
    placement: Placement | None = None,
    encoders: EncoderPool | None = None,
    fixed_work: FixedWork | None = None,
) -> RegistrationResult:
    """Register `moving` to `fixed`. For many pairs use `Registrar`, which keeps the encoder open.

    Args:
        fixed: path, SimpleITK image, `Volume`, or (array (D, H, W), `Geometry`); an array of NumPy,
            CuPy, PyTorch, Numba or PyCUDA is used where it is, without a copy.
        moving: the same; its size, spacing, orientation and position are free.
        config: parameters (default: the preset ``mind``).
        fixed_mask: voxels of the fixed image that count, on its grid; nonzero is inside.
        moving_mask: the same for the moving image.
        weights: weight of each voxel of the fixed image in search and refinement, on its grid, from
            0 to 10000; 1 changes nothing. Larger weights make the result follow some organs
            more closely than others.
        initial: the initial alignment, from fixed to moving points; it counts instead of that of
            the configuration.
        keep_features: keep the features of both images in the result.
        progress: called with a stage's name and its finished fraction.
        on_plan: called with the plan before the heavy work.
        placement: where the result's arrays are placed (default: new NumPy arrays).
        encoders: encoders that are already open (default: opened for this call).
        fixed_work: keeps what the fixed image determines for the next call (default: nothing).

    Returns:
        The mapping from fixed to moving points, the warped moving image, and a report on both.

    Raises:
        DinoregError: see `dinoreg_rt.errors`; the message says what to do.
    """
    config, placement = checked_config(config), checked_placement(placement)
    check_demands(config)  # before an image is read
    case = Case.of(
        fixed,
        moving,
        config,
        fixed_mask=fixed_mask,
        moving_mask=moving_mask,
        weights=weights,
        initial=initial,
    )
    if fixed_work is not None:
        case = replace(case, kept=fixed_work.of(case.fixed, case.fixed_mask, config))
    encoders = encoders or EncoderPool()
    plan = plan_case(case, config, encoders)
    if on_plan is not None:
        on_plan(plan)
    _check_devices(case, plan, placement)
    check_memory(plan.sizes, plan.memory_bytes, plan.device_memory, plan.device)
    run = _Run(plan, stage_timer(plan.device), progress or (lambda stage, fraction: None))
    with run.on_device():
        if (model := plan.config.linear_transform) is not None:
            with run.timer.stage("linear"):
                plan = refine_linear(plan, model, case.weights, run.report)
            run = replace(run, plan=plan)
        with run.timer.stage("field of view"):
            images = plan.uploaded(case.fixed, case.moving)
            counts = field_of_view(plan.sides(*images), case.weights, plan.device)
        match = _match(images, counts, run, encoders, keep=keep_features)
        fields = compute_fields(match.solution, images, plan, run.timer, run.report)
        with fields.delivering(placement, plan.device) as delivered:
            # A GPU is still working, because nothing has waited for it since the features. Timed by
            # its events, this stage lasts for as long as it waits for the host here.
            with run.timer.stage("hash"):
                hashes = plan.hashes(case.fixed, case.moving)
            with run.timer.stage("quality"):
                quality, regions = _quality(match, fields, plan)
                encoding = None if match.encoding is None else match.encoding()
            with run.timer.stage("deliver"):
                fields = delivered()
        return _result(fields, quality, regions, encoding, hashes, match.features, run)


@dataclass(frozen=True, eq=False)
class _Run:
    """The plan, the timer and the caller's progress callback, which all stages share."""

    plan: Plan
    timer: StageTimer
    report: ProgressCallback

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """Work on the plan's device and translate its errors."""
        plan, device = self.plan, self.plan.device
        waiting = partial(self.report, "waiting for memory", 0.0)
        with (
            reserved_memory(plan.sizes, plan.device_memory, device, waiting),
            device.active(),
            working_stream(device),
            library_errors(device),
            device_memory_errors(plan.device_memory, device, self.timer),
        ):
            yield


@dataclass(frozen=True, eq=False)
class _Match:
    """The compared features and the solution found, on the control grid."""

    solution: Solution
    mirror_test: DecoySearches | None
    encoding: Callable[[], EncodingSummary] | None
    features: KeptFeatures | None


def _check_devices(case: Case, plan: Plan, placement: Placement) -> None:
    """Check that images on a GPU are on the plan's, and that the caller's buffers fit."""
    for role, volume in (("fixed", case.fixed), ("moving", case.moving)):
        check_device(volume.array, plan.device.name, f"the {role} image")
    placement.check(case.fixed.geometry, case.moving.geometry, inverse=plan.config.inverse)


def _match(
    images: tuple[Volume, Volume],
    counts: tuple[Array, Array],
    run: _Run,
    encoders: EncoderPool,
    *,
    keep: bool,
) -> _Match:
    """Extract features, solve for the field, and repeat the search in mirror images."""
    plan, timer = run.plan, run.timer
    extracted = extract_features(plan.sides(*images), plan, timer, run.report, encoders)
    options = solver_options(plan.config, plan.grids)
    linear = plan.config.linear_transform is not None
    middle = (0.0, 0.0, 0.0)
    if extracted.mind is not None and extracted.intensities is not None:
        # This waits for the device, so it comes before the solver is queued: the only such wait.
        weight = weigh(counts, extracted.mind)[1]
        middle = content_middle(extracted.intensities[1], weight, plan.device)
        del weight
    with timer.stage("solve"):
        solution = solve(
            extracted.features,
            weigh(counts, extracted.features),
            plan.grids,
            plan.moving_grids.offset_zyx,
            without_steps(options) if linear else options,
            plan.device,
            run.report,
            search=extracted.levels(counts),
            images=extracted.intensities if plan.config.correlation_weight > 0 else None,
            spread=plan.config.confidence,
        )
    mirror_test = None
    if extracted.mind is not None and extracted.intensities is not None:
        with timer.stage("trust"):
            back = (
                None
                if plan.start is None
                else affine_field(_back(plan), plan.grids.control, plan.device)
            )
            mirror_test = search_decoys(
                extracted.mind,
                extracted.intensities,
                weigh(counts, extracted.mind),
                plan.grids,
                plan.moving_grids.offset_zyx,
                middle,
                options,
                plan.device,
                solution.field,
                back=back,
            )
    shown = extracted.search[0]  # the refinement may compare MIND-SSC alone
    kept = KeptFeatures.of(shown, weigh(counts, shown), solution.field, plan) if keep else None
    return _Match(solution, mirror_test, extracted.encoding, kept)


def _back(plan: Plan) -> AffineTransform:
    """Return the map p -> q of fixed points: the start takes q to where the final map takes p."""
    start = plan.initial if plan.start is None else plan.start
    return compose_affines(invert_affine(plan.initial), start)


def _quality(
    match: _Match, fields: Fields, plan: Plan
) -> tuple[RunQuality, tuple[RegionQuality, ...]]:
    """Measure the result and its regions without labels, waiting for the device once."""
    quality = run_quality(
        match.solution,
        plan.grids.control,
        fields.displacement,
        plan.device,
        inverse_misses=fields.inverse_misses,
    )
    if plan.start is not None:  # the start is compared by the agreement of MIND-SSC alone
        quality = replace(quality, feature_distance_before=math.nan)
    if plan.alignment.similarity is not None:
        quality = replace(quality, alignment_similarity=plan.alignment.similarity)
    quality = replace(quality, sides_in_doubt=plan.sides_in_doubt)
    if match.mirror_test is None:
        return quality, ()
    measures, regions = match.mirror_test.measures()
    quality = replace(quality, **vars(measures))
    if plan.start is None or moved_mm(plan) >= min(plan.grids.control.spacing_mm) / 2:
        return quality, regions
    # The agreement reads the nearest voxels, which cannot resolve so small a displacement.
    return replace(quality, mind_distance_before=math.nan, information_before=math.nan), regions


def _result(
    fields: Fields,
    quality: RunQuality,
    regions: tuple[RegionQuality, ...],
    encoding: EncodingSummary | None,
    hashes: dict[str, str],
    features: KeptFeatures | None,
    run: _Run,
) -> RegistrationResult:
    """Assemble the result that `register` returns."""
    plan, grid = run.plan, fields.displacement.geometry
    return RegistrationResult(
        displacement=fields.displacement,
        initial=plan.initial if plan.start is None else plan.start,
        affine=None if plan.start is None else plan.initial,
        deformable=fields.deformable,
        warped=fields.warped,
        inverse=fields.inverse,
        confidence=None if fields.confidence is None else Volume(fields.confidence, grid),
        quality=quality,
        regions=regions,
        config=plan.config,
        encoding=encoding,
        features=features,
        choices=plan.choices,
        decisions=Decisions.of(plan),
        plan_warnings=(*plan.header_notes, *plan.warnings),
        water=(plan.pair[0].water, plan.pair[1].water),
        alignment=plan.alignment.numbers(),
        device_memory=plan.device_memory,
        timings_ms=plan.timings_ms | run.timer.finish(),
        versions=versions(*([] if encoding is None else [ENGINE_PACKAGES[encoding.engine]])),
        hashes=hashes,
    )
