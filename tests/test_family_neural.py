"""The neural families end to end: what they can learn, what they keep, what they say."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.base import clone

from autometa.data import TaskType
from autometa.exceptions import ArtefactError
from autometa.families._net_config import hold_out, make_plan
from autometa.families._net_estimators import NetClassifier, NetRegressor
from autometa.families.neural import MLP, TabM
from autometa.family import MatrixShape

FAMILIES = [MLP(), TabM()]
QUICK = {"n_epochs": 16, "width": 32}


def make_matrix(n: int = 200, seed: int = 0) -> np.ndarray:
    """Two columns of codes, three numeric columns, one 0/1 column."""
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(0, 5, n), rng.integers(0, 3, n)], 1)
    indicator = rng.integers(0, 2, n)[:, None]
    return np.hstack([codes, rng.normal(size=(n, 3)), indicator]).astype(np.float32)


def make_estimator(family, task: TaskType, n_rows: int = 200, n_classes: int = 2, n_categorical: int = 2, **changes):
    members = {"n_members": 4} if family.name == "tabm" else {}
    shape = MatrixShape(task, n_rows, n_classes if task.is_classification else 0, n_categorical)
    return family.build({**family.default_config, **QUICK, **members, **changes}, shape)


def by_id(family) -> str:
    return family.name


@pytest.mark.parametrize("family", FAMILIES, ids=by_id)
class TestFamily:
    def test_default_and_presets_lie_in_the_search_space(self, family):
        configs = [family.default_config, *({**family.default_config, **p} for p in family.presets)]
        for config in configs:
            family.search_space.validate(config)
        assert len(family.pool(40)) == 40

    @pytest.mark.parametrize("task", list(TaskType))
    def test_predictions_have_the_right_form(self, family, task):
        X, rng = make_matrix(), np.random.default_rng(1)
        n_classes = {TaskType.BINARY: 2, TaskType.MULTICLASS: 4, TaskType.REGRESSION: 0}[task]
        y = rng.integers(0, n_classes, 200) if n_classes else rng.normal(size=200)
        estimator = make_estimator(family, task, n_classes=n_classes).fit(X, y)
        assert estimator.predict(X).shape == (200,)
        if n_classes:
            probabilities = estimator.predict_proba(X)
            assert probabilities.shape == (200, n_classes)
            np.testing.assert_allclose(probabilities.sum(1), 1.0)
            assert set(estimator.predict(X)) <= set(estimator.classes_)

    def test_configurations_from_the_pool_fit(self, family):
        X = make_matrix(80)
        y = (X[:, 2] > 0).astype(int)
        for candidate in family.pool(16)[-3:]:
            config = {**candidate.config, "n_epochs": 16, "width": 32}
            shape = MatrixShape(TaskType.BINARY, 80, 2, 2)
            assert np.isfinite(family.build(config, shape).fit(X, y).predict_proba(X)).all()

    def test_learns_xor(self, family):
        X = np.random.default_rng(0).normal(size=(500, 2)).astype(np.float32)
        y = (X[:, 0] > 0) ^ (X[:, 1] > 0)
        estimator = make_estimator(family, TaskType.BINARY, n_categorical=0, n_epochs=40, width=64)
        assert estimator.fit(X[:400], y[:400]).score(X[400:], y[400:]) > 0.9

    def test_learns_a_sine_on_a_far_scale(self, family):
        X = np.random.default_rng(0).uniform(-2, 2, size=(500, 1)).astype(np.float32)
        y = 1e6 + 1e4 * np.sin(3 * X[:, 0])
        estimator = make_estimator(family, TaskType.REGRESSION, n_categorical=0, n_epochs=40, width=64)
        assert estimator.fit(X[:400], y[:400]).score(X[400:], y[400:]) > 0.9

    def test_learns_a_rule_of_categories(self, family):
        rng = np.random.default_rng(0)
        X = np.stack([rng.integers(1, 9, 500), rng.integers(1, 4, 500)], 1).astype(np.float32)
        y = np.isin(X[:, 0], [2, 3, 7]) & (X[:, 1] != 2)
        estimator = make_estimator(family, TaskType.BINARY, n_epochs=40, width=64)
        assert estimator.fit(X[:400], y[:400]).score(X[400:], y[400:]) > 0.95

    def test_same_seed_same_predictions(self, family):
        X = make_matrix()
        y = (X[:, 2] + X[:, 3] > 0).astype(int)
        estimator = make_estimator(family, TaskType.BINARY)
        first = estimator.fit(X, y).predict_proba(X)
        np.testing.assert_array_equal(first, estimator.fit(X, y).predict_proba(X))
        np.testing.assert_array_equal(first, clone(estimator).fit(X, y).predict_proba(X))
        other = clone(estimator).set_params(random_state=1).fit(X, y).predict_proba(X)
        assert not np.array_equal(first, other)

    @pytest.mark.parametrize("embedding", ["none", "piecewise_linear", "periodic"])
    @pytest.mark.parametrize("task", [TaskType.MULTICLASS, TaskType.REGRESSION])
    def test_state_is_plain_data_and_predictions_are_bit_equal(self, family, embedding, task):
        X, rng = make_matrix(), np.random.default_rng(2)
        y = rng.choice(["a", "b", "c"], 200) if task.is_classification else rng.normal(size=200)
        estimator = make_estimator(family, task, numerical_embedding=embedding, n_epochs=16).fit(X, y)
        header, arrays = estimator.to_state()
        header = json.loads(json.dumps(header, allow_nan=False))
        again = type(estimator).from_state(header, {name: value.copy() for name, value in arrays.items()})
        method = "predict_proba" if task.is_classification else "predict"
        np.testing.assert_array_equal(getattr(estimator, method)(X), getattr(again, method)(X))
        np.testing.assert_array_equal(estimator.predict(X), again.predict(X))


def test_listing_the_families_imports_no_torch():
    code = "import sys; from autometa.families.neural import MLP, TabM; MLP().pool(20), TabM().pool(20);"
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_saved_net_needs_no_optuna():
    code = "import sys, autometa.families._net_estimators; sys.exit('optuna' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop"])
@pytest.mark.parametrize("schedule", ["constant", "cosine", "one_cycle", "coslog4"])
def test_every_optimizer_and_schedule_learns(optimizer, schedule):
    X = make_matrix(160)
    y = (X[:, 2] + X[:, 3] > 0).astype(int)
    rate = 0.1 if optimizer == "sgd" else 0.005
    changes = {"optimizer": optimizer, "schedule": schedule, "learning_rate": rate, "n_epochs": 20}
    assert make_estimator(MLP(), TaskType.BINARY, **changes).fit(X, y).score(X, y) > 0.85


def test_codes_never_seen_are_read_as_unknown():
    X = make_matrix()
    estimator = make_estimator(MLP(), TaskType.BINARY).fit(X, X[:, 2] > 0)
    unknown, new, negative = X.copy(), X.copy(), X.copy()
    unknown[:, 0], new[:, 0], negative[:, 0] = 0, 77, -1
    np.testing.assert_array_equal(estimator.predict_proba(unknown), estimator.predict_proba(new))
    np.testing.assert_array_equal(estimator.predict_proba(unknown), estimator.predict_proba(negative))


def test_constant_columns_are_left_out():
    X = make_matrix()
    y = X[:, 2] > 0
    wide = np.hstack([X, np.full((200, 2), 0.5, dtype=np.float32)])
    narrow = make_estimator(MLP(), TaskType.BINARY).fit(X, y).predict_proba(X)
    np.testing.assert_array_equal(narrow, make_estimator(MLP(), TaskType.BINARY).fit(wide, y).predict_proba(wide))
    only = np.ones((200, 1), dtype=np.float32)
    proba = make_estimator(MLP(), TaskType.BINARY, n_categorical=0).fit(only, y).predict_proba(only)
    assert proba[0, 1] == pytest.approx(y.mean(), abs=0.1)


def test_tiny_tables_train_on_all_rows():
    X = make_matrix(20)
    y = (X[:, 2] > 0).astype(int)
    estimator = make_estimator(MLP(), TaskType.BINARY, n_rows=20).fit(X, y)
    assert estimator.result_.validation_loss == ()
    assert estimator.result_.stop_reason == "n_epochs"
    assert make_estimator(MLP(), TaskType.BINARY, n_rows=2).fit(X[:2], [0, 1]).predict(X).shape == (20,)


def test_constant_target_and_clipped_predictions():
    X = make_matrix()
    np.testing.assert_allclose(make_estimator(MLP(), TaskType.REGRESSION).fit(X, np.full(200, 3.0)).predict(X), 3.0)
    y = X[:, 2].astype(float)
    far = X.copy()
    far[:, 2] = 1e4
    predicted = make_estimator(MLP(), TaskType.REGRESSION).fit(X, y).predict(far)
    assert predicted.max() <= y.max() + 0.1 * np.ptp(y) + 1e-9


def test_sample_weights_choose_the_rows():
    X = make_matrix(400)
    y = (X[:, 2] > 0).astype(int)
    y[200:] = 1 - y[200:]
    weight = np.repeat([1.0, 0.0], 200)
    estimator = make_estimator(MLP(), TaskType.BINARY, n_epochs=30).fit(X, y, sample_weight=weight)
    assert estimator.score(X[:200], y[:200]) > 0.9


@pytest.mark.parametrize("n", [60, 61, 350, 2_500])
@pytest.mark.parametrize("seed", [0, 1])
def test_hold_out_is_stratified_and_keeps_every_class(n, seed):
    y = np.zeros(n, dtype=int)
    y[: n // 4], y[-1] = 1, 2
    train, held = hold_out(y, stratify=True, seed=seed)
    fraction = 0.20 if n <= 2_000 else 0.15
    assert sorted([*train, *held]) == list(range(n))
    assert len(held) == pytest.approx(fraction * n, abs=3)
    assert (y[held] == 1).sum() == pytest.approx(fraction * (n // 4), abs=2)
    assert set(y[train]) == {0, 1, 2}
    plain_train, plain_held = hold_out(y, stratify=False, seed=seed)
    assert len(plain_train) + len(plain_held) == n


def test_caps_of_the_plan():
    assert len(hold_out(np.zeros(200_000), stratify=False, seed=0)[1]) == 10_000
    config = dict(MLP.default_config, batch_size=256, n_epochs=128)
    assert make_plan(config, 100, early_stopping=True).batch_size == 16
    assert make_plan(config, 800, early_stopping=True).batch_size == 100
    large = make_plan(config, 1_000_000, early_stopping=False)
    assert (large.batch_size, large.patience) == (256, None)
    assert large.n_epochs * 1_000_000 / 256 <= 30_000


def test_the_estimator_says_where_and_how_it_trained():
    X = make_matrix()
    estimator = make_estimator(MLP(), TaskType.BINARY).fit(X, X[:, 2] > 0)
    assert estimator.device_.device == "cpu"
    assert estimator.device_.reason
    assert estimator.result_.n_epochs == len(estimator.result_.train_loss)


def test_threads_are_as_before(monkeypatch):
    X, seen, before = make_matrix(60), [], torch.get_num_threads()
    monkeypatch.setattr(torch, "set_num_threads", seen.append)
    estimator = NetClassifier(config={"n_epochs": 1}, n_threads=before + 1).fit(X, X[:, 2] > 0)
    estimator.predict(X)
    assert seen == [before + 1, before] * 2


@pytest.mark.parametrize(
    ("parameters", "X", "y", "match"),
    [
        ({"net": "cnn"}, np.ones((4, 2)), [0, 1, 0, 1], "net must be one of"),
        ({"config": {"depth": 3}}, np.ones((4, 2)), [0, 1, 0, 1], "must name some of"),
        ({"n_categorical": 3}, np.ones((4, 2)), [0, 1, 0, 1], "n_categorical must lie in"),
        ({}, np.full((4, 2), np.nan), [0, 1, 0, 1], "X must be finite"),
        ({}, np.ones(4), [0, 1, 0, 1], "X must be a matrix"),
        ({}, np.ones((4, 2)), [1, 1, 1, 1], "at least 2 classes"),
        ({}, np.ones((4, 2)), [0, 1], "y must have one value per row"),
    ],
)
def test_bad_input(parameters, X, y, match):
    with pytest.raises(ValueError, match=match):
        NetClassifier(**parameters).fit(X, y)


def test_bad_regression_target_width_and_state():
    X = make_matrix()
    with pytest.raises(ValueError, match="target must be finite"):
        NetRegressor().fit(X, np.full(200, np.inf))
    estimator = make_estimator(MLP(), TaskType.BINARY).fit(X, X[:, 2] > 0)
    with pytest.raises(ValueError, match="must have 6 columns"):
        estimator.predict(X[:, :5])
    header, arrays = estimator.to_state()
    with pytest.raises(ArtefactError, match="must be a NetRegressor"):
        NetRegressor.from_state(header, arrays)
    arrays["weights.output.bias"] = np.zeros(7, dtype=np.float32)
    with pytest.raises(ArtefactError, match="cannot be restored"):
        NetClassifier.from_state(header, arrays)
