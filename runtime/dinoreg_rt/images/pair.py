"""The two images of a registration: the properties of each, and the grids it is sampled on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, TypeVar

import numpy as np

from ..config.parameters import RegistrationConfig
from ..device.choice import Device
from ..types import AffineTransform, Array, Geometry, Modality, Volume
from .fixed_work import NOTHING_KEPT, Kept
from .intensity import intensity_window, without_padding
from .modality import detect_modality

Role: TypeAlias = Literal["fixed", "moving"]
_Of = TypeVar("_Of")
_Made = TypeVar("_Made")


@dataclass(frozen=True, eq=False)
class PairImage:
    """One of the two images.

    Attributes:
        role: ``fixed`` or ``moving``.
        volume: voxels and grid, with air in place of padding; on the device that registers.
        mask: (D, H, W), nonzero where the image counts; None for everywhere. On the host.
        modality: CT or MR.
        window: intensities that map to 0 and 1.
        lowest: smallest intensity.
        water: intensity of water in a CT; None for an MR and for a CT that is not in HU.
        padded: whether padding was replaced in `volume`.
        modality_certain: whether the modality is beyond doubt.
        kept: what is kept of this image for the next registration.
        body: body mask on its own grid, on the host; None if none is used.
    """

    role: Role
    volume: Volume
    mask: Array | None
    modality: Modality
    window: tuple[float, float]
    lowest: float
    body: Volume | None = None
    water: float | None = None
    padded: bool = False
    modality_certain: bool = True
    kept: Kept = NOTHING_KEPT


Pair: TypeAlias = tuple[PairImage, PairImage]


def side_by_side(
    function: Callable[[_Of, Device], _Made], items: Sequence[_Of], device: Device
) -> list[_Made]:
    """Apply `function` to each item; on the CPU in parallel threads that share those of the device.

    Planning is half NumPy, which uses one thread, and half kernels on about ten thousand cells,
    which cannot keep many threads busy. Work for a GPU is queued in this thread, on its stream.
    """
    workers = 1 if device.kind == "cuda" else min(len(items), device.threads)
    if workers < 2:
        return [function(item, device) for item in items]
    share = replace(device, threads=device.threads // workers)
    with ThreadPoolExecutor(workers, thread_name_prefix="planning") as pool:
        return list(pool.map(lambda item: function(item, share), items))


@dataclass(frozen=True, eq=False)
class SolverSide:
    """One of the two images as the solver sees it.

    Attributes:
        image: image itself.
        working: grid on which its features are computed, in the fixed image's space.
        control: grid on which they are compared, in the same space.
        affine: map from points of that space to points of the image.
    """

    image: PairImage
    working: Geometry
    control: Geometry
    affine: AffineTransform


Sides: TypeAlias = tuple[SolverSide, SolverSide]


@dataclass(frozen=True)
class Findings:
    """What was decided about one image, for people.

    Attributes:
        modality: modality and the evidence for it.
        warnings: what is open, and the option that settles it.
    """

    modality: str
    warnings: tuple[str, ...] = ()


def examine(
    role: Role, volume: Volume, mask: Array | None, config: RegistrationConfig, device: Device
) -> tuple[PairImage, Findings]:
    """Return an image with its modality and window, and what was found.

    Voxels outside the mask and padding do not count for the window. The image lies on `device`, the
    mask on the host.

    Raises:
        InputError: the image shows nothing, or its negative values were stored as unsigned ones.
    """
    wanted = config.fixed_modality if role == "fixed" else config.moving_modality
    found = detect_modality(volume, wanted)
    counts = None if mask is None else device.upload(mask != 0, np.bool_)
    window = intensity_window(volume, found, config, counts, role)
    reason, padded = found.reason, bool(found.padding)
    if padded:
        values = " and ".join(f"{value:g}" for value in found.padding)
        reason += f"; {values} is padding and counts as air"
    warnings = []
    if not found.sure:
        reason += f"; not certain: {found.doubt}"
        taken = f"the {role} image is taken for {'a CT' if found.modality == 'ct' else 'an MR'}"
        settle = f"give --{role}-modality ct or mr"
        if wanted != "auto":
            settle = f"check --{role}-modality"
        warnings.append(f"{taken}, but {found.doubt}: {settle}")
    volume = without_padding(volume, found.padding)
    known = None if padded else found.lowest
    image = PairImage(
        role,
        volume,
        mask,
        found.modality,
        window,
        float(volume.array.min()) if known is None else known,
        water=found.water,
        padded=padded,
        modality_certain=found.sure,
    )
    return image, Findings(reason, tuple(warnings))
