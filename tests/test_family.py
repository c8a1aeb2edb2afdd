"""Candidates are compared by content; the base class of families keeps its promises."""

import json
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import CategoricalDistribution, FloatDistribution
from sklearn.dummy import DummyClassifier

from autometa.data import TaskType
from autometa.exceptions import FamilyUnavailable
from autometa.family import ALL_TASKS, Candidate, Forecast, MatrixShape, ModelFamily
from autometa.search_space import SearchSpace

CONFIGS = st.dictionaries(
    st.text("abc", min_size=1, max_size=3),
    st.one_of(st.integers(-9, 9), st.floats(-5, 5), st.booleans(), st.none(), st.sampled_from(["x", "y"])),
    max_size=4,
)


class Toy(ModelFamily):
    name = "toy"
    search_space = SearchSpace({"a": FloatDistribution(0.0, 1.0), "b": CategoricalDistribution(["x", "y"])})
    default_config = MappingProxyType({"a": 0.5, "b": "x"})
    presets = ({"b": "y"}, {"a": 0.5})

    def build(self, config, shape, *, random_state=0, n_threads=1):
        return DummyClassifier()


@settings(deadline=None)
@given(config=CONFIGS)
def test_equal_content_is_one_candidate(config):
    turned = dict(reversed(list(config.items())))
    one, two = Candidate("f", config), Candidate("f", turned)
    assert one == two
    assert hash(one) == hash(two)
    assert one.key == two.key
    assert len({one, two, Candidate("g", config)}) == 2


@settings(deadline=None)
@given(one=CONFIGS, two=CONFIGS)
def test_keys_tell_configurations_apart(one, two):
    same = json.dumps(one, sort_keys=True) == json.dumps(two, sort_keys=True)
    assert (Candidate("f", one) == Candidate("f", two)) is same


def test_key_is_canonical_text():
    assert Candidate("svm", {"b": 1, "a": None}).key == 'svm {"a": null, "b": 1}'
    numpy = {"n": np.int64(3), "x": np.float64(0.5), "f": np.bool_(True)}
    assert Candidate("m", numpy) == Candidate("m", {"n": 3, "x": 0.5, "f": True})
    assert Candidate("m") != "m {}"
    with pytest.raises(TypeError, match=r"must hold numbers, text, booleans or None\. Got {1}"):
        _ = Candidate("m", {"s": {1}}).key


def test_forecast_and_builder_are_not_identity():
    forecast = Forecast(0.9, 0.8, 0.95, 1.5)
    candidate = Candidate("toy", {"a": 1})
    assert candidate.with_forecast(forecast) == candidate
    assert candidate.with_forecast(forecast).forecast is forecast
    assert candidate.forecast is None


def test_build_needs_a_table():
    with pytest.raises(ValueError, match=r"does not know its table. Take it from a Selection \(select"):
        Candidate("toy").build()
    built = Candidate("toy", builder=lambda candidate: (candidate.family, "built")).build()
    assert built == ("toy", "built")


def test_pool_opens_with_default_and_presets():
    pool = Toy().pool(10)
    assert [dict(c.config) for c in pool[:2]] == [{"a": 0.5, "b": "x"}, {"a": 0.5, "b": "y"}]
    assert len(set(pool)) == len(pool)  # the second preset repeats the default
    for candidate in pool:
        Toy.search_space.validate(candidate.config)
    assert Toy().default_candidate() == pool[0]


@settings(deadline=None)
@given(short=st.integers(1, 20), more=st.integers(0, 20), seed=st.integers(0, 5))
def test_a_longer_pool_begins_with_the_shorter(short, more, seed):
    pool = Toy().pool(short, seed)
    assert len(pool) <= short
    assert Toy().pool(short + more, seed)[: len(pool)] == pool


def test_another_seed_is_another_pool():
    assert Toy().pool(10, seed=0)[2:] != Toy().pool(10, seed=1)[2:]


def test_a_family_without_hyperparameters_has_one_candidate():
    class Plain(Toy):
        search_space = SearchSpace({})
        default_config = MappingProxyType({})
        presets = ()

    assert Plain().pool(8) == [Candidate("toy")]


def test_what_is_not_installed():
    class Absent(Toy):
        requires = ("json", "no_such_module_anywhere")
        install_hint = "Install it with: pip install it"

    assert Toy().is_available()
    assert not Absent().is_available()
    with pytest.raises(FamilyUnavailable, match=r"'toy' needs json, no_such_module_anywhere\. Install it with: pip"):
        Absent().check_available()


def test_defaults_of_the_base_class():
    assert (Toy.version, Toy.matrix, Toy.tasks) == (1, "linear", ALL_TASKS)
    assert repr(Toy()) == "Toy()"
    assert MatrixShape(TaskType.BINARY, 10, 2) == MatrixShape(TaskType.BINARY, 10, 2, n_categorical=0)
    with pytest.raises(TypeError, match="abstract"):
        ModelFamily()
