"""Pairs of a BIDS dataset.

A selector such as ``ses-pre_T1w`` is written as file names of BIDS are: entities and, at the end,
the suffix. It selects the images whose names have all of these. The fixed image of a moving image
is the selected one of the same subject and, where neither selector names a session, of the same
session. If the selector names a subject, or is a file, that image is the fixed image of all pairs.

Names of results follow BIDS 1.9 for derivatives, and those of transforms BEP 14 as fMRIPrep uses
it: ``from-`` and ``to-`` name the images, and ``mode-image`` says that the transform resamples the
image of ``from-`` onto the grid of ``to-``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..errors import InputError
from ..evaluate.pair import PairFiles
from ..run.request import RunRequest
from .jobs import Job
from .names import DESCRIPTION, RUNS

_SUFFIXES = (".nii.gz", ".nii")
_ENTITY = re.compile(r"([a-z]+)-([A-Za-z0-9+]+)")


@dataclass(frozen=True)
class BidsImage:
    """An image of a dataset, or the part of a name that selects some.

    Attributes:
        path: file; empty for a selector.
        entities: values by key, in the order of the name.
        suffix: such as ``T1w``.
    """

    path: Path
    entities: dict[str, str]
    suffix: str

    @property
    def stem(self) -> str:
        """The name without its extension."""
        return "_".join([*(f"{k}-{v}" for k, v in self.entities.items()), self.suffix])

    @property
    def label(self) -> str:
        """Entities and suffix as one word, for ``space-``, ``from-`` and ``to-``."""
        words = [f"{k}{v}" for k, v in self.entities.items()]
        return re.sub(r"[^A-Za-z0-9]", "", "".join([*words, self.suffix]))

    def selects(self, image: BidsImage) -> bool:
        """Return whether an image has all entities and the suffix of this selector."""
        return self.suffix == image.suffix and self.entities.items() <= image.entities.items()


@dataclass(frozen=True)
class BidsJob(Job):
    """A pair of a BIDS dataset.

    Attributes:
        fixed: the fixed image.
        moving: the moving image.
        space: name of the fixed image's space in derivatives.
        origin: name of the moving image's space in derivatives.
    """

    fixed: BidsImage
    moving: BidsImage
    space: str
    origin: str


def parse_name(text: str, path: Path = Path()) -> BidsImage | None:
    """Parse a name without its extension, or a selector; None if it is neither."""
    *parts, suffix = text.split("_")
    found = [_ENTITY.fullmatch(part) for part in parts]
    if not re.fullmatch(r"[A-Za-z0-9]+", suffix) or not all(found):
        return None
    entities = {match[1]: match[2] for match in found if match is not None}
    return BidsImage(path, entities, suffix) if len(entities) == len(parts) else None


def read_dataset(folder: Path) -> list[BidsImage]:
    """List the images of all subjects, sorted by path.

    Raises:
        InputError: the folder is not a BIDS dataset.
    """
    if not (folder / DESCRIPTION).is_file():
        raise InputError(
            f"{folder}: is not the top folder of a BIDS dataset, because it has no "
            f"{DESCRIPTION}; give one that has"
        )
    images = []
    for path in sorted(folder.glob("sub-*/**/*.nii*")):
        end = next((end for end in _SUFFIXES if path.name.endswith(end)), "")
        image = parse_name(path.name.removesuffix(end), path) if end else None
        if image is not None and "sub" in image.entities:
            images.append(image)
    if not images:
        raise InputError(f"{folder}: holds no image sub-*/.../sub-*_SUFFIX.nii[.gz]; give another")
    return images


def bids_jobs(
    folder: Path, fixed: str, moving: str, results: Path, common: RunRequest
) -> tuple[list[BidsJob], list[str]]:
    """Pair the images of a dataset.

    Args:
        folder: the dataset.
        fixed: selector of the fixed images, or a file that is the fixed image of all pairs.
        moving: selector of the moving images.
        results: output folder of the cohort.
        common: what all pairs share.

    Returns:
        The pairs, and one sentence about each moving image without a fixed one.

    Raises:
        InputError: a selector is malformed, nothing is selected, or several fixed images fit.
    """
    images = read_dataset(folder)
    selector, one = _selector(moving), _single(fixed)
    wanted = one or _selector(fixed)
    jobs, notes = [], []
    for image in (image for image in images if selector.selects(image)):
        partners = [one] if one else _partners(image, images, wanted, selector)
        partners = [other for other in partners if other.path != image.path]
        if len(partners) > 1:
            names = ", ".join(other.path.name for other in partners)
            raise InputError(
                f"{image.path.name}: several fixed images fit: {names}; add an entity to '{fixed}'"
            )
        if not partners:
            notes.append(f"{image.path.name} has no fixed image {fixed}")
            continue
        request = replace(
            common,
            fixed=partners[0].path,
            moving=image.path,
            output=results / RUNS / image.stem,
        )
        files = PairFiles(image.stem, image.suffix, orientation=common.config.orientation)
        jobs.append(BidsJob(request, files, partners[0], image, wanted.label, selector.label))
    if not jobs:
        raise InputError(
            f"{folder}: has no pair of {fixed} and {moving}; the suffixes of its images are "
            f"{', '.join(sorted({image.suffix for image in images}))}"
        )
    return jobs, notes


def _partners(
    image: BidsImage, images: Sequence[BidsImage], wanted: BidsImage, selector: BidsImage
) -> list[BidsImage]:
    """Return the fixed images that fit a moving one."""
    shared = {} if "sub" in wanted.entities else {"sub": image.entities["sub"]}
    named = {*wanted.entities, *selector.entities, "sub"}
    if "sub" not in wanted.entities and "ses" in image.entities and "ses" not in named:
        shared["ses"] = image.entities["ses"]
    return [
        other
        for other in images
        if wanted.selects(other) and shared.items() <= other.entities.items()
    ]


def _selector(text: str) -> BidsImage:
    found = parse_name(text)
    if found is None:
        raise InputError(
            f"'{text}' is not a selector of BIDS images; write entities and suffix as in their "
            "names, such as ses-pre_T1w"
        )
    return found


def _single(text: str) -> BidsImage | None:
    """Return the image of a file, whose name need not be one of BIDS; None for a selector."""
    path = Path(text)
    if not path.exists():
        return None
    stem = path.name.split(".")[0]
    return parse_name(stem, path) or BidsImage(path, {}, re.sub(r"[^A-Za-z0-9]", "", stem))
