import time

import numpy as np
import pytest

from autometa.data import TaskType
from autometa.ensembling import choose_temperature, choose_weights, greedy_weights
from autometa.metrics import METRICS, Metric


def noisy_models(n_rows: int, n_models: int, seed: int = 0, noise: float = 1.0):
    """Regression models whose errors are independent: their mean is better than each."""
    rng = np.random.default_rng(seed)
    y = rng.normal(size=n_rows)
    return y, [y + noise * rng.normal(size=n_rows) for _ in range(n_models)]


@pytest.mark.parametrize("seed", range(3))
def test_independent_errors_are_averaged(seed):
    y, models = noisy_models(2000, 4, seed)
    weights = choose_weights(models, y, metric=METRICS["rmse"])
    assert weights.sum() == pytest.approx(1.0)
    assert np.count_nonzero(weights) == 4
    mixed = np.tensordot(weights, np.stack(models), axes=1)
    assert METRICS["rmse"].score(y, mixed) > max(METRICS["rmse"].score(y, m) for m in models)


def test_one_perfect_model_stands_alone():
    y, models = noisy_models(800, 3)
    weights = choose_weights([*models, y.copy()], y, metric=METRICS["rmse"])
    assert weights.tolist() == [0, 0, 0, 1]


def test_a_single_model_has_all_the_weight():
    y, models = noisy_models(100, 1)
    assert choose_weights(models, y, metric=METRICS["rmse"]).tolist() == [1.0]


def test_number_of_members_is_limited():
    y, models = noisy_models(3000, 12, noise=2.0)
    assert np.count_nonzero(choose_weights(models, y, metric=METRICS["rmse"], max_members=3)) == 3


def test_small_tables_have_few_members_and_weights_near_uniform():
    y, models = noisy_models(300, 12, noise=3.0)
    weights = choose_weights(models, y, metric=METRICS["rmse"])
    used = weights[weights > 0]
    assert len(used) <= 5
    assert used.min() >= 0.5 / len(used) - 1e-12


def test_on_a_small_table_a_gain_within_its_noise_is_not_believed():
    rng = np.random.default_rng(0)
    y = rng.normal(size=60)
    model = y + 0.5 * rng.normal(size=60)
    twin = model + 1e-6 * rng.normal(size=60)  # nothing to gain from it
    weights = choose_weights([model, twin], y, metric=METRICS["rmse"])
    assert np.count_nonzero(weights) == 1


def test_probabilities_and_rows_never_held_out():
    rng = np.random.default_rng(1)
    y = rng.integers(0, 3, 900)
    logits = [np.eye(3)[y] * 1.5 + rng.normal(size=(900, 3)) for _ in range(3)]
    models = [np.exp(a) / np.exp(a).sum(axis=1, keepdims=True) for a in logits]
    models[0][:100] = np.nan
    weights = choose_weights(models, y, metric=METRICS["log_loss"])
    assert np.isfinite(weights).all()
    assert np.count_nonzero(weights) >= 2


def test_weights_are_reproducible_and_follow_the_sample_weight():
    y, models = noisy_models(1000, 2)
    y = np.r_[y, y + 5]
    models = [np.r_[models[0], models[0] + 5 + 3], np.r_[models[1] + 3, models[1] + 5]]
    first = np.r_[np.ones(1000), np.zeros(1000)]
    again = [choose_weights(models, y, metric=METRICS["rmse"], sample_weight=first, seed=3) for _ in range(2)]
    assert np.array_equal(*again)
    assert again[0].argmax() == 0
    assert choose_weights(models, y, metric=METRICS["rmse"], sample_weight=1 - first).argmax() == 1


def test_a_metric_that_is_never_defined_leaves_one_model():
    undefined = Metric("undefined", frozenset(TaskType), lambda y, p, w: float("nan"))
    y, models = noisy_models(600, 3)
    assert np.count_nonzero(choose_weights(models, y, metric=undefined)) == 1


def test_without_time_the_best_single_model_is_the_answer():
    y, models = noisy_models(1000, 4)
    weights = choose_weights(models, y, metric=METRICS["rmse"], max_seconds=0.0)
    assert sorted(weights) == [0, 0, 0, 1]
    assert choose_weights(models, y, metric=METRICS["rmse"], max_seconds=60.0).max() < 1


def test_where_time_is_short_fewer_rows_decide():
    y, models = noisy_models(8_000, 4)
    scored = []

    def slow_rmse(y, p, w):
        scored.append(len(y))
        time.sleep(1e-6 * len(y))
        return METRICS["rmse"].score(y, p, w)

    metric = Metric("slow", frozenset(TaskType), slow_rmse)
    weights = choose_weights(models, y, metric=metric, max_seconds=1.2)
    assert scored[:8] == [8_000] * 8
    assert max(scored[8:]) < 8_000
    assert np.count_nonzero(weights) == 4


def test_of_many_rows_a_sample_decides():
    y, models = noisy_models(25_000, 3)
    scored = []

    def rmse(y, p, w):
        scored.append(len(y))
        return METRICS["rmse"].score(y, p, w)

    weights = choose_weights(models, y, metric=Metric("mine", frozenset(TaskType), rmse))
    assert max(scored) == 10_000
    assert np.count_nonzero(weights) == 3


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 2.0])
def test_the_temperature_undoes_what_made_probabilities_too_sharp_or_too_flat(sharpness):
    rng = np.random.default_rng(0)
    true = rng.dirichlet([1.0, 1.0, 1.0], 4000)
    y = (rng.random(4000)[:, None] > true.cumsum(axis=1)).sum(axis=1)
    given = true**sharpness / (true**sharpness).sum(axis=1, keepdims=True)
    given[:500] = np.nan
    temperature = choose_temperature(given, y)
    assert temperature == pytest.approx(sharpness, rel=0.1)
    assert sharpness != 1.0 or temperature == 1.0


def test_few_rows_are_left_uncalibrated():
    assert choose_temperature(np.full((50, 2), 0.5), np.tile([0, 1], 25)) == 1.0


def test_rows_of_no_weight_do_not_enter_the_temperature():
    rng = np.random.default_rng(1)
    p = rng.uniform(0.05, 0.95, 3000)
    y = (rng.random(3000) < p).astype(int)
    y[1500:] = 1 - y[1500:]  # nonsense, but without weight
    given = np.stack([1 - p, p], axis=1)
    weight = np.r_[np.ones(1500), np.zeros(1500)]
    assert choose_temperature(given, y, sample_weight=weight) == pytest.approx(1.0, abs=0.2)
    assert choose_temperature(given, y) > 1.5


def test_the_greedy_ensemble_alone_asks_nobody_whether_it_pays():
    y, models = noisy_models(800, 3)
    weights = greedy_weights([y, *models], y, metric=METRICS["rmse"])
    np.testing.assert_allclose(weights, [1.0, 0.0, 0.0, 0.0])
    spread = greedy_weights(models, y, metric=METRICS["rmse"])
    assert spread.sum() == pytest.approx(1.0)
    assert (spread > 0.2).all()
    few = greedy_weights([m[:300] for m in noisy_models(800, 9)[1]], y[:300], metric=METRICS["rmse"])
    assert np.count_nonzero(few) <= 5
