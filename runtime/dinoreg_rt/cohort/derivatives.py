"""The results of a BIDS dataset under the names of BIDS derivatives.

The files are hard links to those of the run, which keep their names in another folder, and so take
no additional space; where the file system has no links they are copies.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..io.hashes import versions
from ..io.paths import output_errors
from ..io.staging import staged_file
from ..registration.result_files import CONFIDENCE, DISPLACEMENT, INVERSE, LINEAR, TRANSFORM, WARPED
from .bids import BidsJob
from .names import DESCRIPTION, FAILURES, PAGE, RUNS, STATE, TABLE

#: What the name of each file of a run has in derivatives besides the entities, and its extension.
_IMAGES = {WARPED: "warped", CONFIDENCE: "confidence"}
_TRANSFORMS = {
    TRANSFORM: ("", ".h5"),
    LINEAR: ("", ".txt"),
    DISPLACEMENT: ("displacement", ".nii.gz"),
}
_IGNORED = (f"{RUNS}/", f"{STATE}/", TABLE, FAILURES, PAGE)


def describe_dataset(folder: Path, dataset: Path) -> None:
    """Write ``dataset_description.json`` and ``.bidsignore`` of the derivatives."""
    description = {
        "Name": "Registrations by dinoreg-rt",
        "BIDSVersion": "1.9.0",
        "DatasetType": "derivative",
        "GeneratedBy": [{"Name": "dinoreg-rt", "Version": versions()["dinoreg-rt"]}],
        "SourceDatasets": [{"URL": dataset.resolve().as_uri()}],
    }
    _write(folder / DESCRIPTION, json.dumps(description, indent=2) + "\n")
    _write(folder / ".bidsignore", "\n".join(_IGNORED) + "\n")


def write_derivatives(folder: Path, dataset: Path, jobs: Sequence[BidsJob]) -> None:
    """Link the results of finished pairs under their names in derivatives.

    Derivatives of files that the pair does not have any more are removed.

    Args:
        folder: output folder of the cohort.
        dataset: the BIDS dataset.
        jobs: the pairs that have results.

    Raises:
        OutputError: a file cannot be written.
    """
    for job in jobs:
        place = folder / job.moving.path.parent.relative_to(dataset)
        names, run = derivative_names(job), job.request.output
        there = {target: run / name for name, target in names.items() if (run / name).exists()}
        kept = {name for target in there for name in (target, _sidecar_name(target))}
        for target in names.values():
            for old in {target, _sidecar_name(target)} - kept:
                with output_errors(place / old):
                    (place / old).unlink(missing_ok=True)
        for target, source in there.items():
            with output_errors(place / target):
                _link(source, place / target)
            sidecar = json.dumps(_sidecar(job, dataset, target), indent=2) + "\n"
            _write(place / _sidecar_name(target), sidecar)


def derivative_names(job: BidsJob) -> dict[str, str]:
    """Return the name of each file of a run in derivatives."""
    entities = {k: v for k, v in job.moving.entities.items() if k not in ("space", "desc")}
    stem = "_".join(f"{key}-{value}" for key, value in entities.items())
    names = {
        name: f"{stem}_space-{job.space}_desc-{desc}_{job.moving.suffix}.nii.gz"
        for name, desc in _IMAGES.items()
    }
    way = f"{stem}_from-{job.origin}_to-{job.space}_mode-image"
    for name, (desc, extension) in _TRANSFORMS.items():
        described = f"_desc-{desc}" if desc else ""
        names[name] = f"{way}{described}_xfm{extension}"
    # The inverse mapping lies on the moving grid and takes the fixed image there.
    back = f"{stem}_from-{job.space}_to-{job.origin}_mode-image_desc-displacement_xfm.nii.gz"
    return names | {INVERSE: back}


def _sidecar_name(target: str) -> str:
    return f"{target.split('.')[0]}.json"


def _sidecar(job: BidsJob, dataset: Path, target: str) -> dict[str, Any]:
    fixed, moving = (_uri(image.path, dataset) for image in (job.fixed, job.moving))
    common: dict[str, Any] = {"Sources": [moving, fixed]}
    if "_xfm." in target:
        return common | {"Description": "ITK transform of points of the image of `to-`, LPS mm"}
    return common | {"SpatialReference": fixed}


def _uri(path: Path, dataset: Path) -> str:
    with suppress(ValueError):
        return f"bids::{path.relative_to(dataset).as_posix()}"
    return path.resolve().as_uri()


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and target.samefile(source):
        return
    with staged_file(target) as path:
        try:
            os.link(source, path)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, path)


def _write(file: Path, text: str) -> None:
    with staged_file(file) as path:
        path.write_text(text, "utf-8")
