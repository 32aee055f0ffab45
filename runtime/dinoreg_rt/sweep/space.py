"""Which configurations a sweep tries: a grid, random draws, or each grid point with each draw.

A candidate is a dict of values for fields of `RegistrationConfig`; everything else is the base
configuration's.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..config.files import read_toml
from ..config.parameters import RegistrationConfig
from ..errors import ConfigError

#: Where a registration runs and which transform it begins with are no properties of a candidate.
NOT_SWEPT = ("device", "threads", "search_memory_mb", "inverse", "confidence", "trust")

Candidate = dict[str, Any]


class Interval(BaseModel):
    """A distribution over an interval: uniform, or uniform in the logarithm; whole if asked."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    low: float
    high: float
    log: bool = Field(default=False, description="uniform in the logarithm; needs low > 0")
    whole: bool = Field(default=False, description="rounded to whole numbers")

    @model_validator(mode="after")
    def _ordered(self) -> Interval:
        if not self.low < self.high:
            raise ValueError(f"low = {self.low:g} is not below high = {self.high:g}")
        if self.log and self.low <= 0:
            raise ValueError(f"low = {self.low:g} has no logarithm; wanted > 0")
        return self

    def draw(self, rng: np.random.Generator) -> float | int:
        """One value."""
        if self.log:
            value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = float(rng.uniform(self.low, self.high))
        # Four digits: a configuration that a person can type again.
        return round(value) if self.whole else float(f"{value:.4g}")


@dataclass(frozen=True)
class SweepSpace:
    """What is tried.

    Attributes:
        grid: values of each parameter; all combinations are tried.
        random: a list to choose from or an `Interval` for each parameter.
        samples: number of random draws.
        seed: of the draws; the same seed gives the same candidates.
    """

    grid: dict[str, list[Any]] = field(default_factory=dict)
    random: dict[str, list[Any] | Interval] = field(default_factory=dict)
    samples: int = 0
    seed: int = 0

    def candidates(self) -> list[Candidate]:
        """Every grid point with every draw, in a fixed order, none twice.

        Raises:
            ConfigError: random parameters without a number of samples, or the other way round.
        """
        if bool(self.random) != (self.samples > 0):
            raise ConfigError(
                f"{len(self.random)} random parameters and {self.samples} samples: a random "
                "search needs both, [random] in the --space file and --samples"
            )
        points = [
            dict(zip(self.grid, values, strict=True))
            for values in itertools.product(*self.grid.values())
        ]
        draws = self._draws() or [{}]
        both = [point | draw for point in points for draw in draws]
        return list({json.dumps(one, sort_keys=True): one for one in both}.values())

    def _draws(self) -> list[Candidate]:
        rng = np.random.default_rng(self.seed)
        return [
            {
                name: source.draw(rng)
                if isinstance(source, Interval)
                else source[int(rng.integers(len(source)))]
                for name, source in self.random.items()
            }
            for _ in range(self.samples)
        ]


def read_space(
    file: Path | None, grid: Sequence[str], samples: int | None, seed: int | None
) -> SweepSpace:
    """The space of a TOML file and of ``--grid`` options; the options win.

    Args:
        file: with the tables ``[grid]`` (lists) and ``[random]`` (lists or intervals) and the
            numbers ``samples`` and ``seed``; or None.
        grid: ``name=a,b,c``; parts of a value that is a list are joined by colons (``80:40``).
        samples: instead of the file's.
        seed: instead of the file's.

    Raises:
        ConfigError: unreadable, unknown names, impossible distributions, nothing to sweep.
    """
    content = read_toml(file) if file is not None else {}
    if unknown := content.keys() - {"grid", "random", "samples", "seed"}:
        raise ConfigError(
            f"{file}: unknown {', '.join(sorted(unknown))}; known are [grid], [random], samples "
            "and seed"
        )
    given = [_parse_axis(text) for text in grid]
    names = [name for name, _ in given]
    if again := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(
            f"--grid {', '.join(again)}: given twice; wanted all values behind one name=a,b,c"
        )
    points = {name: _list_of(name, values) for name, values in content.get("grid", {}).items()}
    points |= dict(given)
    random = {name: _source_of(name, text) for name, text in content.get("random", {}).items()}
    for name in (*points, *random):
        _check_name(name)
    if twice := sorted(points.keys() & random.keys()):
        raise ConfigError(f"{', '.join(twice)}: either on the grid or random, not both")
    return SweepSpace(
        points,
        random,
        samples if samples is not None else int(content.get("samples", 0)),
        seed if seed is not None else int(content.get("seed", 0)),
    )


def config_of(base: RegistrationConfig, candidate: Candidate) -> RegistrationConfig:
    """The base configuration with a candidate's values.

    Raises:
        ConfigError: a value out of range.
    """
    return RegistrationConfig.from_sources(overrides=base.model_dump() | candidate)


def config_hash(config: RegistrationConfig) -> str:
    """sha256 of everything in a configuration that can change the displacement."""
    values = config.model_dump(mode="json", exclude={*NOT_SWEPT, "initial"})
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def text_of(value: Any) -> str:
    """A value as it is typed after ``--grid``."""
    if isinstance(value, list | tuple):
        return ":".join(text_of(part) for part in value)
    if value is None:
        return "default"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _check_name(name: str) -> None:
    known = [n for n in RegistrationConfig.model_fields if n not in NOT_SWEPT]
    if name not in known:
        raise ConfigError(f"'{name}' cannot be swept; known are: {', '.join(known)}")


def _parse_axis(text: str) -> tuple[str, list[Any]]:
    name, equals, values = text.partition("=")
    name = name.strip().replace("-", "_")
    parts = [part.strip() for part in values.split(",") if part.strip()]
    if not equals or not parts:
        raise ConfigError(f"--grid {text}: wanted name=a,b,c")
    _check_name(name)
    return name, [_parse_value(name, part) for part in parts]


def _parse_value(name: str, text: str) -> Any:
    annotation = RegistrationConfig.model_fields[name].annotation
    kinds = [kind for kind in get_args(annotation) or (annotation,) if kind is not NoneType]
    if text == "default":
        return RegistrationConfig.model_fields[name].default
    if get_origin(annotation) is tuple or any(get_origin(kind) is tuple for kind in kinds):
        return [_number(name, part) for part in text.split(":")]
    if float in kinds or int in kinds:
        return _number(name, text)
    if bool in kinds:
        if text not in ("true", "false"):
            raise ConfigError(f"--grid {name}: '{text}' is neither true nor false")
        return text == "true"
    return text


def _number(name: str, text: str) -> float | int:
    try:
        value = float(text)
    except ValueError as error:
        raise ConfigError(f"--grid {name}: '{text}' is not a number") from error
    return int(value) if value.is_integer() else value


def _list_of(name: str, values: Any) -> list[Any]:
    if not isinstance(values, list) or not values:
        raise ConfigError(f"[grid] {name} = {values!r}: wanted a list of values")
    return values


def _source_of(name: str, source: Any) -> list[Any] | Interval:
    if not isinstance(source, dict):
        return _list_of(name, source)
    try:
        return Interval(**source)
    except (ValidationError, TypeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise ConfigError(
            f"[random] {name} = {source}: {reason}; wanted a list, or "
            "{ low = 0.1, high = 2, log = true, whole = false }"
        ) from error
