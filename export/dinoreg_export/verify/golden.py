"""Published tokens of released weights, for users who have both the weights and the picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dinoreg_rt.bundle.manifest import FINAL_ONLY, Manifest
from dinoreg_rt.errors import InputError

from ..graph.positions import antialiased_matrix
from .compare import run_graph

SIZE = 224
TOLERANCE = 1e-3
#: First five channels of the first patch token, and below of the class token, of COCO 000000039769.
PATCH_TOKENS = {
    "dinov3-vitl16": (-0.211367, -0.490863, -0.257131, 0.101763, 0.154511),
    "dinov3-vits16": (-0.038754, -0.250895, -0.016392, -0.455473, 0.571582),
    "dinov3-vitb16": (-0.082523, -0.456272, -0.728029, -0.430680, -0.152880),
}
CLASS_TOKENS = {"dinov3-vitl16": (0.484527, -0.582214, 0.480636, 0.592040, 0.945166)}


def golden_error(folder: Path, manifest: Manifest, picture: Path) -> float:
    """Return the largest deviation from the published tokens.

    Raises:
        InputError: there are no published tokens for the model, the bundle has no graph of the
            size, or the tokens differ.
    """
    if manifest.model not in PATCH_TOKENS:
        raise InputError(
            f"no tokens are published for {manifest.model}, only for {', '.join(PATCH_TOKENS)}; "
            "omit --golden"
        )
    if manifest.layers != FINAL_ONLY:
        raise InputError(
            f"{folder}: gives the tokens of {manifest.layers_text}, but those of the final layer "
            "are published; export a bundle without --layer to compare them"
        )
    graph = next((g for g in manifest.graphs if (g.height, g.width) == (SIZE, SIZE)), None)
    if graph is None:
        raise InputError(
            f"{folder}: has no graph of {SIZE}x{SIZE} pixels, the size of the published tokens; "
            f"export a bundle with --size {SIZE}x{SIZE}"
        )
    tokens, cls = run_graph(folder / graph.file, _pixels(picture, manifest))
    errors = [np.abs(tokens[0, 0, 0, :5] - PATCH_TOKENS[manifest.model]).max()]
    if manifest.model in CLASS_TOKENS:
        errors.append(np.abs(cls[0, :5] - CLASS_TOKENS[manifest.model]).max())
    error = float(max(errors))
    if not error <= TOLERANCE:
        raise InputError(
            f"{folder}: differs from the published tokens by {error:.2e} (at most {TOLERANCE:g} is "
            "allowed): these are other weights, or the picture is not COCO 000000039769"
        )
    return error


def _pixels(picture: Path, manifest: Manifest) -> NDArray[np.float32]:
    """Return the picture as (1, 3, 224, 224), resized linearly with antialiasing and normalised."""
    import SimpleITK as sitk

    image = sitk.ReadImage(str(picture))
    if image.GetNumberOfComponentsPerPixel() != 3:
        raise InputError(f"{picture}: is not a colour picture; use COCO 000000039769")
    values = sitk.GetArrayFromImage(image).astype(np.float64) / 255
    for axis in (0, 1):
        weights = antialiased_matrix(values.shape[axis], SIZE, lambda t: np.maximum(0, 1 - t))
        values = np.moveaxis(np.tensordot(weights, values, (1, axis)), 0, axis)
    values = (values - manifest.normalisation.mean) / manifest.normalisation.std
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None], np.float32)
