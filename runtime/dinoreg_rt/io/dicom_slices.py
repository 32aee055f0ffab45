"""What the slices of a DICOM series must have in common to form one volume."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

import numpy as np

from ..errors import InputError
from .dicom_headers import Slice

#: Separates the folder from the UID, which further attributes may follow, in the name of a series.
SERIES = "?series="
#: The attributes that tell apart the volumes mixed in one series, in the order they are tried.
SELECTORS = (
    *("EchoTime", "EchoNumbers", "TemporalPositionIdentifier", "DiffusionBValue", "ImageType"),
    *("AcquisitionNumber", "TriggerTime", "AcquisitionTime"),
)
#: Attributes that one volume has once. Scanners write an echo time that varies in its last digits.
_SAME = {"EchoTime": 0.01, "TemporalPositionIdentifier": 0.0, "DiffusionBValue": 0.0}
#: Largest differences of one slice's pixel spacing (a share) and direction cosines from another's.
_SPACING_SHARE, _PARALLEL = 1e-3, 1e-3


def select(slices: Sequence[Slice], wanted: dict[str, str], name: str) -> list[Slice]:
    """Return the slices whose attributes have the wanted values.

    Raises:
        InputError: an attribute is not one of `SELECTORS`, or no slice has its value.
    """
    chosen = list(slices)
    for attribute, value in wanted.items():
        if attribute not in SELECTORS:
            raise InputError(
                f"{name}: slices cannot be chosen by '{attribute}'; use one of "
                f"{', '.join(SELECTORS)}"
            )
        groups = _by_attribute(chosen, attribute)
        if value not in groups:
            raise InputError(
                f"{name}: no slice has {attribute}={value}; choose one of these:"
                f"{_lines(attribute, groups)}"
            )
        chosen = groups[value]
    return chosen


def check_alike(slices: Sequence[Slice], name: str) -> None:
    """Require that the slices can form one volume.

    Raises:
        InputError: there is one slice only, or they differ in size, pixel spacing, orientation,
            photometric interpretation, modality, frame of reference, echo time, time point or
            b-value.
    """
    if len(slices) < 2:
        raise InputError(
            f"{name}: the series has one slice (an axis of one voxel); a 3D volume is needed"
        )
    orientations = np.array([s.orientation for s in slices])
    middle = np.median(orientations, axis=0)
    tilted = np.abs(orientations - middle).max(axis=(1, 2)) > _PARALLEL
    if tilted.any():
        odd = [Path(s.file).name for s, one in zip(slices, tilted, strict=True) if one]
        refuse_mixed(
            slices,
            name,
            f"the slices of the series are not parallel (a scout image among them?): {len(odd)} of "
            f"{len(slices)} are turned, the first is {odd[0]}",
        )
    _require_same(slices, name, "size", lambda s: f"{s.tags['Columns']} x {s.tags['Rows']} pixels")
    spacings = np.array([s.spacing_mm for s in slices])
    if (np.ptp(spacings, axis=0) > _SPACING_SHARE * spacings.min(axis=0)).any():
        sides = "{0[0]:g} x {0[1]:g} mm"
        _require_same(slices, name, "pixel spacing", lambda s: sides.format(s.spacing_mm))
    _require_same(slices, name, "photometric interpretation", _photometric)
    _require_same(slices, name, "Modality", lambda s: s.tags.get("Modality", ""))
    # Positions in two frames of reference cannot be compared.
    _require_same(
        slices, name, "FrameOfReferenceUID", lambda s: s.tags.get("FrameOfReferenceUID", "")
    )
    if repeated(slices):
        return
    for attribute, share in _SAME.items():
        values = np.array([s.number(attribute, np.nan) for s in slices])
        if np.ptp(values) > share * values.max():  # NaN, of a missing attribute, never is
            _refuse_groups(slices, name, attribute, _by_attribute(slices, attribute))


def repeated(slices: Sequence[Slice]) -> int:
    """Return how many slices lie at a position that another one has already."""
    normal = np.cross(*np.median([s.orientation for s in slices], axis=0))
    along = np.sort([s.position @ normal for s in slices])
    return int(np.count_nonzero(np.diff(along) <= 1e-3))


def refuse_mixed(
    slices: Sequence[Slice], name: str, problem: str, advice: str = "separate them"
) -> NoReturn:
    """Raise the error for slices that are no single volume, with a list of volumes if possible.

    Args:
        slices: all slices.
        name: the folder or ``FOLDER?series=UID`` that they come from.
        problem: what is wrong with them.
        advice: what to do if no attribute tells them apart.

    Raises:
        InputError: always.
    """
    found = {a: _by_attribute(slices, a) for a in SELECTORS}
    found = {a: g for a, g in found.items() if len(g) > 1 and min(map(len, g.values())) > 1}
    whole = (a for a, groups in found.items() if not any(map(repeated, groups.values())))
    attribute = next(whole, next(iter(found), None))
    if attribute is None:
        raise InputError(f"{name}: {problem}; {advice}")
    uid = slices[0].tags.get("SeriesInstanceUID", "UID")
    chosen = name if SERIES in name else f"{name}{SERIES}{uid}"
    raise InputError(
        f"{name}: {problem}; choose one of these as '{chosen}&{attribute}=VALUE':"
        f"{_lines(attribute, found[attribute])}"
    )


def _require_same(
    slices: Sequence[Slice], name: str, what: str, value_of: Callable[[Slice], str]
) -> None:
    groups = _groups(slices, value_of)
    if len(groups) > 1:
        _refuse_groups(slices, name, what, groups)


def _refuse_groups(
    slices: Sequence[Slice], name: str, what: str, groups: dict[str, list[Slice]]
) -> NoReturn:
    listing = ", ".join(
        f"{value or 'none'} ({len(members)} slices, the first is {Path(members[0].file).name})"
        for value, members in groups.items()
    )
    refuse_mixed(slices, name, f"the slices of the series differ in {what}: {listing}")


def _by_attribute(slices: Sequence[Slice], attribute: str) -> dict[str, list[Slice]]:
    return _groups(slices, lambda one: one.tags.get(attribute, ""))


def _groups(slices: Sequence[Slice], value_of: Callable[[Slice], str]) -> dict[str, list[Slice]]:
    groups: dict[str, list[Slice]] = {}
    for one in slices:
        groups.setdefault(value_of(one), []).append(one)
    return groups


def _lines(attribute: str, groups: dict[str, list[Slice]]) -> str:
    lines = (f"\n  {attribute}={value}  ({len(g)} slices)" for value, g in groups.items())
    return "".join(lines)


def _photometric(one: Slice) -> str:
    return one.tags.get("PhotometricInterpretation", "MONOCHROME2")
