"""The two images of a registration: the properties of each, and the grids it is sampled on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, TypeVar

from ..config.parameters import RegistrationConfig
from ..device.choice import Device
from ..types import AffineTransform, Array, Geometry, Modality, Volume
from .intensity import detect_modality, intensity_window

Role: TypeAlias = Literal["fixed", "moving"]
_Of = TypeVar("_Of")
_Made = TypeVar("_Made")


@dataclass(frozen=True, eq=False)
class PairImage:
    """One of the two images.

    Attributes:
        role: ``fixed`` or ``moving``.
        volume: voxels and grid.
        mask: (D, H, W), nonzero where the image counts; None for everywhere.
        modality: CT or MR.
        window: intensities that map to 0 and 1.
        lowest: smallest intensity.
        body: body mask on its own grid; None if none is used.
    """

    role: Role
    volume: Volume
    mask: Array | None
    modality: Modality
    window: tuple[float, float]
    lowest: float
    body: Volume | None = None


Pair: TypeAlias = tuple[PairImage, PairImage]


def side_by_side(
    function: Callable[[_Of, Device], _Made], items: Sequence[_Of], host: Device
) -> list[_Made]:
    """Apply `function` to each item, in parallel threads that share those of the host.

    Planning is half NumPy, which uses one thread, and half kernels on about ten thousand cells,
    which cannot keep many threads busy.
    """
    workers = min(len(items), host.threads)
    if workers < 2:
        return [function(item, host) for item in items]
    share = replace(host, threads=host.threads // workers)
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


def examine(
    role: Role, volume: Volume, mask: Array | None, config: RegistrationConfig
) -> tuple[PairImage, str]:
    """Return an image with its modality and window, and the reason for the modality.

    Voxels outside the mask do not count for the window.

    Raises:
        InputError: the image shows nothing.
    """
    wanted = config.fixed_modality if role == "fixed" else config.moving_modality
    lowest = float(volume.array.min())
    modality, reason = detect_modality(lowest, wanted)
    window = intensity_window(volume, modality, config, mask, role)
    return PairImage(role, volume, mask, modality, window, lowest), reason
