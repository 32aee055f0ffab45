"""`RegistrationConfig`: its sources, their order, and the messages about wrong values."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dinoreg_rt.config.files import preset_names
from dinoreg_rt.config.parameters import RegistrationConfig, checked_config
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


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("iteration", "did you mean iterations?"),
        ("field-smoothing", "did you mean field_smoothing?"),
        ("zzz", "'dinoreg-rt run --help' lists them"),
    ],
)
def test_unknown_option_names_the_file_and_the_nearest(
    tmp_path: Path, name: str, said: str
) -> None:
    file = toml(tmp_path, f"{name} = 3\n")
    with pytest.raises(ConfigError) as error:
        RegistrationConfig.from_sources(None, file)
    assert str(error.value) == f"{file}: unknown option '{name}'; {said}"


def test_messages_name_the_source_of_a_value(tmp_path: Path) -> None:
    file = toml(tmp_path, "smoothness = -1\nfold_margin = 3.0\n")
    with pytest.raises(ConfigError) as error:
        RegistrationConfig.from_sources(
            None, file, {"smoothness": -2.0}, {"smoothness": "--smoothness"}
        )
    assert str(error.value) == (
        "--smoothness -2: wanted a number from 0 up to 10000; "
        f"{file}: fold_margin = 3: wanted a number from 0 below 1"
    )


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    file = tmp_path / "parameters.toml"
    file.write_bytes(b"\xef\xbb\xbfsmoothness = 2\n")
    assert RegistrationConfig.from_sources(None, file).smoothness == 2


def test_numpy_and_whole_numbers_are_numbers() -> None:
    config = RegistrationConfig(
        smoothness=np.float32(2),
        iterations=np.array([8, 4]).tolist(),
        threads=np.int64(2),
        fold_margin=0,
        inverse=np.bool_(True),
    )
    assert (config.smoothness, config.iterations, config.threads) == (2.0, (8, 4), 2)
    assert config.inverse is True


@pytest.mark.parametrize(
    "make",
    [
        lambda: RegistrationConfig(smothness=1),
        lambda: RegistrationConfig.model_validate({"smothness": 1}),
        lambda: RegistrationConfig.model_validate_json('{"smothness": 1}'),
        lambda: RegistrationConfig.from_sources(overrides={"smothness": 1}),
        lambda: checked_config(RegistrationConfig().model_copy(update={"smothness": 1})),
    ],
)
def test_every_way_to_make_one_raises_our_error(make: Callable[[], object]) -> None:
    with pytest.raises(ConfigError, match="unknown option 'smothness'; did you mean smoothness"):
        make()


def test_values_must_be_a_mapping() -> None:
    with pytest.raises(ConfigError, match="a mapping of names to values; got int"):
        RegistrationConfig.model_validate(3)


def test_nothing_to_compare_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"correlation_weight = 0: with a feature weight of 0"):
        RegistrationConfig(feature_weight=0, correlation_weight=0)
    assert RegistrationConfig(feature_weight=0).feature_weight == 0
    assert RegistrationConfig(correlation_weight=0).correlation_weight == 0


def test_copies_and_pickles_are_equal() -> None:
    config = RegistrationConfig(iterations=(3, 2), encoder="x")
    for other in (pickle.loads(pickle.dumps(config)), copy.deepcopy(config), config.model_copy()):
        assert other == config
    assert checked_config(config) == config


def test_checked_config_refuses_anything_else() -> None:
    with pytest.raises(ConfigError, match=r"config is a dict; .* RegistrationConfig\(\*\*config\)"):
        checked_config({"smoothness": 1})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="smoothness = -5: wanted a number from 0"):
        checked_config(RegistrationConfig().model_copy(update={"smoothness": -5}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "iterations = [-1]",
            r"iterations = -1: wanted 1 to 6 values, each a whole number from 0 up to",
        ),
        # Values of another kind are not converted.
        ("smoothness = true", "smoothness = true: wanted a number from 0 up to 10000"),
        ("smoothness = '1'", "smoothness = 1: wanted a number"),
        ("iterations = [true, 2]", "iterations = true,2: wanted 1 to 6 values"),
        ("ct_window_hu = ['0', '1']", "ct_window_hu = 0,1: wanted 2 values, each a number"),
        ("inverse = 'yes'", "inverse = yes: wanted true or false"),
        ("inverse = 1", "inverse = 1: wanted true or false"),
        ("encoder = 1", "encoder = 1: wanted"),
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
    with pytest.raises(ConfigError, match=r"no preset 'none'; choose one of balanced, .*mind"):
        RegistrationConfig.from_sources("none")
