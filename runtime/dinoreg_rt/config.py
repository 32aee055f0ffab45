"""`RegistrationConfig`: every parameter of a registration, frozen and validated.

Lengths are in millimetres and hold per axis: a length is rounded to whole voxels of the grid it
applies to, at least one, so that a stack of ten thick slices and a 1 mm brain both work.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from .config_errors import Origin, check_kind, explain
from .config_files import read_preset, read_toml
from .errors import ConfigError

ModalityChoice = Literal["auto", "ct", "mr"]
FeatureSimilarity = Literal["mse", "cosine", "lncc"]
SliceScale = Literal["fit", "common", "body"]
TokenCentre = Literal["none", "image", "slice", "smooth"]
TokenScale = Literal["none", "deviation", "length"]
FeatureSet = Literal["encoder", "mind", "joined"]
Layer = Annotated[
    str, Field(pattern=r"^(final|\d{1,3})$", description="final or the number of a block")
]
LinearModel = Literal["rigid", "similarity", "affine"]
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


#: Two ways to say how many slices are encoded.
_ONE_OF = ("slice_stride", "slice_spacing_mm")


class RegistrationConfig(BaseModel):
    """Parameters of one registration. The defaults are those of the preset ``mind``.

    However one is made, wrong names and values raise `ConfigError`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    device: str = Field(
        "auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu or cuda:N"
    )
    threads: int = Field(
        0,
        ge=0,
        le=1024,
        description="CPU threads; 0, and more than that, takes all CPUs that this process may use",
    )
    gpu_memory_gb: float | None = Field(
        None,
        gt=0,
        le=1e4,
        description="most that a registration may take of a GPU's memory; decides whether the "
        "search keeps its costs, where tokens are kept and how many slices are encoded at once; "
        "default: what is free",
    )
    initial: str = Field(
        "auto",
        min_length=1,
        description="initial alignment: auto, search, affine, none, centre, moments, or a "
        "transform file",
    )
    linear: LinearModel = Field(
        "affine", description="model of the initial alignment that auto and affine fit"
    )
    body_mask: Literal["auto", "off"] = Field(
        "auto", description="auto: only the body counts, without the table and the air; or off"
    )
    fixed_modality: ModalityChoice = Field(
        "auto", description="what the fixed image is; auto tells it by its values"
    )
    moving_modality: ModalityChoice = Field(
        "auto", description="what the moving image is; auto tells it by its values"
    )
    ct_window_hu: tuple[float, float] = Field(
        (-125.0, 225.0), description="CT values below and above are clipped"
    )
    mr_percentile: float = Field(
        98.0, gt=50, le=100, description="MR values above this percentile are clipped"
    )
    working_megavoxels: float = Field(
        8.0,
        gt=0.001,
        le=1000,
        description="finer images are resampled to at most so many million voxels",
    )
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
    slice_scale: SliceScale = Field(
        "fit",
        description="size at which slices are shown to the encoder: fit (each slice fills the "
        "encoder's input), common (one scale for both images and both directions, with black "
        "margins), or body (the same, cropped to the bodies)",
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
    search_spacing_mm: float | None = Field(
        None, gt=0, le=200, description="step of the discrete search; default: 6 working voxels"
    )
    search_radius_mm: float | None = Field(
        None, ge=0, le=500, description="reach of the discrete search; default: 4 steps"
    )
    search_levels: int | None = Field(
        None,
        ge=1,
        le=4,
        description="levels of the discrete search: every further one halves the step and searches "
        "two steps around what was found; default: 1, for two images of one contrast 2, if close "
        "1, and at least as many as --search-features has values",
    )
    search_trust_cost: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="limit that large feature differences approach in the discrete search: a cost "
        "d becomes d / (1 + d / this), so that outliers pull less; 0: no limit",
    )
    cost_smoothing: float = Field(
        1.15, ge=0, le=3, description="width (sigma) of the search's smoothing, in its steps"
    )
    field_smoothing: float = Field(
        0.82, ge=0, le=3, description="width of the smoothing between coupled rounds, in steps"
    )
    search_edges: float = Field(
        0.0,
        ge=0,
        le=1e3,
        description="how much --field-smoothing is reduced between unlike tissues: cells whose "
        "features are unrelated count exp(-this) for each other; 0: all are smoothed alike",
    )
    coupling: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.03, 0.3),
        max_length=32,
        description="weights of the coupled-convex rounds, growing",
    )
    search_memory_mb: int = Field(
        256,
        ge=0,
        le=1 << 20,
        description="where the costs of all shifts take no more, they are kept for the coupled "
        "rounds, which else compute them again: the same result, slower",
    )
    inverse_consistency_rounds: int = Field(
        15, ge=0, le=100, description="rounds that make the coarse fields each other's inverse"
    )
    control_spacing_mm: float | None = Field(
        None,
        gt=0,
        le=100,
        description="spacing of the refined displacement field; default: 2 working voxels",
    )
    iterations: tuple[Annotated[int, Field(ge=0, le=10_000)], ...] | None = Field(
        None,
        min_length=1,
        max_length=6,
        description="Adam iterations of each level, coarse to fine; default: 40 and 20, for two "
        "close MR 40 and 40",
    )
    learning_rate_mm: float | None = Field(
        None,
        gt=0,
        le=100,
        description="Adam step of the finest level; default: half a control voxel",
    )
    adam_epsilon: float = Field(
        0.3,
        ge=0,
        le=10,
        description="gradients that are smaller than this share of those with the images one "
        "voxel off make shorter steps; 0: all steps are as long",
    )
    smoothing_mm: float | None = Field(
        None,
        ge=0,
        le=200,
        description="width (sigma) of the field's smoothing; default: 1.4 control voxels",
    )
    smoothness: float = Field(
        0.8, ge=0, le=1e4, description="weight of the smoothness term (lambda in the paper)"
    )
    feature_weight: float | None = Field(
        None,
        ge=0,
        le=1e3,
        description="weight of the features' difference in the refinement; default: 1, for two "
        "close MR 0.1 (without correlation: 1)",
    )
    feature_similarity: FeatureSimilarity = Field(
        "mse",
        description="how features are compared: mse (squared difference), cosine (of the angle "
        "between the vectors), or lncc (local correlation of each channel, in the windows of the "
        "intensities' correlation)",
    )
    correlation_weight: float | None = Field(
        None,
        ge=0,
        le=1e3,
        description="weight of 1 - rho^2 beside the features, rho the local correlation of the "
        "intensities; 0: features alone; default: 2.5, for two close MR 3",
    )
    correlation_window_mm: float | None = Field(
        None,
        gt=0,
        le=200,
        description="width (sigma) of the local correlation's windows; default: 2 control voxels, "
        "for two CT 1.25",
    )
    correlation_noise: float | None = Field(
        None,
        gt=0,
        le=1,
        description="windowed intensities (of lncc: features, as a share of their root mean "
        "square) that differ less say little; default: 0.1, for two close MR 0.01",
    )
    trust_cost: float = Field(
        0.0,
        ge=0,
        le=1e6,
        description="adaptive weighting: a voxel whose features differ by so much pulls a quarter "
        "as hard; 0: all pull alike; not with lncc",
    )
    fold_penalty: float = Field(
        800.0, ge=0, le=1e6, description="weight of the penalty on det J below the margin"
    )
    fold_margin: float = Field(
        0.2, ge=0, lt=1, description="a det J below this is penalised: room before a fold"
    )
    transform: Literal["displacement", "velocity"] = Field(
        "displacement",
        description="what is refined: a displacement, or a stationary velocity whose exponential "
        "it is, with the exponential of its negative as the inverse",
    )
    trust: bool = Field(
        default=True,
        description="compare with mirror images of the moving image by MIND-SSC, for the verdict "
        "on trust",
    )
    confidence: bool = Field(
        default=False, description="also tell how well the match of each voxel is determined"
    )
    inverse: bool = Field(default=False, description="also compute the inverse field")

    @property
    def stage_features(self) -> tuple[tuple[FeatureSet, ...], FeatureSet]:
        """What each level of the search compares, and what the refinement compares."""
        if self.encoder is None:
            return ("mind",), "mind"
        usual: FeatureSet = "joined" if self.mind_weight > 0 else "encoder"
        return self.search_features or (usual,), self.refinement_features or usual

    @property
    def feature_sets(self) -> frozenset[FeatureSet]:
        """All sets of features that some stage compares."""
        search, refinement = self.stage_features
        return frozenset((*search[: self.search_levels], refinement))

    @property
    def uses_mind(self) -> bool:
        """Whether some stage compares MIND-SSC, alone or joined with an encoder's features."""
        return bool(self.feature_sets & {"mind", "joined"})

    @property
    def computes_mind(self) -> bool:
        """Whether MIND-SSC is computed: for a stage, or for the verdict on trust alone."""
        return self.uses_mind or self.trust

    @model_validator(mode="wrap")
    @classmethod
    def _explained(
        cls, values: Any, make: ModelWrapValidatorHandler[Self], info: ValidationInfo
    ) -> Self:
        try:
            return make(values)
        except ValidationError as error:
            origin = info.context if isinstance(info.context, Origin) else Origin()
            raise ConfigError(explain(error, cls, values, origin)) from error

    @field_validator("*", mode="before")
    @classmethod
    def _of_its_kind(cls, value: Any, info: ValidationInfo) -> Any:
        return check_kind(value, cls.model_fields[str(info.field_name)].annotation)

    @field_validator("ct_window_hu", "encoder_ct_window_hu")
    @classmethod
    def _windows_rise(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not value[0] < value[1]:
            raise ValueError("the first must be the smaller")
        return value

    @field_validator("slice_spacing_mm")
    @classmethod
    def _stride_or_distance(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("slice_stride", 1) != 1:
            raise ValueError("give a slice stride or a distance of slices in mm, not both")
        return value

    @field_validator("refinement_features", "search_features")
    @classmethod
    def _encoder_is_there(cls, value: Any, info: ValidationInfo) -> Any:
        wanted = {value} if isinstance(value, str) else set(value or ())
        if info.data.get("encoder") is None and wanted - {"mind"}:
            raise ValueError("without an encoder only mind can be compared")
        if "joined" in wanted and info.data.get("mind_weight") == 0:
            raise ValueError("joined wants a mind weight above 0")
        if info.field_name == "refinement_features" and info.data.get("encoder") is not None:
            search = info.data.get("search_features") or ("encoder",)
            if wanted == {"mind"} == set(search):
                raise ValueError("no stage would compare the encoder; leave the encoder out")
        return value

    @field_validator("search_levels")
    @classmethod
    def _levels_for_all_features(cls, value: int | None, info: ValidationInfo) -> int | None:
        given = len(info.data.get("search_features") or ())
        if value is not None and value < given:
            raise ValueError(f"the search features are for {given} levels; wanted at least as many")
        return value

    @field_validator("layers")
    @classmethod
    def _each_layer_once(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and len(set(value)) < len(value):
            raise ValueError("a layer is there twice")
        return value

    @field_validator("trust_cost")
    @classmethod
    def _trust_is_of_voxels(cls, value: float, info: ValidationInfo) -> float:
        if value > 0 and info.data.get("feature_similarity") == "lncc":
            raise ValueError(
                "wanted 0 with the feature similarity lncc, which has no cost of single voxels; "
                "or mse or cosine"
            )
        return value

    @field_validator("correlation_weight")
    @classmethod
    def _something_is_compared(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value == 0 and info.data.get("feature_weight") == 0:
            raise ValueError("with a feature weight of 0 nothing is compared; wanted one above 0")
        return value

    @classmethod
    def from_sources(
        cls,
        preset: str | None = None,
        file: Path | None = None,
        overrides: dict[str, Any] | None = None,
        spelled: Mapping[str, str] | None = None,
    ) -> RegistrationConfig:
        """Preset, then TOML file, then explicit values; the later wins.

        Args:
            preset: a name of `preset_names`.
            file: names and values.
            overrides: names and values.
            spelled: how errors call a parameter, where not by its name: ``--name``.

        Raises:
            ConfigError: unknown preset or key, value out of range, unreadable file.
        """
        values: dict[str, Any] = {}
        if preset is not None:
            values.update(read_preset(preset))
        in_file = {} if file is None else read_toml(file)
        for later in (in_file, overrides or {}):
            if later.keys() & set(_ONE_OF):  # it takes the place of the other
                values = {name: v for name, v in values.items() if name not in _ONE_OF}
            values |= later
        files = {key: str(file) for key in in_file if key not in (overrides or {})}
        return cls.model_validate(values, context=Origin(spelled or {}, files))


def checked_config(config: RegistrationConfig | None) -> RegistrationConfig:
    """What a caller gave as configuration; None stands for the defaults.

    The values are looked at once more: `model_copy`, as pydantic has it, takes any.

    Raises:
        ConfigError: something else, such as a dict, or values that cannot be used.
    """
    if config is None:
        return RegistrationConfig()
    if isinstance(config, RegistrationConfig):
        return type(config).model_validate(dict(config))
    hint = "RegistrationConfig(**config)" if isinstance(config, dict) else "RegistrationConfig(...)"
    raise ConfigError(
        f"config is a {type(config).__name__}; wanted a RegistrationConfig: make one by {hint}, or "
        "from a preset or a file by RegistrationConfig.from_sources"
    )
