"""Replays of measured scores: known orders, known curves, honest intervals."""

import numpy as np
import pytest

from autometa.data import TaskType
from autometa.experiment.simulation import (
    FLOOR,
    bootstrap_interval,
    ensemble_curve,
    greedy_portfolio,
    incumbent_curve,
    normalise,
)
from autometa.metrics import resolve_metric


def test_normalised_scores_have_the_median_at_0_and_the_best_at_1():
    scores = np.random.default_rng(0).normal(size=(20, 7))
    found = normalise(scores)
    assert found.max(axis=1) == pytest.approx(np.ones(20))
    assert np.median(found, axis=1) == pytest.approx(np.zeros(20))
    assert found.min() >= FLOOR


def test_a_portfolio_opens_with_the_best_on_average_and_then_complements_it():
    scores = np.array([[1.0, 0.8, 0.0], [1.0, 0.8, 0.0], [0.0, 0.1, 0.9]])
    assert greedy_portfolio(scores) == [0, 2, 1]
    assert greedy_portfolio(scores, 2) == [0, 2]


def test_a_longer_portfolio_never_covers_less():
    scores = np.random.default_rng(1).uniform(size=(30, 12))
    order = greedy_portfolio(scores)
    covered = [scores[:, order[:k]].max(axis=1).mean() for k in range(1, 13)]
    assert sorted(order) == list(range(12))
    assert (np.diff(covered) >= 0).all()


def test_the_incumbent_is_chosen_by_one_measurement_and_judged_by_another():
    choose, value = np.array([0.1, np.nan, 0.3, 0.2]), np.array([10.0, 20.0, 30.0, 40.0])
    assert incumbent_curve([1, 0, 2, 3], choose, value).tolist() == [FLOOR, 10.0, 30.0, 30.0]


def test_an_ensemble_of_two_noisy_models_beats_each():
    rng = np.random.default_rng(0)
    y = rng.normal(size=2_000)
    predictions = {name: y + rng.normal(size=2_000) for name in "ab"}
    metric = resolve_metric("rmse", TaskType.REGRESSION)
    rows = np.arange(2_000)
    curve = ensemble_curve(
        predictions, ["missing", "a", "b"], y=y, metric=metric, choose=rows[::2], score=rows[1::2]
    )  # fmt: skip
    assert np.isnan(curve[0])
    assert curve[2] > curve[1] + 0.1


def test_intervals_draw_whole_groups():
    values = np.array([0.0] * 50 + [1.0])
    wide = bootstrap_interval(values, ["twins"] * 50 + ["other"])
    narrow = bootstrap_interval(values, list(range(51)))
    assert wide[0] == narrow[0] == pytest.approx(1 / 51)
    assert wide[2] == 1.0
    assert narrow[2] < 0.1
    assert bootstrap_interval(values) == bootstrap_interval(values, [f"{i:02}" for i in range(51)])
