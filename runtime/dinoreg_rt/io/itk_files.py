"""Image files read by ITK, whose warnings are silenced: readers check what matters."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from ..types import Geometry
from . import validate
from .convert import quiet_itk
from .paths import check_name

if TYPE_CHECKING:
    import SimpleITK as sitk


def load(file: Path, name: str) -> sitk.Image:
    """Read a 3D image; further axes of length 1 are dropped.

    Raises:
        InputError: the file is damaged or of another format, or the image is not 3D.
    """
    import SimpleITK as sitk

    check_name(file)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    try:
        with quiet_itk():
            reader.ReadImageInformation()
            size = reader.GetSize()
            validate.check_size(size, name)
            if len(size) > 3:  # one time point
                reader.SetExtractSize([*size[:3], *[0] * (len(size) - 3)])
            return reader.Execute()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].removeprefix("ITK ERROR: ")
        if "Zero-valued spacing" in str(error):
            raise InputError(
                f"{name}: has a voxel spacing of 0; each must be positive: correct the header"
            ) from error
        if "orthonormal" in reason or "determinant is 0" in str(error):
            raise InputError(
                f"{name}: has a singular or sheared direction matrix; its axes must be "
                "perpendicular: correct the header, or resample it onto an orthogonal grid"
            ) from error
        raise InputError(
            f"{name}: cannot be read as an image; it is damaged or not of the format that its "
            f"name says ({reason})"
        ) from error


def set_geometry(image: sitk.Image, geometry: Geometry) -> None:
    """Give an image another geometry of the same shape."""
    image.SetSpacing(geometry.spacing_mm)
    image.SetOrigin(geometry.origin_mm)
    image.SetDirection(geometry.direction.ravel().tolist())


def rescale(image: sitk.Image, factor: float) -> None:
    """Multiply the lengths of an image's geometry."""
    image.SetSpacing([factor * value for value in image.GetSpacing()])
    image.SetOrigin([factor * value for value in image.GetOrigin()])
