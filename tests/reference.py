"""Every operation of the kernel library in float64 NumPy, written from its definition.

Plain rather than fast, and not a translation of the C++: whole arrays where the library visits
voxels, `scipy.ndimage` where it has its own loops. Arrays have axes (z, y, x[, channel]) and
vectors the order z, y, x; `index_map` arguments are (3, 4) matrices over (z, y, x, 1), as in the
library.
"""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

#: Largest radius of Gaussian filters, which end at 2.5 sigma.
MAX_TAP_RADIUS = 16
MIND_FLOOR = 1e-3


# ---- grids and sampling ---------------------------------------------------------------------


def indices(shape):
    """Return the index (z, y, x) of every voxel, (shape, 3)."""
    return np.stack(np.meshgrid(*[np.arange(n, dtype=float) for n in shape], indexing="ij"), -1)


def affine(matrix, points):
    """Apply a (3, 4) matrix to points (..., 3)."""
    matrix = np.asarray(matrix, float)
    return points @ matrix[:, :3].T + matrix[:, 3]


def inside(shape, points):
    """Return whether continuous indices lie within the voxels, borders included."""
    return np.all((points >= -0.5) & (points <= np.asarray(shape) - 0.5), axis=-1)


def corners(shape, points):
    """Yield (index, weight) of the eight voxels around each point, clamped at the border."""
    last = np.asarray(shape) - 1
    clamped = np.clip(points, 0, last)
    low = np.minimum(np.floor(clamped).astype(int), np.maximum(last - 1, 0))
    high = np.minimum(low + 1, last)
    fraction = clamped - low
    for up in itertools.product((False, True), repeat=3):
        at = tuple(np.where(up, high, low).reshape(-1, 3).T)
        weight = np.prod(np.where(up, fraction, 1 - fraction), axis=-1)
        yield tuple(i.reshape(points.shape[:-1]) for i in at), weight


def sample(values, points):
    """Interpolate values (z, y, x, ...) trilinearly at continuous indices (..., 3)."""
    values = np.asarray(values, float)
    extra = (1,) * (values.ndim - 3)
    return sum(
        values[at] * weight.reshape(weight.shape + extra)
        for at, weight in corners(values.shape[:3], points)
    )


def map_points(points, index_map, field=None, to_field=None, matrix=None):
    """Return index_map(i) + matrix @ field(to_field(i))."""
    mapped = affine(index_map, points)
    if field is None:
        return mapped
    vectors = sample(field, affine(np.eye(3, 4) if to_field is None else to_field, points))
    return mapped + vectors @ np.asarray(np.eye(3) if matrix is None else matrix, float).T


# ---- resampling -----------------------------------------------------------------------------


def resample(image, out_shape, index_map, *, samples=(1, 1, 1), outside=0.0, **mapping):
    """Return the mean of each voxel's samples inside, all if `outside` is None, and their share."""
    steps = [(np.arange(n) + 0.5) / n - 0.5 for n in samples]
    total = np.zeros(out_shape)
    count, share = np.zeros(out_shape), np.zeros(out_shape)
    for step in itertools.product(*steps):
        points = map_points(indices(out_shape) + step, index_map, **mapping)
        valid = inside(image.shape, points)
        share += valid
        valid |= outside is None
        total += np.where(valid, sample(image, points), 0.0)
        count += valid
    mean = np.where(count > 0, total / np.maximum(count, 1), 0.0 if outside is None else outside)
    return mean, share / np.prod(samples)


def cut_slices(image, slices, size, *, window, mean, std, samples=(1, 1)):
    """Resize each slice by itself over the same box, window it to 0..1 and normalise it."""
    image = np.asarray(image, float)
    scale = np.divide(image.shape[1:], size)
    index_map = np.column_stack([np.diag([1.0, *scale]), [0.0, *(0.5 * scale - 0.5)]])
    case = {"samples": (1, *samples), "outside": None}
    resized = [resample(image[i : i + 1], (1, *size), index_map, **case)[0] for i in slices]
    grey = np.concatenate(resized)
    grey = np.clip((grey - window[0]) / (window[1] - window[0]), 0.0, 1.0)
    return np.stack([(grey - m) / s for m, s in zip(mean, std, strict=True)], axis=1)


def resample_labels(labels, out_shape, index_map, *, nearest=False, **mapping):
    """Return the nearest label, or that with the most trilinear weight (the smaller on a tie)."""
    points = map_points(indices(out_shape), index_map, **mapping)
    valid = inside(labels.shape, points)
    if nearest:
        at = np.clip(np.floor(points + 0.5).astype(int), 0, np.asarray(labels.shape) - 1)
        return np.where(valid, labels[tuple(np.moveaxis(at, -1, 0))], 0)
    best = np.zeros(out_shape, labels.dtype)
    heaviest = np.full(out_shape, -1.0)
    for label in np.unique(labels):
        weight = sample(labels == label, points)
        better = weight > heaviest + 1e-12
        best = np.where(better, label, best)
        heaviest = np.where(better, weight, heaviest)
    return np.where(valid, best, 0)


# ---- fields ---------------------------------------------------------------------------------


def map_field(out_shape, index_map, field, *, to_field=None, matrix=None):
    """Return a mapping as a field."""
    return map_points(indices(out_shape), index_map, field, to_field, matrix)


def jacobian_determinant(field, index_from_unit):
    """Return det(I + du/dp) from central differences, one-sided at the border."""
    gradients = []
    for axis in range(3):
        if field.shape[axis] == 1:
            gradients.append(np.zeros(field.shape))
        else:
            gradients.append(np.gradient(np.asarray(field, float), axis=axis))
    by_index = np.stack(gradients, -1)  # [component, index axis]
    return np.linalg.det(np.eye(3) + by_index @ np.asarray(index_from_unit, float))


def compose(first, second, spacing_mm, *, to_second=None):
    """Return first(p) + second(p + first(p))."""
    there = indices(first.shape[:3]) + np.asarray(first, float) / np.asarray(spacing_mm, float)
    return first + sample(second, affine(np.eye(3, 4) if to_second is None else to_second, there))


def inverse_residual_mm(field, points, targets, matrix, spacing_mm):
    """Return the length of p + matrix @ field(p) - q in millimetres."""
    miss = points + sample(field, points) @ np.asarray(matrix, float).T - targets
    return np.linalg.norm(miss * np.asarray(spacing_mm, float), axis=-1)


def consistency_round(forward, backward, cell_mm):
    """Update both directions at once: u' = (u - v(p + u)) / 2 and v' = (v - u(p + v)) / 2."""

    def half(u, v):
        return 0.5 * (u - sample(v, indices(u.shape[:3]) + u / np.asarray(cell_mm, float)))

    return half(forward, backward), half(backward, forward)


# ---- smoothing ------------------------------------------------------------------------------


def gaussian_taps(sigma_mm, spacing_mm, n):
    """Return symmetric weights that sum to 1, up to 2.5 sigma; [1] if nothing is smoothed."""
    sigma = sigma_mm / spacing_mm
    if n < 2 or sigma < 0.05:
        return np.ones(1)
    radius = min(int(np.ceil(2.5 * sigma)), MAX_TAP_RADIUS)
    weight = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    return weight / weight.sum()


def smooth(values, sigma_mm, spacing_mm):
    """Smooth along the first three axes; `reflect` is the half-sample symmetric border."""
    out = np.asarray(values, float)
    for axis in range(3):
        taps = gaussian_taps(sigma_mm, spacing_mm[axis], out.shape[axis])
        out = ndimage.correlate1d(out, taps, axis=axis, mode="reflect")
    return out


# ---- MIND-SSC -------------------------------------------------------------------------------


def mind_pairs():
    """Return the 12 pairs of neighbours, in units of the dilation and the order of the channels."""
    pairs = []
    for a, b in ((0, 1), (0, 2), (1, 2)):
        for sign in (1, -1):
            first, second = np.zeros(3, int), np.zeros(3, int)
            first[a], second[b] = 1, sign
            pairs.append((first, second))
            pairs.append((-second, -first))
    return pairs


def shifted(image, offset):
    """Return image(p + offset), with the border voxels continued."""
    at = [np.clip(np.arange(n) + o, 0, n - 1) for n, o in zip(image.shape, offset, strict=True)]
    return image[np.ix_(*at)]


def mind_floor(image, dilation):
    """Return a thousandth of the pairs' mean squared difference, on every fourth voxel along x."""
    noise = [
        (shifted(image, i * dilation) - shifted(image, j * dilation))[:, :, ::4] ** 2
        for i, j in mind_pairs()[::2]
    ]
    return max(MIND_FLOOR * np.mean(noise), 1e-12)


def mind_ssc(image, *, radius, dilation, pool=(1, 1, 1), channels=16, scale=1.0):
    """Return the self-similarity context averaged over cells, before rounding to half precision."""
    image = np.asarray(image, float)
    radius, dilation = np.asarray(radius), np.asarray(dilation)
    patch = list(itertools.product(*[range(-r, r + 1) for r in radius]))
    distance = np.stack(
        [
            np.mean(
                [
                    (shifted(image, i * dilation + t) - shifted(image, j * dilation + t)) ** 2
                    for t in np.array(patch)
                ],
                axis=0,
            )
            for i, j in mind_pairs()
        ],
        -1,
    )
    distance -= distance.min(-1, keepdims=True)
    v = np.maximum(distance.mean(-1, keepdims=True), mind_floor(image, dilation))
    features = np.zeros((*image.shape, channels))
    features[..., :12] = np.exp(-distance / v)
    ones = np.ones(image.shape)
    cells = tuple(-(-n // p) for n, p in zip(image.shape, pool, strict=True))
    return scale * pool_weighted(features, ones, cells, pool)[0]


def mind_structure(features, scale=1.0):
    """Return 1 where a cell has structure and 0 where it is flat (all features close to 1)."""
    return (features[..., :12].mean(-1) < 0.999 * scale).astype(float)


def local_intensity(image, *, sigma_mm, spacing_mm, pool=(1, 1, 1), noise=0.1, scale=1.0):
    """Return (cell - window mean) / sqrt(window variance + noise^2), a channel per window."""
    image = np.asarray(image, np.float64)
    cells = [-(-n // p) for n, p in zip(image.shape, pool, strict=True)]
    mean, square = np.zeros(cells), np.zeros(cells)
    for index in np.ndindex(*cells):
        cell = image[tuple(slice(i * p, (i + 1) * p) for i, p in zip(index, pool, strict=True))]
        mean[index], square[index] = cell.mean(), (cell**2).mean()
    cell_mm = np.multiply(spacing_mm, pool)
    channels = []
    for sigma in sigma_mm:
        middle, second = (
            smooth(values[..., None], sigma, cell_mm)[..., 0] for values in (mean, square)
        )
        variance = np.maximum(second - middle**2, 0)
        channels.append(scale * (mean - middle) / np.sqrt(variance + noise**2))
    return np.stack(channels, axis=-1)


def pool_weighted(features, weight, out_shape, factor, *, offset=(0, 0, 0), margin=(0, 0, 0)):
    """Return the weighted mean over cells of `factor` voxels, and each cell's mean weight.

    The grid of cells starts `margin` cells before index 0; `offset` is the array's first voxel on
    it. Cells without weight hold zeros.
    """
    features, weight = np.asarray(features, float), np.asarray(weight, float)
    out = np.zeros((*out_shape, features.shape[-1]))
    out_weight = np.zeros(out_shape)
    for cell in np.ndindex(*out_shape):
        start = (np.array(cell) - margin) * factor - offset
        low = np.maximum(start, 0)
        high = np.minimum(start + factor, weight.shape)
        if np.any(high <= low):
            continue
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        out_weight[cell] = weight[box].mean()
        if weight[box].sum() > 0:
            out[cell] = np.average(
                features[box].reshape(-1, features.shape[-1]), 0, weight[box].ravel()
            )
    return out, out_weight


# ---- discrete search ------------------------------------------------------------------------


def unrelated_cost(fixed, fixed_weight, moving, moving_weight, trust_cost=0.0):
    """Return the cost of the mean squared distance of independent voxels of two images."""
    cost = 0.0
    means = []
    for features, weight in ((fixed, fixed_weight), (moving, moving_weight)):
        total = weight.sum() if weight.sum() > 0 else 1.0
        mean = np.einsum("zyxc,zyx->c", features, weight) / total
        cost += np.sum(np.einsum("zyxc,zyx->c", features**2, weight) / total - mean**2)
        means.append(mean)
    cost += np.sum((means[0] - means[1]) ** 2)
    return cost * robust_factor(cost, trust_cost)


def shift_list(radius):
    """Return all shifts in cells, in the order of their numbers, (count, 3)."""
    return np.array(list(itertools.product(*[range(-r, r + 1) for r in radius])))


def shift_costs(fixed, fixed_weight, moving, moving_weight, radius, unrelated, trust_cost=0.0):
    """Return w_f (w_m |f(p) - m(p + d)|^2 + (1 - w_m) unrelated) for every shift d, made robust."""
    radius = np.asarray(radius)
    shape = np.array(fixed_weight.shape) - 2 * radius

    def window(array, start):
        return array[tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))]

    f, wf = window(fixed, radius), window(fixed_weight, radius)
    costs = []
    for shift in shift_list(radius):
        m, wm = window(moving, radius + shift), window(moving_weight, radius + shift)
        square = np.sum((f - m) ** 2, -1)
        square *= robust_factor(square, trust_cost)
        costs.append(wf * (wm * square + (1 - wm) * unrelated))
    return np.array(costs)


def best_shift(costs, radius, near=None, coupling=0.0, step=(1.0, 1.0, 1.0)):
    """Return the shift of least cost + coupling |step (d - near)|^2, the shorter of equals."""
    shifts = shift_list(radius)
    total = np.array(costs, float)
    if near is None:
        length = np.sum((shifts * np.asarray(step)) ** 2, -1)[:, None, None, None]
        total += length * (1e-6 * total + 1e-30)
    else:
        reach = (shifts[:, None, None, None, :] - near[None]) * np.asarray(step)
        total += coupling * np.sum(reach**2, -1)
    return shifts[np.argmin(total, 0)].astype(float)


def coupled_search(costs, radius, cell_mm, smoothed, coupling):
    """Alternate choosing and smoothing with a growing pull to the smooth field, in cells."""
    step = np.asarray(cell_mm, float) / np.max(cell_mm)
    u = smoothed(best_shift(costs, radius, step=step))
    for weight in coupling:
        u = smoothed(best_shift(costs, radius, u, weight, step))
    return u


# ---- energies and gradients -----------------------------------------------------------------


def match_weight(field, fixed_weight, moving_weight, spacing_mm, offset=(0, 0, 0)):
    """Return w_f(p) w_m(nearest voxel to p + u), 0 outside the moving grid."""
    points = indices(fixed_weight.shape) - offset + field / np.asarray(spacing_mm, float)
    at = np.clip(np.floor(points + 0.5).astype(int), 0, np.array(moving_weight.shape) - 1)
    found = moving_weight[tuple(np.moveaxis(at, -1, 0))]
    return fixed_weight * np.where(inside(moving_weight.shape, points), found, 0.0)


def similarity_energy(field, fixed, moving, weight, spacing_mm, offset=(0, 0, 0)):
    """Return weight |M(p + u) - F(p)|^2 per voxel, summed over channels."""
    points = indices(weight.shape) - offset + field / np.asarray(spacing_mm, float)
    return weight * np.sum((sample(moving, points) - np.asarray(fixed, float)) ** 2, -1)


def similarity_gradient(field, fixed, moving, weight, spacing_mm, offset=(0, 0, 0)):
    """Differentiate the sum of `similarity_energy` by u at a constant weight, in 1/mm."""
    spacing = np.asarray(spacing_mm, float)
    points = indices(weight.shape) - offset + field / spacing
    residual = sample(moving, points) - np.asarray(fixed, float)
    return pulled_back(2 * weight[..., None] * residual, moving, points) / spacing


def pulled_back(by_moving, moving, points):
    """Differentiate an energy by the points, given its derivative by the sampled features."""
    shape = np.array(moving.shape[:3])
    out = np.zeros(points.shape)
    for axis in range(3):
        if shape[axis] == 1:
            continue
        # Between two voxels the interpolant is linear along each axis: its slope is the difference
        # of their values.
        cell = np.clip(np.floor(points[..., axis]), 0, shape[axis] - 2)
        low, high = points.copy(), points.copy()
        low[..., axis], high[..., axis] = cell, cell + 1
        slope = sample(moving, high) - sample(moving, low)
        out[..., axis] = np.sum(by_moving * slope, -1)
    return out


def mean_square(features, weight):
    """Return the weighted mean of |F|^2."""
    squares = np.sum(np.asarray(features, float) ** 2, -1)
    return np.sum(weight * squares) / weight.sum() if weight.sum() > 0 else 0.0


def cosine_energy(field, fixed, moving, weight, spacing_mm, offset, norm):
    """Return weight 2 norm (1 - cos) per voxel, with squared lengths increased by norm / 1000."""
    points = indices(weight.shape) - offset + field / np.asarray(spacing_mm, float)
    f, m = np.asarray(fixed, float), sample(moving, points)
    length = np.sqrt(np.sum(f**2, -1) + norm / 1000) * np.sqrt(np.sum(m**2, -1) + norm / 1000)
    return 2 * norm * weight * (1 - np.sum(f * m, -1) / length)


def cosine_gradient(field, fixed, moving, weight, spacing_mm, offset, norm):
    """Differentiate the sum of `cosine_energy` by u at a constant weight, in 1/mm."""
    spacing = np.asarray(spacing_mm, float)
    points = indices(weight.shape) - offset + field / spacing
    f, m = np.asarray(fixed, float), sample(moving, points)
    ff, mm, fm = (np.sum(a * b, -1, keepdims=True) for a, b in ((f, f), (m, m), (f, m)))
    ff, mm = ff + norm / 1000, mm + norm / 1000
    by_moving = f / np.sqrt(ff * mm) - fm * m / np.sqrt(ff * mm**3)
    return pulled_back(-2 * norm * weight[..., None] * by_moving, moving, points) / spacing


def robust_factor(difference, trust_cost):
    """Return the factor that turns v into Geman and McClure's v / (1 + v / trust_cost)."""
    return 1 / (1 + difference / trust_cost) if trust_cost > 0 else np.ones_like(difference)


@dataclass(frozen=True)
class Windows:
    """Weighted statistics of two images in Gaussian windows.

    `noise`^2 is added to the fixed image's variance and a thousandth of it to the other's.
    """

    fixed: np.ndarray
    warped: np.ndarray
    weight: np.ndarray
    spacing_mm: tuple
    sigma_mm: float
    noise: float

    def __post_init__(self):
        total = self.sums(self.weight)
        mean = lambda values: self.sums(self.weight * values) / np.maximum(total, 1e-12)  # noqa: E731
        f, m = mean(self.fixed), mean(self.warped)
        statistics = {
            "total": total,
            "mean_fixed": f,
            "mean_warped": m,
            "covariance": mean(self.fixed * self.warped) - f * m,
            "variance_fixed": mean(self.fixed**2) - f**2 + self.noise**2,
            "variance_warped": mean(self.warped**2) - m**2 + self.noise**2 / 1000,
        }
        for name, value in statistics.items():
            object.__setattr__(self, name, value)

    def sums(self, values):
        """Return sums over the window around each voxel."""
        return smooth(values, self.sigma_mm, self.spacing_mm)


def windows_of(field, images, weight, spacing_mm, sigma_mm, noise, offset=(0, 0, 0)):
    """Return the `Windows` of the fixed and the warped moving image."""
    points = indices(weight.shape) - offset + field / np.asarray(spacing_mm, float)
    fixed, moving = (np.asarray(image, float) for image in images)
    return Windows(fixed, sample(moving, points), weight, spacing_mm, sigma_mm, noise)


def correlation_energy(
    field, images, weight, spacing_mm, sigma_mm, noise, offset=(0, 0, 0), *, squared=True
):
    """Return weight (1 - rho^2) or weight (1 - rho) of each window, rho being the correlation."""
    w = windows_of(field, images, weight, spacing_mm, sigma_mm, noise, offset)
    rho = w.covariance / np.sqrt(w.variance_fixed * w.variance_warped)
    return w.total * (1 - (rho**2 if squared else rho))


def correlation_gradient(
    field, images, weight, spacing_mm, sigma_mm, noise, offset=(0, 0, 0), *, squared=True
):
    """Differentiate the sum of `correlation_energy` by u at a constant weight, in 1/mm.

    The derivative passes through covariance and variance of every window that holds the voxel: the
    windows are symmetric, so the sum over them is the window sum again.
    """
    w = windows_of(field, images, weight, spacing_mm, sigma_mm, noise, offset)
    if squared:
        by_covariance = -2 * w.covariance / (w.variance_fixed * w.variance_warped)
        by_variance = w.covariance**2 / (w.variance_fixed * w.variance_warped**2)
    else:
        by_covariance = -((w.variance_fixed * w.variance_warped) ** -0.5)
        by_variance = 0.5 * w.covariance * w.variance_fixed**-0.5 * w.variance_warped**-1.5
    by_warped = weight * (
        w.fixed * w.sums(by_covariance)
        - w.sums(by_covariance * w.mean_fixed)
        + 2 * w.warped * w.sums(by_variance)
        - 2 * w.sums(by_variance * w.mean_warped)
    )
    spacing = np.asarray(spacing_mm, float)
    points = indices(weight.shape) - offset + field / spacing
    moving = np.asarray(images[1], float)[..., None]
    return pulled_back(by_warped[..., None], moving, points) / spacing


def smoothness_energy(field, spacing_mm, scale=1.0):
    """Return scale * sum |forward difference / spacing|^2 over all axes and components."""
    return scale * sum(
        np.sum((np.diff(field, axis=axis) / spacing_mm[axis]) ** 2) for axis in range(3)
    )


def smoothness_gradient(field, spacing_mm, scale=1.0):
    """Differentiate `smoothness_energy`."""
    out = np.zeros(field.shape)
    for axis in range(3):
        forward = 2 * scale * np.diff(field, axis=axis) / spacing_mm[axis] ** 2
        out += difference_adjoint(forward, axis)
    return out


def difference_adjoint(values, axis):
    """Apply the transpose of the forward difference along an axis."""
    before = [(0, 0)] * values.ndim
    after = list(before)
    before[axis], after[axis] = (1, 0), (0, 1)
    return np.pad(values, before) - np.pad(values, after)


def forward_jacobian(field, spacing_mm):
    """Return d(p + u)/dp by forward differences, [component, axis]; identity at the far border."""
    spacing = np.asarray(spacing_mm, float)
    out = np.tile(np.eye(3), (*field.shape[:3], 1, 1))
    for axis in range(3):
        cut = [slice(None)] * 3
        cut[axis] = slice(0, field.shape[axis] - 1)
        out[(*cut, slice(None), axis)] += np.diff(field, axis=axis) / spacing
    return out


def fold_energy(field, spacing_mm, margin, scale=1.0):
    """Return scale * sum max(0, margin - det J)^2."""
    lack = np.maximum(0.0, margin - np.linalg.det(forward_jacobian(field, spacing_mm)))
    return scale * np.sum(lack**2)


def fold_gradient(field, spacing_mm, margin, scale=1.0):
    """Differentiate `fold_energy`: d det J / dJ is the matrix of cofactors."""
    jacobian = forward_jacobian(field, spacing_mm)
    columns = np.moveaxis(jacobian, -1, 0)
    lack = np.maximum(0.0, margin - np.linalg.det(jacobian))
    out = np.zeros(field.shape)
    for axis in range(3):
        cofactor = np.cross(columns[(axis + 1) % 3], columns[(axis + 2) % 3])
        push = -2 * scale * lack[..., None] * cofactor / np.asarray(spacing_mm, float)
        cut = [slice(None)] * 3
        cut[axis] = slice(0, field.shape[axis] - 1)
        out += difference_adjoint(push[tuple(cut)], axis)
    return out


# ---- the whole solver -----------------------------------------------------------------------


@dataclass
class Adam:
    """Adam's state; `step` changes the value in place (Kingma & Ba, 2015, algorithm 1)."""

    value: np.ndarray
    learning_rate: float
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self):
        self.t = 0
        self.first = np.zeros_like(self.value)
        self.second = np.zeros_like(self.value)

    def step(self, gradient):
        """Apply one update."""
        self.t += 1
        self.first = self.beta1 * self.first + (1 - self.beta1) * gradient
        self.second = self.beta2 * self.second + (1 - self.beta2) * gradient**2
        first = self.first / (1 - self.beta1**self.t)
        second = self.second / (1 - self.beta2**self.t)
        self.value -= self.learning_rate * first / (np.sqrt(second) + self.epsilon)


@dataclass(frozen=True)
class Problem:
    """Arguments of `dinoreg_kernels.solve`."""

    fixed: np.ndarray
    moving: np.ndarray
    fixed_weight: np.ndarray
    moving_weight: np.ndarray
    spacing_mm: tuple
    moving_offset: tuple = (0, 0, 0)
    images: tuple | None = None
    search: tuple | None = None  # of each level: fixed, moving, fixed_weight, moving_weight

    def of_search(self, level):
        if self.search is None:
            return self
        names = ("fixed", "moving", "fixed_weight", "moving_weight")
        return dataclasses.replace(self, **dict(zip(names, self.search[level], strict=True)))


def resize_field(field, out_shape, factor, *, to_coarse=False):
    """Resample a field to a coarser or finer grid; voxel i is centred at f i + (f - 1) / 2."""
    factor = np.asarray(factor, float)
    if to_coarse:
        between = np.column_stack([np.diag(factor), (factor - 1) / 2])
    else:
        between = np.column_stack([np.diag(1 / factor), -(factor - 1) / (2 * factor)])
    return map_field(out_shape, np.zeros((3, 4)), field, to_field=between)


def warp_cells(features, weight, field, cells, factor, cell_mm, *, first, margin):
    """Return the moving cells, averaged over eight, to which `field` (mm) maps the fixed ones."""
    here = indices(tuple(np.array(cells) + 2 * np.array(margin))) - margin
    u = sample(field, factor * here + (np.asarray(factor) - 1) / 2)
    reach = np.array(weight.shape)
    there = np.clip(here + u / cell_mm - first, -1, reach)
    # A frame of cells without weight stands for what lies beyond the grid.
    around = np.pad(np.asarray(weight, float), 1)
    framed = np.pad(np.asarray(features, float), [(1, 1)] * 3 + [(0, 0)])
    total = sample(around[..., None], there + 1)[..., 0]
    mean = sample(framed * around[..., None], there + 1)
    return np.divide(mean, total[..., None], where=total[..., None] > 0, out=0 * mean), total


def search(problem, options, *, spread=False):
    """Return the field of the search in mm, or the standard deviation of its first level."""
    field = search_level(problem, options, None, 0, spread=spread)
    for level in range(1, 1 if spread else options.search_levels):
        found = search_level(problem, options, field, level)
        field = compose(found, field, problem.spacing_mm)
    return field


def search_level(problem, options, before, level, *, spread=False):
    """Search one level in both directions; `before` has warped the moving image."""
    problem = problem.of_search(level)
    factor, radius = np.array(options.search_factor), np.array(options.search_radius)
    for _ in range(level):
        factor = (factor + 1) // 2
    radius = radius if level == 0 else np.minimum(2, radius)
    shrink = np.prod(factor / np.array(options.search_factor)) ** (1 / 3)
    cell_mm = factor * problem.spacing_mm
    shape = problem.fixed_weight.shape
    coarse = -(-np.array(shape) // factor)
    padded = tuple(coarse + 2 * radius)
    fixed = pool_weighted(problem.fixed, problem.fixed_weight, padded, factor, margin=radius)
    offset = np.array(problem.moving_offset)
    images = problem.moving, problem.moving_weight
    if level == 0:
        moving = pool_weighted(*images, padded, factor, offset=offset, margin=radius)
    else:
        first = np.floor(offset / factor).astype(int)
        inset = offset - first * factor
        cells = tuple(-(-(np.array(images[1].shape) + inset) // factor))
        features, weight = pool_weighted(*images, cells, factor, offset=inset)
        moving = warp_cells(features.astype(np.float16), weight, before, coarse, factor, cell_mm,
                            first=first, margin=radius)  # fmt: skip
    unrelated = unrelated_cost(*fixed, *moving, options.search_trust_cost)

    def smooth_costs(a, b):
        costs = shift_costs(*a, *b, radius, unrelated, options.search_trust_cost)
        return np.array([smooth(c, shrink * options.cost_smoothing_mm, cell_mm) for c in costs])

    if spread:
        found = search_spread(smooth_costs(fixed, moving), radius, unrelated, cell_mm)
        return resize_field(found, shape, factor)

    def one_way(a, b):
        def smoothed(u):
            return smooth(u, shrink * options.field_smoothing_mm, cell_mm)

        costs = smooth_costs(a, b)
        return cell_mm * coupled_search(costs, radius, cell_mm, smoothed, options.coupling)

    forward = one_way(fixed, moving)
    if options.consistency_rounds > 0:
        backward = one_way(moving, fixed)
        for _ in range(options.consistency_rounds):
            forward, backward = consistency_round(forward, backward, cell_mm)
    return resize_field(forward, shape, factor)


def search_spread(costs, radius, unrelated, cell_mm, share=0.1):
    """Return the standard deviation by axis, in mm, of shifts nearly as good as the best."""
    shifts = shift_list(radius)[:, None, None, None, :].astype(float)
    reach = share * unrelated + 1e-30
    # The best cost as `best_shift` compares it, including the tie-break by length.
    length = np.sum((shifts * np.asarray(cell_mm) / np.max(cell_mm)) ** 2, -1)
    best = (costs + length * (1e-6 * costs + 1e-30)).min(0)
    weight = np.maximum(0.0, 1 - (costs - best) / reach)[..., None] ** 2
    mean = (weight * shifts).sum(0) / weight.sum(0)
    variance = (weight * (shifts - mean) ** 2).sum(0) / weight.sum(0)
    return np.sqrt(variance) * cell_mm


def feature_gradient(problem, options, field, weight, scale=1):
    """Differentiate the cost of the features, without `feature_weight`."""
    spacing, offset = np.asarray(problem.spacing_mm, float), problem.moving_offset
    norm = mean_square(problem.fixed, problem.fixed_weight)
    arguments, place = (field, problem.fixed, problem.moving), (spacing, offset)
    ones = np.ones(weight.shape)
    if options.feature_similarity == "mse":
        cost = similarity_energy(*arguments, ones, *place)
        trusted = weight * robust_factor(cost, options.trust_cost) ** 2
        return similarity_gradient(*arguments, trusted, *place)
    if options.feature_similarity == "cosine":
        cost = cosine_energy(*arguments, ones, *place, norm)
        trusted = weight * robust_factor(cost, options.trust_cost) ** 2
        return cosine_gradient(*arguments, trusted, *place, norm)
    channels = problem.fixed.shape[-1]
    sigma_mm = options.correlation_window_mm * scale
    noise = options.correlation_noise * np.sqrt(norm / channels)
    of_channels = [
        correlation_gradient(
            field,
            (problem.fixed[..., c], problem.moving[..., c]),
            weight,
            spacing,
            sigma_mm,
            noise,
            offset,
            squared=False,
        )
        for c in range(channels)
    ]
    return 2 * norm * np.mean(of_channels, axis=0)


def refine_gradient(problem, options, field, fold_penalty, scale=1):
    """Differentiate the whole objective: features, correlation, smoothness and fold penalty."""
    spacing = np.asarray(problem.spacing_mm, float)
    offset = problem.moving_offset
    weight = match_weight(field, problem.fixed_weight, problem.moving_weight, spacing, offset)
    gradient = options.feature_weight * feature_gradient(problem, options, field, weight, scale)
    if options.correlation_weight > 0:
        windows = (spacing, options.correlation_window_mm * scale, options.correlation_noise)
        gradient = gradient + options.correlation_weight * correlation_gradient(
            field, problem.images, weight, *windows, offset
        )
    return (
        gradient
        + smoothness_gradient(field, spacing, options.smoothness / 3)
        + fold_gradient(field, spacing, options.fold_margin, fold_penalty)
    )


def mean_feature_distance(problem, field):
    """Return the weighted mean squared difference and the matched share of the fixed weight."""
    weight = match_weight(
        field,
        problem.fixed_weight,
        problem.moving_weight,
        problem.spacing_mm,
        problem.moving_offset,
    )
    energy = similarity_energy(
        field, problem.fixed, problem.moving, weight, problem.spacing_mm, problem.moving_offset
    )
    met, all_weight = weight.sum(), problem.fixed_weight.sum()
    mean = energy.sum() / met if met > 0 else 0.0
    return mean, met / all_weight if all_weight > 0 else 0.0


def coarser(problem, scale):
    """Return the problem on voxels `scale` times the smallest edge, and the factor of each axis."""
    spacing = np.asarray(problem.spacing_mm, float)
    factor = np.maximum(1, np.floor(scale * spacing.min() / spacing + 0.5).astype(int))
    offset = np.asarray(problem.moving_offset)
    cell_offset = np.floor(offset / factor).astype(int)
    inset = offset - cell_offset * factor

    def pool(features, weight, start):
        cells = -(-(np.array(weight.shape) + start) // factor)
        pooled, pooled_weight = pool_weighted(features, weight, tuple(cells), factor, offset=start)
        return pooled.astype(np.float16), pooled_weight

    fixed, fixed_weight = pool(problem.fixed, problem.fixed_weight, np.zeros(3, int))
    moving, moving_weight = pool(problem.moving, problem.moving_weight, inset)
    images = None
    if problem.images is not None:
        starts = (np.zeros(3, int), inset)
        images = tuple(
            pool_weighted(i[..., None], np.ones(i.shape), cells.shape, factor, offset=start)[0][
                ..., 0
            ]
            for i, cells, start in zip(
                problem.images, (fixed_weight, moving_weight), starts, strict=True
            )
        )
    spacing = tuple(spacing * factor)
    pooled = Problem(
        fixed, moving, fixed_weight, moving_weight, spacing, tuple(cell_offset), images
    )
    return pooled, factor


def exponential(velocity, spacing_mm, squarings):
    """Return the displacement after following a stationary velocity for unit time."""
    field = np.asarray(velocity, float) / 2**squarings
    for _ in range(squarings):
        points = indices(field.shape[:3]) + field / np.asarray(spacing_mm, float)
        field = field + sample(field, points)
    return field


def logarithm(field, spacing_mm, squarings, steps=4):
    """Return a velocity whose exponential is close to `field`, by fixed-point iteration."""
    velocity = field
    for _ in range(steps):
        velocity = velocity + field - exponential(velocity, spacing_mm, squarings)
    return velocity


def refine(problem, options, x, level):
    """Run Adam on a level (0 is the finest).

    The smoothed variable is the displacement or, with squarings, the velocity, which follows the
    displacement's derivative half-way along its path. The fold penalty grows from 0 with the square
    of the finished share of all iterations. Adam's epsilon is a share of the gradient with the
    images one voxel off.
    """
    sigma_mm = options.smoothing_mm * 2**level
    last = len(options.iterations) - level
    before, total = sum(options.iterations[: last - 1]), sum(options.iterations)

    def gradient_at(value, fold_penalty, problem=problem):
        field = smooth(value, sigma_mm, problem.spacing_mm)
        if options.squarings > 0:
            field = exponential(field, problem.spacing_mm, options.squarings)
        gradient = refine_gradient(problem, options, field, fold_penalty, 2**level)
        if options.squarings > 0:  # the force acts half-way along its point's path
            velocity = smooth(value, sigma_mm, problem.spacing_mm)
            back = exponential(-velocity / 2, problem.spacing_mm, options.squarings)
            middle = indices(back.shape[:3]) + back / np.asarray(problem.spacing_mm, float)
            gradient = sample(gradient, middle)
        return smooth(gradient, sigma_mm, problem.spacing_mm)

    adam = Adam(x, options.learning_rate_mm * 2**level)
    if options.adam_epsilon > 0 and options.iterations[last - 1] > 0:
        offset = tuple(np.asarray(problem.moving_offset) - 1)
        gradient = gradient_at(x, 0.0, dataclasses.replace(problem, moving_offset=offset))
        weight = problem.fixed_weight.sum()
        square = (gradient**2).sum() / weight if weight > 0 else 0.0
        adam.epsilon += options.adam_epsilon * np.sqrt(square / 3)
    for done in range(before, before + options.iterations[last - 1]):
        adam.step(gradient_at(adam.value, options.fold_penalty * (done / total) ** 2))
    return smooth(adam.value, sigma_mm, problem.spacing_mm)


def solve(problem, options):
    """Return field, feature distance before and after, and overlap."""
    shape = problem.fixed_weight.shape
    before, _ = mean_feature_distance(problem, np.zeros((*shape, 3)))
    x = search(problem, options) if any(options.search_radius) else np.zeros((*shape, 3))
    if options.squarings > 0:
        x = logarithm(x, problem.spacing_mm, options.squarings)
    for level in range(len(options.iterations) - 1, 0, -1):
        coarse, factor = coarser(problem, 2**level)
        start = resize_field(x, coarse.fixed_weight.shape, factor, to_coarse=True)
        x = resize_field(refine(coarse, options, start, level), shape, factor)
    field = refine(problem, options, x, 0)
    if options.squarings > 0:
        field = exponential(field, problem.spacing_mm, options.squarings)
    after, overlap = mean_feature_distance(problem, field)
    return field, before, after, overlap
