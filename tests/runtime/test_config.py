"""`RegistrationConfig`: sources, their order, and messages that help."""

from __future__ import annotations

from pathlib import Path

import pytest

from dinoreg_rt.config import RegistrationConfig, preset_names
from dinoreg_rt.errors import ConfigError


def toml(folder: Path, text: str) -> Path:
    file = folder / "parameters.toml"
    file.write_text(text)
    return file


def test_later_source_wins(tmp_path: Path) -> None:
    file = toml(tmp_path, "iterations = [7]\nsmoothness = 2.5\n")
    config = RegistrationConfig.from_sources("mind", file, {"iterations": (9, 4)})
    assert (config.iterations, config.smoothness) == ((9, 4), 2.5)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_is_valid(name: str) -> None:
    assert isinstance(RegistrationConfig.from_sources(name), RegistrationConfig)


def test_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        RegistrationConfig().iterations = (1,)  # type: ignore[misc]


def test_every_field_has_a_description() -> None:
    missing = [n for n, f in RegistrationConfig.model_fields.items() if not f.description]
    assert not missing


def test_unknown_option_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"unknown option 'iteration'; known are: .*iterations"):
        RegistrationConfig.from_sources(None, toml(tmp_path, "iteration = [3]\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "iterations = [-1]",
            r"iterations = -1: wanted 1 to 6 values, each a whole number from 0 up to",
        ),
        ("working_megavoxels = inf", r"working_megavoxels = inf"),
        ("iterations = 'many'", r"iterations = many: wanted 1 to 6 values"),
        ("iterations = = 3", "not a TOML file"),
        ("feature_similarity = 'ncc'", r"feature_similarity = ncc: wanted mse, cosine or lncc"),
        (
            "feature_similarity = 'lncc'\ntrust_cost = 2.0",
            "trust_cost = 2: wanted 0 with the feature similarity lncc, which has no cost",
        ),
    ],
)
def test_wrong_values(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RegistrationConfig.from_sources(None, toml(tmp_path, text))


def test_not_utf8(tmp_path: Path) -> None:
    file = tmp_path / "parameters.toml"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not a TOML file"):
        RegistrationConfig.from_sources(None, file)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        RegistrationConfig.from_sources(None, tmp_path / "none.toml")


def test_unknown_preset_lists_the_presets() -> None:
    with pytest.raises(ConfigError, match=r"no preset 'none'; there are: balanced, .*mind"):
        RegistrationConfig.from_sources("none")
