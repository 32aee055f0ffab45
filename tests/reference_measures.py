"""The measures of the kernel library in float64 NumPy, written from their definitions."""

from __future__ import annotations

import numpy as np
import reference

BINS = 32


def joint_histogram(first, second, weight):
    """Sum weights in whole steps of 1/255 by the bins of both intensities, (BINS, BINS)."""
    bins = [np.clip((np.asarray(i) * BINS).astype(int), 0, BINS - 1) for i in (first, second)]
    joint = np.zeros((BINS, BINS))
    np.add.at(joint, tuple(b.ravel() for b in bins), np.rint(np.asarray(weight) * 255).ravel())
    return joint


def region_index(weight, parts, factor, reverse):
    """Divide each axis into parts of equal weight and number the regions, as `weight`."""
    index = np.zeros(weight.shape, int)
    for axis in range(3):
        profile = weight.sum(axis=tuple(a for a in range(3) if a != axis), dtype=float)
        share = (np.cumsum(profile) - profile / 2) / max(profile.sum(), 1e-6)
        part = np.clip((parts[axis] * share).astype(int), 0, parts[axis] - 1)
        part = parts[axis] - 1 - part if reverse[axis] else part
        index = index + factor[axis] * part.reshape([-1 if a == axis else 1 for a in range(3)])
    return index


def nearest_match(field, offset, spacing_mm, shape):
    """Return the index of the voxel nearest to each match, clipped, and whether it exists."""
    places = reference.indices(field.shape[:3]) + np.asarray(field, float) / spacing_mm - offset
    index = np.rint(places).astype(int)
    exists = np.all((index >= 0) & (index < shape), axis=-1)
    return tuple(np.moveaxis(np.clip(index, 0, np.array(shape) - 1), -1, 0)), exists


def agreement(images, field, step):
    """Return the sum of weighted differences, that of the weights, and the sampled voxels.

    `images` has the attributes of `dinoreg_kernels.WeighedImages`. The samples are fixed intensity,
    moving intensity and weight.
    """
    at, exists = nearest_match(
        field, images.moving_offset, images.spacing_mm, images.moving_weight.shape
    )
    part = (slice(None, None, step),) * 3
    weight = (images.fixed_weight * exists * images.moving_weight[at])[part]
    fixed, moving = np.asarray(images.fixed, float), np.asarray(images.moving, float)
    difference = ((fixed - moving[at]) ** 2).sum(-1)[part]
    samples = images.fixed_image[part], images.moving_image[at][part], weight
    return (difference * weight).sum(), weight.sum(dtype=float), samples


def averaged(features, weight, image, offset, factor):
    """Return features, weight and intensities on the mirror test's grid, and where it begins."""
    lead = np.mod(offset, factor)
    shape = tuple(-(-(np.array(weight.shape) + lead) // factor))
    pooled, mean = reference.pool_weighted(features, weight, shape, factor, offset=lead)
    content, one = reference.pool_weighted(
        np.asarray(image * weight, float)[..., None],
        np.ones(weight.shape),
        shape,
        factor,
        offset=lead,
    )
    assert np.all(one == 1)
    grey = content[..., 0] / np.maximum(mean, 1e-6)
    return np.float16(pooled), np.float32(mean), np.float32(grey), (offset - lead) // factor


def mirrored(image, axis, order):
    """Mirror features, weight and intensities about the middle of the grid along an axis."""
    features, weight, grey = (np.flip(array, axis) for array in image)
    others = range(len(order), features.shape[-1])
    return features[..., [*order, *others]], weight, grey


def centroid(image, weight):
    """Return the centroid of the content as an index; the middle of the grid without content."""
    content = np.asarray(image * weight, float)
    if content.sum() <= 0:
        return (np.array(content.shape) - 1) / 2
    return np.array([(content * i).sum() for i in np.indices(content.shape)]) / content.sum()


def mirror_shift(middle, offset, shape, factor, axis):
    """Return how far the mirror image about `middle` lies from that about the grid's middle."""
    index = (middle[axis] + offset[axis] % factor - (factor - 1) / 2) / factor
    return round(2 * index) - (shape[axis] - 1)


def search_in(fixed, tested, offset, spacing_mm, options):
    """Search from the fixed image in another, and return what `MirrorSearch` holds."""
    problem = reference.Problem(fixed[0], tested[0], fixed[1], tested[1], spacing_mm, tuple(offset))
    field, *_ = reference.solve(problem, options)
    points = reference.indices(field.shape[:3]) + field / spacing_mm - offset
    within = reference.inside(tested[1].shape, points)
    seen = fixed[1] * np.where(within, reference.sample(tested[1], points), 0.0)
    grey = np.where(within, reference.sample(tested[2], points), 0.0)
    total = max(seen.sum(), 1e-6)
    moved = (field * seen[..., None]).sum(axis=(0, 1, 2))
    shift = np.rint(moved / total / spacing_mm)
    found = {"seen": seen.sum(), "moved_mm": moved, "fixed_weight": fixed[1].sum(dtype=float)}
    displacements = {"after": field, "before": 0 * field}
    displacements["shifted"] = 0 * field + shift * spacing_mm
    for name, displacement in displacements.items():
        weight = reference.match_weight(displacement, fixed[1], tested[1], spacing_mm, offset)
        energy = reference.similarity_energy(
            displacement, fixed[0], tested[0], weight, spacing_mm, offset
        )
        found |= {name: energy.sum(), f"{name}_weight": weight.sum(dtype=float)}
    return found, joint_histogram(fixed[2], grey, seen)


def unrelated(fixed, moving):
    """Return E|f|^2 + E|m|^2 - 2 Ef Em of two weighted images."""
    moments = []
    for features, weight, *_ in (fixed, moving):
        values, share = features.reshape(-1, features.shape[-1]), weight.ravel() / weight.sum()
        values = values.astype(float)
        moments.append((share @ values, share @ values**2))
    (first, first_square), (second, second_square) = moments
    return (first_square + second_square - 2 * first * second).sum()


def consistency(field, inverse, spacing_mm):
    """Return |u(p) + v(p + u(p))| of each voxel, and whether its match lies on the grid."""
    loop = reference.compose(field, inverse, spacing_mm)
    target = reference.indices(field.shape[:3]) + np.asarray(field, float) / spacing_mm
    last = np.array(field.shape[:3]) - 1
    return np.linalg.norm(loop, axis=-1), np.all((target >= 0) & (target <= last), axis=-1)
