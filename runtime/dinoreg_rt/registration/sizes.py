"""The classes that describe stages: `Sizes`, `Work` and `Stage`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from ..config.decided import DecidedConfig
from ..config.feature_parameters import FeatureSet
from ..features.mind import MindFeatures, stored_channels
from ..fields.solve import solution_fields
from ..images.grids import WorkingGrids
from ..images.moving_grids import MovingGrids
from ..types import Geometry

if TYPE_CHECKING:
    from ..device.ceilings import Ceilings
    from ..encoder.encoding import EncodingPlan
    from ..encoder.slice_stack import PlaneStacks

#: Bytes of one number, and of one vector of three float32.
HALF, FLOAT, DOUBLE = 2, 4, 8
VECTOR = 3 * FLOAT


@dataclass(frozen=True, eq=False)
class Sizes:
    """The decisions that determine all sizes, and the sizes that several stages share.

    Pairs hold the number of the fixed image first and that of the moving image second.

    Attributes:
        fixed: grid of the fixed image.
        moving: grid of the moving image.
        grids: the grids on the fixed image's box.
        moving_grids: the grids on which the moving image is sampled.
        config: the parameters.
        encoding: how the images are encoded; None without an encoder.
        on_gpu: whether the registration runs on a GPU.
    """

    fixed: Geometry
    moving: Geometry
    grids: WorkingGrids
    moving_grids: MovingGrids
    config: DecidedConfig
    encoding: EncodingPlan | None
    on_gpu: bool

    @cached_property
    def images(self) -> tuple[int, int]:
        """Voxels of the images."""
        return _voxels(self.fixed), _voxels(self.moving)

    @cached_property
    def working(self) -> tuple[int, int]:
        """Voxels of the working grids."""
        return _voxels(self.grids.working), _voxels(self.moving_grids.working)

    @cached_property
    def control(self) -> tuple[int, int]:
        """Voxels of the control grids."""
        return _voxels(self.grids.control), _voxels(self.moving_grids.control)

    @cached_property
    def mind(self) -> MindFeatures:
        """MIND-SSC as it is configured."""
        return MindFeatures.of(self.config)

    @cached_property
    def strides(self) -> dict[FeatureSet, int]:
        """Stored channels of every feature set, parts of a joined set included."""
        return stored_channels(self.config, self._encoder_channels)

    @cached_property
    def compared(self) -> dict[FeatureSet, int]:
        """Stored channels of the sets that the search or the refinement compares."""
        return {name: self.strides[name] for name in self.config.feature_sets}

    @property
    def channels(self) -> int:
        """Channels that the refinement compares, without padding."""
        mind, encoder = self.mind.channels, self._encoder_channels
        counts = {"mind": mind, "encoder": encoder, "joined": mind + encoder}
        return counts[self.config.stage_features[1]]

    @property
    def weights(self) -> int:
        """Bytes of one weight for each control voxel of both images."""
        return FLOAT * sum(self.control)

    @property
    def intensities(self) -> int:
        """Bytes of the intensities that local correlation and mirror test compare."""
        if not (self.config.correlation_weight or self.config.trust):
            return 0
        return FLOAT * sum(self.control if self.grids.pool_zyx != (1, 1, 1) else self.working)

    @property
    def solution(self) -> int:
        """Bytes of the solver's vector fields."""
        return VECTOR * self.control[0] * solution_fields(self.config)

    @property
    def engine(self) -> int:
        """Bytes of the encoder's engine if it runs where the registration does; it stays open."""
        if self.encoding is None or self.encoding.on_gpu != self.on_gpu:
            return 0
        return self.encoding.engine_bytes()

    @property
    def lingering(self) -> int:
        """Bytes of tokens that outlive the features, if they are where the registration runs."""
        if self.encoding is None:
            return 0
        return self.encoding.lingering_bytes(self.config, on_gpu=self.on_gpu)

    @property
    def kept(self) -> int:
        """Bytes that remain after the solver: weights, engine, lingering tokens and solution."""
        return self.weights + self.engine + self.lingering + self.solution

    @property
    def results(self) -> int:
        """Bytes of both displacements, warped image, and confidence and inverse if wanted."""
        fixed, moving = self.images
        of_fixed = VECTOR + FLOAT * (1 + self.config.confidence)
        of_control = VECTOR * self.control[0]
        return of_control + of_fixed * fixed + VECTOR * moving * self.config.inverse

    def tokens(self, encoding: EncodingPlan, plane: PlaneStacks) -> int:
        """Return the bytes of both images' tokens in one plane where the registration runs."""
        if self.on_gpu:
            return encoding.token_bytes(plane)
        return encoding.host_token_bytes(plane, self.config)

    @property
    def _encoder_channels(self) -> int:
        return 0 if self.encoding is None else self.encoding.channels


def _voxels(grid: Geometry) -> int:
    return math.prod(grid.shape_zyx)


def set_bytes(stride: int, voxels: int) -> int:
    """Return the bytes of features with `stride` stored channels, and of their weights."""
    return (HALF * stride + FLOAT) * voxels


@dataclass(frozen=True)
class Work:
    """The bytes and operations of one part of a stage, from which its least time follows.

    An operation is one lane of a vector instruction; a fused multiply-add counts once. The counts
    are those of the formulas as written, from memory to memory.

    Attributes:
        name: the part's name in reports.
        bytes: bytes read from and written to memory.
        operations: number of operations of the given kind.
        kind: the rate that bounds the operations; interpolation at arbitrary points jumps in
            memory, cannot fill vectors and is ``scalar``.
        jumps: scalar operations in addition to those.
    """

    name: str
    bytes: float
    operations: float
    kind: Literal["vector", "scalar", "matrix"] = "vector"
    jumps: float = 0.0

    def floor_s(self, ceilings: Ceilings) -> float:
        """Return the least time in seconds: the slower of memory and arithmetic."""
        rate: float = getattr(ceilings, f"{self.kind}_per_s")
        arithmetic_s = self.operations / rate + self.jumps / ceilings.scalar_per_s
        return max(self.bytes / ceilings.bytes_per_s, arithmetic_s)


def _nothing(_: Sizes) -> int:
    return 0


def _no_work(_: Sizes) -> Iterator[Work]:
    yield from ()


@dataclass(frozen=True)
class Stage:
    """One stage of a registration.

    Attributes:
        name: the name under which the timer measures it.
        arrays: bytes at the stage's peak where the registration runs, without the images; 0 if the
            stage does not take place.
        work: the parts of the stage, in order.
        beside_gpu: bytes on the host while a GPU runs the registration.
    """

    name: str
    arrays: Callable[[Sizes], int] = _nothing
    work: Callable[[Sizes], Iterator[Work]] = _no_work
    beside_gpu: Callable[[Sizes], int] = _nothing
