"""Folds: stopping candidates that are clearly worse or too slow, models kept, what is left of a stopped trial."""

from __future__ import annotations

import time
from types import MappingProxyType

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import ExtraTreesClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold

from autometa.data import Dataset
from autometa.evaluation import Evaluator
from autometa.families import _deadlines, default_families
from autometa.families._deadlines import FitLimit
from autometa.families.boosting import CatBoost, LightGBM, XGBoost
from autometa.family import Candidate, ModelFamily
from autometa.fitting import fit_model
from autometa.fold_models import MAX_FOLD_MODELS
from autometa.folds import Rival, fit_quietly
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


def test_models_that_nobody_will_want_are_not_kept(pool, dataset):
    with Evaluator(dataset, families=FAMILIES, metrics=["roc_auc"], workers=pool) as evaluator:
        best = evaluator.evaluate(TOY)
        score = best.score("roc_auc")
        for keep_from, n_models in ((score - 0.1, MAX_FOLD_MODELS), (score + 0.1, 0)):
            rival = Rival("roc_auc", best.scores["roc_auc"], noise=1.0, keep_from=keep_from)
            result = evaluator.submit(TOY, keep_models=True, rival=rival).result()
            assert result.scores == best.scores
            assert len(evaluator.fold_models(TOY)) == n_models


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


class FakeTime:
    """Time that goes on by a second whenever somebody looks."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        self.now += 1.0
        return self.now


class _Hurried:
    """A boosted family in a process whose clock runs: the limit of 20 s ends the first fit after a few rounds."""

    def build(self, config, shape, *, random_state=0, n_threads=1):
        _deadlines.time = FakeTime()
        return super().build(config, shape, random_state=random_state, n_threads=n_threads)


class HurriedLightGBM(_Hurried, LightGBM):
    pass


class HurriedXGBoost(_Hurried, XGBoost):
    pass


class HurriedCatBoost(_Hurried, CatBoost):
    pass


@pytest.mark.parametrize(
    ("hurried", "rounds"),
    [(HurriedLightGBM(), "n_estimators"), (HurriedXGBoost(), "n_estimators"), (HurriedCatBoost(), "iterations")],
    ids=lambda value: getattr(value, "name", value),
)
def test_boosting_that_would_not_end_in_time_becomes_a_candidate_of_fewer_rounds(pool, dataset, hurried, rounds):
    candidate = Candidate(hurried.name, {**hurried.default_config, rounds: 200})
    with Evaluator(dataset, families=[hurried], splits=KFold(3), workers=pool) as evaluator:
        future = evaluator.submit(candidate, time_limit=60.0, keep_models=True, cut_short=True)
        result = future.result()
        assert result.ok
        done = result.candidate.config[rounds]
        assert 5 <= done <= 20
        assert result.reason.startswith(f"stopped after {done} of 200 rounds")
        assert result.done_share == done / 200
        assert len(evaluator.fold_models(result.candidate)) == 3
        evaluator.forget_models([result.candidate])
        assert len(evaluator.fold_models(result.candidate)) == 3
        again = evaluator.evaluate(result.candidate)
        # CatBoost's random strength depends on the rounds it plans, so the fit that was cut is not quite the same.
        first = 1 if hurried.name == "catboost" else 0
        assert again.scores["roc_auc"][first:] == result.scores["roc_auc"][first:]
        assert again.scores["roc_auc"][0] == pytest.approx(result.scores["roc_auc"][0], abs=0.05)
        whole = evaluator.evaluate(candidate, time_limit=60.0)
        assert whole.candidate == candidate
        assert whole.done_share == 1.0
        assert whole.scores != result.scores


def test_boosting_cut_short_and_behind_the_best_is_given_up(pool, dataset):
    hurried = HurriedLightGBM()
    candidate = Candidate("lightgbm", {**hurried.default_config, "learning_rate": 0.01})
    with Evaluator(dataset, families=[hurried], splits=KFold(3), metrics=["log_loss"], workers=pool) as evaluator:
        best = Rival("log_loss", (-0.01, -0.01, -0.01), noise=1.0)
        result = evaluator.evaluate(candidate, time_limit=60.0, cut_short=True, rival=best)
    assert result.status is Status.TIMEOUT
    assert "of 200 rounds" in result.reason
    assert len(result.fit_seconds) == 1


def test_a_net_that_runs_out_of_time_keeps_what_it_learned(dataset):
    from autometa.families.neural import MLP

    family = MLP()
    with Evaluator(dataset, families=[family]) as evaluator:
        data = evaluator.data("net")
        config = {**family.default_config, "n_epochs": 128, "batch_size": 32}
        model = fit_quietly(family, config, data, 0, seconds=1e-3)
    assert model.predict(data.matrix).shape == (200, 2)


def test_a_limit_is_taken_off_the_fitted_model():
    class Net(DummyClassifier):
        def __init__(self, time_limit_seconds=None):
            super().__init__()
            self.time_limit_seconds = time_limit_seconds

    net = Net()
    limit = FitLimit(net, 3.0)
    assert net.time_limit_seconds == 3.0
    limit.fit(np.zeros((2, 1)), [0, 1])
    assert net.time_limit_seconds is None
    assert (limit.rounds(), limit.epochs()) == (None, None)


@pytest.mark.parametrize("kind", [RandomForestRegressor, ExtraTreesClassifier])
def test_a_forest_that_grows_in_batches_is_that_of_a_single_fit(kind):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 4))
    y = (X[:, 0] + rng.normal(size=200) > 0).astype(int)
    weight = np.ones(200)
    whole = kind(n_estimators=30, random_state=3).fit(X, y, sample_weight=weight)
    grown = kind(n_estimators=30, random_state=3)
    limit = FitLimit(grown, 60.0)
    limit.fit(X, y, sample_weight=weight)
    assert limit.rounds() is None
    assert grown.get_params() == whole.get_params()
    np.testing.assert_array_equal(grown.predict(X), whole.predict(X))


def test_a_forest_whose_time_is_over_has_the_trees_that_were_grown():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 4))
    forest = RandomForestRegressor(n_estimators=40, random_state=0)
    limit = FitLimit(forest, 1e-6)
    limit.fit(X, X[:, 0])
    assert limit.rounds() == len(forest.estimators_) == forest.n_estimators == 4
    assert not forest.warm_start
    few = RandomForestRegressor(n_estimators=4, random_state=0).fit(X, X[:, 0])
    np.testing.assert_array_equal(forest.predict(X), few.predict(X))


def test_a_forest_that_would_not_end_in_time_becomes_a_candidate_of_fewer_trees(pool):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(6_000, 8))
    table = Dataset.from_arrays(X, X[:, 0] + rng.normal(size=len(X)))
    family = next(family for family in default_families() if family.name == "random_forest")
    candidate = Candidate("random_forest", {**family.default_config, "n_estimators": 400})
    with Evaluator(table, families=[family], splits=KFold(3), workers=pool) as evaluator:
        result = evaluator.submit(candidate, time_limit=4.0, keep_models=True, cut_short=True).result()
    assert result.ok
    assert result.candidate.config["n_estimators"] < 400
    assert "of 400 trees" in result.reason
    assert sum(result.fit_seconds) < 4.0
