"""Parameters of the features: the encoder, its tokens, and MIND-SSC."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

SliceScale = Literal["fit", "common", "body"]
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


class FeatureParameters(BaseModel, defer_build=True):
    """The features, and the stages that compare them."""

    encoder: str | None = Field(
        None,
        min_length=1,
        description="bundle of an encoder (folder, or name in 'dinoreg-rt models list'), or a "
        "checkpoint, such as a snapshot in Hugging Face's cache, which is exported on first use; "
        "default: none, the features are MIND-SSC",
    )
    encoder_depth: float | None = Field(
        None,
        gt=0,
        le=1,
        description="relative depth (1 is the final layer) of the block whose tokens are used when "
        "a checkpoint is exported, for --encoder or by 'export onnx --preset'; existing bundles "
        "keep their layers; default: the final layer",
    )
    engine: EngineChoice = Field(
        "auto",
        description="engine that runs the encoder; auto takes ort-cpu on a CPU (openvino for a "
        "bundle in bfloat16), and on a GPU a matching engine of 'dinoreg-rt export engine' or else "
        "ort-cuda",
    )
    token_grid: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = Field(
        None,
        description="rows and columns of tokens per slice; default: the size in the bundle that "
        "fits the slices best",
    )
    slice_padding: int = Field(
        0,
        ge=0,
        le=8,
        description="rows and columns of tokens added as a black margin at each edge of a slice "
        "and then discarded, for encoders that produce artefacts at the image border",
    )
    slice_scale: SliceScale = Field(
        "fit",
        description="Size at which the encoder sees slices: fit (each slice fills the encoder's "
        "input), common (one scale for both images and both directions, with black margins), or "
        "body (the same, cropped to the bodies)",
    )
    slice_stride: int = Field(1, ge=1, le=1000, description="encode every n-th slice, and the last")
    slice_spacing_mm: float | None = Field(
        None,
        gt=0,
        le=1000,
        description="largest distance between encoded slices, which sets the stride of each image; "
        "default: --slice-stride applies",
    )
    axis: Literal["auto", "axial", "coronal", "sagittal", "all"] = Field(
        "auto",
        description="orientation of the encoded slices; auto: across the axis with the coarsest "
        "spacing; all: all three",
    )
    components: int = Field(
        24, ge=4, le=128, description="channels that the joint PCA keeps, for each orientation"
    )
    layers: tuple[Layer, ...] | None = Field(
        None,
        min_length=1,
        max_length=16,
        description="layers of the bundle whose tokens are compared, such as 11,final; default: "
        "all of its layers",
    )
    token_centre: TokenCentre = Field(
        "smooth",
        description="mean that is subtracted from the tokens before the joint PCA: of the image, "
        "of each slice, or smooth (the slices' means, smoothed along the stack)",
    )
    token_scale: TokenScale = Field(
        "deviation",
        description="scale that the tokens are divided by: the standard deviation of each channel "
        "over the image, or the length of each token",
    )
    token_smoothing_mm: float = Field(
        20.0, gt=0, le=1000, description="width (sigma) of the smoothing of --token-centre smooth"
    )
    position_components: int = Field(
        0,
        ge=0,
        le=64,
        description="number of leading directions of a constant image's tokens, which hold only "
        "positions, to project out of the tokens",
    )
    mind_weight: float = Field(
        0.0,
        ge=0,
        le=1e3,
        description="weight of MIND-SSC in joined features, where the encoder's weight is 1; their "
        "total variance does not depend on it",
    )
    search_features: tuple[FeatureSet, ...] | None = Field(
        None,
        min_length=1,
        max_length=4,
        description="features that each level of the search compares: encoder, mind or joined "
        "(both); the last one also serves all further levels; default: joined if --mind-weight is "
        "not 0, else encoder",
    )
    refinement_features: FeatureSet | None = Field(
        None,
        description="features that the refinement compares; default: joined if --mind-weight is "
        "not 0, else encoder",
    )
    encoder_ct_window_hu: tuple[float, float] = Field(
        (-150.0, 250.0), description="CT values that the encoder sees as black and as white, in HU"
    )
    encoder_normalisation: Literal["bundle", "none"] = Field(
        "bundle",
        description="normalisation of the encoder's pixels: by the bundle's mean and standard "
        "deviation, or none",
    )
    token_memory_gb: float = Field(
        4.0,
        ge=0,
        le=1e4,
        description="memory for tokens, in GB; further tokens go to a file in the temporary folder",
    )
    cache: bool = Field(default=True, description="keep the tokens of encoded images on disk")
    cache_gb: float = Field(
        20.0, ge=0, le=1e5, description="size of the token cache, in GB (in folder DINOREG_CACHE)"
    )
    mind_radius_mm: float | None = Field(
        None,
        gt=0,
        le=50,
        description="patch radius of MIND-SSC; default: 1 working voxel for two MR images, else 2",
    )
    mind_dilation_mm: float | None = Field(
        None, gt=0, le=50, description="patch distance of MIND-SSC; default: 2 working voxels"
    )
    intensity: Literal["auto", "on", "off"] = Field(
        "auto",
        description="add channels of local intensity to MIND-SSC; auto: if both images show the "
        "same contrast",
    )
    intensity_windows_mm: tuple[Annotated[float, Field(gt=0, le=200)], ...] | None = Field(
        None,
        min_length=1,
        max_length=4,
        description="widths (sigma) of the windows of the local intensities; default: 4 and 8 "
        "working voxels",
    )
    intensity_scale: float = Field(
        1.2, gt=0, le=100, description="factor by which the local intensities are multiplied"
    )
    feature_scale: float = Field(
        1.0, gt=0, le=1e3, description="factor by which all features are multiplied"
    )
