"""The configurations that a sweep tries."""

from __future__ import annotations

import pytest

from dinoreg_rt.config.parameters import RegistrationConfig
from dinoreg_rt.config.texts import text_of
from dinoreg_rt.errors import ConfigError
from dinoreg_rt.sweep.space import config_hash, config_of, read_space

BASE = RegistrationConfig()


def write(tmp_path, text):
    file = tmp_path / "space.toml"
    file.write_text(text)
    return file


def test_grid_takes_all_combinations():
    space = read_space(None, ["smoothness=0.25,1", "iterations=40:20,80:40:10"], None, None)
    candidates = space.candidates()
    assert len(candidates) == 4
    assert candidates[1] == {"smoothness": 0.25, "iterations": [80, 40, 10]}
    assert config_of(BASE, candidates[1]).iterations == (80, 40, 10)


def test_names_may_be_written_as_options():
    space = read_space(None, ["search-spacing-mm=12,default", "intensity=on,off"], None, None)
    assert space.grid == {"search_spacing_mm": [12, None], "intensity": ["on", "off"]}


def test_random_draws_depend_on_the_seed_alone(tmp_path):
    file = write(
        tmp_path,
        "samples = 30\n[random]\nsmoothness = { low = 0.01, high = 10, log = true }\n"
        "fold_margin = [0.1, 0.2]\ninverse_consistency_rounds = {low = 2, high = 9, whole = true}",
    )
    draws = read_space(file, [], None, 7).candidates()
    assert draws == read_space(file, [], None, 7).candidates()
    assert draws != read_space(file, [], None, 8).candidates()
    assert len(draws) == 30
    values = [d["smoothness"] for d in draws]
    assert 0.01 <= min(values) < 0.1 < 1 < max(values) <= 10  # both ends of the logarithm
    assert {d["fold_margin"] for d in draws} == {0.1, 0.2}
    assert all(isinstance(d["inverse_consistency_rounds"], int) for d in draws)


def test_every_grid_point_with_every_draw_and_options_win(tmp_path):
    file = write(
        tmp_path,
        "samples = 9\n[grid]\nsmoothness = [1, 2, 3]\n[random]\n"
        "feature_scale = { low = 1, high = 2 }",
    )
    candidates = read_space(file, ["smoothness=5,6"], 4, None).candidates()
    assert len(candidates) == 8
    assert {c["smoothness"] for c in candidates} == {5, 6}


def test_equal_candidates_are_tried_once():
    assert len(read_space(None, ["smoothness=1,1,2"], None, None).candidates()) == 2


def test_without_a_space_the_base_configuration_is_scored():
    assert read_space(None, [], None, None).candidates() == [{}]


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("smothness=1", "'smothness' cannot be swept; choose from: .*smoothness"),
        ("device=cpu,cuda", "'device' cannot be swept"),
        ("smoothness", "is not of the form name=a,b,c"),
        ("smoothness=", "is not of the form name=a,b,c"),
        ("smoothness=much", "'much' is not a number"),
    ],
)
def test_wrong_grids(grid, message):
    with pytest.raises(ConfigError, match=message):
        read_space(None, [grid], None, None)


def test_a_name_given_twice_is_an_error():
    with pytest.raises(ConfigError, match="--grid iterations: given twice"):
        read_space(None, ["iterations=40:20,80:40", "smoothness=1", "iterations=10"], None, None)


def test_true_and_false_are_values():
    space = read_space(None, ["cache=true,false"], None, None)
    assert [config_of(BASE, c).cache for c in space.candidates()] == [True, False]
    assert text_of(True) == "true"
    with pytest.raises(ConfigError, match="'maybe' is neither true nor false"):
        read_space(None, ["cache=maybe"], None, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[random]\nsmoothness = { low = 2, high = 1 }", "not below high"),
        ("[random]\nsmoothness = { low = 0, high = 1, log = true }", "no logarithm"),
        ("[random]\nsmoothness = { low = 0, hihg = 1 }", "give a list, or"),
        ("[random]\nsmothness = [1]", "cannot be swept"),
        ("[grid]\nsmoothness = 1", "is not a list of values"),
        ("[gird]\nsmoothness = [1]", "unknown gird"),
        ("[grid]\nsmoothness = [1]\n[random]\nsmoothness = [2]", "both on the grid and random"),
        ("grid = ", "not a TOML file"),
    ],
)
def test_wrong_files(tmp_path, text, message):
    with pytest.raises(ConfigError, match=message):
        read_space(write(tmp_path, text), [], 3, None)


def test_random_parameters_need_samples(tmp_path):
    space = read_space(write(tmp_path, "[random]\nsmoothness = [1, 2]"), [], None, None)
    with pytest.raises(ConfigError, match="1 random parameters and 0 samples"):
        space.candidates()


def test_a_value_out_of_range_is_no_configuration():
    with pytest.raises(ConfigError, match="smoothness"):
        config_of(BASE, {"smoothness": -1})


def test_the_hash_holds_what_changes_the_result_and_nothing_else():
    def hash_of(**values):
        return config_hash(BASE.model_copy(update=values))

    assert hash_of(smoothness=0.9) != config_hash(BASE)
    assert hash_of(threads=3, inverse=True, trust=False, device="cpu") == config_hash(BASE)


@pytest.mark.parametrize("value", [0.25, 3, "on", [80, 40], None])
def test_values_are_written_as_they_are_typed(value):
    name = {"on": "intensity"}.get(str(value), "iterations" if value == [80, 40] else "")
    name = name or "search_spacing_mm"
    space = read_space(None, [f"{name}={text_of(value)}"], None, None)
    assert space.grid[name] == [value]
