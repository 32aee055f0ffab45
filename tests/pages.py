"""A small registration and its report, for tests of the pages."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from qualities import GOOD

from dinoreg_rt.config.parameters import RegistrationConfig
from dinoreg_rt.page.report_page import render_page
from dinoreg_rt.page.stacks import cut_stacks
from dinoreg_rt.registration.result import RegistrationResult
from dinoreg_rt.run.report import InputRecord, OutputRecord, build_report
from dinoreg_rt.types import AffineTransform, DisplacementField, Geometry, LabelMap, Volume

SHAPE = (20, 30, 28)
NASTY = """<script>alert(1)</script>&"'<img src=x onerror=alert(2)>$style.nii.gz"""


class Elements(HTMLParser):
    """All elements of a page with their attributes, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data

    def of(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes in self.found if found == name]


def make_volume(name: str, shape: tuple[int, int, int] = SHAPE, shift: float = 0.0) -> Volume:
    """A bright ball with a darker one inside."""
    grid = Geometry(shape, (2.0, 2.0, 3.0), (-28.0, -30.0, -30.0), np.eye(3))
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in shape], indexing="ij")
    far = np.sqrt(x**2 + y**2 + (z - shift) ** 2)
    array = 100.0 * (far < 0.8) - 50.0 * (far < 0.4)
    return Volume(array.astype(np.float32), grid, name=name)


def make_result(fixed: Volume, moving: Volume, **more: Any) -> RegistrationResult:
    """A result with a smooth field, an inverse and a map of confidence."""
    grid = fixed.geometry
    z, y, x = np.meshgrid(*[np.linspace(-3, 3, n) for n in grid.shape_zyx], indexing="ij")
    vectors = np.stack([np.sin(y), np.cos(z), np.sin(x)], -1).astype(np.float32)
    config = RegistrationConfig(
        **{"fixed_modality": "mr", "moving_modality": "ct", "inverse": True, "confidence": True},
        **{"iterations": (20, 10), "smoothness": 0.8, "search_spacing_mm": 6.0},
    )
    return replace(
        RegistrationResult(
            displacement=DisplacementField(vectors, grid),
            initial=AffineTransform(np.eye(3), np.array([0.0, 0.0, 2.0])),
            warped=replace(moving, geometry=grid),
            inverse=DisplacementField(-vectors, moving.geometry),
            confidence=Volume(np.full(grid.shape_zyx, 0.5, np.float32), grid),
            quality=GOOD,
            config=config,
            choices={"initial alignment": "search over all shifts", "device": "cpu, because"},
            alignment={"similarity": 0.9, "confidence": 0.2, "overlap": 1.0},
            versions={"dinoreg-rt": "0.1.0", "numpy": np.__version__},
        ),
        **more,
    )


def make_report(result: RegistrationResult, paths: dict[str, str], **more: Any) -> dict[str, Any]:
    """The content of `report.json`."""
    started = datetime.now(timezone.utc) - timedelta(seconds=3)  # noqa: UP017
    command = ["dinoreg-rt", "run", "-f", paths["fixed"], "-m", paths["moving"], "-o", "result"]
    report = build_report(
        result,
        command=command,
        started_at=started,
        inputs={role: InputRecord(path=path, sha256="0" * 64) for role, path in paths.items()},
        outputs={"warped.nii.gz": OutputRecord(sha256="1" * 64, bytes=12345)},
        timings_ms={"read": 1.5, "solve": 20.25},
        **more,
    )
    return json.loads(report.to_json())


def write_page(file: Path, *, viewer: bool = False, labelled: bool = True) -> dict[str, Any]:
    """Write a page and return the report that it shows."""
    fixed, moving = make_volume("fixed.nii.gz"), make_volume("moving.nii.gz", shift=0.1)
    result = make_result(fixed, moving)
    report = make_report(result, {"fixed": fixed.name, "moving": moving.name})
    balls = LabelMap((moving.array > 60).astype(np.int32) * 5, moving.geometry)
    stacks = cut_stacks(result, fixed, moving, {"balls": balls} if labelled else {})
    page = render_page(report, result, (fixed, moving), stacks, viewer=viewer)
    file.write_text(page, encoding="utf-8")
    return report
