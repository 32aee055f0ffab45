"""The intensities of one image: its modality and the window for feature extraction."""

from __future__ import annotations

import numpy as np

from ..config.image_parameters import ModalityChoice
from ..config.parameters import RegistrationConfig
from ..errors import InputError
from ..types import Array, Modality, Volume

#: Images that reach down to this are CTs: air is -1000 HU and fat about -100, windowed CTs are
#: often clipped at about -125, and MR magnitudes are not negative.
_CT_LOWEST_HU = -100.0
#: Voxels sampled for a percentile: enough for three digits, and fast on any scan.
_PERCENTILE_SAMPLES = 1_000_000


def detect_modality(lowest: float, wanted: ModalityChoice) -> tuple[Modality, str]:
    """Return the modality of an image, judged by its smallest intensity, and the reason."""
    if wanted != "auto":
        return wanted, f"{wanted}, as asked"
    if lowest <= _CT_LOWEST_HU:
        return "ct", f"ct, because values go down to {lowest:.0f}, as they do on a CT"
    return "mr", f"mr, because no value lies below {_CT_LOWEST_HU:.0f} (lowest {lowest:.4g})"


def intensity_window(
    volume: Volume,
    modality: Modality,
    config: RegistrationConfig,
    mask: Array | None = None,
    role: str = "",
) -> tuple[float, float]:
    """Return the intensities that map to 0 and 1.

    Args:
        volume: image.
        modality: modality of the image.
        config: windows and percentiles.
        mask: (D, H, W), nonzero where voxels of an MR count; None for everywhere.
        role: ``fixed`` or ``moving``, for messages.

    Raises:
        InputError: an MR holds only one value there, or values too close to be told apart.
    """
    if modality == "ct":
        return config.ct_window_hu
    values = volume.array.reshape(-1) if mask is None else volume.array[mask != 0]
    step = max(1, values.size // _PERCENTILE_SAMPLES)
    low = float(values.min())
    high = float(np.percentile(values[::step], config.mr_percentile))
    if high <= low:  # nearly all voxels are background
        high = float(values.max())
    # Windows are applied in float32.
    if not high - low > 1.0 / np.finfo(np.float32).max:
        where = "" if mask is None else f" inside the {role} mask"
        raise InputError(
            f"the {role} image has only the value {low:g}{where}: there is nothing to align; "
            "check that it is the right image and that the mask covers the anatomy"
        )
    return low, high


def window(array: Array, low: float, high: float) -> Array:
    """Clip to [low, high] and scale to [0, 1], in place."""
    array -= np.float32(low)
    array *= np.float32(1.0 / (high - low))
    return array.clip(0.0, 1.0, out=array)
