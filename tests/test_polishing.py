"""Fine-tuning at the end of fit: kept where it scores better, told of either way, never beyond the budget."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import optuna
import pytest

from autometa.data import Dataset
from autometa.estimator import AutoMetaRegressor
from autometa.evaluation import Evaluator
from autometa.families import resolve_families
from autometa.family import Candidate, Forecast
from autometa.fine_tuning import Rounds, choose_rounds
from autometa.finishing import Finisher, Limits, _size_mb
from autometa.metrics import METRICS
from autometa.polishing import Polisher
from autometa.records import Ledger, Status
from autometa.tuning import Budget, TuningResult, WarmStart
from autometa.workers import WorkerPool

FAMILIES = {family.name: family for family in resolve_families(["linear", "hist_gradient_boosting", "mlp"])}
HASTY = Candidate(
    "hist_gradient_boosting",
    {**FAMILIES["hist_gradient_boosting"].default_config, "max_iter": 40, "learning_rate": 0.4},
)
NET = Candidate(
    "mlp", {**FAMILIES["mlp"].default_config, "n_epochs": 16, "numerical_embedding": "none", "width": 32}
)  # fmt: skip
LINEAR = Candidate("linear", {"C": 1.0, "l1_ratio": 0.0})


def noisy(n=240, noise=1.5):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, 4))
    return X, np.sin(2 * X[:, 0]) + X[:, 1] + noise * rng.normal(size=n)


@pytest.fixture(scope="module")
def measured():
    """An evaluator with three candidates that were measured on noisy data."""
    with WorkerPool(1) as pool:
        dataset = Dataset.from_arrays(*noisy())
        splits = [(np.setdiff1d(np.arange(240), np.arange(k, 240, 4)), np.arange(k, 240, 4)) for k in range(4)]
        with Evaluator(
            dataset, families=list(FAMILIES), splits=splits, workers=pool, predictions=True
        ) as evaluator:  # fmt: skip
            yield evaluator, pool, {c.family: evaluator.evaluate(c, keep_models=True) for c in (HASTY, NET, LINEAR)}


def finish(measured, *families, ensemble=False, budget=None, limits=None):
    evaluator, pool, evaluations = measured
    result = TuningResult(
        optuna.create_study(), tuple(evaluations[name] for name in families), Ledger(), WarmStart([])
    )  # fmt: skip
    budget = budget or Budget(max_trials=len(families))
    return Finisher(evaluator, pool, METRICS["rmse"], budget, ensemble, limits or Limits(), None).finish(result)


def polishing_lines(end):
    return [entry for entry in end.ledger if entry.source == "fine_tune"]


def test_a_hasty_boosted_model_is_slowed_down_and_measured_again(measured):
    end = finish(measured, "hist_gradient_boosting")
    (line,) = polishing_lines(end)
    assert line.status is Status.OK
    assert line.score > measured[2]["hist_gradient_boosting"].score("rmse")
    assert "on all splits the score went from" in line.reason
    (member,) = end.members
    assert member.config["learning_rate"] < HASTY.config["learning_rate"]
    assert line.candidate == Candidate(member.family, dict(member.config))
    assert len(member.models) == 1
    again = finish(measured, "hist_gradient_boosting")
    matrix = measured[0].data("tree").matrix
    np.testing.assert_array_equal(again.members[0].predict_raw(matrix, 0), member.predict_raw(matrix, 0))


def test_in_an_ensemble_the_weights_are_chosen_for_what_predicts(measured):
    end = finish(measured, "hist_gradient_boosting", "linear", ensemble=True)
    assert sum(member.weight for member in end.members) == pytest.approx(1.0)
    assert len(polishing_lines(end)) <= 1
    for line in polishing_lines(end):
        members = {Candidate(member.family, dict(member.config)) for member in end.members}
        assert HASTY not in members or line.status is Status.SKIPPED


def test_what_scores_worse_on_all_splits_is_undone(measured, monkeypatch):
    worse = Rounds({**HASTY.config, "max_iter": 200}, 0.0, 1.0, "200 rounds: better, it seems")
    monkeypatch.setattr(Polisher, "_rounds", lambda self, origin, reserve: (worse, ""))
    end = finish(measured, "hist_gradient_boosting")
    (line,) = polishing_lines(end)
    assert (line.status, line.reason.partition(":")[0]) == (Status.SKIPPED, "undone")
    assert dict(end.members[0].config) == dict(HASTY.config)


def test_what_breaks_a_limit_is_undone(measured, monkeypatch):
    larger = Rounds({**HASTY.config, "max_iter": 80, "learning_rate": 0.01}, 0.0, 1.0, "80 rounds: better")
    monkeypatch.setattr(Polisher, "_rounds", lambda self, origin, reserve: (larger, ""))
    free = finish(measured, "hist_gradient_boosting").members[0]
    assert free.config["max_iter"] == 80
    end = finish(measured, "hist_gradient_boosting", limits=Limits(model_mb=0.9 * _size_mb(free)))
    assert dict(end.members[0].config) == dict(HASTY.config)
    assert polishing_lines(end)[-1].reason.startswith("undone")


def test_a_single_net_is_trained_on_or_left_as_it_was(measured):
    end = finish(measured, "mlp")
    (line,) = polishing_lines(end)
    assert line.status in {Status.OK, Status.SKIPPED}
    assert (line.status is Status.SKIPPED) == line.reason.startswith("undone")
    refitted = [entry for entry in end.ledger if entry.source == "refit"]
    assert len(refitted) == 1
    bag = finish(measured, "mlp", ensemble=True)
    assert len(bag.members[0].models) == 4
    assert not polishing_lines(bag)  # no out-of-fold prediction would describe what predicts


def test_without_time_it_is_not_tried_and_the_ledger_says_so(measured):
    now = [0.0]
    budget = Budget(1.0, clock=lambda: now[0])
    now[0] = 2.0
    end = finish(measured, "hist_gradient_boosting", ensemble=True, budget=budget)
    (line,) = polishing_lines(end)
    assert line.status is Status.SKIPPED
    assert line.reason.startswith("undone: it would need about")
    assert not polishing_lines(finish(measured, "linear"))  # nothing to tune


def test_a_step_that_outruns_the_limit_is_stopped(measured, monkeypatch):
    monkeypatch.setattr(Polisher, "_limit", lambda self, reserve: 1e-3)
    end = finish(measured, "hist_gradient_boosting")
    (line,) = polishing_lines(end)
    assert line.status is Status.SKIPPED
    assert line.reason.startswith("undone")
    assert dict(end.members[0].config) == dict(HASTY.config)


def test_an_interrupt_leaves_what_was_there(measured, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(Polisher, "boost", interrupt)
    end = finish(measured, "hist_gradient_boosting")
    assert dict(end.members[0].config) == dict(HASTY.config)
    assert "Interrupted" in polishing_lines(end)[0].reason


def test_units_of_work_are_counted_as_forecast(measured):
    evaluator, pool, evaluations = measured
    forecast = Forecast(0.0, 0.0, 0.0, fit_seconds=2.0)
    origin = replace(
        evaluations["hist_gradient_boosting"], candidate=HASTY.with_forecast(forecast), fit_seconds=(1e9,) * 4
    )  # fmt: skip
    for units, fits in ((29.0, True), (27.0, False)):  # (10 + 4 splits) fits of 2 units
        budget = Budget.of(units, unit="work")
        reason = Polisher(evaluator, pool, METRICS["rmse"], budget)._too_long(origin, 10.0, 5.0, later=4)
        assert (reason == "") is fits
        assert budget.elapsed == (20.0 if fits else 0.0)


def test_the_same_seed_gives_the_same_fine_tuned_model():
    X, y = noisy()
    found = [
        AutoMetaRegressor(
            max_trials=1, families=["hist_gradient_boosting"], ensemble=False, meta_model="none", random_state=0
        ).fit(X, y)
        for _ in range(2)
    ]
    assert [line.source for line in found[0].ledger_].count("fine_tune") == 1
    np.testing.assert_array_equal(*(model.predict(X) for model in found))


def test_choosing_rounds_is_for_boosted_families():
    data = Evaluator(Dataset.from_arrays(*noisy()), families=["linear"]).data("linear")
    with pytest.raises(ValueError, match="must be one of"):
        choose_rounds(FAMILIES["linear"], {}, data=data, metric=METRICS["rmse"], splits=[(np.arange(9), np.arange(9))])
