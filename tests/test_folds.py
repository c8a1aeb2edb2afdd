"""Folds: stopping candidates that are clearly worse or too slow, models kept, what is left of a stopped trial."""

from __future__ import annotations

import time
from types import MappingProxyType

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold

from autometa.data import Dataset
from autometa.evaluation import Evaluator
from autometa.family import Candidate, ModelFamily
from autometa.fitting import fit_model
from autometa.folds import MAX_FOLD_MODELS, Rival
from autometa.records import Status
from autometa.search_space import SearchSpace
from autometa.workers import WorkerPool


class Waiting(LogisticRegression):
    """A logistic regression that takes its time."""

    def __init__(self, seconds=0.0):
        super().__init__()
        self.seconds = seconds

    def fit(self, X, y, sample_weight=None):
        time.sleep(self.seconds)
        return super().fit(X, y, sample_weight)


class Toy(ModelFamily):
    name = "toy"
    search_space = SearchSpace({})
    default_config = MappingProxyType({})

    def build(self, config, shape, *, random_state=0, n_threads=1):
        return DummyClassifier() if config.get("prior") else Waiting(config.get("seconds", 0.0))


FAMILIES = [Toy()]
TOY, PRIOR = Candidate("toy"), Candidate("toy", {"prior": True})


@pytest.fixture(scope="module")
def pool():
    with WorkerPool(1, modules=()) as pool:
        yield pool


@pytest.fixture(scope="module")
def dataset():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 3))
    return Dataset.from_arrays(X, (X[:, 0] + 0.3 * rng.normal(size=200) > 0.5).astype(int))


def ended_at(rival, scores):
    """Number of folds after which a candidate with these scores is stopped; all of them if it is not."""
    return next((k for k in range(1, len(scores)) if rival.verdict(scores[:k])), len(scores))


def test_a_candidate_as_good_as_the_best_is_hardly_ever_stopped():
    rng = np.random.default_rng(0)
    stopped = 0
    for _ in range(400):
        rival = Rival("accuracy", tuple(0.9 + 0.01 * rng.normal(size=5)), noise=0.014)
        stopped += ended_at(rival, 0.9 + 0.01 * rng.normal(size=5)) < 5
    assert stopped <= 4


def test_a_candidate_far_behind_is_stopped_after_one_or_two_folds():
    rng = np.random.default_rng(1)
    rival = Rival("accuracy", (0.9,) * 5, noise=0.01)
    assert all(ended_at(rival, 0.8 + 0.01 * rng.normal(size=5)) <= 2 for _ in range(200))


def test_noise_and_the_last_fold_protect():
    far = [0.8]
    assert Rival("accuracy", (0.9,) * 5, noise=0.01).verdict(far)
    assert not Rival("accuracy", (0.9,) * 5, noise=0.1).verdict(far)
    assert not Rival("accuracy", (0.9,) * 5, noise=0.01).verdict([0.1] * 5)
    assert not Rival("accuracy", (0.9, 0.9), noise=0.01).verdict(far)
    assert not Rival("accuracy", (0.9,) * 5, noise=0.01).verdict([float("nan")])


def test_a_pruned_candidate_says_why_and_keeps_its_folds(dataset):
    with Evaluator(dataset, families=FAMILIES, metrics=["accuracy", "roc_auc"]) as evaluator:
        best = evaluator.evaluate(TOY)
        rival = Rival("roc_auc", best.scores["roc_auc"], noise=0.02)
        pruned = evaluator.evaluate(PRIOR, rival=rival, predictions=True)
    assert pruned.status is Status.PRUNED
    assert "far behind the best" in pruned.reason
    assert 1 <= len(pruned.scores["roc_auc"]) < 10
    assert pruned.predictions is None


def test_a_candidate_too_slow_is_stopped_before_its_time_is_up(pool, dataset):
    with Evaluator(dataset, families=FAMILIES, splits=KFold(5), workers=pool) as evaluator:
        evaluator.evaluate(TOY)
        result = evaluator.evaluate(Candidate("toy", {"seconds": 1.0}), time_limit=3.0)
        assert result.status is Status.TIMEOUT
        assert "It would need about" in result.reason
        assert len(result.fit_seconds) == 1


def test_kept_models_are_those_of_the_first_folds(pool, dataset):
    with Evaluator(dataset, families=FAMILIES, workers=pool) as evaluator:
        evaluator.submit(TOY, keep_models=True).result()
        models = evaluator.fold_models(TOY)
        assert len(models) == MAX_FOLD_MODELS < len(evaluator.splits)
        data = evaluator.data("linear")
        for model, (train, _) in zip(models, evaluator.splits, strict=False):
            expected = fit_model(Toy(), {}, data=data, rows=train).predict(data.matrix)
            np.testing.assert_allclose(model.predict(data.matrix), expected)
        assert evaluator.fold_models(PRIOR) == []
        evaluator.forget_models([PRIOR])
        assert evaluator.fold_models(TOY) == []


def test_a_stopped_candidate_leaves_what_it_had_finished(pool, dataset):
    with Evaluator(dataset, families=FAMILIES, splits=KFold(5), workers=pool) as evaluator:
        slow = Candidate("toy", {"seconds": 1.5})
        future = evaluator.submit(slow, keep_models=True)
        deadline = time.monotonic() + 60
        while not evaluator.fold_models(slow) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.3)  # the line of the fold follows its model
        result = evaluator.stop(future, "enough")
        assert (result.status, result.reason) == (Status.TIMEOUT, "enough")
        assert 1 <= len(result.fit_seconds) < 5
        assert len(evaluator.fold_models(slow)) >= len(result.fit_seconds)
        done = evaluator.submit(TOY)
        done.result()
        assert evaluator.stop(done, "too late").ok


def test_class_weights_enter_fits_and_not_scores(dataset):
    share = dataset.y.mean()
    assert share < 0.45
    with Evaluator(dataset, families=FAMILIES, class_weight="balanced") as evaluator:
        balanced = evaluator.evaluate(PRIOR, predictions=True)
    plain = balanced.predictions[:, 1].mean()
    assert plain == pytest.approx(0.5, abs=0.02)
    expected = -(share * np.log(0.5) + (1 - share) * np.log(0.5))
    assert -balanced.score("log_loss") == pytest.approx(expected, abs=0.02)
    assert balanced.score("accuracy") <= max(share, 1 - share) + 1e-9
    with pytest.raises(ValueError, match="class_weight"):
        Evaluator(dataset, families=FAMILIES, class_weight="heavy")
