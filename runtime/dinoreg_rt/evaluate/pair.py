"""Evaluation of one registered pair from files; see `dinoreg_rt.evaluate.cohort` for many pairs.

A pair is scored twice: *before*, with the identity in LPS mm, as the headers of the two files place
them (for Learn2Reg fields, which ignore headers, with the identity of voxel indices), and *after*,
through the transform. The metrics are defined in `dinoreg_rt.quality.metrics`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..choices import OrientationChoice
from ..errors import InputError
from ..fields.warp import chain_to_displacement, warp_labels
from ..geometry import index_identity
from ..io import read_geometry, read_labels, read_points, read_transform
from ..io.learn2reg import read_learn2reg_displacement
from ..io.validate import check_mask_grid
from ..quality import metrics as quality
from ..quality.surface import Hd95
from ..types import DisplacementField, Geometry, LabelMap, Transform

Chain = tuple[Transform, ...]


@dataclass(frozen=True)
class PairFiles:
    """The files of one pair, all optional; those that are given decide what is scored.

    Attributes:
        name: name of the pair, for reports.
        kind: group of the pair, for means over groups; empty without groups.
        fixed_image: the fixed image, of which only the grid is used, and only without fixed labels
            and mask.
        fixed_labels: label map of the fixed image, on whose grid everything is scored.
        moving_labels: label map of the moving image.
        moving_image: the moving image, which only a sweep uses.
        transforms: files that map fixed points to moving points, applied in this order.
        learn2reg: a Learn2Reg displacement file instead of `transforms`.
        fixed_points: landmarks of the fixed image.
        moving_points: the same landmarks in the moving image.
        mask: mask on the fixed grid to which the Jacobian is restricted.
        orientation: as in `dinoreg_rt.io.read_volume`.
    """

    name: str = "pair"
    kind: str = ""
    fixed_image: Path | None = None
    fixed_labels: Path | None = None
    moving_labels: Path | None = None
    moving_image: Path | None = None
    transforms: tuple[Path, ...] = ()
    learn2reg: Path | None = None
    fixed_points: Path | None = None
    moving_points: Path | None = None
    mask: Path | None = None
    orientation: OrientationChoice = "auto"


@dataclass(frozen=True)
class LabelScores:
    """Scores of every label that the fixed and the moving label map share.

    Attributes:
        dice: Dice of each label, 0..1.
        hd95: 95th percentile of the surface distances of each label.
        lost: labels without a voxel on the fixed grid; their Dice is 0 and their HD95 the diagonal
            of the grid.
    """

    dice: dict[int, float]
    hd95: dict[int, Hd95]
    lost: tuple[int, ...] = ()


@dataclass(frozen=True)
class PairScores:
    """Scores of one pair; None if there was nothing to score.

    Attributes:
        name: name of the pair.
        kind: group of the pair.
        status: ``missing`` without a result file, ``failed`` if a file could not be used.
        message: the reason for another status than ``ok``.
        before: label scores without the transform.
        after: label scores with the transform.
        jacobian: regularity of the transform.
        tre_before_mm: error of each landmark without the transform.
        tre_after_mm: error of each landmark with the transform.
        warnings: what the headers of the files leave in doubt, one sentence each.
    """

    name: str
    kind: str = ""
    status: Literal["ok", "missing", "failed"] = "ok"
    message: str = ""
    before: LabelScores | None = None
    after: LabelScores | None = None
    jacobian: quality.JacobianStatistics | None = None
    tre_before_mm: tuple[float, ...] | None = None
    tre_after_mm: tuple[float, ...] | None = None
    warnings: tuple[str, ...] = ()

    @property
    def vanished(self) -> tuple[int, ...]:
        """Shared labels without a voxel after warping."""
        return self.after.lost if self.after else ()

    def means(self) -> dict[str, float]:
        """Return one number per metric, a mean over labels or landmarks; NaN if not scored."""
        values = {}
        for when, scores in (("before", self.before), ("after", self.after)):
            distances = scores.hd95 if scores else {}
            by_label = {
                "dice": scores.dice if scores else {},
                "hd95_mm": {label: d.mm for label, d in distances.items()},
                "hd95_vox": {label: d.voxels for label, d in distances.items()},
            }
            for name, part in by_label.items():
                values[f"{name}_{when}"] = quality.mean_over_labels(part)
        for when, errors in (("before", self.tre_before_mm), ("after", self.tre_after_mm)):
            values[f"tre_mm_{when}"] = float(np.mean(errors)) if errors else math.nan
        for name, attribute in JACOBIAN_METRICS.items():
            values[name] = getattr(self.jacobian, attribute) if self.jacobian else math.nan
        return values


#: Name in reports -> attribute of `JacobianStatistics`.
JACOBIAN_METRICS = {
    "sdlogj": "sdlogj",
    "sdlogj_learn2reg": "sdlogj_learn2reg",
    "folded_percent": "folded_percent",
    "jacobian_min": "minimum",
    "jacobian_max": "maximum",
}


def evaluate_pair(files: PairFiles, mapping: Chain | None = None) -> PairScores:
    """Score one pair.

    Args:
        files: the files of the pair.
        mapping: maps fixed to moving points and replaces the transform files.

    Raises:
        InputError: a file cannot be read or does not fit the others, the label maps share no label,
            or there is nothing to score.
    """
    fixed, moving = _read_label_pair(files)
    grid = _fixed_grid(files, fixed)
    start, chain = _read_chains(files, grid, moving) if mapping is None else ((), mapping)
    before = after = None
    if grid is None and chain:
        grid = next((t.geometry for t in chain if isinstance(t, DisplacementField)), None)
    displacement = chain_to_displacement(chain, grid) if chain and grid is not None else None
    if fixed is not None and moving is not None:
        before = _score_labels(fixed, moving, start)
        if displacement is not None:
            after = _score_labels(fixed, moving, (displacement,))
    jacobian = None
    if displacement is not None:
        jacobian = quality.jacobian_statistics(displacement, _read_mask(files, displacement))
    tre_before, tre_after = _score_points(files, start, chain)
    if before is None and jacobian is None and tre_before is None:
        raise InputError(f"{files.name}: nothing to score: give labels, points or a transform")
    return PairScores(
        files.name,
        files.kind,
        before=before,
        after=after,
        jacobian=jacobian,
        tre_before_mm=tre_before,
        tre_after_mm=tre_after,
        warnings=_header_notes(fixed, moving, grid, chain),
    )


def _header_notes(
    fixed: LabelMap | None, moving: LabelMap | None, grid: Geometry | None, chain: Chain
) -> tuple[str, ...]:
    used = [labels.geometry for labels in (fixed, moving) if labels is not None]
    used += [step.geometry for step in chain if isinstance(step, DisplacementField)]
    used += [grid] if grid is not None else []
    return tuple(dict.fromkeys(note for geometry in used for note in geometry.notes))


def _read_label_pair(files: PairFiles) -> tuple[LabelMap | None, LabelMap | None]:
    fixed, moving = (
        read_labels(path, orientation=files.orientation) if path else None
        for path in (files.fixed_labels, files.moving_labels)
    )
    return fixed, moving


def _fixed_grid(files: PairFiles, fixed: LabelMap | None) -> Geometry | None:
    if fixed is not None:
        return fixed.geometry
    if files.mask:
        return read_labels(files.mask, mask=True, orientation=files.orientation).geometry
    if files.fixed_image is None:
        return None
    return read_geometry(files.fixed_image, orientation=files.orientation)


def _read_chains(
    files: PairFiles, grid: Geometry | None, moving: LabelMap | None
) -> tuple[Chain, Chain]:
    """Return the mappings before and after registration."""
    if files.learn2reg is None:
        steps = [read_transform(p, orientation=files.orientation) for p in files.transforms]
        return (), tuple(step for part in steps for step in part)
    if files.transforms:
        raise InputError("give either transforms or a Learn2Reg displacement file, not both")
    if grid is None or moving is None:
        raise InputError(
            f"{files.learn2reg}: a Learn2Reg file holds voxel displacements and no usable header; "
            "give fixed and moving labels, whose grids define the voxels"
        )
    displacement = read_learn2reg_displacement(files.learn2reg, grid, moving.geometry)
    return (index_identity(grid, moving.geometry),), (displacement,)


def _score_labels(fixed: LabelMap, moving: LabelMap, chain: Chain) -> LabelScores:
    in_fixed, in_moving = quality.label_counts(fixed.array), quality.label_counts(moving.array)
    labels = sorted(in_fixed.keys() & in_moving.keys())
    if not labels:
        raise InputError(
            f"{fixed.name or 'fixed labels'} and {moving.name or 'moving labels'} share no label: "
            f"they hold {sorted(in_fixed)} and {sorted(in_moving)}; give maps with common labels"
        )
    # Nearest neighbours, as in Learn2Reg, so that scores are comparable with published ones.
    warped = warp_labels(moving, chain, fixed.geometry, nearest=True).array
    left = quality.label_counts(warped)
    return LabelScores(
        quality.dice(fixed.array, warped, labels),
        quality.hd95(fixed.array, warped, fixed.geometry, labels),
        lost=tuple(label for label in labels if label not in left),
    )


def _read_mask(files: PairFiles, displacement: DisplacementField) -> NDArray[np.int32] | None:
    if files.mask is None:
        return None
    mask = read_labels(files.mask, mask=True, orientation=files.orientation)
    check_mask_grid(mask.geometry, displacement.geometry, str(files.mask), "fixed")
    return np.asarray(mask.array)


def _score_points(
    files: PairFiles, start: Chain, chain: Chain
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    if files.fixed_points is None or files.moving_points is None:
        return None, None
    fixed, moving = (
        read_points(path).points_lps_mm for path in (files.fixed_points, files.moving_points)
    )
    before = tuple(quality.tre_mm(fixed, moving, start).tolist())
    return before, tuple(quality.tre_mm(fixed, moving, chain).tolist()) if chain else None
