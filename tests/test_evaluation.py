"""evaluate: scores that can be recomputed, limits that hold, and a status instead of an exception."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
import warnings
from concurrent.futures import CancelledError, wait
from types import MappingProxyType

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import accuracy_score, make_scorer
from sklearn.model_selection import KFold, ShuffleSplit

from autometa.data import Dataset, TaskType
from autometa.evaluation import Evaluator, evaluate
from autometa.family import CLASSIFICATION_TASKS, Candidate, ModelFamily
from autometa.fitting import fit_model
from autometa.metrics import METRICS, task_metrics
from autometa.records import Status
from autometa.search_space import SearchSpace
from autometa.workers import WorkerPool


class Toy(ModelFamily):
    """Linear models, the fast ones."""

    name = "toy"
    search_space = SearchSpace({})
    default_config = MappingProxyType({})

    def build(self, config, shape, *, random_state=0, n_threads=1):
        return LogisticRegression(**config) if shape.task.is_classification else LinearRegression()


class Prior(Toy):
    name = "prior"

    def build(self, config, shape, *, random_state=0, n_threads=1):
        return DummyClassifier() if shape.task.is_classification else DummyRegressor()


class Misbehaving(ClassifierMixin, BaseEstimator):
    """Does what it is told to; sleeps only where it is fitted on many rows."""

    def __init__(self, deed="nothing", seconds=0.0, many=0):
        self.deed = deed
        self.seconds = seconds
        self.many = many

    def fit(self, X, y):
        self.n_classes_ = len(np.unique(y))
        time.sleep(self.seconds if len(X) >= self.many else 0.0)
        if self.deed == "raise":
            raise ValueError("the model does\nnot like it")
        if self.deed == "warn":
            warnings.warn("noise", UserWarning, stacklevel=2)
        if self.deed == "exit":
            os._exit(5)
        if self.deed == "hog":
            self.kept_ = []
            for _ in range(100):
                self.kept_.append(np.ones(2_000_000))
                time.sleep(0.01)
        return self

    def predict_proba(self, X):
        if self.deed == "shape":
            return np.ones((len(X), self.n_classes_ + 1))
        value = np.nan if self.deed == "nan" else 1 / self.n_classes_
        return np.full((len(X), self.n_classes_), value)


class Trouble(Toy):
    name = "trouble"
    tasks = CLASSIFICATION_TASKS

    def build(self, config, shape, *, random_state=0, n_threads=1):
        return Misbehaving(**config)


class Missing(Toy):
    name = "missing"
    requires = ("no_such_module",)
    install_hint = "Install it."


FAMILIES = (Toy(), Prior(), Trouble(), Missing())
TOY, PRIOR = Candidate("toy"), Candidate("prior")


def trouble(**config):
    return Candidate("trouble", config)


def table(n_rows=120, task="binary", seed=0, **options):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n_rows, 4))
    signal = X[:, 0] + 0.5 * rng.normal(size=n_rows)
    if task == "regression":
        y = signal
    else:
        y = np.digitize(signal, [0.0] if task == "binary" else [-0.5, 0.5])
    return Dataset.from_arrays(X, y, task=task, **options)


@pytest.fixture(scope="module")
def pool():
    with WorkerPool(1, modules=()) as pool:
        yield pool


@pytest.fixture(scope="module")
def evaluator(pool):
    with Evaluator(table(), families=FAMILIES, workers=pool) as evaluator:
        evaluator.evaluate(PRIOR)  # the worker is warm afterwards
        yield evaluator


@pytest.mark.parametrize("task", list(TaskType))
def test_every_metric_of_the_task_is_measured_on_every_split(task):
    result = evaluate(TOY, table(task=task), families=FAMILIES)
    assert result.ok
    assert set(result.scores) == {metric.name for metric in task_metrics(task)}
    assert all(len(scores) == 10 for scores in result.scores.values())
    assert len(result.fit_seconds) == len(result.predict_seconds) == 10
    assert result.n_train_rows == 96
    assert result.candidate == TOY
    assert result.dataset == table(task=task).fingerprint
    assert result.predictions is None


@pytest.mark.parametrize("task", list(TaskType))
def test_a_model_that_sees_the_signal_beats_the_prior(task):
    with Evaluator(table(task=task), families=FAMILIES) as evaluator:
        good, poor = evaluator.evaluate(TOY), evaluator.evaluate(PRIOR)
    for metric in task_metrics(task):
        assert good.score(metric.name) > poor.score(metric.name)


@pytest.mark.parametrize("task", list(TaskType))
@pytest.mark.parametrize("pooled", [False, True])
def test_scores_are_those_of_the_predictions(pool, task, pooled):
    dataset, splits = table(task=task), KFold(4, shuffle=True, random_state=0)
    result = evaluate(
        TOY, dataset, families=FAMILIES, splits=splits, predictions=True, workers=pool if pooled else None
    )
    assert result.predictions.shape == ((120,) if task is TaskType.REGRESSION else (120, dataset.n_classes))
    for k, (_, test) in enumerate(splits.split(dataset.X)):
        for metric in task_metrics(task):
            expected = metric.score(dataset.y[test], result.predictions[test])
            assert result.scores[metric.name][k] == pytest.approx(expected)


def test_rows_that_are_never_held_out_are_nan_and_repeats_are_averaged():
    dataset = table()
    train, test = np.arange(0, 80), np.arange(80, 100)
    once = evaluate(TOY, dataset, families=FAMILIES, splits=[(train, test)], predictions=True).predictions
    twice = evaluate(TOY, dataset, families=FAMILIES, splits=[(train, test)] * 2, predictions=True).predictions
    assert np.isnan(once[:80]).all()
    assert np.isnan(once[100:]).all()
    assert np.isfinite(once[80:100]).all()
    np.testing.assert_allclose(once, twice)


def test_metrics_may_be_chosen():
    scorer = make_scorer(accuracy_score)
    result = evaluate(TOY, table(), families=FAMILIES, metrics=["f1", METRICS["log_loss"], scorer])
    assert list(result.scores) == ["f1", "log_loss", "accuracy_score"]
    with pytest.raises(ValueError, match="does not fit"):
        evaluate(TOY, table(), families=FAMILIES, metrics=["rmse"])


def test_the_same_seed_gives_the_same_result_here_and_in_a_worker(pool):
    options = {"families": FAMILIES, "seed": 3, "predictions": True}
    here, there = evaluate(TOY, table(), **options), evaluate(TOY, table(), workers=pool, **options)
    assert here.scores == there.scores
    np.testing.assert_array_equal(here.predictions, there.predictions)
    other = evaluate(TOY, table(), families=FAMILIES, seed=4)
    assert other.scores != here.scores
    assert (here.seed, other.seed) == (3, 4)


def test_a_class_that_is_missing_in_training_gets_probability_zero():
    dataset = table(task="multiclass")
    middle = dataset.y == 1
    train, test = np.flatnonzero(~middle), np.flatnonzero(middle)
    result = evaluate(TOY, dataset, families=FAMILIES, splits=[(train, test)], predictions=True)
    assert result.ok
    assert (result.predictions[test, 1] == 0).all()
    np.testing.assert_allclose(result.predictions[test].sum(axis=1), 1.0)
    assert result.scores["accuracy"] == (0.0,)


@settings(max_examples=20, deadline=None)
@given(present=st.sets(st.integers(0, 4), min_size=2), seed=st.integers(0, 100))
def test_probabilities_stand_in_the_column_of_their_class(present, seed):
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(5), rng.choice(sorted(present), 60)])
    dataset = Dataset.from_arrays(rng.normal(size=(65, 2)), y, task="multiclass")
    rows = np.arange(5, 65)
    with Evaluator(dataset, families=FAMILIES, splits=[(rows, np.arange(5))]) as evaluator:
        data = evaluator.data("linear")
        shares = fit_model(Prior(), {}, data=data, rows=rows).predict(data.matrix[:1])[0]
    np.testing.assert_allclose(shares, np.bincount(y[rows], minlength=5) / 60)


def test_weights_enter_fits_and_scores():
    y = np.tile([0.0, 1.0], 40)
    X = pd.DataFrame({"a": np.arange(80.0)})
    plain = Dataset.from_arrays(X, y, task="regression")
    weighted = Dataset.from_arrays(X, y, task="regression", sample_weight=np.where(y == 1, 3.0, 1.0))
    splits = KFold(4)
    first = evaluate(PRIOR, plain, families=FAMILIES, splits=splits, predictions=True)
    second = evaluate(PRIOR, weighted, families=FAMILIES, splits=splits, predictions=True)
    np.testing.assert_allclose(first.predictions, 0.5)
    np.testing.assert_allclose(second.predictions, 0.75)
    assert second.score("mae") == pytest.approx(-(0.25 * 3 + 0.75) / 4)


def test_a_model_without_weights_is_fitted_without_them():
    dataset = table(sample_weight=np.ones(120))
    assert evaluate(trouble(), dataset, families=FAMILIES).ok


def test_a_test_part_without_any_weight_has_no_score():
    weight = np.ones(120)
    weight[:30] = 0
    result = evaluate(TOY, table(sample_weight=weight), families=FAMILIES, splits=KFold(4))
    assert result.ok
    assert np.isnan(result.scores["accuracy"][0])
    assert np.isfinite(result.score("accuracy"))


def test_groups_are_kept_together():
    groups = np.repeat(np.arange(12), 10)
    with Evaluator(table(groups=groups), families=FAMILIES) as evaluator:
        assert evaluator.evaluate(TOY).ok
        assert all(not set(groups[train]) & set(groups[test]) for train, test in evaluator.splits)


def test_columns_that_carry_nothing_still_give_a_result(pool):
    X = pd.DataFrame({"a": [1.0] * 40, "text": ["x"] * 40})
    dataset = Dataset.from_arrays(X, np.tile([0, 1], 20))
    for workers in (None, pool):
        assert evaluate(PRIOR, dataset, families=FAMILIES, workers=workers).status in {Status.OK, Status.FAILED}


def test_an_unknown_family_is_an_error():
    with pytest.raises(ValueError, match=r"must be one of toy, prior, trouble, missing\. Got 'tree'"):
        evaluate(Candidate("tree"), table(), families=FAMILIES)


@pytest.mark.parametrize(
    ("candidate", "task", "words"),
    [(trouble(), "regression", "does not handle regression"), (Candidate("missing"), "binary", "Install it.")],
)
def test_a_family_that_cannot_be_used_is_skipped(candidate, task, words):
    result = evaluate(candidate, table(task=task), families=FAMILIES)
    assert result.status is Status.SKIPPED
    assert words in result.reason


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"deed": "raise"}, "ValueError: the model does not like it"),
        ({"deed": "nan"}, "ValueError: Predictions must be finite. Got NaN or infinite values."),
        ({"deed": "shape"}, "ValueError: Predictions must have shape (24, 2). Got (24, 3) instead."),
        ({"nonsense": 1}, "TypeError: "),
    ],
)
def test_a_failing_model_has_a_status_and_a_reason(pool, pooled, config, reason):
    result = evaluate(trouble(**config), table(), families=FAMILIES, workers=pool if pooled else None)
    assert result.status is Status.FAILED
    assert result.reason.startswith(reason)
    assert np.isnan(result.score("roc_auc"))


def test_warnings_of_models_are_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert evaluate(trouble(deed="warn"), table(), families=FAMILIES).ok


def test_the_time_limit_kills_and_finished_splits_are_kept(pool):
    rows, test = np.arange(100), np.arange(100, 120)
    splits = [(rows[:50], test), (rows[50:], test), (rows, test)]
    with Evaluator(table(), families=FAMILIES, splits=splits, workers=pool) as evaluator:
        assert evaluator.evaluate(TOY).ok
        started = time.monotonic()
        result = evaluator.evaluate(trouble(seconds=120.0, many=100), time_limit=2.0, predictions=True)
        assert time.monotonic() - started < 60
    assert result.status is Status.TIMEOUT
    assert "time limit of 2 seconds" in result.reason
    assert len(result.scores["accuracy"]) == len(result.fit_seconds) == len(result.predict_seconds) == 2
    assert result.score("log_loss") == pytest.approx(-np.log(2))
    assert result.predictions is None
    assert evaluate(TOY, table(), families=FAMILIES, workers=pool).ok


def test_the_memory_limit_kills_only_that_candidate(evaluator):
    result = evaluator.evaluate(trouble(deed="hog"), memory_limit_mb=200.0)
    assert result.status is Status.MEMORY
    assert result.peak_memory_mb >= 200
    assert "memory" in result.reason
    assert evaluator.evaluate(TOY, memory_limit_mb=200.0).ok


def test_a_crash_is_a_failure_and_the_next_candidate_works(evaluator):
    result = evaluator.evaluate(trouble(deed="exit"))
    assert result.status is Status.FAILED
    assert "exit code 5" in result.reason
    after = evaluator.evaluate(TOY)
    assert after.ok
    assert after.peak_memory_mb >= 0


def test_limits_without_workers_use_the_shared_pool():
    result = evaluate(trouble(seconds=300.0), table(), families=FAMILIES, time_limit=0.3)
    assert result.status is Status.TIMEOUT


def test_submitted_candidates_can_be_cancelled(evaluator):
    slow = evaluator.submit(trouble(seconds=300.0))
    assert not slow.done()
    assert slow.cancel()
    assert wait([slow], timeout=60).done == {slow}
    with pytest.raises(CancelledError):
        slow.result()
    first, second = evaluator.submit(TOY), evaluator.submit(PRIOR)
    assert first.result().score("roc_auc") > second.result().score("roc_auc")


def test_an_evaluator_encodes_once_and_gives_its_encoder(monkeypatch):
    import autometa.evaluation as module

    kinds, encode = [], module.encode_dataset
    monkeypatch.setattr(module, "encode_dataset", lambda dataset, kind: kinds.append(kind) or encode(dataset, kind))
    with Evaluator(table(), families=FAMILIES) as evaluator:
        evaluator.evaluate(TOY)
        evaluator.evaluate(PRIOR)
        assert kinds == ["linear"]
        matrix = evaluator.encoder("linear").transform(evaluator.dataset.X)
        np.testing.assert_array_equal(matrix, evaluator.data("linear").matrix)
        model = fit_model(Toy(), {}, data=evaluator.data("linear"))
        assert model.predict(matrix).shape == (120, 2)


def test_one_split_is_a_hold_out():
    splits = ShuffleSplit(1, test_size=0.25, random_state=0)
    result = evaluate(TOY, table(), families=FAMILIES, splits=splits, predictions=True)
    assert len(result.fit_seconds) == 1
    assert np.isfinite(result.predictions).all(axis=1).sum() == 30


SCRIPT = """
    import numpy as np
    print("main runs")
    from sklearn.naive_bayes import GaussianNB
    from autometa.data import Dataset
    from autometa.evaluation import evaluate
    from autometa.family import Candidate, ModelFamily
    from autometa.search_space import SearchSpace

    class Mine(ModelFamily):
        name = "mine"
        search_space = SearchSpace({})
        default_config = {}

        def build(self, config, shape, *, random_state=0, n_threads=1):
            return GaussianNB()

    X = np.random.default_rng(0).normal(size=(60, 3))
    result = evaluate(Candidate("mine"), Dataset.from_arrays(X, X[:, 0] > 0), families=[Mine()], time_limit=60)
    print(result.status, result.reason)
"""


def test_a_script_without_a_main_guard_works(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.split("\n") == ["main runs", "ok ", ""], done.stderr
    assert done.stderr == ""
