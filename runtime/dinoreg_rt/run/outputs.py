"""The output files of a run: their names, and writing them in parallel.

A few threads write the files: compressing a displacement field takes about as long as writing
everything else, and the compressor releases the interpreter lock.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .. import io
from ..device.choice import Device
from ..device.limits import usable_cpus
from ..errors import InputError
from ..fields.warp import warp_labels, warp_volume
from ..io.dicom import split_series
from ..io.guard import parse_json
from ..io.images import READABLE
from ..quality.label_placement import vanished
from ..registration.result import RegistrationResult
from ..registration.result_files import (
    FEATURE_PICTURE,
    PAGE,
    PICTURE,
    REPORT,
    Writer,
    result_names,
)
from ..types import Geometry, LabelMap, Volume
from .report import OutputRecord, hash_output

if TYPE_CHECKING:
    from ..console.progress import Reporter
    from ..page.stacks import SliceStack

_MAX_WRITERS = 4


@dataclass(frozen=True, eq=False)
class Extras:
    """Further moving volumes to warp, by the name of the output file."""

    labels: dict[str, LabelMap]
    images: dict[str, Volume]


def extra_names(kind: str, paths: tuple[Path, ...]) -> dict[str, Path]:
    """Return the path of each further volume by its output name, ``<kind>_<name>.nii.gz``.

    Raises:
        InputError: two inputs would have the same output name.
    """
    names: dict[str, Path] = {}
    for path in paths:
        name = f"{kind}_{stem_of(path)}.nii.gz"
        if name in names:
            raise InputError(
                f"{names[name]} and {path} would both be written as {name}; rename one of them"
            )
        names[name] = path
    return names


def stem_of(path: Path) -> str:
    """Return a volume's name without its suffix, or that of the folder of a DICOM series."""
    name = split_series(path)[0].name
    lower = name.lower()
    return next((name[: -len(end)] for end in READABLE if lower.endswith(end)), name)


def file_names(
    extras: list[str],
    *,
    displacement: bool,
    inverse: bool,
    picture: bool,
    page: bool,
    confidence: bool,
    features: bool,
    linear: bool,
) -> list[str]:
    """Return the names of all files of a run; `linear`: of one that refines a linear map alone."""
    names = result_names(
        displacement=displacement,
        inverse=inverse,
        confidence=confidence,
        features=features,
        linear=linear,
    )
    names += [PICTURE] * picture + [PAGE] * page + [FEATURE_PICTURE] * features
    return [*names, *extras, REPORT]


def least_bytes(control: Geometry) -> int:
    """Return a lower bound for the size of a run's files: `transform.h5`, which is uncompressed."""
    return 3 * 4 * math.prod(control.shape_zyx)


def earlier_files(folder: Path, names: set[str]) -> list[str]:
    """List unchanged files, other than `names`, that the report in `folder` says it wrote there."""
    try:
        report = parse_json((folder / REPORT).read_text("utf-8"))
        listed = {name: OutputRecord(**record) for name, record in report["outputs"].items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return []
    # The report may come from anywhere, so nothing outside its folder is touched.
    plain = [name for name in listed if name == Path(name).name and not name.startswith(".")]
    return [n for n in plain if n not in names and _is_as_written(folder / n, listed[n])]


def _is_as_written(file: Path, record: OutputRecord) -> bool:
    try:
        return not file.is_symlink() and file.is_file() and hash_output(file) == record
    except OSError:
        return False


def write_outputs(
    folder: Path, writers: dict[str, Writer], *, threads: int, progress: Reporter
) -> dict[str, OutputRecord]:
    """Run all writers on a few threads and return the size and hash of each file, by name.

    The first failure is raised, and writers that have not begun are cancelled.
    """
    workers = max(1, min(_MAX_WRITERS, threads or usable_cpus()[0], len(writers)))
    records: dict[str, OutputRecord] = {}
    with ThreadPoolExecutor(workers, thread_name_prefix="write") as pool:
        pending = {
            pool.submit(_write_one, folder / name, writer): name for name, writer in writers.items()
        }
        try:
            for future in as_completed(pending):
                records[pending[future]] = future.result()
                progress("write", len(records) / len(writers))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return {name: records[name] for name in writers}


def run_writers(
    result: RegistrationResult,
    moving: Volume,
    fixed: Volume,
    extras: Extras,
    *,
    displacement: bool,
    stacks: Callable[[], Sequence[SliceStack]] | None,
    warn: Callable[[str], None],
) -> dict[str, Writer]:
    """Return the writers of a run, the slowest first so that the threads end together.

    The writers call `warn`, in their threads, with what is suspicious about a file. `stacks`
    returns the slices of `qc.png`, which is not drawn with None.
    """
    from ..page.feature_picture import draw_features
    from ..page.picture import draw_picture

    writers: dict[str, Writer] = {}
    if stacks is not None:
        writers[PICTURE] = lambda path: draw_picture(result, fixed, moving, stacks(), path)
    if result.features is not None:
        features = result.features
        writers[FEATURE_PICTURE] = lambda path: draw_features(features, path)
    writers |= result.writers(displacement=displacement)
    further: dict[str, Volume | LabelMap] = {**extras.images, **extras.labels}
    return writers | {name: _warped_writer(result, extra, warn) for name, extra in further.items()}


def _write_one(path: Path, writer: Writer) -> OutputRecord:
    writer(path)
    return hash_output(path)


def _warped_writer(
    result: RegistrationResult, moving: Volume | LabelMap, warn: Callable[[str], None]
) -> Writer:
    def write(path: Path) -> None:
        device = Device("cpu", threads=result.config.threads or usable_cpus()[0])
        if isinstance(moving, Volume):
            io.write_volume(path, warp_volume(moving, result.displacement, device=device))
        else:
            warped = warp_labels(moving, result.displacement, device=device)
            if doubt := vanished(moving, warped):
                warn(doubt)
            io.write_labels(path, warped)

    return write
