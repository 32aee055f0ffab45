"""The viewer NiiVue and the two volumes that it shows, for `--report full`."""

from __future__ import annotations

import base64
import gzip
from dataclasses import dataclass

import numpy as np

from .. import io
from ..device.choice import choose_device
from ..geometry import coarsened_grid
from ..images.resample import resample_volume
from ..io.hidden import scratch_folder
from ..registration.result import RegistrationResult
from ..types import AffineTransform, Volume
from .layout import Window
from .markup import asset
from .stacks import grey_windows

#: The published file, ``dist/niivue.umd.js`` of @niivue/niivue in the npm registry.
VERSION = "0.69.0"
SHA256 = "47b896b77ec4a5be3ef1949c33ad393b6f45629921f326c279000bcf51bdb4af"
_BUNDLE = "assets/niivue/niivue.umd.js.gz"
#: Each further factor by which the volumes are reduced until they fit.
_FACTORS = (2, 3, 4, 6, 8, 12, 16, 24, 32)


@dataclass(frozen=True)
class Viewer:
    """The viewer and its volumes, as the page holds them.

    Attributes:
        code: the script, gzip and base64.
        script: the script itself, whose hash the page's policy names.
        fixed: the fixed image, NIfTI, gzip and base64.
        warped: the warped moving image on the same grid.
        note: how much the volumes were reduced.
    """

    code: str
    script: str
    fixed: str
    warped: str
    note: str


def make_viewer(
    result: RegistrationResult, fixed: Volume, moving: Volume, most_bytes: int
) -> Viewer:
    """Return the viewer with volumes of at least half the resolution's spacing.

    Args:
        result: the registration.
        fixed: fixed image.
        moving: moving image.
        most_bytes: size of all strings together.
    """
    packed = asset(_BUNDLE)
    code = base64.b64encode(packed).decode("ascii")
    windows = grey_windows(result, fixed, moving)
    for factor in _FACTORS:
        volumes = [
            base64.b64encode(_reduced(volume, window, factor)).decode("ascii")
            for volume, window in zip((fixed, result.warped), windows, strict=True)
        ]
        if len(code) + sum(map(len, volumes)) <= most_bytes:
            break
    part = "half" if factor == 2 else f"1/{factor} of"
    note = f"both volumes at {part} the resolution"
    script = gzip.decompress(packed).decode("utf-8")
    return Viewer(code, script, volumes[0], volumes[1], note)


def _reduced(volume: Volume, window: Window, factor: int) -> bytes:
    """Return 8-bit NIfTI with `factor` times the spacing, as long as 8 voxels are left."""
    factors = [min(factor, max(1, n // 8)) for n in volume.geometry.shape_zyx]
    grid = coarsened_grid(volume.geometry, (factors[0], factors[1], factors[2]))
    device = choose_device("cpu", 0)[0]
    low, high = window
    values = resample_volume(volume, grid, AffineTransform.identity(), device, outside=low)
    shades = np.clip((values - low) * (255 / (high - low)), 0, 255).round()
    small = Volume(np.ascontiguousarray(shades, np.float32), grid, "uint8")
    with scratch_folder() as folder:
        file = folder / "volume.nii"
        io.write_volume(file, small)
        return gzip.compress(file.read_bytes(), 9, mtime=0)
