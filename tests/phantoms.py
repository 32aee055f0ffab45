"""Inputs with a known answer."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dinoreg_rt.geometry import index_to_lps, invert_affine, lps_to_index, transform_points
from dinoreg_rt.images.pair import Pair, PairImage, Role
from dinoreg_rt.types import AffineTransform, Geometry, Volume


def rotation(x: float, y: float, z: float) -> np.ndarray:
    """Return the matrix of rotations about x, then y, then z, in radians."""
    cx, sx, cy, sy, cz, sz = (f(a) for a in (x, y, z) for f in (np.cos, np.sin))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


def waves(shape, shift=(0, 0, 0), *, channels=8, seed=1, wavelengths=(7.0, 20.0), count=6):
    """Return sums of sines, (shape, channels), sampled exactly at p - shift."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in shape], indexing="ij"), -1) - shift
    direction = rng.normal(size=(channels, count, 3))
    direction /= np.linalg.norm(direction, axis=-1, keepdims=True)
    wave = 2 * np.pi * direction / rng.uniform(*wavelengths, (channels, count, 1))
    phase = rng.uniform(0, 2 * np.pi, (channels, count))
    amplitude = 1 / np.sqrt(2 * count)
    return amplitude * np.sin(np.tensordot(grid, wave, (3, 2)) + phase).sum(-1)


#: Direction matrices, whose columns are the LPS directions of the index axes x, y, z.
DIRECTIONS = {
    "LPS": np.eye(3),
    "RAS": np.diag([-1.0, -1.0, 1.0]),
    "LAS": np.diag([1.0, -1.0, 1.0]),
    "oblique": rotation(0.4, -0.2, 0.9),
}


def make_grid(shape_zyx, spacing_mm, direction="LPS", centre_mm=(0.0, 0.0, 0.0)) -> Geometry:
    """Return a grid around `centre_mm`; `direction` is a name in `DIRECTIONS` or a 3x3 matrix."""
    axes = DIRECTIONS[direction] if isinstance(direction, str) else np.asarray(direction)
    middle = (np.asarray(shape_zyx[::-1]) - 1) / 2 * np.asarray(spacing_mm)
    origin = np.asarray(centre_mm) - axes @ middle
    return Geometry(tuple(shape_zyx), tuple(spacing_mm), tuple(float(v) for v in origin), axes)


def centres_of(grid: Geometry) -> np.ndarray:
    """Return the LPS mm of all voxel centres, (D, H, W, 3)."""
    z, y, x = np.meshgrid(*[np.arange(n, dtype=np.float64) for n in grid.shape_zyx], indexing="ij")
    points = transform_points(index_to_lps(grid), np.stack([x, y, z], -1).reshape(-1, 3))
    return points.reshape(*grid.shape_zyx, 3)


def bright_pair(fixed: Volume, moving: Volume, fixed_mask: np.ndarray | None = None) -> Pair:
    """Return two MR images whose intensities from 0 to 1 are used unchanged."""

    def image(role: Role, volume: Volume, mask: np.ndarray | None = None) -> PairImage:
        lowest = float(volume.array.min())
        return PairImage(role, volume, mask, modality="mr", window=(0.0, 1.0), lowest=lowest)

    return image("fixed", fixed, fixed_mask), image("moving", moving)


@dataclass(frozen=True)
class Body:
    """A soft ellipsoid of blobs and waves in empty surroundings, defined at every point in space.

    Because it is one continuous function, images of it on any grid, deformed or not, are exact:
    nothing in a phantom is interpolated.
    """

    radii_mm: tuple[float, float, float] = (40.0, 34.0, 30.0)
    centre_mm: tuple[float, float, float] = (0.0, 0.0, 0.0)
    seed: int = 3

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Return values 0..1 at points (..., 3), LPS mm."""
        rng = np.random.default_rng(self.seed)
        local = (points - np.asarray(self.centre_mm)).reshape(-1, 3)
        value = np.full(len(local), 0.45)
        for _ in range(14):
            where = rng.uniform(-0.7, 0.7, 3) * self.radii_mm
            size, height = rng.uniform(4, 9), rng.choice([-0.45, 0.5])
            distance = np.linalg.norm(local - where, axis=1)
            value += height / (1 + np.exp(np.clip((distance - size) / 0.8, -50, 50)))
        for _ in range(8):
            wave = rng.normal(size=3)
            wave *= 2 * np.pi / rng.uniform(12, 30) / np.linalg.norm(wave)
            value += 0.04 * np.sin(local @ wave + rng.uniform(0, 2 * np.pi))
        value = np.clip(value, 0.05, 1.0) * self._inside(local)
        return value.reshape(points.shape[:-1])

    def inside(self, points: np.ndarray) -> np.ndarray:
        """Return whether points (..., 3) lie well within the ellipsoid."""
        local = (points - np.asarray(self.centre_mm)).reshape(-1, 3)
        return (self._inside(local) > 0.9).reshape(points.shape[:-1])

    def _inside(self, local: np.ndarray) -> np.ndarray:
        distance = (np.linalg.norm(local / self.radii_mm, axis=1) - 1) * min(self.radii_mm)
        return 1 / (1 + np.exp(np.clip(distance / 0.8, -50, 50)))


def smooth_displacement(points: np.ndarray, peak_mm=6.0, wavelength_mm=110.0, seed=5) -> np.ndarray:
    """Return smooth vectors without folds at points (..., 3), LPS mm, about `peak_mm` long."""
    rng = np.random.default_rng(seed)
    result = np.zeros(points.shape)
    for axis in range(3):
        for _ in range(2):
            wave = rng.normal(size=3)
            wave *= 2 * np.pi / wavelength_mm / np.linalg.norm(wave)
            result[..., axis] += np.sin(points @ wave + rng.uniform(0, 2 * np.pi))
    return result * (peak_mm / 2 / np.sqrt(3))


def other_contrast(value: np.ndarray) -> np.ndarray:
    """Return values 0..1 as another modality shows them, with edges kept but in another order."""
    return np.interp(value, [0.0, 0.05, 0.25, 0.45, 0.7, 1.0], [0.0, 0.35, 0.9, 0.25, 0.6, 0.1])


@dataclass(frozen=True)
class Phantom:
    """A pair with a known mapping.

    Attributes:
        fixed: values 0..1000.
        moving: same body undeformed, values 0..1000.
        truth_mm: displacement from fixed to moving points on the fixed grid, (D, H, W, 3).
        inside: whether a voxel of the fixed grid lies in the body, (D, H, W).
    """

    fixed: Volume
    moving: Volume
    truth_mm: np.ndarray
    inside: np.ndarray

    def errors_mm(self, vectors_mm: np.ndarray) -> np.ndarray:
        """Return the lengths of the errors inside the body and the moving image's box."""
        points = centres_of(self.fixed.geometry) + self.truth_mm
        index = transform_points(lps_to_index(self.moving.geometry), points.reshape(-1, 3))
        upper = np.asarray(self.moving.geometry.shape_xyz) - 1
        seen = np.all((index >= 0) & (index <= upper), axis=1).reshape(self.inside.shape)
        error = np.linalg.norm(vectors_mm - self.truth_mm, axis=-1)
        return error[self.inside & seen]


def make_phantom(
    fixed_grid: Geometry,
    moving_grid: Geometry,
    *,
    peak_mm: float = 6.0,
    multimodal: bool = False,
    affine: AffineTransform | None = None,
    body: Body | None = None,
) -> Phantom:
    """Return ``moving(affine(p + u(p))) = fixed(p)`` with u from `smooth_displacement`."""
    body, affine = body or Body(), affine or AffineTransform.identity()
    points = centres_of(fixed_grid)
    deformed = points + smooth_displacement(points, peak_mm)
    back = invert_affine(affine)
    moving_points = centres_of(moving_grid) @ back.matrix.T + back.translation_mm
    fixed = body(deformed)
    fixed = other_contrast(fixed) if multimodal else fixed
    return Phantom(
        Volume((1000 * fixed).astype(np.float32), fixed_grid),
        Volume((1000 * body(moving_points)).astype(np.float32), moving_grid),
        deformed @ affine.matrix.T + affine.translation_mm - points,
        body.inside(deformed),
    )


def reoriented(volume: Volume, order_zyx=(0, 1, 2), flips_zyx=()) -> Volume:
    """Permute and flip the array axes of an image whose voxels keep their positions."""
    grid = volume.geometry
    array = np.asarray(volume.array).transpose(order_zyx)
    matrix = (grid.direction * np.asarray(grid.spacing_mm))[:, [2 - a for a in order_zyx[::-1]]]
    origin = np.asarray(grid.origin_mm)
    for axis in flips_zyx:
        array = np.flip(array, axis)
        column = matrix[:, 2 - axis].copy()
        origin = origin + column * (array.shape[axis] - 1)
        matrix[:, 2 - axis] = -column
    spacing = np.linalg.norm(matrix, axis=0)
    geometry = Geometry(
        array.shape,
        tuple(float(s) for s in spacing),
        tuple(float(v) for v in origin),
        matrix / spacing,
    )
    return Volume(np.ascontiguousarray(array), geometry, volume.pixel_type, volume.name)
