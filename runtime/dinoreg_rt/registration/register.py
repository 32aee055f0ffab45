"""`register` runs the stages of a registration in the order of the method.

`planning` makes the decisions beforehand. This module prints nothing and reads no files except the
images and a transform that is given as the initial alignment.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dinoreg_kernels import Solution, SolverOptions, WeighedImages, shared_workspace

from ..config.parameters import RegistrationConfig, checked_config
from ..device.choice import kernel_errors, stage_timer
from ..device.placement import Placement, checked_placement
from ..device.recording import Sessions
from ..encoder.open_encoders import EncoderPool
from ..engines.open import ENGINE_PACKAGES
from ..fields.solve import affine_field, solve, solver_options, without_steps
from ..geometry import compose_affines, invert_affine
from ..images.fixed_work import FixedWork
from ..io.arrays import check_device
from ..io.hashes import versions
from ..quality.mirror_test import DecoySearches, search_decoys
from ..summaries import EncodingSummary, RegionQuality, RunQuality
from ..types import AffineTransform, Array, Volume
from .case import Case
from .decisions import Decisions
from .demands import check_demands
from .features import Weights, extract_features, field_of_view
from .fields import Fields, compute_fields
from .linear import refine_linear
from .measures import judge, measure
from .memory import check_memory
from .plan import Plan
from .planning import plan_case
from .result import KeptFeatures, RegistrationResult
from .running import ProgressCallback, Run

if TYPE_CHECKING:
    from ..io import ImageLike, LabelsLike


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
    sessions: Sessions | None = None,
    turn: AbstractContextManager[object] | None = None,
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
        progress: called with a stage's name and its finished fraction; for stages that are recorded
            (`sessions`) only before and after them.
        on_plan: called with the plan before the heavy work.
        placement: where the result's arrays are placed (default: new NumPy arrays).
        encoders: encoders that are already open (default: opened for this call).
        fixed_work: on a CPU keeps what the fixed image determines for the next call (default:
            nothing).
        sessions: keeps the stages of each shape as CUDA graphs (default: nothing is recorded).
        turn: entered for the work after planning, for example to wait for another registration.

    Returns:
        The mapping from fixed to moving points, the warped moving image, and a report on both.

    Raises:
        DinoregError: see `dinoreg_rt.errors`; the message says what to do.
    """
    config, placement = checked_config(config), checked_placement(placement)
    device = check_demands(config)  # before an image is read
    case = Case.of(
        fixed,
        moving,
        config,
        fixed_mask=fixed_mask,
        moving_mask=moving_mask,
        weights=weights,
        initial=initial,
    )
    # Arrays of work that is recorded must not be kept: if it is lost, they were never computed.
    if fixed_work is not None and device.kind == "cpu":
        case = replace(case, kept=fixed_work.of(case.fixed, case.fixed_mask, config))
    encoders = encoders or EncoderPool()
    plan = plan_case(case, config, encoders)
    if on_plan is not None:
        on_plan(plan)
    _check_devices(case, plan, placement)
    check_memory(plan.sizes, plan.memory_bytes, plan.device_memory, plan.device)
    run = Run(plan, stage_timer(plan.device), progress or (lambda stage, fraction: None))
    with turn or nullcontext(), run.on_device(sessions):
        if (model := plan.config.linear_transform) is not None:
            with run.timer.stage("linear"):
                plan = refine_linear(plan, model, case.weights, run.report)
            run = replace(run, plan=plan)
        with run.timer.stage("field of view"):
            images = plan.images
            counts = field_of_view(plan.sides(*images), case.weights, plan.device)
        match = _match(images, counts, run, encoders, keep=keep_features)
        fields = compute_fields(match.solution, images, plan, run.timer, run.report)
        with fields.delivering(placement, plan.device) as delivered:
            measured = run.timer.recorded(
                "quality",
                lambda: measure(match.solution, match.mirror_test, fields, counts, plan),
            )
            # A GPU is still working, because nothing has waited for it since the features. Timed by
            # its events, this stage lasts for as long as it waits for the host here.
            with run.timer.stage("hash"):
                hashes = plan.hashes()
            with run.timer.stage("deliver"):
                fields, numbers = delivered(measured.arrays)
        weighted = case.weights is not None
        quality, regions = judge(
            measured, numbers, match.mirror_test, fields, plan, weighted=weighted
        )
        encoding = None if match.encoding is None else match.encoding()
        return _result(fields, quality, regions, encoding, hashes, match.features, run)


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
    run: Run,
    encoders: EncoderPool,
    *,
    keep: bool,
) -> _Match:
    """Extract features, solve for the field, and repeat the search in mirror images."""
    plan, timer = run.plan, run.timer
    extracted = extract_features(plan.sides(*images), plan, timer, run.report, encoders)
    options = solver_options(plan.config, plan.grids)
    linear = plan.config.linear_transform is not None
    weights = Weights(counts, plan.device)
    compared, levels = weights.of(extracted.features), weights.of_levels(extracted)
    solution = timer.recorded(
        "solve",
        lambda: solve(
            extracted.features,
            compared,
            plan.grids,
            plan.moving_grids.offset_zyx,
            without_steps(options) if linear else options,
            plan.device,
            run.report,
            search=levels,
            images=extracted.intensities if plan.config.correlation_weight > 0 else None,
            spread=plan.config.confidence,
        ),
    )
    mirror_test = None
    if extracted.mind is not None and extracted.intensities is not None:
        mind = extracted.mind
        weighed = WeighedImages(
            mind.fixed,
            mind.moving,
            *weights.of(mind),
            *extracted.intensities,
            plan.grids.control.spacing_mm[::-1],
            plan.moving_grids.offset_zyx,
        )
        mirror_test = timer.recorded(
            "trust", lambda: _mirror_test(weighed, mind.channels, options, solution.field, plan)
        )
    shown = extracted.search[0]  # the refinement may compare MIND-SSC alone
    kept = KeptFeatures.of(shown, weights.of(shown), solution.field, plan) if keep else None
    return _Match(solution, mirror_test, extracted.encoding, kept)


def _mirror_test(
    images: WeighedImages, channels: int, options: SolverOptions, field: Array, plan: Plan
) -> DecoySearches | None:
    """Queue the mirror test of a result `field` on the control grid."""
    grids, device, back = plan.grids, plan.device, None
    if plan.start is not None:
        back = affine_field(_back(plan), grids.control, device)
    with shared_workspace():
        return search_decoys(images, channels, grids, options, device, field, back=back)


def _back(plan: Plan) -> AffineTransform:
    """Return the map p -> q of fixed points: the start takes q to where the final map takes p."""
    start = plan.initial if plan.start is None else plan.start
    return compose_affines(invert_affine(plan.initial), start)


def _result(
    fields: Fields,
    quality: RunQuality,
    regions: tuple[RegionQuality, ...],
    encoding: EncodingSummary | None,
    hashes: dict[str, str],
    features: KeptFeatures | None,
    run: Run,
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
