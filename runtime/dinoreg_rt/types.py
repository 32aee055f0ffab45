"""The frozen data types that the stages exchange.

Arrays are indexed ``[z, y, x]``, physical vectors are ``(x, y, z)`` in millimetres, LPS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import index
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from .errors import InputError

if TYPE_CHECKING:
    import os

    import SimpleITK as sitk

#: A NumPy array on the CPU, a CuPy array on a CUDA device.
Array: TypeAlias = Any
FloatArray: TypeAlias = NDArray[np.float64]
Modality: TypeAlias = Literal["ct", "mr"]
_N = TypeVar("_N", int, float)


def _three(values: Any, number: Callable[[Any], _N], name: str) -> tuple[_N, _N, _N]:
    try:
        first, second, third = (number(value) for value in values)
    except (TypeError, ValueError) as error:
        kind = "whole numbers" if number is index else "numbers"
        raise InputError(f"{name} = {values}; wanted three {kind}") from error
    return first, second, third


def _numbers(values: tuple[float, ...], separator: str) -> str:
    return separator.join(f"{value:.4g}" for value in values)


@dataclass(frozen=True, eq=False)
class Geometry:
    """A regular grid: where its voxel centres lie in space.

    ``p_lps_mm = origin_mm + direction @ (spacing_mm * index_xyz)``, as in SimpleITK.

    Lists and arrays of numbers are accepted and become tuples.

    Attributes:
        shape_zyx: number of voxels along each array axis.
        spacing_mm: distance of neighbouring voxels along index axes x, y, z.
        origin_mm: LPS position of the centre of voxel (0, 0, 0).
        direction: (3, 3); column j is the LPS unit vector of index axis j (x, y, z).
        notes: what the file's header leaves in doubt about the grid, one sentence each; see
            `dinoreg_rt.io`. Grids made from this one do not have them.
        sides_in_doubt: the file's header leaves open which side of the image is left; said in
            `notes`, too.

    Raises:
        InputError: a shape, spacing or origin is not three numbers, or the direction no 3x3 matrix.
    """

    shape_zyx: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]
    direction: FloatArray
    notes: tuple[str, ...] = ()
    sides_in_doubt: bool = False

    def __post_init__(self) -> None:
        for name, number in (("shape_zyx", index), ("spacing_mm", float), ("origin_mm", float)):
            object.__setattr__(self, name, _three(getattr(self, name), number, name))
        try:
            direction = np.array(self.direction, dtype=np.float64).reshape(3, 3)
        except (TypeError, ValueError) as error:
            raise InputError(f"direction = {self.direction}; wanted a 3x3 matrix") from error
        direction.setflags(write=False)
        object.__setattr__(self, "direction", direction)

    @classmethod
    def from_sitk(cls, image: sitk.Image) -> Geometry:
        """Return the grid of a SimpleITK image.

        Raises:
            InputError: the image is not 3D.
        """
        if image.GetDimension() != 3:
            raise InputError(f"the image is {image.GetDimension()}D; a 3D image is needed")
        x, y, z = image.GetSize()
        return cls((z, y, x), image.GetSpacing(), image.GetOrigin(), image.GetDirection())

    @property
    def shape_xyz(self) -> tuple[int, int, int]:
        """Number of voxels along index axes x, y, z."""
        z, y, x = self.shape_zyx
        return (x, y, z)

    def __repr__(self) -> str:
        return f"<Geometry {self.summary()}, origin {_numbers(self.origin_mm, ', ')}>"

    def summary(self) -> str:
        """Return shape and spacing in words, axes x, y, z."""
        shape = " x ".join(str(n) for n in self.shape_xyz)
        return f"{shape} voxels of {_numbers(self.spacing_mm, ' x ')} mm (x, y, z)"


@dataclass(frozen=True, eq=False)
class Volume:
    """A scalar image.

    Attributes:
        array: (D, H, W) float32.
        geometry: the image's grid.
        pixel_type: NumPy name of the pixel type in the file; results are written in it.
        name: path or other name for messages and reports.
    """

    array: Array
    geometry: Geometry
    pixel_type: str = "float32"
    name: str = ""
    #: Modality according to the file's header (DICOM); None if it names neither.
    modality_hint: Modality | None = None
    #: What was corrected when the file was read, as clauses about it, for reports.
    notes: tuple[str, ...] = ()

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Volume:
        """Read an image file or the folder of a DICOM series; see `dinoreg_rt.io.read_volume`.

        Raises:
            InputError: the file is missing or damaged, or the image cannot be used.
        """
        from .io import read_volume

        return read_volume(path)

    @classmethod
    def from_sitk(cls, image: sitk.Image, name: str = "image") -> Volume:
        """Return a SimpleITK image, 3D and scalar, as a volume; float32 voxels are shared.

        Args:
            image: must not be changed afterwards.
            name: name for messages and reports.

        Raises:
            InputError: the image cannot be used.
        """
        from .io import volume_from_sitk

        return volume_from_sitk(image, name)

    def __repr__(self) -> str:
        return _described(self)


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Integer labels or a mask, ``array (D, H, W) int32``; 0 is background. See `Volume`."""

    array: Array
    geometry: Geometry
    pixel_type: str = "uint8"
    name: str = ""

    def __repr__(self) -> str:
        return _described(self)


def _described(image: Volume | LabelMap) -> str:
    name = f" {image.name}" if image.name else ""
    return f"<{type(image).__name__}{name}: {image.geometry.summary()}>"


@dataclass(frozen=True, eq=False)
class AffineTransform:
    """An affine map of points in LPS mm: ``p_moving = matrix @ p_fixed + translation_mm``."""

    matrix: FloatArray
    translation_mm: FloatArray

    def __post_init__(self) -> None:
        for name, shape in (("matrix", (3, 3)), ("translation_mm", (3,))):
            value = np.array(getattr(self, name), dtype=np.float64).reshape(shape)
            value.setflags(write=False)
            object.__setattr__(self, name, value)

    @classmethod
    def identity(cls) -> AffineTransform:
        """Return the transform that leaves every point in place."""
        return cls(np.eye(3), np.zeros(3))

    def is_identity(self) -> bool:
        """Return whether this is exactly the identity."""
        return np.array_equal(self.matrix, np.eye(3)) and not self.translation_mm.any()


@dataclass(frozen=True, eq=False)
class DisplacementField:
    """A map of points given by displacements: ``p_to = p_from + u(p_from)``.

    Attributes:
        vectors_mm: (D, H, W, 3) float32, LPS mm, components x, y, z; linear between voxels.
        geometry: the vectors' grid: the fixed image's for a registration, which maps fixed to
            moving points, and the moving image's for its inverse.
    """

    vectors_mm: Array
    geometry: Geometry

    def __repr__(self) -> str:
        return f"<DisplacementField {self.geometry.summary()}>"


Transform: TypeAlias = AffineTransform | DisplacementField
