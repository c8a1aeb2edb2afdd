"""fine_tune: more of what helps, nothing of what does not, and the plain fit where the validation got worse."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.model_selection import KFold

from autometa.data import TaskType
from autometa.families import resolve_families
from autometa.families._staged import ROUNDS_AND_RATE, staged_predictions
from autometa.fine_tuning import fine_tune
from autometa.fitting import EncodedData, fit_model
from autometa.metrics import resolve_metric
from autometa.records import Status

FAMILIES = {family.name: family for family in resolve_families(None)}
CONFIGS = {
    "hist_gradient_boosting": {"max_iter": 60, "learning_rate": 0.5},
    "lightgbm": {"n_estimators": 60, "learning_rate": 0.3},
    "xgboost": {"n_estimators": 60, "learning_rate": 0.3},
    "catboost": {"iterations": 60, "learning_rate": 0.3},
}


def curve_data(n=240, seed=0, classify=False, noise=0.3):
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(n, 4)).astype(np.float32)
    y = np.sin(2 * matrix[:, 0]) + matrix[:, 1] + noise * rng.normal(size=n)
    if classify:
        return EncodedData(matrix, np.digitize(y, [-0.6, 0.6]), TaskType.MULTICLASS, 3)
    return EncodedData(matrix, y.astype(float), TaskType.REGRESSION)


def splits_of(data, n=2):
    return list(KFold(n, shuffle=True, random_state=0).split(data.matrix))


def tuned(name, data, config=None, **options):
    family = FAMILIES[name]
    config = {**family.default_config, **(config or {})}
    metric = resolve_metric("log_loss" if data.n_classes else "rmse", data.task)
    return fine_tune(family, config, data=data, metric=metric, splits=splits_of(data), **options)


def available(name):
    if name not in FAMILIES or not FAMILIES[name].is_available():
        pytest.skip(f"{name} is not installed")


@pytest.mark.parametrize("classify", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_staged_predictions_end_with_the_prediction(name, classify):
    available(name)
    data, family = curve_data(classify=classify), FAMILIES[name]
    config = {**family.default_config, **CONFIGS[name], ROUNDS_AND_RATE[name][0]: 30}
    model = fit_model(family, config, data=data)
    stages = list(staged_predictions(name, model.estimator, data.matrix, [1, 7, 30]))
    np.testing.assert_allclose(stages[-1], model.predict(data.matrix), atol=1e-6)
    few = fit_model(family, {**config, ROUNDS_AND_RATE[name][0]: 7}, data=data)
    np.testing.assert_allclose(stages[1], few.predict(data.matrix), atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_boosting_that_learned_too_fast_is_slowed_down(name):
    available(name)
    data, fresh = curve_data(noise=1.5), curve_data(2000, seed=1, noise=0.0)
    result = tuned(name, data, CONFIGS[name])
    rounds, rate = ROUNDS_AND_RATE[name]
    assert result.kept
    assert result.score_after > result.score_before
    assert result.config[rate] < CONFIGS[name][rate]
    assert f"{result.config[rounds]} rounds" in result.reason
    plain = fit_model(FAMILIES[name], {**FAMILIES[name].default_config, **CONFIGS[name]}, data=data)
    errors = [np.mean((model.predict(fresh.matrix) - fresh.y) ** 2) for model in (plain, result.model)]
    assert errors[1] < errors[0]


@pytest.mark.parametrize("classify", [False, True])
def test_a_net_goes_on_or_is_left_as_it_was(classify):
    data = curve_data(classify=classify)
    config = {"n_epochs": 16, "numerical_embedding": "none", "width": 32}
    family = FAMILIES["mlp"]
    plain = fit_model(family, {**family.default_config, **config}, data=data)
    before = plain.predict(data.matrix)
    result = tuned("mlp", data, config, model=plain)
    np.testing.assert_array_equal(plain.predict(data.matrix), before)  # never touched
    assert result.kept == (result.score_after > result.score_before)
    assert (result.model is plain) == (not result.kept)
    again = tuned("mlp", data, config)
    np.testing.assert_array_equal(again.model.predict(data.matrix), result.model.predict(data.matrix))


def test_what_makes_the_validation_worse_is_undone(monkeypatch):
    from autometa.families import _net_estimators

    def spoil(self, X, y, sample_weight=None, **_):
        for value in self.net_.parameters():
            value.data.add_(5.0)
        return self

    monkeypatch.setattr(_net_estimators.NetRegressor, "refine", spoil)
    data = curve_data()
    result = tuned("mlp", data, {"n_epochs": 16, "numerical_embedding": "none", "width": 32})
    assert not result.kept
    assert result.score_after < result.score_before
    entry = result.entry("mlp", started=3.0)
    assert (entry.status, entry.source, entry.started) == (Status.SKIPPED, "fine_tune", 3.0)
    assert "undone" in entry.reason
    assert np.abs(result.model.predict(data.matrix)).max() < 10


def test_other_families_are_fitted_on_all_rows():
    data = curve_data()
    result = tuned("linear", data)
    assert result.kept
    assert result.reason == "fitted on all rows"
    plain = fit_model(FAMILIES["linear"], FAMILIES["linear"].default_config, data=data)
    np.testing.assert_allclose(result.model.predict(data.matrix), plain.predict(data.matrix))


def test_no_time_leaves_the_plain_fit_and_no_split_is_an_error():
    data = curve_data()
    result = tuned("hist_gradient_boosting", data, {"max_iter": 30}, time_limit_seconds=0.0)
    assert not result.kept
    assert "time" in result.reason
    assert result.model.predict(data.matrix).shape == (len(data.matrix),)
    family = FAMILIES["linear"]
    with pytest.raises(ValueError, match="at least one"):
        fine_tune(family, family.default_config, data=data, metric=resolve_metric("rmse", data.task), splits=[])


def test_refining_keeps_the_seed_and_the_scale():
    family, data = FAMILIES["mlp"], curve_data()
    config = {**family.default_config, "n_epochs": 16, "numerical_embedding": "none", "width": 32}
    models = [fit_model(family, config, data=data) for _ in range(2)]
    for model in models:
        model.estimator.refine(data.matrix, data.y)
    np.testing.assert_array_equal(*(model.predict(data.matrix) for model in models))
    assert models[0].estimator.result_.stop_reason == "n_epochs"
    residual = models[0].predict(data.matrix) - data.y
    assert residual.std() < 0.8 * data.y.std()
