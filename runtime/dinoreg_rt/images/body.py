"""Detection of the body: one connected piece of tissue, without air and the patient table."""

from __future__ import annotations

import numpy as np

from ..types import Array

#: Windowed intensities above this are tissue: in a CT above -90 HU, in an MR well above the noise.
#: Fat, which one sequence shows and another suppresses, is left to `BODY_MARGIN_MM`.
TISSUE = 0.1
#: Reach of the mask beyond the tissue: skin and fat count, a table does not.
BODY_MARGIN_MM = 15.0
#: Range of plausible shares of the body in the field of view.
LEAST_SHARE, LARGEST_SHARE = 0.05, 0.97


def find_body(image: Array, seen: Array) -> Array:
    """Return the largest piece of tissue and everything it encloses.

    A morphological opening cuts off a table: at about 5 mm it is one or two voxels thick and
    touches the back in few places. Lungs and gut count as inside because tissue surrounds them
    along at least two axes, even in a slab whose body touches the borders.

    Args:
        image: (D, H, W), 0..1, voxels of about 5 mm.
        seen: share of each voxel inside the field of view, (D, H, W).

    Returns:
        (D, H, W) bool, all False without tissue.
    """
    return body_of(tissue(image, seen))


def tissue(image: Array, seen: Array) -> Array:
    """Return the voxels of tissue in the field of view, bool; the arguments of `find_body`."""
    return (image > TISSUE) & (seen > 0.5)


def body_of(found: Array) -> Array:
    """Return the body, see `find_body`, among voxels of tissue, (D, H, W) bool on the host."""
    return _enclosed(_largest_piece(_dilated(~_dilated(~found))))


def implausible(body: Array, seen: Array) -> str | None:
    """Return why `body` cannot serve as a mask; None if it can."""
    share = float(body.sum()) / max(1.0, float((seen > 0.5).sum()))
    if share < LEAST_SHARE:
        return f"only {100 * share:.0f} % of the field of view would be body"
    if share > LARGEST_SHARE:
        return f"the body fills the field of view ({100 * share:.0f} %)"
    return None


def body_mask(body: Array, spacing_mm: float) -> Array:
    """Return `body` with a margin around it, (D, H, W) float32 of 0 and 1."""
    for _ in range(max(1, round(BODY_MARGIN_MM / spacing_mm))):
        body = _dilated(body)
    return body.astype(np.float32)


def bounding_box(body: Array, margin: int) -> tuple[slice, slice, slice]:
    """Return the box of all nonzero voxels plus a margin, clipped to the array; all if empty."""
    box = []
    for axis, n in enumerate(body.shape):
        others = tuple(a for a in range(3) if a != axis)
        hits = np.flatnonzero(body.any(axis=others))
        if hits.size == 0:
            box.append(slice(0, n))
            continue
        box.append(slice(max(0, int(hits[0]) - margin), min(n, int(hits[-1]) + 1 + margin)))
    return box[0], box[1], box[2]


def _dilated(mask: Array) -> Array:
    """Dilate by one voxel along each axis."""
    out = mask.copy()
    for axis in range(3):
        ahead = (slice(None),) * axis + (slice(1, None),)
        back = (slice(None),) * axis + (slice(None, -1),)
        out[ahead] |= mask[back]
        out[back] |= mask[ahead]
    return out


def _largest_piece(mask: Array) -> Array:
    import SimpleITK as sitk

    found = sitk.ConnectedComponent(sitk.GetImageFromArray(mask.astype(np.uint8)))
    labels = sitk.GetArrayViewFromImage(found)
    sizes = np.bincount(labels.ravel())[1:]
    if sizes.size == 0:
        return np.zeros(mask.shape, bool)
    return np.asarray(labels == int(sizes.argmax()) + 1)


def _enclosed(mask: Array) -> Array:
    """Return the voxels that have mask voxels on both sides along at least two axes."""
    count = np.zeros(mask.shape, np.uint8)
    for axis, n in enumerate(mask.shape):
        first = mask.argmax(axis=axis, keepdims=True).astype(np.int16)
        last = n - 1 - np.flip(mask, axis).argmax(axis=axis, keepdims=True).astype(np.int16)
        first[~mask.any(axis=axis, keepdims=True)] = n
        index = np.arange(n, dtype=np.int16).reshape([-1 if a == axis else 1 for a in range(3)])
        count += (first <= index) & (index <= last)
    return count >= 2
