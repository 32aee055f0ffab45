"""The pairs of a cohort, from a table, with the parameters of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..config.image_parameters import INITIAL_METHODS
from ..config.parameters import RegistrationConfig
from ..config.texts import parse_value
from ..errors import ConfigError, InputError
from ..evaluate.cohort import pair_of_row, read_rows
from ..evaluate.pair import PairFiles
from ..run.fingerprint import CACHES, MACHINE
from ..run.request import RunRequest
from .names import DESCRIPTION, FAILURES, PAGE, RUNS, TABLE

#: Columns of further files, relative to the data folder; several in one field are separated by
#: semicolons where the option of `run` may be repeated.
FILE_COLUMNS = ("fixed_mask", "moving_mask", "weights")
LIST_COLUMNS = ("labels", "images")
#: Parameters that a table may set. Those of the machine are the same for all pairs.
PARAMETERS = tuple(
    name for name in RegistrationConfig.model_fields if name not in (*MACHINE, *CACHES)
)
#: Longest name of a pair in bytes. File systems allow 255, and `state` adds an ending.
_LONGEST = 200
#: Names in the output folder that no pair may have.
_TAKEN = (TABLE, FAILURES, PAGE, RUNS, DESCRIPTION)

#: Makes the configuration of a pair from its own values, such as ``{"preset": "fast"}``.
Configure = Callable[[dict[str, Any]], RegistrationConfig]


@dataclass(frozen=True)
class Job:
    """One pair.

    Attributes:
        request: the registration, as `dinoreg-rt run` would do it.
        files: name and kind of the pair, and the files for its scores.
    """

    request: RunRequest
    files: PairFiles

    @property
    def name(self) -> str:
        """The name of the pair."""
        return self.files.name

    @property
    def scored(self) -> bool:
        """Whether there is something to score besides the field itself."""
        files = self.files
        labels = files.fixed_labels is not None and files.moving_labels is not None
        points = files.fixed_points is not None and files.moving_points is not None
        return labels or points

    def shared(self) -> tuple[Any, ...]:
        """Return what pairs must have in common to share the work on their fixed image."""
        request = self.request
        config = request.config.model_dump_json(exclude={"initial"})
        return str(request.fixed), str(request.fixed_mask), config


def read_jobs(
    table: Path, data: Path, results: Path, common: RunRequest, configure: Configure
) -> list[Job]:
    """Read the pairs of a table.

    Args:
        table: the columns of `dinoreg_rt.evaluate.cohort.read_pairs`, those of further files,
            ``preset``, and one for each parameter that pairs set for themselves. Where a field is
            empty, the value for all pairs applies.
        data: folder that the paths in the table are relative to.
        results: folder with one folder for each pair.
        common: what all pairs share; images, output and configuration are replaced.
        configure: makes the configuration of each pair.

    Raises:
        InputError: the table cannot be used, see `read_rows`, or a name cannot be a folder.
        ConfigError: a parameter of a pair cannot be used.
    """
    rows = read_rows(table, (*FILE_COLUMNS, *LIST_COLUMNS, "preset", *PARAMETERS))
    return [_job_of_row(row, table, data, results, common, configure) for row in rows]


def _job_of_row(
    row: dict[str, str],
    table: Path,
    data: Path,
    results: Path,
    common: RunRequest,
    configure: Configure,
) -> Job:
    name, where = row["pair"], f"{table}: pair {row['pair']}:"
    check_pair_name(name, str(table))
    files = pair_of_row(row, data, results)
    if files.fixed_image is None or files.moving_image is None:
        raise InputError(f"{where} lacks an image; name fixed and moving")
    own = _own_values(row, data, where)
    try:
        config = configure(own)
    except ConfigError as error:
        raise ConfigError(f"{where} {error}") from error
    more: dict[str, Any] = {
        column: data / row[column] for column in FILE_COLUMNS if row.get(column)
    }
    more |= {
        column: tuple(data / part.strip() for part in row[column].split(";") if part.strip())
        for column in LIST_COLUMNS
        if row.get(column)
    }
    request = replace(
        common,
        fixed=files.fixed_image,
        moving=files.moving_image,
        output=results / name,
        config=config,
        **more,
    )
    return Job(request, replace(files, orientation=config.orientation))


def _own_values(row: dict[str, str], data: Path, where: str) -> dict[str, Any]:
    """Return preset and parameters of a row; an initial transform is relative to `data`."""
    own: dict[str, Any] = {
        name: parse_value(name, row[name].strip(), where)
        for name in PARAMETERS
        if (row.get(name) or "").strip()
    }
    if "initial" in own and own["initial"] not in INITIAL_METHODS:
        own["initial"] = str(data / own["initial"])
    return own | ({"preset": row["preset"].strip()} if row.get("preset") else {})


def check_pair_name(name: str, source: str) -> None:
    """Require a name that a folder beside the files of the cohort can have.

    Raises:
        InputError: no folder can have this name.
    """
    if (
        name in _TAKEN
        or name.startswith(".")
        or "/" in name
        or "\0" in name
        or name != name.strip()
    ):
        raise InputError(
            f"{source}: the pair '{name}' cannot have a folder of its name beside "
            f"{', '.join(_TAKEN)}; rename it, without slashes, a dot at the beginning, or spaces "
            "at either end"
        )
    if (length := len(name.encode())) > _LONGEST:
        raise InputError(
            f"{source}: the pair '{name[:20]}...' has a name of {length} bytes, and a folder's may "
            f"have {_LONGEST}; shorten it"
        )


def ordered(jobs: Sequence[Job]) -> list[Job]:
    """Sort pairs so that those that share a fixed image follow each other."""
    first = {job.shared(): number for number, job in reversed(list(enumerate(jobs)))}
    return sorted(jobs, key=lambda job: first[job.shared()])


def shard_of(jobs: Sequence[Job], number: int, count: int) -> list[Job]:
    """Return one of `count` parts of ordered pairs, numbered from 1, about equally long."""
    first, last = ((n * len(jobs)) // count for n in (number - 1, number))
    return list(jobs[first:last])
