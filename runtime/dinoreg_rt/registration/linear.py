"""Linear registration: the initial alignment refined by the objective of the solver.

Both images are compared on the control grid of a working grid, coarse to fine. After each step the
moving image is sampled again through the whole map, so that its features turn with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ..align.descent import Descent, Frame, descend
from ..align.linear_models import nearest_map
from ..align.normal_equations import (
    NormalEquations,
    Points,
    Sampled,
    correlation_equations,
    feature_equations,
    window_numbers,
)
from ..config.decided import DecidedConfig
from ..config.image_parameters import LinearModel
from ..device.choice import Device
from ..features.mind import MindFeatures, control_intensities
from ..geometry import centre_lps_mm, coarsened_grid, index_to_lps, lps_to_index, resampled_grid, shifted_grid, transform_points
from ..images.body import bounding_box
from ..images.grids import whole_voxels
from ..images.pair import Pair, SolverSide
from ..types import AffineTransform, Array, FloatArray, Geometry
from .features import side_weight, working_images, nothing_left
from ..errors import RegistrationError

LEVEL_LARGEST_MM = 8.0
EVALS = 12


@dataclass(frozen=True, eq=False)
class Level:
    pair: Pair
    config: DecidedConfig
    working: Geometry
    pool_zyx: tuple[int, int, int]
    control: Geometry
    mind: MindFeatures
    organ: Array | None
    device: Device

    def sampled(self, which: int, affine: AffineTransform) -> Sampled:
        side = SolverSide(self.pair[which], self.working, self.control, affine)
        image = working_images_one(side, self.pool_zyx, self.device)
        features, structure = self.mind._of(image, self.device)
        weight = side_weight(side, self.device) * structure
        if which == 0 and self.organ is not None:
            from .features import _weight_by
            weight = weight * _weight_by(side, side.image.volume, self.organ, self.device)
        from ..features.mind import _averaged
        return Sampled(features, weight, _averaged(image, self.device))


def working_images_one(side, pool, device):
    from ..features.mind import WorkingImage
    from ..images.intensity import window
    from ..images.resample import resample_volume
    return WorkingImage(window(resample_volume(side.image.volume, side.working, side.affine, device), *side.image.window), side.working, pool)


def levels(working: Geometry, control_mm: float, largest: float) -> list[int]:
    n = max(0, int(math.floor(math.log2(max(1.0, largest / control_mm)))))
    return [2**k for k in range(n, -1, -1)]


def refine(pair, config, working, start, model, organ, device, stop_level=1, trust=0.0, log=print, fw=None, cw=None):
    fw = config.feature_weight if fw is None else fw
    cw = config.correlation_weight if cw is None else cw
    here = AffineTransform.identity()
    t = start
    import time
    for factor in levels(working, config.control_spacing_mm, LEVEL_LARGEST_MM):
        if factor < stop_level: break
        t0 = time.process_time()
        voxel = min(working.spacing_mm) * factor
        grid = resampled_grid(working, tuple(max(s, voxel) for s in working.spacing_mm)) if factor > 1 else working
        pool = whole_voxels(config.control_spacing_mm * factor, grid)
        if pair[0].body is not None:
            control = coarsened_grid(grid, pool)
            w = side_weight(SolverSide(pair[0], grid, control, here), device)
            box = bounding_box(w > 0, 3)
            first = [b.start * p for b, p in zip(box, pool)]
            size = [min((b.stop - b.start) * p, n - f) for b, p, n, f in zip(box, pool, grid.shape_zyx, first)]
            grid = shifted_grid(grid, tuple(first), tuple(size))
        control = coarsened_grid(grid, pool)
        mind = MindFeatures.of(config)
        mind = replace(mind, radius_mm=mind.radius_mm * factor, dilation_mm=mind.dilation_mm * factor, intensity_windows_mm=tuple(v * factor for v in mind.intensity_windows_mm))
        level = Level(pair, config, grid, pool, control, mind, organ, device)
        fixed = level.sampled(0, here)
        spacing = control.spacing_mm[::-1]
        centre = np.array([(np.arange(n) * fixed.weight.sum(axis=tuple(a for a in range(3) if a != ax))).sum() / fixed.weight.sum() for ax, n in enumerate(fixed.weight.shape)])
        points = Points.of(fixed.weight, spacing, centre)
        frame = Frame(transform_points(index_to_lps(control), centre[None, ::-1])[0], control.direction, float(np.sqrt((points.position[:3]**2).sum(0).mean())))
        width = tuple(max(1, round(math.sqrt(12) * config.correlation_window_mm * factor / s)) for s in spacing)
        windows = window_numbers(points, width)
        both = [fixed.features.reshape(-1, fixed.features.shape[-1])[points.flat, :mind.channels].astype(np.float32)]
        unrelated = 2 * float(both[0].var(axis=0).sum())

        def objective(affine):
            moving = level.sampled(1, affine)
            eq = feature_equations(fixed, moving, points, mind.channels, unrelated=unrelated, trust_cost=trust * unrelated).scaled(fw)
            if cw > 0:
                eq = eq + correlation_equations(fixed, moving, points, windows, config.correlation_noise).scaled(cw)
            return eq

        d = descend(objective, t, model, frame, least_step_mm=0.01 * min(spacing), most_evaluations=EVALS)
        t = d.transform
        log(f"factor {factor} control {control.shape_zyx} {spacing} points {points.flat.size} win {width} value {d.before:.4f} -> {d.after:.4f} evals {d.evaluations} unrelated {unrelated:.2f} cpu {time.process_time()-t0:.2f}")
    return t
