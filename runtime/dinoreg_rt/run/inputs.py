"""Read and check all inputs of a run, two at a time, and record what was read."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from .. import io
from ..quality.label_placement import misplaced
from ..types import Volume
from .outputs import Extras, extra_names
from .report import InputRecord, hash_input
from .request import RunRequest
from .session import Session

if TYPE_CHECKING:
    from ..console.progress import Reporter

#: The functions that read the inputs, with their paths, by role or output name.
_Readers: TypeAlias = dict[str, tuple[Callable[[Path], Any], Path]]


@dataclass(frozen=True, eq=False)
class Inputs:
    """The inputs read for a run; `more` holds masks and weights as keyword arguments."""

    fixed: Volume
    moving: Volume
    more: dict[str, Any]
    extras: Extras
    records: dict[str, InputRecord]


def read_inputs(request: RunRequest, progress: Reporter, session: Session) -> Inputs:
    """Read all inputs before the registration begins, so that a wrong file is reported at once.

    Raises:
        InputError: a file cannot be read, or is not what its role needs.
    """
    orientation = request.config.orientation
    read_image = partial(io.read_volume, orientation=orientation)
    read_labels = partial(io.read_labels, orientation=orientation)
    read_mask, read_any = partial(read_labels, mask=True), partial(read_image, constant=True)
    readers: _Readers = {
        "fixed": (read_image, request.fixed),
        "moving": (read_image, request.moving),
    }
    optional: dict[str, tuple[Callable[[Path], Any], Path | None]] = {
        "fixed_mask": (read_mask, request.fixed_mask),
        "moving_mask": (read_mask, request.moving_mask),
        "weights": (read_any, request.weights),
    }
    readers |= {role: (read, path) for role, (read, path) in optional.items() if path is not None}
    label_names = extra_names("labels", request.labels)
    image_names = extra_names("image", request.images)
    readers |= {name: (read_labels, path) for name, path in label_names.items()}
    readers |= {name: (read_any, path) for name, path in image_names.items()}
    values, records = _read_all(readers, progress, partial(session.read, orientation))
    for name in label_names:
        if doubt := misplaced(values[name], values["moving"].geometry):
            record = records[name]
            records[name] = record.model_copy(update={"warnings": [*record.warnings, doubt]})
    # What was corrected in the fixed and the moving image is among the plan's choices.
    for name in [name for name in ("weights", *image_names) if name in values]:
        notes = [f"{values[name].name}: {text}" for text in values[name].notes]
        record = records[name]
        records[name] = record.model_copy(update={"warnings": [*record.warnings, *notes]})
    for record in records.values():
        for warning in record.warnings:
            progress.say("warning", warning)
    return Inputs(
        fixed=values["fixed"],
        moving=values["moving"],
        more={role: values[role] for role in optional if role in values},
        extras=Extras(
            labels={name: values[name] for name in label_names},
            images={name: values[name] for name in image_names},
        ),
        records=records,
    )


def _read_all(
    readers: _Readers, progress: Reporter, repeated: Callable[..., Any]
) -> tuple[dict[str, Any], dict[str, InputRecord]]:
    """Read and hash on two threads; decompression and hashing release the interpreter lock."""
    # Imported here because a failing import would leave a half-loaded module to the second thread.
    import SimpleITK  # noqa: F401

    values: dict[str, Any] = {}
    records: dict[str, InputRecord] = {}
    progress("read", 0.0)
    with ThreadPoolExecutor(2, thread_name_prefix="read") as pool:
        pending = {
            role: pool.submit(repeated, role, path, partial(_read_one, read))
            for role, (read, path) in readers.items()
        }
        try:
            for done, (role, future) in enumerate(pending.items(), start=1):
                values[role], records[role] = future.result()
                progress("read", done / len(pending))
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return values, records


def _read_one(read: Callable[[Path], Any], path: Path) -> tuple[Any, InputRecord]:
    value = read(path)
    record = hash_input(path)
    return replace(value, name=str(path)), record.model_copy(
        update={"warnings": list(value.geometry.notes)}
    )
