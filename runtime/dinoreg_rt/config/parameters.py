"""`RegistrationConfig`: every parameter of a registration, frozen and validated.

Lengths are in millimetres. Along each axis a length is rounded to whole voxels of its grid, at
least one, so that the same values suit a stack of ten thick slices and a brain with 1 mm voxels.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self, get_args

from pydantic import (
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from ..errors import ConfigError
from .explain import Origin, check_kind, explain
from .feature_parameters import FeatureParameters, FeatureSet
from .files import read_preset, read_toml
from .image_parameters import ImageParameters, LinearModel
from .solver_parameters import SolverParameters

#: Two ways to choose the slices that are encoded.
_ONE_OF = ("slice_stride", "slice_spacing_mm")


class RegistrationConfig(SolverParameters, FeatureParameters, ImageParameters):
    """Parameters of one registration. The defaults are those of the preset ``mind``.

    Wrong names and values raise `ConfigError`, however the configuration is made.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=False)

    @property
    def stage_features(self) -> tuple[tuple[FeatureSet, ...], FeatureSet]:
        """The features that each level of the search compares, and those of the refinement."""
        if self.encoder is None:
            return ("mind",), "mind"
        usual: FeatureSet = "joined" if self.mind_weight > 0 else "encoder"
        return self.search_features or (usual,), self.refinement_features or usual

    @property
    def feature_sets(self) -> frozenset[FeatureSet]:
        """All sets of features that any stage compares."""
        search, refinement = self.stage_features
        return frozenset((*search[: self.search_levels], refinement))

    @property
    def uses_mind(self) -> bool:
        """Whether any stage compares MIND-SSC, alone or joined with an encoder's features."""
        return bool(self.feature_sets & {"mind", "joined"})

    @property
    def computes_mind(self) -> bool:
        """Whether MIND-SSC is computed, for a stage or only for the mirror test."""
        return self.uses_mind or self.trust

    @property
    def linear_transform(self) -> LinearModel | None:
        """The model of a linear registration; None if a field is refined."""
        if self.transform == "displacement" or self.transform == "velocity":
            return None
        return self.transform

    @property
    def initial_model(self) -> LinearModel:
        """The model of the initial alignment."""
        return self.linear_transform or self.linear

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
            raise ValueError("the first must be smaller than the second")
        return value

    @field_validator("slice_spacing_mm")
    @classmethod
    def _stride_or_distance(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value is not None and info.data.get("slice_stride", 1) != 1:
            raise ValueError("give either a slice stride or a slice spacing in mm, not both")
        return value

    @field_validator("refinement_features", "search_features")
    @classmethod
    def _encoder_is_there(cls, value: Any, info: ValidationInfo) -> Any:
        wanted = {value} if isinstance(value, str) else set(value or ())
        if info.data.get("encoder") is None and wanted - {"mind"}:
            raise ValueError("only mind can be compared without an encoder")
        if "joined" in wanted and info.data.get("mind_weight") == 0:
            raise ValueError("joined needs a mind weight above 0")
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
            raise ValueError(f"the search features need at least {given} levels")
        return value

    @field_validator("layers")
    @classmethod
    def _each_layer_once(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        if value is not None and len(set(value)) < len(value):
            raise ValueError("a layer is given twice")
        return value

    @field_validator("trust_cost")
    @classmethod
    def _trust_is_of_voxels(cls, value: float, info: ValidationInfo) -> float:
        if value > 0 and info.data.get("feature_similarity") == "lncc":
            raise ValueError(
                "wanted 0 with the feature similarity lncc, which has no cost of single voxels; "
                "use mse or cosine for other values"
            )
        return value

    @field_validator("correlation_weight")
    @classmethod
    def _something_is_compared(cls, value: float | None, info: ValidationInfo) -> float | None:
        if value == 0 and info.data.get("feature_weight") == 0:
            raise ValueError("with a feature weight of 0 nothing is compared; raise one of them")
        return value

    @field_validator("transform")
    @classmethod
    def _linear_compares_mind(cls, value: str, info: ValidationInfo) -> str:
        if value in get_args(LinearModel):
            if info.data.get("encoder") is not None:
                raise ValueError(
                    "a linear transform compares MIND-SSC and intensities; leave the encoder out, "
                    "and take a preset without one, such as mind"
                )
            if info.data.get("feature_similarity") != "mse":
                raise ValueError("a linear transform needs the feature similarity mse")
        return value

    @field_validator("confidence")
    @classmethod
    def _confidence_is_of_a_search(cls, value: Any, info: ValidationInfo) -> Any:
        if value and info.data.get("transform") in get_args(LinearModel):
            raise ValueError(
                "a linear transform has no confidence, because that comes from the discrete search"
            )
        return value

    def changed(self, **values: Any) -> Self:
        """Return a copy in which some parameters have other values.

        Raises:
            ConfigError: a parameter is unknown, or a value cannot be used.
        """
        return type(self).model_validate(dict(self) | values)

    @classmethod
    def from_sources(
        cls,
        preset: str | None = None,
        file: Path | None = None,
        overrides: dict[str, Any] | None = None,
        spelled: Mapping[str, str] | None = None,
    ) -> RegistrationConfig:
        """Combine a preset, a TOML file and explicit values, each overriding the former.

        Args:
            preset: one of `preset_names`.
            file: TOML file of parameters.
            overrides: explicit values by the name of the parameter.
            spelled: names for parameters in error messages, such as ``--name``.

        Raises:
            ConfigError: the preset or a key is unknown, a value cannot be used, or the file cannot
                be read.
        """
        values: dict[str, Any] = {}
        if preset is not None:
            values.update(read_preset(preset))
        in_file = {} if file is None else read_toml(file)
        for later in (in_file, overrides or {}):
            if later.keys() & set(_ONE_OF):  # one of the two overrides the other
                values = {name: v for name, v in values.items() if name not in _ONE_OF}
            values |= later
        files = {key: str(file) for key in in_file if key not in (overrides or {})}
        return cls.model_validate(values, context=Origin(spelled or {}, files))


def checked_config(config: RegistrationConfig | None) -> RegistrationConfig:
    """Return the caller's configuration, or the defaults for None, after checking it.

    The values are validated again, because pydantic's `model_copy` accepts anything.

    Raises:
        ConfigError: `config` is something else, such as a dict, or has values that cannot be used.
    """
    if config is None:
        return RegistrationConfig()
    if isinstance(config, RegistrationConfig):
        return type(config).model_validate(dict(config))
    hint = "RegistrationConfig(**config)" if isinstance(config, dict) else "RegistrationConfig(...)"
    raise ConfigError(
        f"config is a {type(config).__name__}; wanted a RegistrationConfig: make one with {hint}, "
        "or from a preset or a file with RegistrationConfig.from_sources"
    )
