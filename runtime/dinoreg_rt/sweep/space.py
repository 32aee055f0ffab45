"""The configurations that a sweep tries: a grid, random draws, or each grid point with each draw.

A candidate is a dict of values for fields of `RegistrationConfig`; it replaces those of the base
configuration.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..config.files import read_toml
from ..config.parameters import RegistrationConfig
from ..config.texts import parse_value
from ..errors import ConfigError

#: Fields that a candidate cannot set: those of the machine and of the additional results.
NOT_SWEPT = ("device", "threads", "search_memory_mb", "inverse", "confidence", "trust")

Candidate = dict[str, Any]

#: A sweep of this many runs would take years.
_MOST_CANDIDATES = 1_000_000


class Interval(BaseModel):
    """A uniform distribution over an interval, optionally in the logarithm or of whole numbers."""

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
            raise ValueError(f"low = {self.low:g} has no logarithm; it must be above 0")
        return self

    def draw(self, rng: np.random.Generator) -> float | int:
        """Draw one value."""
        if self.log:
            value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = float(rng.uniform(self.low, self.high))
        # Four digits keep the value short enough to type.
        return round(value) if self.whole else float(f"{value:.4g}")


@dataclass(frozen=True)
class SweepSpace:
    """The values that a sweep tries.

    Attributes:
        grid: the values of each parameter; all combinations are tried.
        random: for each parameter, a list to choose from or an `Interval`.
        samples: number of random draws.
        seed: seed of the draws; the same seed gives the same candidates.
    """

    grid: dict[str, list[Any]] = field(default_factory=dict)
    random: dict[str, list[Any] | Interval] = field(default_factory=dict)
    samples: int = 0
    seed: int = 0

    def candidates(self) -> list[Candidate]:
        """Combine every grid point with every draw, in a fixed order and without duplicates.

        Raises:
            ConfigError: random parameters without a number of samples, or vice versa.
        """
        if bool(self.random) != (self.samples > 0):
            raise ConfigError(
                f"the sweep has {len(self.random)} random parameters and {self.samples} samples; a "
                "random search needs both: [random] in the --space file, and --samples"
            )
        count = math.prod(len(v) for v in self.grid.values()) * max(1, self.samples)
        if count > _MOST_CANDIDATES:
            raise ConfigError(
                f"the sweep has {count} candidates; at most {_MOST_CANDIDATES} are possible: take "
                "values or samples away"
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
    """Read the space of a TOML file and of ``--grid`` options, which take precedence.

    Args:
        file: file with the tables ``[grid]`` (lists) and ``[random]`` (lists or intervals) and the
            numbers ``samples`` and ``seed``; or None.
        grid: options ``name=a,b,c``; the parts of a list value are joined by colons (``80:40``).
        samples: replaces the number in the file.
        seed: replaces the number in the file.

    Raises:
        ConfigError: the file cannot be read, or a name, value or distribution is not allowed.
    """
    given = [_parse_axis(text) for text in grid]
    names = [name for name, _ in given]
    if again := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(
            f"--grid {', '.join(again)}: given twice; give all values in one name=a,b,c"
        )
    in_file = SweepSpace() if file is None else _read_file(file)
    points = in_file.grid | dict(given)
    if twice := sorted(points.keys() & in_file.random.keys()):
        where = "" if file is None else f"{file}: "
        raise ConfigError(f"{where}{', '.join(twice)}: is both on the grid and random; choose one")
    return SweepSpace(
        points,
        in_file.random,
        samples if samples is not None else in_file.samples,
        seed if seed is not None else in_file.seed,
    )


def _read_file(file: Path) -> SweepSpace:
    content = read_toml(file)
    if unknown := content.keys() - {"grid", "random", "samples", "seed"}:
        raise ConfigError(
            f"{file}: unknown {', '.join(sorted(unknown))}; use [grid], [random], samples and seed"
        )
    for table in ("grid", "random"):
        if not isinstance(content.get(table, {}), dict):
            raise ConfigError(f"{file}: {table} is not a table; write it as [{table}]")
    for name in ("samples", "seed"):
        if type(content.get(name, 0)) is not int or not 0 <= content.get(name, 0) < 2**63:
            raise ConfigError(
                f"{file}: {name} = {str(content[name])[:40]}: give a whole number from 0 up"
            )
    points, sources = content.get("grid", {}), content.get("random", {})
    try:
        points = {name: _list_of(name, values) for name, values in points.items()}
        random = {name: _source_of(name, source) for name, source in sources.items()}
        for name in (*points, *random):
            _check_name(name)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from error
    return SweepSpace(points, random, content.get("samples", 0), content.get("seed", 0))


def config_of(base: RegistrationConfig, candidate: Candidate) -> RegistrationConfig:
    """Return the base configuration with a candidate's values.

    Raises:
        ConfigError: a value is out of range.
    """
    return RegistrationConfig.from_sources(overrides=base.model_dump() | candidate)


def config_hash(config: RegistrationConfig) -> str:
    """Return the sha256 of everything in a configuration that can change the displacement."""
    values = config.model_dump(mode="json", exclude={*NOT_SWEPT, "initial"})
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _check_name(name: str) -> None:
    known = [n for n in RegistrationConfig.model_fields if n not in NOT_SWEPT]
    if name not in known:
        raise ConfigError(f"'{name}' cannot be swept; choose from: {', '.join(known)}")


def _parse_axis(text: str) -> tuple[str, list[Any]]:
    name, equals, values = text.partition("=")
    name = name.strip().replace("-", "_")
    parts = [part.strip() for part in values.split(",") if part.strip()]
    if not equals or not parts:
        raise ConfigError(f"--grid {text}: is not of the form name=a,b,c; name the values")
    _check_name(name)
    return name, [parse_value(name, part, "--grid") for part in parts]


def _list_of(name: str, values: Any) -> list[Any]:
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{name} = {values!r}: is not a list of values; give one, such as [1, 2]")
    return values


def _source_of(name: str, source: Any) -> list[Any] | Interval:
    if not isinstance(source, dict):
        return _list_of(name, source)
    try:
        return Interval(**source)
    except (ValidationError, TypeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise ConfigError(
            f"[random] {name} = {source}: {reason}; give a list, or "
            "{ low = 0.1, high = 2, log = true, whole = false }"
        ) from error
