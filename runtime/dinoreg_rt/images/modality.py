"""Whether an image is a CT or an MR, judged by its whole histogram.

A CT in Hounsfield units has landmarks that hardly depend on the scanner: air at -1000, fat at about
-100, soft tissue from 0 to 100, and hardly any voxels between air and fat. An MR has no fixed
units: its background lies near 0, and its tissues fill the range above it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np

from ..config.image_parameters import ModalityChoice
from ..errors import InputError
from ..types import FloatArray, Modality, Volume
from .histogram import AIR_HU, Histogram, find_padding, sample_values

#: Least contrast of soft tissue against the gap between air and fat (`Histogram.contrast`).
#: Measured: 28 to 71 for CTs with air and 28 to 84 for their 8-bit exports that keep air apart; at
#: most 8.6 for 18 MRs, each in the worst of 2000 scales and shifts.
_SURE_CONTRAST, _OPEN_CONTRAST = 15.0, 9.0
#: Least shares of air and of soft tissue, and largest share of values above 400 HU, in a CT.
_LEAST_AIR, _LEAST_SOFT, _MOST_BONE = 0.002, 0.02, 0.25
#: The same with values near -1000, which few MRs have.
_AIR_CONTRAST = 4.0
#: Least share of fat and of the body's edge, relative to soft tissue. An MR whose background is 0,
#: with padding at -1000, has nothing in between.
_LEAST_FAT = 0.02
#: Least share of an image that was cropped inside the body from -150 to 150 HU.
_LEAST_INSIDE = 0.8
#: Narrower ranges of values, as of z-scores, are no HU. A narrow window of the brain is 0 to 80.
_LEAST_SPAN_HU = 60.0
#: Value of water in a CT that was stored without its negative offset.
_SHIFTS = (1024.0, 32768.0)
#: Ranges of exported grey levels: 8 bits, and the ranges that neural networks expect.
_EXPORTS = ((0.0, 255.0), (0.0, 1.0), (-1.0, 1.0))
#: Least shares of the smallest and the largest value where a window was cut out. The largest
#: value fills at most 0.29 % of 18 MRs, and 0.37 to 2 % of 4 CTs in windows of 350 to 500 HU.
_LEAST_CLIPPED = (0.2, 0.0035)


@dataclass(frozen=True)
class Detection:
    """The modality of an image and what supports it.

    Attributes:
        modality: CT or MR.
        reason: evidence, for people.
        doubt: what leaves it open; empty if nothing does.
        water: value of 0 HU in a CT; None for an MR, and for a CT of unknown scale.
        dark: lower end of the intensity window of a CT of unknown scale; None elsewhere, and where
            it is the smallest value.
        padding: values that mark voxels outside the scan.
        lowest: smallest value of the image, padding included; None if it was not looked for.
    """

    modality: Modality
    reason: str
    doubt: str = ""
    water: float | None = None
    dark: float | None = None
    padding: tuple[float, ...] = ()
    lowest: float | None = field(default=None, compare=False)

    @property
    def sure(self) -> bool:
        """Whether nothing leaves the modality open."""
        return not self.doubt


def detect_modality(volume: Volume, wanted: ModalityChoice = "auto") -> Detection:
    """Return the modality of an image, the evidence for it and what leaves it open.

    The user's choice comes first, then the DICOM header's, then the histogram of a sample spread
    evenly over the image. Whether a CT is in HU always follows from the histogram.

    Raises:
        InputError: negative Hounsfield units were stored as unsigned numbers.
    """
    sample, lowest = sample_values(volume.array)
    sample, padding = find_padding(sample)
    known = wanted if wanted != "auto" else volume.modality_hint
    source = "as asked" if wanted != "auto" else "as the DICOM header says"
    found = None
    if known != "mr":
        _check_signs(sample)
        found = _ct_in_hu(Histogram(sample))
    if found is None:  # what is air in HU may be padding here
        sample, more = find_padding(sample, least_air=-100.0)
        padding += more
    values = Histogram(sample)
    if known == "mr":
        found = Detection("mr", f"mr, {source}", _inverted(values))
    else:
        found = found or _shifted_ct(values) or _exported(values)
        found = _known_ct(found, values, source) if known == "ct" else found or _mr(values)
    return replace(found, padding=padding, lowest=lowest)


def _known_ct(found: Detection | None, values: Histogram, source: str) -> Detection:
    """Return the scale of an image that is known to be a CT, given what its values suggest."""
    if found is not None and found.water is not None:
        where = f"; water is at {found.water:g}" if found.water else ""
        return Detection("ct", f"ct, {source}{where}", water=found.water)
    if _is_export(values) or values.highest - values.lowest < _LEAST_SPAN_HU:
        doubt = "its values are not HU: the intensity window covers them instead of --ct-window-hu"
        dark = None if found is None else found.dark
        return Detection("ct", f"ct, {source}", doubt, dark=dark)
    doubt = "no value is negative, as air and fat are in HU" if values.lowest >= 0 else ""
    return Detection("ct", f"ct, {source}", doubt, water=0.0)


def _ct_in_hu(values: Histogram) -> Detection | None:
    """Recognise a CT in Hounsfield units, also one that was clipped or cropped."""
    lowest, soft = values.lowest, values.share(-20, 120)
    if lowest > -10 or soft < _LEAST_SOFT or values.share(400, math.inf) > _MOST_BONE:
        return None
    if lowest < -50 and values.share(-200, -50) < _LEAST_FAT * soft:
        return None
    air, contrast = values.share(-1100, -850), values.contrast(0.0, 1.0)
    tissue = f"soft tissue from -20 to 120 ({100 * soft:.0f} %)"
    if air >= _LEAST_AIR and contrast >= _AIR_CONTRAST:
        reason = f"ct, because of air near -1000 ({100 * air:.0f} % of the voxels) and {tissue}"
        doubt = "" if contrast >= _SURE_CONTRAST else "many values lie between those of air and fat"
        return Detection("ct", reason, doubt, water=0.0)
    clipped = values.lowest_share >= _LEAST_SOFT and lowest >= AIR_HU and lowest == round(lowest)
    if clipped and values.above_lowest().contrast(0.0, 1.0) >= _SURE_CONTRAST:
        share = 100 * values.lowest_share
        if lowest > -100:
            doubt = f"{share:.0f} % of the voxels are {lowest:g}, as in a CT clipped there"
            return Detection("mr", f"mr, because no value lies below {lowest:g}", doubt)
        reason = f"ct, clipped at {lowest:g} ({share:.0f} % of the voxels), with {tissue}"
        return Detection("ct", reason, water=0.0)
    inside = values.share(-150, 150)
    if inside >= _LEAST_INSIDE and lowest <= -100:
        reason = (
            f"ct, because {100 * inside:.0f} % of the values lie from -150 to 150, as in a body"
        )
        return Detection("ct", reason, "there is no air near -1000", water=0.0)
    return None


def _shifted_ct(values: Histogram) -> Detection | None:
    """Recognise a CT that was stored without its negative offset."""
    for water in _SHIFTS:
        if values.lowest < water - 1324 or values.share(water + 400, math.inf) > _MOST_BONE:
            continue
        ranges = ((-1100, -850), (-200, -50), (-20, 120))
        air, fat, soft = (values.share(water + a, water + b) for a, b in ranges)
        landmarks = air >= _LEAST_AIR and soft >= _LEAST_SOFT and fat >= _LEAST_FAT * soft
        contrast = values.contrast(water, 1.0) if landmarks else 0.0
        inside = values.share(water - 150, water + 150)
        if contrast >= _SURE_CONTRAST:
            reason = (
                f"ct, shifted by {water:g}: air near {water - 1000:g} ({100 * air:.0f} % of the "
                f"voxels) and soft tissue near {water:g} ({100 * soft:.0f} %)"
            )
            return Detection("ct", reason, water=water)
        if values.lowest > water - 400 and inside >= _LEAST_INSIDE:
            reason = f"ct, shifted by {water:g}: {100 * inside:.0f} % of the values are around that"
            return Detection("ct", reason, f"there is no air near {water - 1000:g}", water=water)
        if contrast >= _OPEN_CONTRAST or inside >= _LEAST_INSIDE:
            reason = (
                f"mr, because values near {water:g} do not stand out as soft tissue does on a CT"
            )
            return Detection("mr", reason, f"it may be a CT shifted by {water:g}")
    return None


def _is_export(values: Histogram) -> bool:
    """Return whether values fill one of the ranges of exported grey levels."""
    low, high = values.lowest, values.highest
    return any(a <= low and a + 0.3 * (b - a) <= high <= b for a, b in _EXPORTS)


def _exported(values: Histogram) -> Detection | None:
    """Recognise a CT in another unit, such as grey levels."""
    extent, dark = f"{values.lowest:.4g} to {values.highest:.4g}", _dark_end(values)
    if not _is_export(values):
        if _inverted(values):
            return None
        if dark is not None:
            doubt = "air and soft tissue are as far apart as on a CT, though not in HU"
            return Detection("mr", f"mr, because values from {extent} are not HU", doubt)
    elif dark is not None:
        reason = f"ct, exported to grey levels from {extent}: air and soft tissue are far apart"
        return Detection("ct", reason, "its scale in HU is unknown", dark=dark)
    clipped = values.lowest_share, values.highest_share
    if all(share >= least for share, least in zip(clipped, _LEAST_CLIPPED, strict=True)):
        doubt = "both ends are clipped, as in a CT that was exported with an intensity window"
        return Detection("mr", f"mr, because grey levels from {extent} are not HU", doubt)
    return None


def _dark_end(values: Histogram) -> float | None:
    """Return a value between air and fat, where a CT of unknown scale has hardly any voxels.

    None if soft tissue does not stand out at any scale.
    """
    span, dark, best = values.highest - values.lowest, 0.0, 0.0
    for share in np.arange(0.16, 0.9, 0.02):
        unit = share * span / 1040.0
        water = values.lowest + 1000.0 * unit
        soft = values.share(water - 20 * unit, water + 120 * unit)
        fat = values.share(water - 200 * unit, water - 50 * unit)
        tissue = values.share(water - 200 * unit, math.inf)
        bone = values.share(water + 400 * unit, math.inf)
        if soft < _LEAST_SOFT or fat < _LEAST_FAT * soft or bone > _MOST_BONE * tissue:
            continue
        contrast = values.contrast(water, unit)
        if contrast > best:
            dark, best = water - 200 * unit, contrast
    return float(dark) if best >= _SURE_CONTRAST else None


def _mr(values: Histogram) -> Detection:
    """Describe an image without the landmarks of a CT."""
    negative = 100 * values.share(-math.inf, -100)
    reason = "mr, because air near -1000 and soft tissue near 0 do not stand out as they do on a CT"
    if values.lowest <= -100:
        reason += f" ({negative:.2g} % of the voxels are at -100 or below)"
    if negative > 10:
        return Detection("mr", reason, f"{negative:.0f} % of the values are below -100")
    return Detection("mr", reason, _inverted(values))


def _inverted(values: Histogram) -> str:
    """Return the doubt that the background is bright; empty if it is dark."""
    low, high = values.percentile(0.5), values.percentile(99.5)
    margin = 0.05 * (high - low)
    bright, dark = values.share(high - margin, math.inf), values.share(-math.inf, low + margin)
    if bright < 0.2 or dark > 0.1:
        return ""
    return (
        f"{100 * bright:.0f} % of the voxels have the largest values: if they are air, the grey "
        "levels are inverted (as in DICOM's MONOCHROME1), so negate them first"
    )


def _check_signs(sample: FloatArray) -> None:
    """Require that no negative Hounsfield units were stored as unsigned 16-bit numbers.

    Raises:
        InputError: they were; with 65536 subtracted the values are those of a CT.
    """
    if sample[0] < 0 or not 60000 <= sample[-1] <= 65535:
        return
    signed = Histogram(np.sort(np.where(sample > 32767, sample - 65536, sample)))
    found = _ct_in_hu(signed)
    if found is not None and found.sure:
        raise InputError(
            "the values are those of a CT whose negative Hounsfield units were stored as unsigned "
            "numbers (64536 for -1000); wanted signed ones: subtract 65536 from values above 32767"
        )
