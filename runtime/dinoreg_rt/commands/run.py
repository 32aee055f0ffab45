"""`dinoreg-rt run`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from ..config.parameters import RegistrationConfig
from ..console.progress import Reporter, reporting
from ..console.stdout import print_result
from .main import EXIT_CODE_TEXT
from .options import (
    INPUTS,
    OUTPUT,
    REPORTING,
    config_options,
    given_config,
    json_option,
    path_option,
    read_config,
)
from .result_options import computed, result_options, wanted_files

if TYPE_CHECKING:
    from ..run.report import RunReport
    from ..run.request import RunRequest

# The blank lines keep the help renderer from joining lines.
_EPILOG = f"""Examples:

dinoreg-rt run -f fixed.nii.gz -m moving.nii.gz -o result

dinoreg-rt run -f fixed.nii.gz -m moving.nii.gz -o result --labels organs.nii.gz --save inverse

{EXIT_CODE_TEXT}"""


def _many_pairs(_: click.Context, option: click.Parameter, table: Path | None) -> None:
    """Refer to `cohort`, because people look for it here."""
    if table is not None:
        raise click.UsageError(
            f"run registers one pair; for a table of pairs use: dinoreg-rt cohort {table} -o FOLDER"
        )


@click.command("run", epilog=_EPILOG)
@path_option(
    "-f",
    "--fixed",
    required=True,
    panel=INPUTS,
    help="Fixed image, or folder of a DICOM series; its grid is the grid of the results.",
)
@path_option(
    "-m", "--moving", required=True, panel=INPUTS, help="Moving image, or folder of a DICOM series."
)
@path_option("--fixed-mask", panel=INPUTS, help="Mask of the fixed image; nonzero voxels count.")
@path_option("--moving-mask", panel=INPUTS, help="Mask of the moving image; nonzero voxels count.")
@path_option(
    "--weights",
    panel=INPUTS,
    help="Image of weights, 0 to 10000, on the fixed grid; 1 changes nothing, and less than 1e-6 "
    "counts as 0.",
)
@path_option(
    "--labels",
    multiple=True,
    panel=INPUTS,
    help="Label map of the moving image to warp as well; may be repeated.",
)
@path_option(
    "--image",
    "images",
    multiple=True,
    panel=INPUTS,
    help="Further image, aligned with the moving image, to warp as well; may be repeated.",
)
@path_option(
    "-o",
    "--output",
    required=True,
    panel=OUTPUT,
    help="Folder for the results, created if missing; files of an earlier run are replaced.",
)
@config_options
@path_option("--pairs", hidden=True, is_eager=True, expose_value=False, callback=_many_pairs)
@result_options
@click.option(
    "--dry-run",
    is_flag=True,
    panel=REPORTING,
    help="Check the inputs and show the plan and the memory it needs, but write nothing.",
)
@click.option(
    "--accept-untrusted",
    is_flag=True,
    panel=REPORTING,
    help="Exit with 0 instead of 9 if the result should not be trusted; the report still says so.",
)
@json_option("the report")
@click.option(
    "-q",
    "--quiet",
    is_flag=True,
    panel=REPORTING,
    help="Print only the verdict on the result with its reasons, warnings, and errors.",
)
@click.pass_context
def run(ctx: click.RichContext, /, **options: Any) -> None:
    """Register a moving image to a fixed image, and write the results into a folder.

    The results are warped.nii.gz, transform.h5 (the mapping from fixed to moving points, for ITK,
    ANTs and 3D Slicer), report.html, qc.png, report.json, and the files that --save, --labels and
    --image request. With --transform rigid, similarity or affine, transform.tfm replaces
    transform.h5.

    The files appear together or not at all. Files of an earlier run that this run does not write
    are removed, if the folder's report.json lists them and they have not been changed since.

    Parameters come from the preset, then --config, then the options, all of which --help-all lists;
    later ones override earlier ones. Lengths are in mm; a working voxel is the smallest spacing of
    the working grid, which is the fixed grid or a coarser one. Two MR images are close if the same
    tissue is about equally bright in both.
    """
    # Only here, so that the help appears at once.
    from ..registration.demands import check_demands, check_used
    from ..run.job import execute_run

    config = read_config(computed(options))
    check_used(config, given_config(options))
    check_demands(config)  # before an image is read
    request = _request(options, config)
    with reporting(quiet=options["quiet"]) as reporter:
        if options["dry_run"]:
            _dry_run(request, reporter, as_json=options["as_json"])
            return
        report = execute_run(request, reporter)
        _say_result(report, request.output, reporter)
    with reporting(quiet=False) as reporter:
        _say_verdict(report, reporter, quiet=options["quiet"])
    if options["as_json"]:
        print_result(report.to_json(), written=request.output)
    if report.exit_code:
        ctx.exit(report.exit_code)


def _request(options: dict[str, Any], config: RegistrationConfig) -> RunRequest:
    from ..run.request import RunRequest

    return RunRequest(
        fixed=options["fixed"],
        moving=options["moving"],
        output=options["output"],
        config=config,
        fixed_mask=options["fixed_mask"],
        moving_mask=options["moving_mask"],
        weights=options["weights"],
        labels=options["labels"],
        images=options["images"],
        **wanted_files(options),
        command=("dinoreg-rt", *sys.argv[1:]),
        accept_untrusted=options["accept_untrusted"],
    )


def _dry_run(request: RunRequest, reporter: Reporter, *, as_json: bool) -> None:
    from ..run.job import encoding_estimate, plan_run

    plan = plan_run(request, reporter)
    estimate = encoding_estimate(plan)
    if as_json:
        from ..run.report import PredictedDeviceMemory

        memory = PredictedDeviceMemory.of(plan.device_memory)
        summary = {
            "status": "planned",
            "exit_code": 0,
            "choices": plan.choices,
            "warnings": list(plan.warnings),
            "memory_mb": round(plan.memory_bytes / (1 << 20), 1),
            "device_memory": memory.model_dump() if memory is not None else None,
            "encoding": None if estimate is None else estimate.to_dict(),
            "configuration": request.config.model_dump(mode="json"),
            "output": str(request.output),
            "files": request.files(),
        }
        print_result(json.dumps(summary, indent=2) + "\n")
        return
    numbers = plan.describe()
    for topic, reason in plan.choices.items():
        if reason not in numbers:  # the working grid is already among the numbers
            reporter.say(topic, reason)
    for warning in plan.warnings:
        reporter.say("warning", warning)
    if estimate is not None:
        numbers += f"\nencoding       {estimate}"
    files = f"Would write into {request.output}: {', '.join(request.files())}"
    print_result(f"{numbers}\n{files}\n")


def _say_result(report: RunReport, output: Path, reporter: Reporter) -> None:
    reporter.say("result", _result_text(report))
    stages = (f"{stage} {ms / 1e3:.2f} s" for stage, ms in report.timings_ms.items())
    reporter.say("timings", ", ".join(stages))
    reporter.say("written", f"{output} in {report.total_ms / 1e3:.1f} s")


def _result_text(report: RunReport) -> str:
    """Return the main numbers of a result in one line."""
    quality = report.quality
    if (linear := report.transform) is not None:
        shift = ", ".join(f"{mm:.2f}" for mm in linear.translation_mm)
        return (
            f"{linear.model} transform with a rotation of {linear.angle_deg:.2f} degrees, a shift "
            f"of ({shift}) mm, LPS, at the centre and a scale of {linear.scale:.4f}; feature "
            f"distance {quality.feature_distance_after:.4g}"
        )
    return (
        f"feature distance {quality.feature_distance_before:.4g} -> "
        f"{quality.feature_distance_after:.4g} (lower is better), "
        f"{quality.folded_percent:.3f} % folded, "
        f"SDLogJ {quality.sdlogj:.3f}, inverse consistency "
        f"{quality.inverse_consistency_mean_mm:.2f} mm"
    )


def _say_verdict(report: RunReport, reporter: Reporter, *, quiet: bool) -> None:
    untested = ", but the images were not tested (--no-trust)"
    said = report.trust.verdict + ("" if report.configuration["trust"] else untested)
    reporter.say("verdict", said)
    for reason in report.trust.reasons:
        reporter.say("not to be trusted", reason)
    # Unless --quiet is given, warnings about the inputs are reported when they are read.
    known = {warning for record in report.inputs.values() for warning in record.warnings}
    for warning in report.warnings:
        if quiet or warning not in known:
            reporter.say("warning", warning)
