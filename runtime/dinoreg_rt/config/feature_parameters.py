"""Parameters of the features: the encoder, its tokens, and MIND-SSC."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

TokenCentre = Literal["none", "image", "slice", "smooth"]
TokenScale = Literal["none", "deviation", "length"]
FeatureSet = Literal["encoder", "mind", "joined"]
Layer = Annotated[
    str, Field(pattern=r"^(final|\d{1,3})$", description="final or the number of a block")
]
EngineChoice = Literal[
    "auto",
    "ort-cpu",
    "openvino",
    "openvino-bf16",
    "ort-cuda",
    "ort-tensorrt",
    "tensorrt",
    "tensorrt-rtx",
]


class FeatureParameters(BaseModel):
    """What features are made of, and which stage compares which of them."""

    encoder: str | None = Field(
        None,
        min_length=1,
        description="bundle of an encoder, folder or name (see 'dinoreg-rt models'); or a "
        "checkpoint, such as a snapshot in Hugging Face's cache: exported into our cache once; "
        "default: none, features are MIND-SSC",
    )
    encoder_depth: float | None = Field(
        None,
        gt=0,
        le=1,
        description="layer that is exported when --encoder is a checkpoint, and by 'export onnx "
        "--preset', as a share of the network's blocks; 1, and default: the final layer; a bundle "
        "keeps the layers it has",
    )
    engine: EngineChoice = Field(
        "auto",
        description="what runs the encoder; auto takes ort-cpu on a CPU, and on a GPU a tensorrt "
        "engine of 'dinoreg-rt export engine' where one fits, else ort-cuda",
    )
    token_grid: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = Field(
        None,
        description="rows and columns of tokens per slice; default: the bundle's size that fits "
        "the slices best",
    )
    slice_padding: int = Field(
        0,
        ge=0,
        le=8,
        description="rows and columns of tokens added as a black margin at each edge of a slice "
        "and then discarded, for encoders that produce artefacts at the image border",
    )
    slice_stride: int = Field(
        1, ge=1, le=1000, description="one of so many slices is encoded, and the last (k)"
    )
    slice_spacing_mm: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="largest distance between encoded slices, from which each image's stride "
        "follows; default: --slice-stride decides",
    )
    axis: Literal["auto", "axial", "coronal", "sagittal", "all"] = Field(
        "auto",
        description="slices that are encoded: auto (across the coarsest axis), axial, coronal, "
        "sagittal, or all three",
    )
    components: int = Field(
        24, ge=4, le=128, description="channels kept by the joint PCA, for each axis (d)"
    )
    layers: tuple[Layer, ...] | None = Field(
        None,
        min_length=1,
        max_length=16,
        description="layers whose tokens are compared, of those that the bundle holds; default: "
        "all of them",
    )
    token_centre: TokenCentre = Field(
        "smooth",
        description="what is subtracted from an image's tokens before the joint PCA: none, the "
        "image's mean, each slice's mean, or smooth, the slices' means smoothed along the stack",
    )
    token_scale: TokenScale = Field(
        "deviation",
        description="what tokens are divided by: none, each channel's deviation over the image, "
        "or each token's length",
    )
    token_smoothing_mm: float = Field(
        20.0, gt=0, le=1000, description="width (sigma) of the smoothing of the slices' means"
    )
    position_components: int = Field(
        0,
        ge=0,
        le=64,
        description="leading directions of a constant picture's tokens that are projected out",
    )
    mind_weight: float = Field(
        0.0,
        ge=0,
        le=1e3,
        description="weight of MIND-SSC where both are joined, relative to 1 for the encoder; the "
        "total variance of the joined features does not depend on it",
    )
    search_features: tuple[FeatureSet, ...] | None = Field(
        None,
        min_length=1,
        max_length=4,
        description="what each level of the search compares, the last also in all further ones: "
        "encoder, mind, or both joined; default: joined where --mind-weight is not 0, else encoder",
    )
    refinement_features: FeatureSet | None = Field(
        None, description="what the refinement compares; as --search-features"
    )
    encoder_ct_window_hu: tuple[float, float] = Field(
        (-150.0, 250.0), description="CT values that are black and white for the encoder"
    )
    encoder_normalisation: Literal["bundle", "none"] = Field(
        "bundle", description="pixels are normalised by the bundle's mean and deviation, or not"
    )
    token_memory_gb: float = Field(
        4.0, ge=0, le=1e4, description="tokens beyond this go to a file in the temporary folder"
    )
    cache: bool = Field(default=True, description="keep the tokens of encoded images")
    cache_gb: float = Field(
        20.0, ge=0, le=1e5, description="size of the tokens' cache (DINOREG_CACHE names its folder)"
    )
    mind_radius_mm: float | None = Field(
        None,
        gt=0,
        le=50,
        description="MIND-SSC patch radius; default: 1 working voxel for two MR, else 2",
    )
    mind_dilation_mm: float | None = Field(
        None, gt=0, le=50, description="MIND-SSC neighbour distance; default: 2 working voxels"
    )
    intensity: Literal["auto", "on", "off"] = Field(
        "auto",
        description="local intensities beside MIND-SSC: on, off, or auto: where both images show "
        "the same contrast",
    )
    intensity_windows_mm: tuple[Annotated[float, Field(gt=0, le=200)], ...] | None = Field(
        None,
        min_length=1,
        max_length=4,
        description="widths (sigma) of the local intensities' windows; default: 4 and 8 working "
        "voxels",
    )
    intensity_scale: float = Field(
        1.2, gt=0, le=100, description="weight of the local intensities: a factor on them"
    )
    feature_scale: float = Field(
        1.0, gt=0, le=1e3, description="features are multiplied by this before the solver"
    )
