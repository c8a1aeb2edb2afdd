"""What happens before the workers have started: a first model, a selection in the background, signals."""

from __future__ import annotations

from concurrent.futures import wait
from dataclasses import replace

import numpy as np
import pytest
from joblib import Parallel, delayed

from autometa.data import Dataset
from autometa.evaluation import Evaluator
from autometa.families import resolve_families
from autometa.metrics import METRICS, resolve_metric
from autometa.opening import (
    MAX_WORKERS,
    as_metric,
    first_model,
    in_background,
    must_haste,
    provisional_selection,
    warm_start,
    worker_count,
)  # fmt: skip
from autometa.selection import select
from autometa.tuning import Budget


def table(n_rows=300, n_columns=4):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n_rows, n_columns))
    return Dataset.from_arrays(X, (X[:, 0] + 0.3 * rng.normal(size=n_rows) > 0).astype(int))


def test_the_first_model_is_scored_on_rows_that_it_did_not_see():
    dataset = table()
    with Evaluator(dataset, families=["lightgbm", "linear"]) as evaluator:
        first = first_model(evaluator, METRICS["roc_auc"], Budget())
        matrix = evaluator.data("linear").matrix
    assert first.candidate.family == "linear"
    assert first.score > 0.9
    assert METRICS["roc_auc"].score(dataset.y, first.member.predict_raw(matrix, 2)) > 0.9


def test_without_a_quick_family_or_with_one_that_fails_there_is_no_first_model(monkeypatch):
    with Evaluator(table(), families=["random_forest"]) as evaluator:
        assert first_model(evaluator, METRICS["roc_auc"], Budget()) is None
    with Evaluator(table(), families=["linear"]) as evaluator:
        monkeypatch.setattr(type(evaluator.families["linear"]), "build", lambda *a, **k: None)
        assert first_model(evaluator, METRICS["roc_auc"], Budget()) is None


def test_boosting_opens_with_a_few_rounds():
    with Evaluator(table(), families=["lightgbm"]) as evaluator:
        first = first_model(evaluator, METRICS["roc_auc"], Budget())
    assert first.candidate.config["n_estimators"] == 30
    assert first.score > 0.8


def test_the_first_fit_is_bounded_on_large_tables(monkeypatch):
    import autometa.opening as module

    seen = []
    fit = module.fit_model
    monkeypatch.setattr(module, "fit_model", lambda *a, rows, **k: seen.append(len(rows)) or fit(*a, rows=rows, **k))
    monkeypatch.setattr(module, "_QUICK_CELLS", 1_000)
    with Evaluator(table(2_000), families=["linear"]) as evaluator:
        assert first_model(evaluator, METRICS["roc_auc"], Budget()).score > 0.9
    assert seen == [250]


def test_defaults_stand_in_for_a_ranking_quick_ones_first():
    dataset = table()
    families = resolve_families(["mlp", "catboost", "lightgbm", "linear"])
    selection = provisional_selection(dataset, METRICS["roc_auc"], families)
    assert [c.family for c in selection.candidates] == ["linear", "lightgbm", "catboost", "mlp"]
    assert selection.belief is None
    assert "no time to rank" in selection.explain()
    assert warm_start(selection).candidates == selection.candidates


def test_where_time_is_short_what_can_be_cut_short_comes_first():
    families = resolve_families(["mlp", "catboost", "lightgbm", "linear", "random_forest"])
    selection = provisional_selection(table(), METRICS["roc_auc"], families, haste=True)
    assert [c.family for c in selection.candidates] == ["lightgbm", "catboost", "random_forest", "linear", "mlp"]
    with Evaluator(table(4_000), families=["linear"]) as evaluator:  # 8,000 training rows in three folds
        assert must_haste(evaluator, Budget(3.0))
        assert not must_haste(evaluator, Budget(5.0))
        assert not must_haste(evaluator, Budget())
        assert not must_haste(evaluator, Budget(3.0, max_trials=2))


def test_how_long_the_first_model_took_tells_what_its_trial_would_take(monkeypatch):
    import autometa.opening as module

    dataset = table(2_000)
    selection = select(dataset, families=["linear", "lightgbm"])
    known = selection.candidates[: len(selection.belief)]
    default = next(i for i, candidate in enumerate(known) if candidate == selection.families[0].default_candidate())
    monkeypatch.setattr(module, "_QUICK_CELLS", 1_000)
    with Evaluator(dataset, families=["linear", "lightgbm"]) as evaluator:
        first = first_model(evaluator, METRICS["roc_auc"], Budget())
    assert 0 < first.split_seconds <= first.seconds * 2_000 / 250
    slow = replace(first, split_seconds=100 * float(selection.belief.seconds[default]))
    told = warm_start(selection, slow).belief
    assert told.seconds[default] > 3 * selection.belief.seconds[default]
    assert warm_start(selection).belief is selection.belief
    _, warm = in_background(lambda: selection, slow)
    assert warm.result(30).belief.seconds[default] == told.seconds[default]


def test_a_selection_made_in_the_background_and_its_failure_are_handed_on():
    selection = provisional_selection(table(), METRICS["roc_auc"], resolve_families(["linear"]))
    made, warm = in_background(lambda: selection)
    assert warm.result(30).candidates == selection.candidates
    assert made.result(30) is selection

    def fail():
        raise ValueError("no meta-model there")

    made, warm = in_background(fail)
    wait([made])
    with pytest.raises(ValueError, match="no meta-model"):
        warm.result(30)


def test_a_callable_scorer_gets_a_model_that_predicts_what_was_predicted():
    def error(estimator, X, y):
        return -float(np.mean((estimator.predict(X) - y) ** 2))

    def sure(estimator, X, y):
        return float(estimator.predict_proba(X)[np.arange(len(y)), y].mean())

    y, values = np.array([0.0, 2.0]), np.array([1.0, 2.0])
    assert resolve_metric(as_metric(error), table().task).score(y, values) == pytest.approx(-0.5)
    probabilities = np.array([[0.9, 0.1], [0.4, 0.6]])
    assert as_metric(sure).score(np.array([0, 1]), probabilities) == pytest.approx(0.75)
    assert as_metric("accuracy") == "accuracy"
    assert as_metric(None) is None


def test_all_cores_are_used_unless_the_order_of_trials_must_not_matter_or_others_use_them(monkeypatch):
    import autometa.opening as module

    monkeypatch.setattr(module, "cpu_count", lambda: 4)
    assert worker_count(None, Budget(10.0)) == worker_count(-1, Budget(10.0)) == 4
    assert worker_count(None, Budget(10.0, max_trials=3)) == worker_count(None, Budget.of(10.0, unit="work")) == 1
    assert worker_count(-2, Budget(10.0)) == worker_count(3, Budget()) == 3
    assert Parallel(2, backend="threading")(delayed(worker_count)(None, Budget(10.0)) for _ in range(2)) == [1, 1]
    monkeypatch.setattr(module, "cpu_count", lambda: 64)
    assert worker_count(None, Budget(10.0)) == MAX_WORKERS
    with pytest.raises(ValueError, match="must not be 0"):
        worker_count(0, Budget())
