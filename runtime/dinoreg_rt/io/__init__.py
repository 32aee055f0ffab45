"""Input and output of images, labels, masks, transforms and points.

This is the only package that knows file formats and frames other than LPS (NIfTI and points in
RAS). Everything it returns has been checked and is in LPS millimetres, with what a header leaves in
doubt in `Geometry.notes`; everything it writes appears whole or not at all. SimpleITK and h5py are
imported on first use, so importing this is cheap.
"""

from .convert import (
    displacement_from_sitk,
    displacement_to_sitk,
    labels_from_sitk,
    labels_to_sitk,
    volume_from_sitk,
    volume_to_sitk,
)
from .dicom import input_files
from .images import (
    read_displacement,
    read_geometry,
    read_labels,
    read_volume,
    write_displacement,
    write_labels,
    write_vectors,
    write_volume,
)
from .inputs import ImageLike, LabelsLike, as_labels, as_mask, as_volume, as_weights, read_mask
from .parts import image_parts
from .paths import check_free_space, check_outputs, check_writable, output_errors
from .points import Frame, PointSet, read_points, write_points
from .staging import staged_file, staged_folder
from .transforms import (
    composite_to_sitk,
    linear_to_sitk,
    read_initial,
    read_own_grid,
    read_transform,
    transform_points,
    transform_points_within,
    write_affine,
    write_composite_h5,
    write_linear,
)

__all__ = [
    "Frame",
    "ImageLike",
    "LabelsLike",
    "PointSet",
    "as_labels",
    "as_mask",
    "as_volume",
    "as_weights",
    "check_free_space",
    "check_outputs",
    "check_writable",
    "composite_to_sitk",
    "displacement_from_sitk",
    "displacement_to_sitk",
    "image_parts",
    "input_files",
    "labels_from_sitk",
    "labels_to_sitk",
    "linear_to_sitk",
    "output_errors",
    "read_displacement",
    "read_geometry",
    "read_initial",
    "read_labels",
    "read_mask",
    "read_own_grid",
    "read_points",
    "read_transform",
    "read_volume",
    "staged_file",
    "staged_folder",
    "transform_points",
    "transform_points_within",
    "volume_from_sitk",
    "volume_to_sitk",
    "write_affine",
    "write_composite_h5",
    "write_displacement",
    "write_labels",
    "write_linear",
    "write_points",
    "write_vectors",
    "write_volume",
]
