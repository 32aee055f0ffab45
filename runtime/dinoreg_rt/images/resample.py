"""From images as scanned to images on the working grid: modality, intensity window, resampling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

import dinoreg_kernels

from ..config.parameters import ModalityChoice, RegistrationConfig
from ..device.choice import Device
from ..errors import ConfigError, InputError
from ..geometry import coarsened_grid, index_map, kernel_affine, resampled_grid, same_grid
from ..types import AffineTransform, Array, Geometry, Modality, Volume

_T = TypeVar("_T")

#: Air is -1000 HU on a CT and fat about -100; MR magnitudes are not negative. Windowed CTs are
#: often clipped at -125 or so.
_CT_LOWEST_HU = -100.0
#: Voxels looked at for a percentile: enough for three digits, and quick on any scan.
_PERCENTILE_SAMPLES = 1_000_000
#: Cells the discrete search reaches at most along an axis: its cost grows with the third power.
_MAX_SEARCH = 12
#: Cells that each further level of it reaches, as in kernels/src/search.h.
_FURTHER_RADIUS = 2


@dataclass(frozen=True, eq=False)
class WorkingGrids:
    """The lattices of one registration, all on the fixed image's box.

    Attributes:
        working: where features are computed.
        pool_zyx: working voxels per control voxel.
        control: where the displacement is refined.
        search_factor_zyx: control voxels per cell of the discrete search.
        search_radius_zyx: reach of the discrete search in cells.
        search_levels: of the discrete search; see `search_lattices`.
    """

    working: Geometry
    pool_zyx: tuple[int, int, int]
    control: Geometry
    search_factor_zyx: tuple[int, int, int]
    search_radius_zyx: tuple[int, int, int]
    search_levels: int = 1

    def search_lattices(self) -> list[tuple[tuple[int, int, int], tuple[int, int, int]]]:
        """Factor and radius of each level, z, y, x, as the solver halves them."""
        factor, radius = self.search_factor_zyx, self.search_radius_zyx
        levels = [(factor, radius)]
        z, y, x = (min(_FURTHER_RADIUS, r) for r in radius)
        for _ in range(1, self.search_levels):
            (a, b, c), _before = levels[-1]
            levels.append((((a + 1) // 2, (b + 1) // 2, (c + 1) // 2), (z, y, x)))
        return levels

    def search_reach_zyx(self) -> np.ndarray:
        """Control voxels that the first level reaches along each axis.

        Further levels may go on by a cell. Looking there moved the mean Dice of no kind of pair by
        more than 0.001, and the measures of trust, which do without them, depended on it.
        """
        return np.multiply(self.search_factor_zyx, self.search_radius_zyx)


def plan_grids(
    fixed: Geometry, config: RegistrationConfig, modalities: Sequence[Modality] = ("ct", "mr")
) -> tuple[WorkingGrids, RegistrationConfig]:
    """The lattices for a fixed image, and the configuration with every default length filled in.

    What depends on the contrast is filled in by `fill_by_contrast`. Lengths in mm become whole
    voxels of each axis, at least one. Lengths that are not given follow
    the working grid: structures are looked for at the scale that the image shows.
    Two MR images are compared by small patches, all other pairs by larger ones: what noise and
    contrast allow (measured on the pairs in the README).
    """
    working = working_grid(fixed, config.working_megavoxels)
    voxel_mm = min(working.spacing_mm)
    patch_mm = voxel_mm if set(modalities) == {"mr"} else 2 * voxel_mm
    config = _fill_lengths(config, voxel_mm, patch_mm)
    pool = whole_voxels(required(config.control_spacing_mm), working)
    control = coarsened_grid(working, pool)
    factor = whole_voxels(required(config.search_spacing_mm), control)
    cells = [math.ceil(n / f) for n, f in zip(control.shape_zyx, factor, strict=True)]
    radius_mm = required(config.search_radius_mm)
    steps = [radius_mm / (s * f) for s, f in zip(control.spacing_mm[::-1], factor, strict=True)]
    z, y, x = (min(round(r), n - 1, _MAX_SEARCH) for r, n in zip(steps, cells, strict=True))
    levels = config.search_levels or 1
    return WorkingGrids(working, pool, control, factor, (z, y, x), levels), config


def working_grid(fixed: Geometry, megavoxels: float) -> Geometry:
    """The fixed grid itself, or a coarser one over the same box with at most so many voxels.

    The finest axes are made coarser first, so that thick slices are left as they are.
    """
    limit = megavoxels * 1e6
    box = [n * s for n, s in zip(fixed.shape_xyz, fixed.spacing_mm, strict=True)]
    if math.prod(fixed.shape_xyz) <= limit:
        return fixed
    low, high = min(fixed.spacing_mm), max(box)
    for _ in range(60):  # bisection on the spacing that no axis may undercut
        middle = (low + high) / 2
        spacing = [max(s, middle) for s in fixed.spacing_mm]
        voxels = math.prod(b / s for b, s in zip(box, spacing, strict=True))
        low, high = (middle, high) if voxels > limit else (low, middle)
    x, y, z = (max(s, high) for s in fixed.spacing_mm)
    return resampled_grid(fixed, (x, y, z))


def _fill_lengths(
    config: RegistrationConfig, voxel_mm: float, patch_mm: float
) -> RegistrationConfig:
    control = config.control_spacing_mm or 2 * voxel_mm
    step = config.search_spacing_mm or 6 * voxel_mm
    defaults = {
        "mind_radius_mm": patch_mm,
        "mind_dilation_mm": 2 * voxel_mm,
        "control_spacing_mm": control,
        "search_spacing_mm": step,
        "search_radius_mm": 4 * step,
        "learning_rate_mm": control / 2,
    }
    missing: dict[str, Any] = {
        k: round(v, 6) for k, v in defaults.items() if getattr(config, k) is None
    }
    if config.intensity_windows_mm is None:
        missing["intensity_windows_mm"] = (round(4 * voxel_mm, 6), round(8 * voxel_mm, 6))
    return config.model_copy(update=missing)


def describe_objective(config: RegistrationConfig) -> str:
    """One line: what the refinement compares."""
    features, correlation = config.feature_weight, config.correlation_weight
    names = {
        "mse": "squared feature difference",
        "cosine": "cosine of features",
        "lncc": "local correlation of features",
    }
    terms = [f"{features:g} x {names[config.feature_similarity]}"] if features else []
    if correlation:
        window, noise = required(config.correlation_window_mm), required(config.correlation_noise)
        terms.append(
            f"{correlation:g} x local correlation (windows of {window:g} mm, noise {noise:g})"
        )
    return " + ".join(terms)


def required(value: _T | None) -> _T:
    """A parameter that `plan_grids` or `fill_by_contrast` has filled in."""
    if value is None:
        raise ConfigError("a parameter is still open; plan_grids and fill_by_contrast fill it in")
    return value


def whole_voxels(length_mm: float, grid: Geometry, least: int = 1) -> tuple[int, int, int]:
    """A length as voxels along z, y, x: rounded, at least `least`, at most the axis."""
    z, y, x = (
        min(max(least, round(length_mm / s)), n)
        for s, n in zip(grid.spacing_mm[::-1], grid.shape_zyx, strict=True)
    )
    return (z, y, x)


def detect_modality(lowest: float, wanted: ModalityChoice) -> tuple[Modality, str]:
    """The modality of an image by its smallest intensity, and why."""
    if wanted != "auto":
        return wanted, f"{wanted}, as asked"
    if lowest <= _CT_LOWEST_HU:
        return "ct", f"ct, because values go down to {lowest:.0f}, as they do on a CT"
    return "mr", f"mr, because no value lies below {_CT_LOWEST_HU:.0f} (lowest {lowest:.4g})"


def intensity_window(
    volume: Volume,
    modality: Modality,
    config: RegistrationConfig,
    mask: Array | None = None,
    role: str = "",
) -> tuple[float, float]:
    """Values that become 0 and 1; of an MR from the voxels in `mask` (D, H, W), if there is one.

    Args:
        volume: the image.
        modality: what it is.
        config: windows and percentiles.
        mask: not 0 where it counts; None: everywhere.
        role: ``fixed`` or ``moving``, for messages.

    Raises:
        InputError: an MR that shows nothing there: one value, or values too close to be told apart.
    """
    if modality == "ct":
        return config.ct_window_hu
    values = volume.array.reshape(-1) if mask is None else volume.array[mask != 0]
    step = max(1, values.size // _PERCENTILE_SAMPLES)
    low = float(values.min())
    high = float(np.percentile(values[::step], config.mr_percentile))
    if high <= low:  # nearly all voxels are background
        high = float(values.max())
    # Windows are applied in float32.
    if not high - low > 1.0 / np.finfo(np.float32).max:
        where = "" if mask is None else f" inside the {role} mask"
        raise InputError(
            f"the {role} image has only the value {low:g}{where}: there is nothing to align; "
            "is it the right image, and does the mask lie on the anatomy?"
        )
    return low, high


def window(array: Array, low: float, high: float) -> Array:
    """Clip to [low, high] and scale to [0, 1], in place."""
    array -= np.float32(low)
    array *= np.float32(1.0 / (high - low))
    return array.clip(0.0, 1.0, out=array)


def uploaded(volume: Volume, device: Device) -> Volume:
    """The image on a CUDA device, once for all stages; on a CPU as it is."""
    if device.kind == "cpu":
        return volume
    return replace(volume, array=device.upload(volume.array, np.float32))


def resample_volume(
    volume: Volume,
    grid: Geometry,
    affine: AffineTransform,
    device: Device,
    outside: float | None = None,
) -> Array:
    """`volume` on `grid` (D, H, W) float32, a new array, antialiased where the grid is coarser.

    Args:
        volume: the image.
        grid: in the fixed image's space.
        affine: fixed points to the image's points.
        device: where the result lives.
        outside: value beyond the image (default: its border goes on). Whatever is there has no
            weight, but features near the border see it: against a black layer beyond the last
            slice, those of two slices showed little else.
    """
    image = device.upload(volume.array, np.float32)
    if same_grid(volume.geometry, grid) and affine.is_identity():
        return image.copy()
    matrix = kernel_affine(index_map(grid, volume.geometry, affine))
    return dinoreg_kernels.resample(
        image,
        grid.shape_zyx,
        matrix,
        samples=antialiasing_samples(matrix),
        outside=outside,
        threads=device.threads,
    )


def antialiasing_samples(matrix: np.ndarray) -> tuple[int, int, int]:
    """Points per output voxel and axis so that no input voxel is skipped; at most 8."""
    steps = np.linalg.norm(matrix[:, :3], axis=0)
    z, y, x = (int(min(8, max(1, math.floor(s + 0.25)))) for s in steps)
    return (z, y, x)


def weight_on(
    grid: Geometry,
    image: Volume,
    mask: np.ndarray | None,
    affine: AffineTransform,
    device: Device,
) -> Array:
    """How much of each voxel of `grid` the image (and its mask, if any) covers: 0..1 float32."""
    inside = device.xp.empty(grid.shape_zyx, np.float32)
    matrix = kernel_affine(index_map(grid, image.geometry, affine))
    if mask is None:
        return dinoreg_kernels.coverage(
            inside, image.geometry.shape_zyx, matrix, samples=(2, 2, 2), threads=device.threads
        )
    value = dinoreg_kernels.resample(
        device.upload(mask, np.float32),
        grid.shape_zyx,
        matrix,
        samples=antialiasing_samples(matrix),
        inside=inside,
        threads=device.threads,
    )
    return inside * value
