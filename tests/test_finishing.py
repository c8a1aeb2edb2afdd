"""From measured candidates to what predicts: fold models, refits, what is left when there is no time."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import optuna
import pytest
from sklearn.model_selection import KFold, TimeSeriesSplit

import autometa.finishing as finishing
from autometa.data import Dataset
from autometa.evaluation import Evaluator
from autometa.family import Candidate
from autometa.finishing import Finisher, Limits
from autometa.metrics import METRICS
from autometa.opening import first_model
from autometa.records import Ledger, Status
from autometa.tuning import Budget, TuningResult, WarmStart
from autometa.workers import WorkerPool

LINEAR = Candidate("linear", {"C": 1.0, "l1_ratio": 0.0})
NEAR = Candidate("knn", {"n_neighbors": 10, "weights": "distance", "p": 2})
TREES = [
    Candidate("extra_trees", {"n_estimators": 20, "max_features": f, "min_samples_leaf": leaf})
    for f, leaf in ((0.3, 1), (0.9, 5))
]


@pytest.fixture(scope="module")
def pool():
    with WorkerPool(1) as pool:
        yield pool


@pytest.fixture(scope="module")
def dataset():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(600, 4))
    return Dataset.from_arrays(X, X[:, 0] + np.abs(X[:, 1]) + 0.5 * rng.normal(size=600))


def evaluator_of(dataset, pool, **options):
    return Evaluator(dataset, families=["linear", "knn", "extra_trees"], workers=pool, predictions=True, **options)


def result_of(*evaluations):
    return TuningResult(optuna.create_study(), tuple(evaluations), Ledger(), WarmStart([]))


def finisher(evaluator, pool, *, seconds=600.0, spent=0.0, ensemble=True, limits=None, first=None):
    now = [0.0]
    budget = Budget(seconds, clock=lambda: now[0])
    now[0] = spent
    return Finisher(evaluator, pool, METRICS["rmse"], budget, ensemble, limits or Limits(), first)


def measure(evaluator, *candidates):
    return [evaluator.submit(candidate, keep_models=True).result() for candidate in candidates]


def sources(finish):
    return {(entry.candidate.family, entry.source, entry.status) for entry in finish.ledger}


def test_trees_are_bagged_and_linear_models_fitted_on_all_rows(dataset, pool):
    with evaluator_of(dataset, pool) as evaluator:
        end = finisher(evaluator, pool).finish(result_of(*measure(evaluator, LINEAR, *TREES)))
    models = {member.family: len(member.models) for member in end.members}
    assert models.get("extra_trees") == 5
    assert models.get("linear", 1) == 1
    assert [member.weight for member in end.members] == sorted((m.weight for m in end.members), reverse=True)
    assert sum(member.weight for member in end.members) == pytest.approx(1.0)


def test_without_time_every_member_is_there_from_its_folds(dataset, pool):
    with evaluator_of(dataset, pool) as evaluator:
        evaluations = measure(evaluator, LINEAR, TREES[0])
        started = time.perf_counter()
        end = finisher(evaluator, pool, seconds=1.0, spent=2.0).finish(result_of(*evaluations))
        assert time.perf_counter() - started < 30
    assert {entry.source for entry in end.ledger} == {"folds"}
    assert all(len(member.models) == 5 for member in end.members)


def test_weights_are_chosen_anew_where_a_member_cannot_be_had(dataset, pool, monkeypatch):
    monkeypatch.setattr(finishing, "choose_weights", lambda models, *a, **k: np.full(len(models), 1 / len(models)))
    monkeypatch.setattr(Finisher, "_refit", lambda self, evaluation, **options: None)
    with evaluator_of(dataset, pool) as evaluator:
        evaluations = measure(evaluator, LINEAR, NEAR, TREES[0])
        evaluator.forget_models([LINEAR, NEAR])
        end = finisher(evaluator, pool).finish(result_of(*evaluations))
    assert {(member.family, member.weight) for member in end.members} == {("linear", 0.5), ("knn", 0.5)}
    lost = [entry for entry in end.ledger if entry.status is Status.TIMEOUT]
    assert [(entry.candidate, entry.reason) for entry in lost] == [(TREES[0], "no time left to fit it on all rows")]


def test_a_model_on_all_rows_joins_those_of_three_folds(dataset, pool):
    with evaluator_of(dataset, pool, splits=KFold(3, shuffle=True, random_state=0)) as evaluator:
        evaluations = measure(evaluator, TREES[0])
        end = finisher(evaluator, pool).finish(result_of(*evaluations))
        late = finisher(evaluator, pool, seconds=1.0, spent=2.0).finish(result_of(*evaluations))
    assert len(end.members[0].models) == 4
    assert [entry.reason for entry in end.ledger] == ["with 3 fold models"]
    assert len(late.members[0].models) == 3
    assert [entry.source for entry in late.ledger] == ["folds"]


def test_new_fits_that_end_too_late_or_fail_leave_the_fold_models(dataset, monkeypatch):
    monkeypatch.setattr(finishing, "choose_weights", lambda models, *a, **k: np.full(len(models), 1 / len(models)))
    with WorkerPool(2) as pool, evaluator_of(dataset, pool, splits=KFold(3)) as evaluator:
        evaluations = measure(evaluator, *TREES)

        def submit(self, evaluation, **options):
            return pool.submit(time.sleep, 60) if evaluation is evaluations[0] else pool.submit(divmod, 1, 0)

        monkeypatch.setattr(Finisher, "_refit", submit)
        now = time.perf_counter()
        end = Finisher(evaluator, pool, METRICS["rmse"], Budget(2.0), True, Limits(), None).finish(
            result_of(*evaluations)
        )
        assert time.perf_counter() - now < 10
    assert [len(member.models) for member in end.members] == [3, 3]
    reasons = {entry.candidate: entry.reason for entry in end.ledger}
    assert "no time left" in reasons[TREES[0]]
    assert "ZeroDivisionError" in reasons[TREES[1]]


def test_folds_that_end_in_the_past_are_no_substitute_for_all_rows(dataset, pool):
    with evaluator_of(dataset, pool, splits=TimeSeriesSplit(3)) as evaluator:
        evaluations = measure(evaluator, TREES[0])
        fresh = finisher(evaluator, pool).finish(result_of(*evaluations))
        late = finisher(evaluator, pool, seconds=1.0, spent=2.0).finish(result_of(*evaluations))
    assert sources(fresh) == {("extra_trees", "refit", Status.OK)}
    assert len(fresh.members[0].models) == 1
    assert sources(late) == {("extra_trees", "folds", Status.OK)}
    assert len(late.members[0].models) == 1  # the latest fold


def test_one_plain_model_is_fitted_on_all_rows(dataset, pool):
    with evaluator_of(dataset, pool) as evaluator:
        evaluations = measure(evaluator, LINEAR, TREES[0])
        end = finisher(evaluator, pool, ensemble=False).finish(result_of(*evaluations))
    assert [len(member.models) for member in end.members] == [1]
    assert {entry.source for entry in end.ledger} == {"refit"}


def test_some_folds_of_an_unfinished_trial_are_better_than_nothing(dataset, pool):
    with evaluator_of(dataset, pool) as evaluator:
        whole = measure(evaluator, TREES[0])[0]
        scores = {name: values[:2] for name, values in whole.scores.items()}
        part = replace(whole, status=Status.TIMEOUT, scores=scores, predictions=None)
        end = finisher(evaluator, pool, seconds=1.0, spent=2.0).finish(result_of(part))
    assert [member.family for member in end.members] == ["extra_trees"]
    assert {entry.source for entry in end.ledger} == {"folds"}


def test_an_interrupt_while_finishing_leaves_the_fold_models(dataset, pool, monkeypatch):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(finishing, "choose_weights", interrupt)
    with evaluator_of(dataset, pool) as evaluator:
        evaluations = measure(evaluator, LINEAR, TREES[0])
        end = finisher(evaluator, pool).finish(result_of(*evaluations))
    assert len(end.members) == 1
    assert "Interrupted" in end.ledger.entries[0].reason


def test_the_first_model_or_a_constant_stand_in(dataset, pool):
    with evaluator_of(dataset, pool) as evaluator:
        first = first_model(evaluator, METRICS["rmse"], Budget())
        assert finisher(evaluator, pool, first=first).finish(result_of()).members == (first.member,)
        constant = finisher(evaluator, pool).finish(result_of()).members[0]
        prediction = constant.predict_raw(evaluator.data("tree").matrix[:3], 0)
    np.testing.assert_allclose(prediction, dataset.y.mean())


def test_limits_cut_bags_and_drop_members(dataset, pool):
    with evaluator_of(dataset, pool) as evaluator:
        evaluations = measure(evaluator, LINEAR, *TREES)
        free = finisher(evaluator, pool).finish(result_of(*evaluations))
        megabytes = sum(finishing._size_mb(member) for member in free.members)
        limits = Limits(model_mb=megabytes / 4)
        end = finisher(evaluator, pool, limits=limits).finish(result_of(*evaluations))
        assert sum(finishing._size_mb(member) for member in end.members) <= megabytes / 4
        quick = finisher(evaluator, pool, limits=Limits(predict_ms=1e-6)).finish(result_of(*evaluations))
    assert len(quick.members) == 1


@pytest.mark.parametrize("options", [{"predict_ms": 0.0}, {"model_mb": -1.0}])
def test_limits_must_be_positive(options):
    with pytest.raises(ValueError, match="must be > 0 or None"):
        Limits(**options)
