"""`RunRequest`: the arguments of a run, and which files it reads and writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from ..config.parameters import RegistrationConfig
from .fingerprint import fingerprint
from .outputs import extra_names, file_names

#: Which page a run writes: slices alone, also the 3D viewer and both volumes, or none.
PageKind: TypeAlias = Literal["static", "full", "none"]


@dataclass(frozen=True)
class RunRequest:
    """The arguments of the command. Image paths may be folders of one DICOM series."""

    fixed: Path
    moving: Path
    output: Path
    config: RegistrationConfig
    fixed_mask: Path | None = None
    moving_mask: Path | None = None
    weights: Path | None = None
    labels: tuple[Path, ...] = ()
    images: tuple[Path, ...] = ()
    picture: bool = True
    page: PageKind = "static"
    save_displacement: bool = False
    save_features: bool = False
    command: tuple[str, ...] = ()
    accept_untrusted: bool = False

    def files(self) -> list[str]:
        """Return the names of the files that the run writes into `output`."""
        extras = [*extra_names("labels", self.labels), *extra_names("image", self.images)]
        return file_names(
            extras,
            displacement=self.save_displacement,
            inverse=self.config.inverse,
            confidence=self.config.confidence,
            features=self.save_features,
            linear=self.config.linear_transform is not None,
            picture=self.picture,
            page=self.page != "none",
        )

    def fingerprint(self, inputs: Mapping[str, str]) -> str:
        """Return what another run must share to write the same files; see `fingerprint`."""
        return fingerprint(self.config, [*self.files(), f"page: {self.page}"], inputs)

    def roles(self) -> dict[str, Path]:
        """Return the images, masks, weights and labels to read, by the names in the report."""
        named = ("fixed", "moving", "fixed_mask", "moving_mask", "weights")
        single = {name: getattr(self, name) for name in named}
        given = {name: path for name, path in single.items() if path is not None}
        extras = extra_names("labels", self.labels) | extra_names("image", self.images)
        return given | extras

    def inputs(self) -> list[Path]:
        """Return the files and folders that the run reads."""
        return [*self.roles().values(), Path(self.config.initial)]
