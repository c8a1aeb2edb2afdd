"""Search spaces: configuration to unit vector and back, edges of logarithmic and integer ranges, Optuna trials."""

import json

import numpy as np
import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from autometa.search_space import SearchSpace

SPACE = SearchSpace(
    {
        "rate": FloatDistribution(1e-5, 10.0, log=True),
        "share": FloatDistribution(-1.0, 1.0),
        "step": FloatDistribution(0.0, 1.0, step=0.25),
        "size": IntDistribution(1, 1000, log=True),
        "depth": IntDistribution(2, 10, step=2),
        "kind": CategoricalDistribution(["a", "b", None]),
        "flag": CategoricalDistribution([False, True]),
    }
)
UNIT = st.floats(0.0, 1.0)


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_what_is_sampled_survives_a_round_trip(seed):
    config = SPACE.sample(np.random.default_rng(seed))
    SPACE.validate(config)
    assert SPACE.decode(SPACE.encode(config)) == config
    assert json.loads(json.dumps(config)) == config


@settings(deadline=None)
@given(vector=st.lists(UNIT, min_size=SPACE.n_dims, max_size=SPACE.n_dims))
def test_every_vector_decodes_to_an_allowed_configuration(vector):
    config = SPACE.decode(vector)
    SPACE.validate(config)
    assert SPACE.decode(SPACE.encode(config)) == config


@settings(deadline=None)
@given(
    low=st.floats(1e-8, 1e3), ratio=st.floats(1.0, 1e6), log=st.booleans(), unit=UNIT,
)  # fmt: skip
def test_float_ranges_of_any_width(low, ratio, log, unit):
    space = SearchSpace({"x": FloatDistribution(low, low * ratio, log=log)})
    config = space.decode([unit])
    space.validate(config)
    assert space.decode(space.encode(config))["x"] == pytest.approx(config["x"], rel=1e-9)


@settings(deadline=None)
@given(low=st.integers(1, 100), width=st.integers(0, 300), log=st.booleans(), data=st.data())
def test_every_integer_is_reached_and_kept(low, width, log, data):
    space = SearchSpace({"n": IntDistribution(low, low + width, log=log)})
    value = data.draw(st.integers(low, low + width))
    assert space.decode(space.encode({"n": value})) == {"n": value}


@pytest.mark.parametrize(
    ("distribution", "value", "unit"),
    [
        (FloatDistribution(0.01, 100, log=True), 0.01, 0.0),
        (FloatDistribution(0.01, 100, log=True), 1.0, 0.5),
        (FloatDistribution(0.01, 100, log=True), 100.0, 1.0),
        (FloatDistribution(2.0, 4.0), 3.5, 0.75),
        (FloatDistribution(2.0, 2.0), 2.0, 0.5),
        (IntDistribution(1, 4), 1, 0.125),  # half a step of room on each side
        (IntDistribution(1, 4), 4, 0.875),
        (IntDistribution(0, 10, step=5), 5, 0.5),
    ],
)
def test_hand_worked_positions(distribution, value, unit):
    space = SearchSpace({"x": distribution})
    assert space.encode({"x": value}) == pytest.approx([unit])
    assert space.decode([unit]) == {"x": pytest.approx(value)}


def test_integers_get_equal_shares():
    space = SearchSpace({"n": IntDistribution(1, 4)})
    counts = np.bincount([space.decode([u])["n"] for u in np.linspace(0, 1, 4001)[:-1]])
    assert counts[1:] == pytest.approx(1000, abs=2)


def test_types_and_ends():
    low, high = SPACE.decode(np.zeros(SPACE.n_dims)), SPACE.decode(np.ones(SPACE.n_dims))
    assert (low["rate"], low["size"], low["depth"], low["step"]) == (1e-5, 1, 2, 0.0)
    assert (high["rate"], high["size"], high["depth"], high["step"]) == (10.0, 1000, 10, 1.0)
    assert type(high["size"]) is int
    assert type(high["rate"]) is float
    assert SPACE.decode(np.full(SPACE.n_dims, 7.0)) == high  # beyond the cube: clipped


def test_values_outside_the_range_are_clipped_by_encode():
    outside = {**SPACE.decode(np.zeros(SPACE.n_dims)), "rate": 1e9, "size": 5_000}
    assert SPACE.encode(outside)[0] == 1.0
    assert SPACE.encode(outside).max() <= 1.0


def test_names_of_the_coordinates():
    assert SPACE.unit_names == (
        "rate", "share", "step", "size", "depth", "kind=a", "kind=b", "kind=None", "flag=False", "flag=True",
    )  # fmt: skip
    assert SPACE.n_dims == len(SPACE.unit_names)
    assert list(SPACE) == ["rate", "share", "step", "size", "depth", "kind", "flag"]


def test_from_cube_gives_choices_equal_slices():
    space = SearchSpace({"kind": CategoricalDistribution(["a", "b", "c", "d"])})
    found = [space.from_cube([u])["kind"] for u in (0.0, 0.24, 0.26, 0.74, 0.76, 1.0)]
    assert found == ["a", "a", "b", "c", "d", "d"]
    with pytest.raises(ValueError, match="zip"):
        space.from_cube([0.1, 0.2])


def test_an_empty_space_has_one_configuration():
    space = SearchSpace({})
    assert space.decode(space.encode({})) == {}
    assert space.sample(np.random.default_rng(0)) == {}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"rate": 11.0}, "'rate' must lie in .* Got 11.0"),
        ({"rate": "fast"}, "'rate' must lie in"),
        ({"rate": float("nan")}, "'rate' must lie in"),
        ({"kind": "z"}, "'kind' must lie in"),
        ({"depth": 3}, "'depth' must lie in"),
        ({"size": 0}, "'size' must lie in"),
        ({"colour": 1}, r"unknown: \['colour'\]"),
    ],
)
def test_validate_says_what_is_wrong(changes, match):
    config = SPACE.decode(np.full(SPACE.n_dims, 0.5))
    with pytest.raises(ValueError, match=match):
        SPACE.validate({**config, **changes})


def test_validate_names_what_is_missing():
    with pytest.raises(ValueError, match=r"Missing: \['depth', 'flag'"):
        SPACE.validate({"rate": 1.0, "share": 0.0})


def test_wrong_shape_and_wrong_distribution():
    with pytest.raises(ValueError, match=r"must have shape \(10,\). Got \(3,\)"):
        SPACE.decode([0.1, 0.2, 0.3])
    with pytest.raises(TypeError, match="distribution of 'x' must be"):
        SearchSpace({"x": (0.0, 1.0)})


def test_the_space_does_not_follow_its_source():
    source = {"x": FloatDistribution(0, 1)}
    space = SearchSpace(source)
    source["y"] = FloatDistribution(0, 1)
    assert list(space) == ["x"]
    with pytest.raises(TypeError):
        space["y"] = FloatDistribution(0, 1)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000))
def test_optuna_trials_are_asked_under_the_prefix(seed):
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    trial = study.ask()
    config = SPACE.suggest(trial, prefix="model.")
    SPACE.validate(config)
    assert trial.params == {f"model.{name}": value for name, value in config.items()}
    fixed = optuna.trial.FixedTrial({f"model.{name}": value for name, value in config.items()})
    assert SPACE.suggest(fixed, prefix="model.") == config


def test_canonical_configurations_survive_json():
    space = SearchSpace({"C": FloatDistribution(0.1, 10.0), "k": IntDistribution(1, 9)})
    read = json.loads('{"k": 3, "C": 1}')
    assert space.canonical(read) == {"C": 1.0, "k": 3}
    assert json.dumps(space.canonical(read)) == '{"C": 1.0, "k": 3}'
