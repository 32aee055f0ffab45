"""`RegistrationConfig`: every parameter of a registration, frozen and validated.

Lengths are in millimetres and hold per axis: a length is rounded to whole voxels of the grid it
applies to, at least one, so that a stack of ten thick slices and a 1 mm brain both work.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

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
from .image_parameters import ImageParameters
from .solver_parameters import SolverParameters

#: Two ways to say how many slices are encoded.
_ONE_OF = ("slice_stride", "slice_spacing_mm")


class RegistrationConfig(SolverParameters, FeatureParameters, ImageParameters):
    """Parameters of one registration. The defaults are those of the preset ``mind``.

    However one is made, wrong names and values raise `ConfigError`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

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

    def changed(self, **values: Any) -> Self:
        """Return a copy with other values for some parameters, which are checked like any other.

        Raises:
            ConfigError: an unknown parameter, or a value that cannot be used.
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
