"""`dinoreg-rt run`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import rich_click as click

from ..config.files import preset_names
from ..config.parameters import RegistrationConfig
from ..console.progress import Reporter, reporting
from ..console.stdout import print_result
from ..registration.demands import check_demands, check_used
from ..run.job import RunRequest, encoding_estimate, execute_run, plan_run
from ..run.report import RunReport
from .main import EXIT_CODE_TEXT
from .options import FilePath, config_options, given_config, read_config

# Paths are not checked by click: our own messages say more, and their exit code is another.
_PATH = FilePath()
_FILES, _REPORTING = "Files", "What is said"


# The blank lines keep the help renderer from joining lines.
_EPILOG = f"""Examples:

dinoreg-rt run -f fixed.nii.gz -m moving.nii.gz -o result

dinoreg-rt run -f fixed.nii.gz -m moving.nii.gz -o result --labels moving_labels.nii.gz --inverse

{EXIT_CODE_TEXT}"""


@click.command("run", epilog=_EPILOG)
@click.option(
    "-f", "--fixed", type=_PATH, required=True, panel=_FILES, help="Fixed image, or DICOM folder."
)
@click.option(
    "-m", "--moving", type=_PATH, required=True, panel=_FILES, help="Moving image, or DICOM folder."
)
@click.option(
    "-o",
    "--output",
    type=_PATH,
    required=True,
    panel=_FILES,
    help="Folder for the results; made if missing. What an earlier run wrote there is replaced, or "
    "removed.",
)
@click.option(
    "--fixed-mask", type=_PATH, panel=_FILES, help="Where the fixed image counts (not 0)."
)
@click.option(
    "--moving-mask", type=_PATH, panel=_FILES, help="Where the moving image counts (not 0)."
)
@click.option(
    "--weights",
    type=_PATH,
    panel=_FILES,
    help="How much each fixed voxel counts, 0 to 10000; 1 changes nothing.",
)
@click.option(
    "--labels", type=_PATH, multiple=True, panel=_FILES, help="Moving labels to warp along; repeat."
)
@click.option(
    "--image",
    "images",
    type=_PATH,
    multiple=True,
    panel=_FILES,
    help="Further moving image to warp along; repeat.",
)
@click.option("--config", "config_file", type=_PATH, panel=_FILES, help="TOML file of parameters.")
@click.option("--preset", panel=_FILES, help=f"Set of parameters: {', '.join(preset_names())}.")
@config_options
@click.option(
    "--save-features",
    is_flag=True,
    panel="Output",
    help="Also write the features of both images, as NRRD and as a picture in colours.",
)
@click.option("--no-qc", is_flag=True, panel="Output", help="Do not draw qc.png.")
@click.option(
    "--accept-untrusted",
    is_flag=True,
    panel=_REPORTING,
    help="Exit with 0, not 9, when the result should not be trusted; the report says so anyway.",
)
@click.option(
    "--dry-run",
    is_flag=True,
    panel=_REPORTING,
    help="Check everything and say what would be done; write nothing.",
)
@click.option("--json", "as_json", is_flag=True, panel=_REPORTING, help="The report on stdout.")
@click.option("-q", "--quiet", is_flag=True, panel=_REPORTING, help="Only errors.")
@click.pass_context
def run(ctx: click.RichContext, /, **options: Any) -> None:
    """Register a moving image to a fixed image, and write all of it into one folder.

    warped.nii.gz, displacement.nii.gz (mm, LPS, fixed to moving points), transform.h5 (the same
    mapping for ITK, ANTs and 3D Slicer), report.json, qc.png, and what --inverse, --labels and
    --image ask for.

    They appear together, or not at all. Files of an earlier run in that folder, as its report.json
    lists them, are removed if this run does not write them; those that were changed since, and
    those it reads, stay.

    Parameters: the preset, then --config, then the options below; the later wins.
    """
    config = read_config(options)
    check_used(config, given_config(options))
    check_demands(config)  # what is not there is said before an image is read
    request = _request(options, config)
    with reporting(quiet=options["quiet"]) as reporter:
        if options["dry_run"]:
            _dry_run(request, reporter, as_json=options["as_json"])
            return
        report = execute_run(request, reporter)
        _say_result(report, request.output, reporter)
    if options["as_json"]:
        print_result(report.to_json(), written=request.output)
    if report.exit_code:
        ctx.exit(report.exit_code)


def _request(options: dict[str, Any], config: RegistrationConfig) -> RunRequest:
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
        picture=not options["no_qc"],
        save_features=options["save_features"],
        command=("dinoreg-rt", *sys.argv[1:]),
        accept_untrusted=options["accept_untrusted"],
    )


def _dry_run(request: RunRequest, reporter: Reporter, *, as_json: bool) -> None:
    plan = plan_run(request, reporter)
    estimate = encoding_estimate(plan)
    if as_json:
        from ..run.report import PredictedDeviceMemory

        memory = PredictedDeviceMemory.of(plan.device_memory)
        summary = {
            "status": "planned",
            "exit_code": 0,
            "choices": plan.choices,
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
        if reason not in numbers:  # the grid is one of them: nothing is said twice
            reporter.say(topic, reason)
    if estimate is not None:
        numbers += f"\nencoding       {estimate}"
    files = f"Would write into {request.output}: {', '.join(request.files())}"
    print_result(f"{numbers}\n{files}\n")


def _say_result(report: RunReport, output: Path, reporter: Reporter) -> None:
    quality = report.quality
    reporter.say(
        "result",
        f"feature distance {quality.feature_distance_before:.4g} -> "
        f"{quality.feature_distance_after:.4g} (lower is better), "
        f"{quality.folded_percent:.3f} % folded, "
        f"SDLogJ {quality.sdlogj:.3f}, inverse consistency "
        f"{quality.inverse_consistency_mean_mm:.2f} mm",
    )
    for reason in report.trust.reasons:
        reporter.say("not to be trusted", reason)
    for warning in report.warnings:
        reporter.say("warning", warning)
    reporter.say("written", f"{output} in {report.total_ms / 1e3:.1f} s")
