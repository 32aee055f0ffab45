"""Scores of one registered pair, from files (many pairs: `dinoreg_rt.evaluate.cohort`).

A pair is scored twice: *before*, with the identity in LPS mm, i.e. as the two files' headers place
them (for Learn2Reg fields: the identity of voxel indices, since those ignore headers), and
*after*, through the transform. The metrics themselves are defined in `dinoreg_rt.quality.metrics`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import InputError
from ..fields.warp import chain_to_displacement, warp_labels
from ..geometry import index_identity
from ..io.learn2reg import read_learn2reg_displacement
from ..quality import metrics as quality
from ..quality.surface import Hd95
from ..types import DisplacementField, Geometry, LabelMap, Transform

Chain = tuple[Transform, ...]


@dataclass(frozen=True)
class PairFiles:
    """The files of one pair. Everything is optional; what is there decides what is scored.

    Attributes:
        name: of the pair, for reports.
        kind: group of the pair, for means over groups.
        fixed_image: only its grid is used, and only when there are no fixed labels and no mask.
        fixed_labels: label map of the fixed image; its grid is the one everything is scored on.
        moving_labels: label map of the moving image.
        moving_image: only for what registers the pair.
        transforms: fixed points to moving points, applied in this order.
        learn2reg: a Learn2Reg displacement file instead of `transforms`.
        fixed_points: landmarks of the fixed image.
        moving_points: the same landmarks in the moving image.
        mask: on the fixed grid; the Jacobian is looked at only inside.
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


@dataclass(frozen=True)
class LabelScores:
    """Dice (0..1) and HD95 of every label that the fixed and the moving label map share.

    Attributes:
        dice: by label.
        hd95: by label.
        lost: labels with no voxel on the fixed grid: Dice 0, HD95 the diagonal of the grid.
    """

    dice: dict[int, float]
    hd95: dict[int, Hd95]
    lost: tuple[int, ...] = ()


@dataclass(frozen=True)
class PairScores:
    """Scores of one pair; None where there was nothing to score.

    Attributes:
        name: of the pair.
        kind: its group.
        status: ``missing`` if there is no result file, ``failed`` if a file could not be used.
        message: why, unless the status is ``ok``.
        before: label scores without the transform.
        after: label scores with it.
        jacobian: regularity of the transform.
        tre_before_mm: error of each landmark without the transform.
        tre_after_mm: error of each landmark with it.
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

    @property
    def vanished(self) -> tuple[int, ...]:
        """Shared labels with no voxel left after warping."""
        return self.after.lost if self.after else ()

    def means(self) -> dict[str, float]:
        """One number per metric: means over labels and over landmarks; NaN where not scored."""
        values = {}
        for when, scores in (("before", self.before), ("after", self.after)):
            dice = scores.dice if scores else {}
            distances = scores.hd95 if scores else {}
            values[f"dice_{when}"] = quality.mean_over_labels(dice)
            values[f"hd95_mm_{when}"] = quality.mean_over_labels(
                {label: d.mm for label, d in distances.items()}
            )
            values[f"hd95_vox_{when}"] = quality.mean_over_labels(
                {label: d.voxels for label, d in distances.items()}
            )
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
        files: what to score with.
        mapping: fixed to moving points, instead of the transform files.

    Raises:
        InputError: a file cannot be read or does not fit the others, the label maps share no
            label, or there is nothing to score.
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
    )


def _read_label_pair(files: PairFiles) -> tuple[LabelMap | None, LabelMap | None]:
    from ..io import read_labels

    fixed = read_labels(files.fixed_labels) if files.fixed_labels else None
    moving = read_labels(files.moving_labels) if files.moving_labels else None
    return fixed, moving


def _fixed_grid(files: PairFiles, fixed: LabelMap | None) -> Geometry | None:
    from ..io import read_geometry, read_labels

    if fixed is not None:
        return fixed.geometry
    if files.mask:
        return read_labels(files.mask, mask=True).geometry
    return read_geometry(files.fixed_image) if files.fixed_image else None


def _read_chains(
    files: PairFiles, grid: Geometry | None, moving: LabelMap | None
) -> tuple[Chain, Chain]:
    """The mappings before and after registration."""
    from ..io import read_transform

    if files.learn2reg is None:
        return (), tuple(t for path in files.transforms for t in read_transform(path))
    if files.transforms:
        raise InputError("give either transforms or a Learn2Reg displacement file, not both")
    if grid is None or moving is None:
        raise InputError(
            f"{files.learn2reg}: a Learn2Reg file holds voxel displacements and no usable header; "
            "fixed and moving labels are needed to know the voxels"
        )
    displacement = read_learn2reg_displacement(files.learn2reg, grid, moving.geometry)
    return (index_identity(grid, moving.geometry),), (displacement,)


def _score_labels(fixed: LabelMap, moving: LabelMap, chain: Chain) -> LabelScores:
    in_fixed, in_moving = quality.label_counts(fixed.array), quality.label_counts(moving.array)
    labels = sorted(in_fixed.keys() & in_moving.keys())
    if not labels:
        raise InputError(
            f"{fixed.name or 'fixed labels'} and {moving.name or 'moving labels'} share no label: "
            f"{sorted(in_fixed)} and {sorted(in_moving)}"
        )
    # The nearest voxel's label, as Learn2Reg scores: comparable with published numbers.
    warped = warp_labels(moving, chain, fixed.geometry, nearest=True).array
    left = quality.label_counts(warped)
    return LabelScores(
        quality.dice(fixed.array, warped, labels),
        quality.hd95(fixed.array, warped, fixed.geometry, labels),
        lost=tuple(label for label in labels if label not in left),
    )


def _read_mask(files: PairFiles, displacement: DisplacementField) -> NDArray[np.int32] | None:
    from ..io import read_labels
    from ..io.validate import check_mask_grid

    if files.mask is None:
        return None
    mask = read_labels(files.mask, mask=True)
    check_mask_grid(mask.geometry, displacement.geometry, str(files.mask), "fixed")
    return np.asarray(mask.array)


def _score_points(
    files: PairFiles, start: Chain, chain: Chain
) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    from ..io.points import read_points

    if files.fixed_points is None or files.moving_points is None:
        return None, None
    fixed, moving = (
        read_points(path).points_lps_mm for path in (files.fixed_points, files.moving_points)
    )
    before = tuple(quality.tre_mm(fixed, moving, start).tolist())
    return before, tuple(quality.tre_mm(fixed, moving, chain).tolist()) if chain else None
