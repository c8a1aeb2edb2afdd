"""Metrics: equal to scikit-learn's, higher is better, weights count; names are resolved or refused clearly."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from autometa.data import TaskType
from autometa.metrics import METRICS, Metric, resolve_metric, task_metrics

BINARY, MULTICLASS, REGRESSION = TaskType.BINARY, TaskType.MULTICLASS, TaskType.REGRESSION


def classes_and_probabilities(n_classes, seed, n_rows=60):
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(n_classes), rng.integers(0, n_classes, n_rows - n_classes)])
    p = rng.dirichlet(np.ones(n_classes), n_rows) + 0.5 * np.eye(n_classes)[y] * rng.random((n_rows, 1))
    return y, p / p.sum(axis=1, keepdims=True), rng.uniform(0.1, 2.0, n_rows)


REFERENCES = {
    "log_loss": lambda y, p, w: -sk.log_loss(y, p, sample_weight=w, labels=range(p.shape[1])),
    "accuracy": lambda y, p, w: sk.accuracy_score(y, p.argmax(1), sample_weight=w),
    "balanced_accuracy": lambda y, p, w: sk.balanced_accuracy_score(y, p.argmax(1), sample_weight=w),
    "f1": lambda y, p, w: sk.f1_score(
        y, p.argmax(1), average="binary" if p.shape[1] == 2 else "macro", sample_weight=w
    ),
    "rmse": lambda y, p, w: -sk.root_mean_squared_error(y, p, sample_weight=w),
    "mae": lambda y, p, w: -sk.mean_absolute_error(y, p, sample_weight=w),
    "r2": lambda y, p, w: sk.r2_score(y, p, sample_weight=w),
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_classes", [2, 4])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_classification_metrics_equal_scikit_learn(n_classes, weighted, seed):
    y, p, w = classes_and_probabilities(n_classes, seed)
    w = w if weighted else None
    for name in ("log_loss", "accuracy", "balanced_accuracy", "f1"):
        assert METRICS[name].score(y, p, w) == pytest.approx(REFERENCES[name](y, p, w)), name
    if n_classes == 2:
        assert METRICS["roc_auc"].score(y, p, w) == pytest.approx(sk.roc_auc_score(y, p[:, 1], sample_weight=w))
    elif w is None:
        reference = sk.roc_auc_score(y, p, multi_class="ovr", average="weighted")
        assert METRICS["roc_auc"].score(y, p) == pytest.approx(reference)


@pytest.mark.parametrize("weighted", [False, True])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([1e-3, 1.0, 1e6]))
def test_regression_metrics_equal_scikit_learn(weighted, seed, scale):
    rng = np.random.default_rng(seed)
    y, w = scale * rng.normal(size=50), rng.uniform(0.1, 2.0, 50) if weighted else None
    prediction = y + scale * rng.normal(size=50)
    for name in ("rmse", "mae", "r2"):
        assert METRICS[name].score(y, prediction, w) == pytest.approx(REFERENCES[name](y, prediction, w)), name


@pytest.mark.parametrize("task", list(TaskType))
def test_a_better_prediction_has_a_higher_score(task):
    rng = np.random.default_rng(0)
    if task is REGRESSION:
        y = rng.normal(size=200)
        good, bad = y + 0.1 * rng.normal(size=200), y + 2.0 * rng.normal(size=200)
    else:
        n_classes = 2 if task is BINARY else 4
        y = rng.integers(0, n_classes, 200)
        noise = rng.random((200, n_classes))
        good, bad = (np.eye(n_classes)[y] * share + noise for share in (2.0, 0.1))
        good, bad = good / good.sum(1, keepdims=True), bad / bad.sum(1, keepdims=True)
    for metric in task_metrics(task):
        assert metric.score(y, good) > metric.score(y, bad), metric.name
        assert metric.from_score(metric.score(y, good)) == pytest.approx(metric.function(y, good, None))


@pytest.mark.parametrize("name", sorted(METRICS))
def test_whole_weights_equal_repeated_rows(name):
    rng = np.random.default_rng(1)
    counts = rng.integers(1, 4, 60)
    if REGRESSION in METRICS[name].tasks:
        y, p = rng.normal(size=60), rng.normal(size=60)
    else:
        y, p, _ = classes_and_probabilities(3, 1)
    repeated = METRICS[name].score(np.repeat(y, counts), np.repeat(p, counts, axis=0))
    assert METRICS[name].score(y, p, counts.astype(float)) == pytest.approx(repeated)


def test_hand_worked_values():
    y = np.array([0, 0, 1, 1])
    p = np.array([[0.9, 0.1], [0.6, 0.4], [0.65, 0.35], [0.2, 0.8]])
    assert METRICS["accuracy"].score(y, p) == 0.75
    assert METRICS["roc_auc"].score(y, p) == 0.75  # three of four pairs are in order
    assert METRICS["log_loss"].score(y, p) == pytest.approx(np.log([0.9, 0.6, 0.35, 0.8]).mean())
    assert METRICS["f1"].score(y, p) == pytest.approx(2 / 3)
    values, guess = np.array([1.0, 2.0, 3.0]), np.array([1.0, 2.0, 6.0])
    assert METRICS["rmse"].score(values, guess) == pytest.approx(-np.sqrt(3))
    assert METRICS["mae"].score(values, guess) == -1.0


def test_certain_and_wrong_is_finite():
    p = np.array([[1.0, 0.0], [1.0, 0.0]])
    assert np.isfinite(METRICS["log_loss"].score(np.array([1, 1]), p))


def test_not_defined_is_nan():
    p = np.array([[0.4, 0.6], [0.3, 0.7]])
    assert np.isnan(METRICS["roc_auc"].score(np.array([1, 1]), p))
    assert np.isnan(METRICS["roc_auc"].score(np.array([2, 2]), np.full((2, 3), 1 / 3)))


def test_a_class_without_rows_is_left_out():
    y, p, _ = classes_and_probabilities(2, 5)
    wide = np.column_stack([p, np.zeros(len(p))])
    assert METRICS["log_loss"].score(y, wide) == pytest.approx(METRICS["log_loss"].score(y, p), rel=1e-5)
    assert METRICS["balanced_accuracy"].score(y, wide) == pytest.approx(METRICS["balanced_accuracy"].score(y, p))
    assert METRICS["roc_auc"].score(y, wide) == pytest.approx(METRICS["roc_auc"].score(y, p))


@pytest.mark.parametrize(("task", "name"), [(BINARY, "roc_auc"), (MULTICLASS, "log_loss"), (REGRESSION, "rmse")])
def test_defaults(task, name):
    assert resolve_metric(None, task).name == name
    assert task_metrics(task)[0].name == name
    assert {m.name for m in task_metrics(task)} == {m.name for m in METRICS.values() if task in m.tasks}


@pytest.mark.parametrize("task", list(TaskType))
def test_names_and_metrics_resolve_to_themselves(task):
    for metric in task_metrics(task):
        assert resolve_metric(metric.name, task) is metric
        assert resolve_metric(metric, task) is metric


@pytest.mark.parametrize(
    ("alias", "task", "name"),
    [
        ("neg_log_loss", BINARY, "log_loss"),
        ("roc_auc_ovr", MULTICLASS, "roc_auc"),
        ("f1_macro", MULTICLASS, "f1"),
        ("neg_root_mean_squared_error", REGRESSION, "rmse"),
        ("neg_mean_absolute_error", REGRESSION, "mae"),
    ],
)
def test_aliases(alias, task, name):
    assert resolve_metric(alias, task) is METRICS[name]


@pytest.mark.parametrize(
    ("name", "reference"),
    [
        ("average_precision", lambda y, p: sk.average_precision_score(y, p[:, 1])),
        ("neg_brier_score", lambda y, p: -sk.brier_score_loss(y, p[:, 1])),
        ("matthews_corrcoef", lambda y, p: sk.matthews_corrcoef(y, p.argmax(1))),
        ("precision", lambda y, p: sk.precision_score(y, p.argmax(1))),
        ("f1_weighted", lambda y, p: sk.f1_score(y, p.argmax(1), average="weighted")),
    ],
)
def test_scorers_of_scikit_learn_by_name(name, reference):
    y, p, _ = classes_and_probabilities(2, 3)
    assert resolve_metric(name, BINARY).score(y, p) == pytest.approx(reference(y, p))


def test_regression_scorers_by_name():
    rng = np.random.default_rng(0)
    y, p = rng.uniform(1, 2, 40), rng.uniform(1, 2, 40)
    found = resolve_metric("neg_median_absolute_error", REGRESSION)
    assert found.score(y, p) == pytest.approx(-sk.median_absolute_error(y, p))
    assert resolve_metric("explained_variance", REGRESSION).score(y, p) == pytest.approx(
        sk.explained_variance_score(y, p)
    )


def test_made_scorers_keep_options_sign_and_weights():
    y, p, w = classes_and_probabilities(2, 4)
    f2 = resolve_metric(sk.make_scorer(sk.fbeta_score, beta=2), BINARY)
    assert f2.score(y, p) == pytest.approx(sk.fbeta_score(y, p.argmax(1), beta=2))
    assert f2.score(y, p, w) == pytest.approx(sk.fbeta_score(y, p.argmax(1), beta=2, sample_weight=w))
    pinball = sk.make_scorer(sk.mean_pinball_loss, alpha=0.9, greater_is_better=False)
    values, guess = np.array([1.0, 2.0, 4.0]), np.array([2.0, 2.0, 2.0])
    score = resolve_metric(pinball, REGRESSION).score(values, guess)
    assert score == pytest.approx(-sk.mean_pinball_loss(values, guess, alpha=0.9))


def test_a_scorer_of_ones_own_without_weights():
    def share_within_one(y, prediction):
        return float(np.mean(np.abs(y - prediction) <= 1))

    metric = resolve_metric(sk.make_scorer(share_within_one), REGRESSION)
    assert metric.score(np.array([1.0, 2.0]), np.array([1.5, 9.0])) == 0.5
    assert metric.score(np.array([1.0, 2.0]), np.array([1.5, 9.0]), np.ones(2)) == 0.5


@pytest.mark.parametrize(
    ("metric", "task", "match"),
    [
        ("rmse", BINARY, "'rmse' does not fit a binary task. Use one of roc_auc"),
        ("accuracy", REGRESSION, "'accuracy' does not fit a regression task. Use one of rmse"),
        ("neg_mean_poisson_deviance", MULTICLASS, "does not fit a multiclass task"),
        ("average_precision", REGRESSION, "does not fit a regression task"),
        (METRICS["r2"], BINARY, "'r2' does not fit"),
        (sk.make_scorer(sk.r2_score), BINARY, "does not fit a binary task"),
        (sk.make_scorer(sk.accuracy_score), REGRESSION, "does not fit a regression task"),
        ("speed", BINARY, "must be one of roc_auc, .* Got 'speed' instead"),
        (3, BINARY, "must be a name, a Metric or a scorer .* Got 3 instead"),
        ("adjusted_rand_score", REGRESSION, "does not fit a regression task"),
    ],
)
def test_what_does_not_fit_is_refused(metric, task, match):
    with pytest.raises(ValueError, match=match):
        resolve_metric(metric, task)


def test_an_own_metric():
    worst = Metric("worst", frozenset({REGRESSION}), lambda y, p, w: float(np.abs(y - p).max()), False)
    assert resolve_metric(worst, REGRESSION).score(np.array([1.0, 5.0]), np.array([1.0, 2.0])) == -3.0
