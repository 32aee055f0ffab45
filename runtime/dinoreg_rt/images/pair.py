"""The two images of a registration: what is known of each by itself, and where it is looked at."""

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
        role: fixed or moving.
        volume: the image.
        mask: (D, H, W), not 0 where it counts; None: everywhere.
        modality: what it is.
        window: intensities that count as 0 and 1.
        lowest: its smallest intensity.
        body: where the body is, on a grid of its own; None where no body mask is used.
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
    """`function` of each item, as many at the same time as the host has threads, which they share.

    What is planned is half NumPy, which takes one thread whatever there is, and half kernels on
    some ten thousand cells, which do not keep many threads busy.
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
        image: the image.
        working: where features are computed, in the fixed image's space.
        control: where they are compared, the same.
        affine: points of that space to the image's points.
    """

    image: PairImage
    working: Geometry
    control: Geometry
    affine: AffineTransform


Sides: TypeAlias = tuple[SolverSide, SolverSide]


def examine(
    role: Role, volume: Volume, mask: Array | None, config: RegistrationConfig
) -> tuple[PairImage, str]:
    """An image, on the host, with its modality and its window; and why that modality.

    What the mask leaves out does not count for the window.

    Raises:
        InputError: there is nothing to see in it.
    """
    wanted = config.fixed_modality if role == "fixed" else config.moving_modality
    lowest = float(volume.array.min())
    modality, reason = detect_modality(lowest, wanted)
    window = intensity_window(volume, modality, config, mask, role)
    return PairImage(role, volume, mask, modality, window, lowest), reason
