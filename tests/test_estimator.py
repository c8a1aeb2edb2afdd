import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time

import cloudpickle
import numpy as np
import pandas as pd
import pytest
from sklearn import config_context
from sklearn.base import clone, is_classifier, is_regressor
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris, make_classification
from sklearn.model_selection import GroupKFold, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from autometa import AutoMetaClassifier, AutoMetaRegressor
from autometa.exceptions import DataError
from autometa.records import Status

QUICK = {"max_trials": 2, "families": ["linear", "knn"], "random_state": 0}


def expected(estimator):
    reason = "folds are drawn by row and columns scaled without weights, so a row of weight 2 is not two rows"
    return {"check_sample_weight_equivalence_on_dense_data": reason}


@parametrize_with_checks([AutoMetaClassifier(**QUICK), AutoMetaRegressor(**QUICK)], expected_failed_checks=expected)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def iris():
    frame = load_iris(as_frame=True).frame
    return frame.drop(columns="target"), frame["target"].map({0: "setosa", 1: "versicolor", 2: "virginica"})


@pytest.fixture(scope="module")
def fitted(iris):
    return AutoMetaClassifier(max_trials=4, families=["linear", "knn", "random_forest"], random_state=0).fit(*iris)


def test_fitted_attributes(fitted, iris):
    X, y = iris
    assert fitted.score(X, y) > 0.9
    assert list(fitted.classes_) == ["setosa", "versicolor", "virginica"]
    assert fitted.predict_proba(X).shape == (150, 3)
    assert len(fitted.leaderboard_) + fitted.ledger_.count(Status.PRUNED) == 4
    assert fitted.leaderboard_["log_loss"].is_monotonic_increasing
    assert fitted.best_candidate_.family == fitted.leaderboard_["family"].iloc[0]
    assert fitted.best_score_ == fitted.leaderboard_["log_loss"].iloc[0]
    assert len(fitted.study_.trials) == 4
    assert fitted.selection_.best.forecast is not None
    assert {"selection", "default"} <= {entry.source for entry in fitted.ledger_}
    assert any("cold start" in entry.reason for entry in fitted.ledger_ if entry.source == "warm start")
    assert list(fitted.feature_names_in_) == list(X.columns)


def test_same_seed_same_model(iris):
    X, y = iris
    options = {"max_trials": 5, "families": ["linear", "lightgbm", "knn"], "random_state": 7}
    one, two = (AutoMetaClassifier(**options).fit(X, y) for _ in range(2))
    assert np.array_equal(one.predict_proba(X), two.predict_proba(X))
    assert [e.candidate for e in one.ledger_] == [e.candidate for e in two.ledger_]


def test_fitting_twice_equals_fitting_once(iris):
    X, y = iris
    model = AutoMetaClassifier(**QUICK).fit(X[:100], y[:100])
    again = model.fit(X, y)
    assert np.array_equal(again.predict_proba(X), AutoMetaClassifier(**QUICK).fit(X, y).predict_proba(X))


def test_plays_with_scikit_learn(iris):
    X, y = iris
    model = AutoMetaClassifier(**QUICK)
    assert is_classifier(model)
    assert is_regressor(AutoMetaRegressor())
    assert clone(model).get_params()["max_trials"] == 2
    assert cross_val_score(model, X, y, cv=2).mean() > 0.85
    assert make_pipeline(StandardScaler(), model).fit(X, y).score(X, y) > 0.9
    assert CalibratedClassifierCV(model, cv=2).fit(X, y).score(X, y) > 0.85
    scaler = StandardScaler().set_output(transform="pandas")
    assert Pipeline([("scale", scaler), ("model", clone(model))]).fit(X, y).score(X, y) > 0.9


def test_sample_weight_is_routed(iris):
    X, y = iris
    weight = np.where(y == "setosa", 1.0, 1e-6)
    with config_context(enable_metadata_routing=True):
        model = AutoMetaClassifier(**QUICK).set_fit_request(sample_weight=True)
        scaler = StandardScaler().set_fit_request(sample_weight=False)
        pipe = make_pipeline(scaler, model).fit(X, y, sample_weight=weight)
    plain = make_pipeline(StandardScaler(), AutoMetaClassifier(**QUICK)).fit(X, y)
    assert not np.allclose(pipe.predict_proba(X), plain.predict_proba(X))


def test_ensemble_off_leaves_one_model(iris):
    model = AutoMetaClassifier(max_trials=4, families=["linear", "knn"], ensemble=False, random_state=0).fit(*iris)
    assert len(model.predictor_.members) == 1


def test_any_splitter_and_groups(iris):
    X, y = iris
    groups = np.arange(150) % 6
    by_group = AutoMetaClassifier(**QUICK).fit(X, y, groups=groups)
    assert by_group.score(X, y) > 0.9
    assert AutoMetaClassifier(**QUICK, cv=GroupKFold(3)).fit(X, y, groups=groups).score(X, y) > 0.9


def test_time_order_is_respected():
    rng = np.random.default_rng(0)
    X = pd.DataFrame({"x": rng.normal(size=200), "when": pd.date_range("2020", periods=200)})
    model = AutoMetaRegressor(**QUICK).fit(X, X["x"] * 2, time=X["when"].to_numpy())
    assert model.score(X, X["x"] * 2) > 0.9


def test_tables_as_people_have_them():
    rng = np.random.default_rng(0)
    n = 150
    X = pd.DataFrame(
        {
            "a,b[c]": rng.normal(size=n),
            "größe {cm}": np.where(rng.random(n) < 0.2, np.nan, rng.normal(size=n)),
            "kind": pd.Categorical(rng.choice(["x", "y", "z"], n)),
            "flag": pd.array(rng.choice([True, False, None], n), dtype="boolean"),
            "day": pd.date_range("2021-01-01", periods=n),
            "note": [f"order {i} of {rng.choice(['tea', 'milk and sugar'])} please, number {i * 7}" for i in range(n)],
            "empty": np.nan,
            "constant": 3,
            "inf": np.where(rng.random(n) < 0.1, np.inf, 1.0),
        }
    )  # fmt: skip
    y = np.where(X["a,b[c]"] > 0, "yes", "no")
    model = AutoMetaClassifier(max_trials=3, families=["linear", "lightgbm", "random_forest"], random_state=0).fit(X, y)
    new = X.iloc[:5].assign(kind="never seen", extra=1)[["extra", *reversed(X.columns)]]
    assert model.score(X, y) > 0.9
    assert set(model.predict(new)) <= {"yes", "no"}


def test_predict_says_what_is_missing_or_wrong(fitted, iris):
    X, _ = iris
    with pytest.raises(DataError, match="petal width"):
        fitted.predict(X.drop(columns="petal width (cm)"))
    with pytest.raises(DataError, match="sepal length"):
        fitted.predict(X.assign(**{"sepal length (cm)": "tall"}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"time_budget": 0}, "must be > 0 seconds"),
        ({"max_trials": 0}, "must be >= 1"),
        ({"metric": "rmse"}, "does not fit"),
        ({"families": ["nonsense"]}, "must be one of"),
        ({"families": []}, "empty"),
        ({"n_jobs": 0}, "must not be 0"),
    ],
)
def test_bad_parameters_get_one_sentence(iris, options, message):
    with pytest.raises(ValueError, match=message):
        AutoMetaClassifier(**options).fit(*iris)


def test_bad_targets_get_one_sentence(iris):
    X, y = iris
    for bad, message in [(["same"] * 150, "at least 2 classes"), ([None] * 150, "no value at all")]:
        with pytest.raises(ValueError, match=message):
            AutoMetaClassifier(**QUICK).fit(X, bad)
    with pytest.raises(ValueError, match="must be numeric"):
        AutoMetaRegressor(**QUICK).fit(X, y)


def test_rows_without_target_are_left_out_with_a_warning(iris):
    X, y = iris
    with pytest.warns(UserWarning, match="10 rows without a target"):
        model = AutoMetaClassifier(**QUICK).fit(X, y.where(np.arange(150) >= 10))
    assert model.score(X, y) > 0.9


def test_time_budget_is_kept():
    X, y = load_breast_cancer(return_X_y=True)
    AutoMetaClassifier(max_trials=2, families=["linear"], n_jobs=2).fit(X, y)  # workers are warm from here on
    started = time.perf_counter()
    model = AutoMetaClassifier(time_budget=4, random_state=0, n_jobs=2).fit(X, y)
    assert time.perf_counter() - started < 4 * 1.05 + 1 + 2  # two seconds more for a busy machine
    assert len(model.leaderboard_) >= 1


def test_a_budget_too_short_for_anything_still_leaves_a_model():
    X, y = make_classification(400, 20, random_state=0)
    model = AutoMetaClassifier(time_budget=1e-3, random_state=0).fit(X, y)
    assert model.predict_proba(X).shape == (400, 2)
    assert model.ledger_.entries[0].source == "first"
    assert model.score(X, y) > 0.7  # better than a constant: the first quick model


def test_regressor():
    X, y = load_diabetes(return_X_y=True, as_frame=True)
    model = AutoMetaRegressor(max_trials=4, families=["linear", "lightgbm"], metric="mae", random_state=0).fit(X, y)
    assert model.score(X, y) > 0.4
    assert 30 < model.best_score_ < 60
    assert not hasattr(model, "predict_proba")


def test_a_fitted_model_travels_through_pickle(fitted, iris):
    X, _ = iris
    assert np.array_equal(pickle.loads(pickle.dumps(fitted)).predict_proba(X), fitted.predict_proba(X))


def test_no_quick_family_and_no_time_leave_a_constant():
    X, y = make_classification(200, 5, random_state=0)
    model = AutoMetaClassifier(time_budget=1e-3, families=["random_forest"], random_state=0).fit(X, y)
    assert np.ptp(model.predict_proba(X), axis=0).max() == 0
    assert "constant prediction" in model.ledger_.entries[-1].reason


def _searched(model):
    return [entry for entry in model.ledger_ if entry.source not in {"folds", "refit", "warm start"}]


def test_refine_goes_on_where_fit_ended(iris):
    X, y = iris
    model = AutoMetaClassifier(max_trials=2, families=["linear", "knn"], random_state=0).fit(X, y)
    before = [entry.candidate for entry in _searched(model)]
    n_trials, score = len(model.study_.trials), model.best_score_
    for seconds in (2.0, 8.0, 32.0):  # a slow machine may need longer to start a worker
        if len(model.study_.trials) == n_trials:
            model.refine(seconds)
    assert [entry.candidate for entry in _searched(model)][: len(before)] == before
    assert len(model.study_.trials) > n_trials
    assert model.best_score_ <= score  # log loss
    assert model.score(X, y) > 0.9
    with pytest.raises(ValueError, match="same process"):
        pickle.loads(pickle.dumps(model)).refine(1.0)


def test_units_of_work_give_the_same_model_however_long_they_take(iris):
    X, y = iris
    options = {"time_budget": 3.0, "budget_unit": "work", "families": ["linear", "knn", "lightgbm"], "random_state": 1}
    one, two = (AutoMetaClassifier(**options).fit(X, y) for _ in range(2))
    assert np.array_equal(one.predict_proba(X), two.predict_proba(X))
    assert [(e.candidate, e.started) for e in one.ledger_][1:] == [(e.candidate, e.started) for e in two.ledger_][1:]
    assert len(one.study_.trials) > 3


def test_unstable_families_are_bagged_and_stable_ones_fitted_again(iris):
    X, y = iris
    options = {"max_trials": 1, "random_state": 0}
    bag = AutoMetaClassifier(families=["lightgbm"], **options).fit(X, y)
    assert [len(member.models) for member in bag.predictor_.members] == [5]
    one = AutoMetaClassifier(families=["linear"], **options).fit(X, y)
    assert [len(member.models) for member in one.predictor_.members] == [1]
    plain = AutoMetaClassifier(families=["lightgbm"], ensemble=False, **options).fit(X, y)
    assert [len(member.models) for member in plain.predictor_.members] == [1]


def test_limits_of_the_final_model(iris):
    X, y = iris
    options = {"max_trials": 3, "families": ["random_forest", "lightgbm", "linear"], "random_state": 0}
    small = AutoMetaClassifier(max_model_mb=0.05, **options).fit(X, y)
    assert sum(len(cloudpickle.dumps(member.models)) for member in small.predictor_.members) < 0.05 * 2**20
    with pytest.raises(ValueError, match="max_predict_ms must be > 0"):
        AutoMetaClassifier(max_predict_ms=0, **options).fit(X, y)


def test_class_weights_shift_the_decision():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 2))
    y = (X[:, 0] + rng.normal(size=400) > 1.5).astype(int)
    options = {"max_trials": 1, "families": ["linear"], "random_state": 0}
    plain, balanced = (AutoMetaClassifier(**options, class_weight=w).fit(X, y) for w in (None, "balanced"))
    assert balanced.predict(X).mean() > 1.5 * plain.predict(X).mean()


def test_any_scorer_name_or_callable(iris):
    X, y = iris

    def hits(estimator, X, y):
        return float(np.mean(estimator.predict(X) == y))

    by_callable = AutoMetaClassifier(**QUICK, metric=hits).fit(X, y)
    by_name = AutoMetaClassifier(**QUICK, metric="accuracy").fit(X, y)
    assert by_callable.metric_.name == "hits"
    boards = (by_callable.leaderboard_, by_name.leaderboard_)  # the meta-model knows accuracy: other trials may follow
    scores, others = ({(row[1], str(row[5])): row[2] for row in board.itertuples()} for board in boards)
    both = scores.keys() & others.keys()
    assert both
    assert {key: scores[key] for key in both} == pytest.approx({key: others[key] for key in both})
    assert AutoMetaClassifier(**QUICK, metric="jaccard_macro").fit(X, y).best_score_ > 0.8


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_returns_the_best_so_far(number):
    script = textwrap.dedent(
        """
        import signal
        from sklearn.datasets import load_breast_cancer
        from autometa import AutoMetaClassifier
        X, y = load_breast_cancer(return_X_y=True)
        def started(ledger):
            print("trial", flush=True)
        import autometa.estimator as estimator
        from contextlib import contextmanager
        @contextmanager
        def line(*args, **kwargs):
            yield started
        estimator.progress_line = line
        model = AutoMetaClassifier(time_budget=120, families=["linear", "lightgbm"], random_state=0).fit(X, y)
        print("score", model.score(X, y), flush=True)
        print("handler", signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, flush=True)
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "trial"
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "score 0.9" in out or "score 1" in out
    assert "handler True" in out


def test_the_ledger_says_where_the_weights_of_a_net_came_from(iris):
    X, y = iris
    model = AutoMetaClassifier(max_trials=1, families=["mlp"], random_state=0).fit(X, y)
    assert "birth: random" in model.ledger_.entries[-1].reason
