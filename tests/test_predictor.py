"""The predictor: members averaged by weight, classes in their own form, forests as arrays."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.linear_model import LogisticRegression, Ridge

from autometa.data import ColumnKind, Dataset, TaskType
from autometa.exceptions import ArtefactError, DataError
from autometa.fitting import FittedModel
from autometa.frozen_models import FrozenForest, FrozenHistogram, freeze
from autometa.predictor import Member, Predictor, make_predictor, schema_of
from autometa.preprocessing import encode_dataset


def table(n_rows: int = 120, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "size": rng.normal(size=n_rows),
            "town": rng.choice(["Rome", "Oslo", "Łódź"], n_rows),
            "rooms": rng.integers(1, 6, n_rows),
            "sold": pd.date_range("2020-01-01", periods=n_rows, freq="D"),
        }
    )
    frame.loc[::7, "size"] = np.nan
    return frame


def labels(frame: pd.DataFrame) -> pd.Series:
    return pd.Series(np.where(frame["size"].fillna(0) + (frame["rooms"] > 3) > 0.5, "yes", "no"), dtype=object)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    frame = table()
    return Dataset.from_arrays(frame, labels(frame))


@pytest.fixture(scope="module")
def parts(dataset):
    encoders = {kind: encode_dataset(dataset, kind) for kind in ("tree", "linear")}
    forest = RandomForestClassifier(7, random_state=0).fit(encoders["tree"][1], dataset.y)
    line = LogisticRegression().fit(encoders["linear"][1], dataset.y)
    members = (Member("random_forest", {}, "tree", (forest,), 3.0), Member("linear", {"C": 1.0}, "linear", (line,)))
    return {kind: encoder for kind, (encoder, _) in encoders.items()}, members, (forest, line)


def test_is_the_weighted_mean_of_its_members(dataset, parts):
    encoders, members, (forest, line) = parts
    predictor = make_predictor(dataset, members, encoders=encoders)
    expected = 0.75 * forest.predict_proba(encoders["tree"].transform(dataset.X))
    expected += 0.25 * line.predict_proba(encoders["linear"].transform(dataset.X))
    assert np.allclose(predictor.predict_proba(dataset.X), expected, atol=1e-12)
    assert np.allclose(predictor.predict_proba(dataset.X).sum(axis=1), 1.0)
    assert set(predictor.predict(dataset.X)) <= {"yes", "no"}
    assert (predictor.predict(dataset.X) == dataset.classes[expected.argmax(axis=1)]).all()


def test_order_of_columns_and_further_ones_do_not_matter(dataset, parts):
    encoders, members, _ = parts
    predictor = make_predictor(dataset, members, encoders=encoders)
    shuffled = dataset.X[["rooms", "sold", "town", "size"]].assign(extra=1)
    assert np.array_equal(predictor.predict_raw(shuffled), predictor.predict_raw(dataset.X))
    with pytest.raises(DataError, match="town"):
        predictor.predict_raw(dataset.X.drop(columns="town"))


def test_a_row_alone_gets_the_bits_it_gets_among_others(dataset, parts):
    encoders, members, _ = parts
    predictor = make_predictor(dataset, members[:1], encoders=encoders)
    whole = predictor.predict_raw(dataset.X)
    for row in (0, 7, 50):
        assert np.array_equal(predictor.predict_raw(dataset.X.iloc[[row]]), whole[[row]])
    assert predictor.predict_raw(dataset.X.iloc[:0]).shape == (0, 2)


def test_members_without_weight_are_not_asked(dataset, parts):
    encoders, members, _ = parts

    class Bomb:
        def predict_proba(self, X):
            raise AssertionError("asked")

    silent = Member("bomb", {}, "net", (Bomb(),), 0.0)
    predictor = make_predictor(dataset, (*members, silent), encoders={**encoders, "net": encoders["tree"]})
    assert predictor.predict(dataset.X).shape == (dataset.n_rows,)


def test_a_fold_model_that_missed_a_class_gives_it_nothing():
    X = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    y = np.repeat([0, 1, 2], 20)
    whole, part = LogisticRegression().fit(X, y), LogisticRegression().fit(X[y != 1], y[y != 1])
    found = Member("linear", {}, "linear", (whole, part)).predict_raw(X, 3)
    assert np.allclose(found[:, 1], whole.predict_proba(X)[:, 1] / 2)
    assert np.allclose(found.sum(axis=1), 1.0)


def test_a_fitted_model_says_which_classes_its_estimator_numbers():
    X = np.random.default_rng(0).normal(size=(60, 2)).astype(np.float32)
    y = np.repeat([0, 1, 2], 20)
    estimator = LogisticRegression().fit(X[y != 1], y[y != 1] // 2)
    member = Member("linear", {}, "linear", (FittedModel(estimator, np.array([0, 2]), 3),))
    assert member.class_codes == ((0, 2),)
    assert np.array_equal(member.predict_raw(X, 3)[:, [0, 2]], estimator.predict_proba(X))


def test_regression_averages_values():
    frame = table()
    dataset = Dataset.from_arrays(frame, frame["size"].fillna(0) * 3.0 + frame["rooms"] / 7, task="regression")
    encoder, X = encode_dataset(dataset, "linear")
    models = tuple(Ridge(alpha).fit(X, dataset.y) for alpha in (0.1, 10.0))
    predictor = make_predictor(dataset, (Member("linear", {}, "linear", models),), encoders={"linear": encoder})
    assert np.allclose(predictor.predict(frame), np.mean([m.predict(X) for m in models], axis=0))
    with pytest.raises(AttributeError, match="classification"):
        predictor.predict_proba(frame)


@given(st.floats(0.2, 5.0))
@settings(max_examples=20, deadline=None)
def test_temperature_keeps_the_order_and_the_sum(temperature):
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([0.5] * 4, size=30)
    model = LogisticRegression().fit(rng.normal(size=(30, 2)), np.arange(30) % 4)
    predictor = Predictor(
        (Member("x", {}, "tree", (model,)),), {"tree": None}, TaskType.MULTICLASS, (), np.arange(4), temperature
    )
    found = predictor._calibrate(probabilities)
    assert np.allclose(found.sum(axis=1), 1.0)
    assert (found.argmax(axis=1) == probabilities.argmax(axis=1)).all()


@pytest.mark.parametrize("change", ["members", "encoders", "classes", "temperature"])
def test_parts_that_do_not_fit_are_refused(dataset, parts, change):
    encoders, members, _ = parts
    good = {"members": members, "encoders": encoders, "classes": dataset.classes, "temperature": 1.0}
    bad = {"members": (), "encoders": {"tree": encoders["tree"]}, "classes": None, "temperature": 0.0}
    with pytest.raises(ValueError):
        Predictor(**{**good, change: bad[change]}, task=dataset.task, columns=())


def test_schema_knows_kinds_dtypes_and_categories(dataset):
    columns = {column.name: column for column in schema_of(dataset.X, dataset.kinds)}
    assert columns["town"].kind is ColumnKind.CATEGORICAL
    assert columns["town"].categories == ("Oslo", "Rome", "Łódź")
    assert columns["rooms"].dtype == "int64"
    assert columns["sold"].kind is ColumnKind.DATETIME


FORESTS = [RandomForestClassifier, ExtraTreesClassifier, RandomForestRegressor, ExtraTreesRegressor]


@pytest.mark.parametrize("forest", FORESTS)
@pytest.mark.parametrize("missing", [False, True])
def test_a_frozen_forest_has_the_bits_of_scikit_learn(forest, missing):
    rng = np.random.default_rng(1)
    X = rng.normal(size=(400, 6)).astype(np.float32)
    y = rng.integers(0, 3, 400) if "Classifier" in forest.__name__ else rng.normal(size=400)
    if missing:
        X[rng.random(X.shape) < 0.1] = np.nan
    model = forest(20, min_samples_leaf=2, random_state=0, n_jobs=1).fit(X, y)
    frozen, new = freeze(model), rng.normal(size=(300, 6)).astype(np.float32)
    new[rng.random(new.shape) < 0.2] = np.nan
    name = "predict_proba" if "Classifier" in forest.__name__ else "predict"
    assert np.array_equal(getattr(frozen, name)(new), getattr(model, name)(new))
    assert np.array_equal(getattr(frozen, name)(new[:1]), getattr(model, name)(new[:1]))


def coded(n_rows: int, rng: np.random.Generator, missing: bool) -> np.ndarray:
    """Two columns of category codes, the first with gaps, and three of numbers."""
    X = rng.normal(size=(n_rows, 5)).astype(np.float32)
    X[:, 0] = 7 * rng.integers(0, 9, n_rows) - 1
    X[:, 1] = rng.integers(-1, 4, n_rows)
    if missing:
        X[rng.random(X.shape) < 0.1] = np.nan
    return X


@pytest.mark.parametrize("n_classes", [0, 2, 4])
@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("categorical", [None, [0, 1]])
def test_a_frozen_histogram_has_the_bits_of_scikit_learn(n_classes, missing, categorical):
    rng = np.random.default_rng(2)
    X = coded(400, rng, missing)
    score = np.nan_to_num(X[:, 2]) + 2.0 * (X[:, 0] == 20) - (X[:, 1] == -1)
    y = score if n_classes == 0 else np.searchsorted(np.quantile(score, np.linspace(0, 1, n_classes + 1)[1:-1]), score)
    face = HistGradientBoostingRegressor if n_classes == 0 else HistGradientBoostingClassifier
    model = face(max_iter=15, categorical_features=categorical, max_features=0.7, random_state=0).fit(X, y)
    frozen, new = freeze(model), coded(300, rng, True)
    assert isinstance(frozen, FrozenHistogram)
    new[:4, 0] = [1000, -3, 5, 0.5]  # codes that were never seen
    name = "predict_proba" if n_classes else "predict"
    for rows in (X, new, new[:1]):
        assert np.array_equal(getattr(frozen, name)(rows), getattr(model, name)(rows))
    again = FrozenHistogram.from_state(frozen.to_state())
    assert np.array_equal(again.predict(new), model.predict(new))


@given(
    st.integers(0, 10_000),
    st.sampled_from(["left", "right", "feature", "bitset", "starts"]),
    st.integers(-5, 2**31 - 1),
)
@settings(max_examples=60, deadline=None)
def test_nodes_of_boosted_trees_are_checked_before_they_are_walked(place, name, value):
    X = coded(120, np.random.default_rng(0), True)
    model = HistGradientBoostingRegressor(max_iter=3, categorical_features=[0, 1]).fit(
        X, np.nan_to_num(X[:, 2] + X[:, 1])
    )
    state = FrozenHistogram.from_estimator(model).to_state()
    state["nodes"] = {key: array.copy() for key, array in state["nodes"].items()}
    array = state["starts"].copy() if name == "starts" else state["nodes"][name]
    array[place % len(array)] = value
    state["starts"] = array if name == "starts" else state["starts"]
    try:
        frozen = FrozenHistogram.from_state(state)
    except ArtefactError:
        return
    assert frozen.predict(X).shape == (120,)


@given(st.integers(0, 10_000), st.sampled_from(["left", "right", "feature", "starts"]), st.integers(-5, 2**31 - 1))
@settings(max_examples=80, deadline=None)
def test_nodes_that_form_no_tree_are_refused_before_they_are_walked(place, name, value):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 3)).astype(np.float32)
    state = FrozenForest.from_estimator(RandomForestRegressor(3, random_state=0).fit(X, X[:, 0])).to_state()
    state[name] = state[name].copy()
    state[name][place % len(state[name])] = value
    try:
        forest = FrozenForest.from_state(state)
    except ArtefactError:
        return
    assert forest.predict(X).shape == (40,)


def test_freezing_twice_is_freezing_once():
    X = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    frozen = freeze(RandomForestRegressor(2, random_state=0).fit(X, X[:, 0]))
    assert freeze(frozen) is frozen
    with pytest.raises(ValueError, match="2 columns"):
        frozen.predict(X[:, :1])
