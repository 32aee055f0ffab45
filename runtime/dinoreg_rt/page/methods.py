"""A paragraph for the methods section of a paper, with its references."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Reference:
    """A publication.

    Attributes:
        text: how it is cited.
        link: where it is.
    """

    text: str
    link: str


_MIND = Reference(
    "Heinrich MP, Jenkinson M, Papie\N{LATIN SMALL LETTER Z WITH DOT ABOVE} BW, Brady M, Schnabel "
    "JA. Towards realtime multimodal fusion for image-guided interventions using "
    "self-similarities. MICCAI 2013, LNCS 8149.",
    "https://doi.org/10.1007/978-3-642-40811-3_24",
)
_CONVEX = Reference(
    "Heinrich MP, Papie\N{LATIN SMALL LETTER Z WITH DOT ABOVE} BW, Schnabel JA, Handels H. "
    "Non-parametric discrete registration with convex optimisation. WBIR 2014, LNCS 8545.",
    "https://doi.org/10.1007/978-3-319-08554-8_6",
)
_CONVEX_ADAM = Reference(
    "Siebert H, Hansen L, Heinrich MP. Fast 3D registration with accurate optimisation and little "
    "learning for Learn2Reg 2021. MICCAI 2021 workshops, LNCS 13166, 2022.",
    "https://doi.org/10.1007/978-3-030-97281-3_25",
)
_ADAM = Reference(
    "Kingma DP, Ba J. Adam: a method for stochastic optimization. ICLR 2015.",
    "https://arxiv.org/abs/1412.6980",
)
_PAPER = Reference(
    "DINOv3 with test-time training for medical image registration. 2025.",
    "https://arxiv.org/abs/2508.14809",
)
_DINO = Reference("DINOv3. 2025.", "https://arxiv.org/abs/2508.10104")


def methods(report: Mapping[str, Any], kinds: tuple[str, str]) -> tuple[str, list[Reference]]:
    """Return the paragraph, in which references have numbers, and the references.

    Args:
        report: the content of `report.json`.
        kinds: modality of the fixed and of the moving image, in capitals, or nothing.
    """
    references: list[Reference] = []

    def cite(*cited: Reference) -> str:
        for one in cited:
            if one not in references:
                references.append(one)
        numbers = ",".join(str(references.index(one) + 1) for one in cited)
        return f"[{numbers}]"

    configuration = report["configuration"]
    software = f"dinoreg-rt {report['versions'].get('dinoreg-rt', '')}".strip()
    fixed, moving = (f"{kind} image" if kind else "image" for kind in kinds)
    sentences = [
        f"The moving {moving} was registered to the fixed {fixed} with {software}.",
        _start(report, configuration),
        _features(report, configuration, cite),
        *_mapping(report, configuration, cite),
    ]
    return " ".join(sentence for sentence in sentences if sentence), references


def _mapping(
    report: Mapping[str, Any], configuration: Mapping[str, Any], cite: Any
) -> tuple[str, ...]:
    """Return how the mapping was found and what it is."""
    transform = report.get("transform")
    if not transform:
        search = _search(configuration, cite(_CONVEX, _CONVEX_ADAM), cite(_ADAM))
        return search, _output(report)
    found = (
        f"The alignment was refined within {transform['model']} transforms by "
        "Levenberg-Marquardt steps from coarse to fine."
    )
    scale = "" if transform["model"] == "rigid" else f" and scales by {transform['scale']:.3f}"
    return found, f"The transform rotates by {transform['angle_deg']:.1f} degrees{scale}."


def _start(report: Mapping[str, Any], configuration: Mapping[str, Any]) -> str:
    if report.get("alignment"):
        model = (report.get("transform") or {}).get("model", configuration["linear"])
        linear = model if model in ("affine", "similarity", "rigid") else "linear"
        return (
            "The initial alignment was searched for automatically, over translations followed by "
            f"{linear} fits on coarse images."
        )
    return "The initial alignment was given by the user."


def _features(report: Mapping[str, Any], configuration: Mapping[str, Any], cite: Any) -> str:
    encoding = report.get("encoding")
    intensities = (
        ", with channels of local intensity" if configuration.get("intensity") == "on" else ""
    )
    correlation = (
        " The refinement also maximised the local correlation of the intensities."
        if configuration.get("correlation_weight")
        else ""
    )
    if encoding is None:
        return (
            "The images were compared by the modality-independent descriptor MIND-SSC "
            f"{cite(_MIND)}{intensities}.{correlation}"
        )
    return (
        f"The images were compared by features of the pretrained encoder {encoding['model']} "
        f"{cite(_DINO)}, reduced by a joint principal component analysis {cite(_PAPER)}, and by "
        f"MIND-SSC {cite(_MIND)}{intensities}.{correlation}"
    )


def _search(configuration: Mapping[str, Any], search: str, adam: str) -> str:
    def number(name: str, unit: str = "") -> str:
        value = configuration.get(name)
        return "an automatic value" if value is None else f"{value:.3g}{unit}"

    iterations = sum(configuration.get("iterations") or ())
    return (
        f"A displacement field was found by a discrete search (spacing "
        f"{number('search_spacing_mm', ' mm')}, radius {number('search_radius_mm', ' mm')}) with "
        f"coupled convex optimisation {search}, and refined on a control grid of "
        f"{number('control_spacing_mm', ' mm')} by {iterations or 'several'} iterations of Adam "
        f"{adam} with a smoothness weight of {number('smoothness')}."
    )


def _output(report: Mapping[str, Any]) -> str:
    quality = report["quality"]
    folded = quality.get("folded_percent")
    spread = quality.get("sdlogj")
    if folded is None or spread is None:
        return ""
    return (
        f"The mapping folded in {folded:.3g} % of the voxels, and the standard deviation of the "
        f"logarithm of its Jacobian determinant was {spread:.2f}."
    )
