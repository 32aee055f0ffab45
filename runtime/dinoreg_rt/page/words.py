"""The words in which the picture and the page describe a run."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Literal

from ..io.dicom import split_series
from ..registration.result import RegistrationResult
from ..types import Volume

#: The folders of a file with a suffix, and those of an absolute path.
_FOLDERS = re.compile(r"(?<![^\s'\"(])(?:[^\s'\"(]*/(?=[^/\s]*\.)|/[^\s'\"(]*/(?=[^/\s]))")


@dataclass(frozen=True)
class ImageFacts:
    """One of the two images.

    Attributes:
        name: name of its file or folder, without the folders above it.
        shape_xyz: number of voxels along x, y, z.
        spacing_mm: spacing along x, y, z.
        modality: CT, MR, or nothing.
    """

    name: str
    shape_xyz: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    modality: str

    @property
    def line(self) -> str:
        """Name, modality, size and spacing in one line."""
        parts = (self.name, self.modality, self.size, f"{self.spacing} mm")
        return " \N{MIDDLE DOT} ".join(part for part in parts if part)

    @property
    def size(self) -> str:
        """The number of voxels along each axis."""
        return " \N{MULTIPLICATION SIGN} ".join(str(n) for n in self.shape_xyz)

    @property
    def spacing(self) -> str:
        """The spacing in three digits."""
        return " \N{MULTIPLICATION SIGN} ".join(f"{mm:.3g}" for mm in self.spacing_mm)


@dataclass(frozen=True)
class VerdictWords:
    """The verdict in words.

    Attributes:
        kind: trusted, warned (trusted, with warnings) or untrusted.
        title: the verdict in a few words.
        summary: what it means for the reader, one sentence.
    """

    kind: Literal["trusted", "warned", "untrusted"]
    title: str
    summary: str


def base_name(path: str) -> str:
    """Return the name of a file or series without its folders, which may name a patient."""
    name = split_series(Path(path))[0].name
    return name or path


def private(report: Mapping[str, Any]) -> Callable[[str], str]:
    """Return the function that takes the folders out of the paths in a text.

    Folders may name a patient; the names of the files themselves were chosen by the user.
    """
    words = [
        word.partition("=")[2] if word.startswith("--") else word for word in report["command"]
    ]
    values = [value for value in report["configuration"].values() if isinstance(value, str)]
    named = {one["path"] for one in report["inputs"].values()}
    named |= {text for text in (*words, *values) if "/" in text}
    paths = sorted(named, key=len, reverse=True)

    def hide(text: str) -> str:
        for path in paths:
            text = text.replace(path, base_name(path))
        return text

    return hide


def plain(value: Any) -> str:
    """Return a value of the report as text, a path without its folders."""
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(plain(part) for part in value)
    # A path names folders, which may name a patient.
    text = str(value)
    return PurePath(text).name if "/" in text else text


def without_folders(sentence: str) -> str:
    """Return a message with file names in place of paths, whose folders may name a patient."""
    return _FOLDERS.sub("", sentence)


def image_facts(
    result: RegistrationResult, fixed: Volume, moving: Volume
) -> tuple[ImageFacts, ImageFacts]:
    """Return the facts about both images."""
    config = result.config
    one, other = (
        ImageFacts(
            base_name(volume.name),
            volume.geometry.shape_xyz,
            volume.geometry.spacing_mm,
            {"ct": "CT", "mr": "MR"}.get(modality, ""),
        )
        for volume, modality in (
            (fixed, config.fixed_modality),
            (moving, config.moving_modality),
        )
    )
    return one, other


def verdict_words(
    verdict: str, reasons: Sequence[str], warnings: Sequence[str], *, tested: bool
) -> VerdictWords:
    """Return the verdict in words.

    Args:
        verdict: ``trusted`` or ``untrusted``.
        reasons: what speaks against the result.
        warnings: what deserves a look.
        tested: whether the images themselves were tested.
    """
    if verdict == "untrusted":
        against = _count(len(reasons), "test speaks", "tests speak")
        return VerdictWords(
            "untrusted",
            "Untrusted",
            f"{against} against this registration; look before you use it.",
        )
    passed = (
        "The registration passes all tests"
        if tested
        else "The measures of the field are in their usual ranges, but the images were not tested"
    )
    if warnings:
        title = f"Trusted, {_count(len(warnings), 'warning', 'warnings')}"
        what = "one point deserves" if len(warnings) == 1 else "some points deserve"
        return VerdictWords("warned", title, f"{passed}; {what} a look.")
    return VerdictWords("trusted", "Trusted", f"{passed}.")


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
