"""Plots: what is drawn is what was measured; names from data are shown as they are."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("matplotlib").use("Agg")

import matplotlib.pyplot as plt  # noqa: E402

from autometa import AutoMetaClassifier, plots, select  # noqa: E402
from autometa.family import Candidate, Forecast  # noqa: E402
from autometa.gradient.schedules import Schedule  # noqa: E402
from autometa.metrics import resolve_metric  # noqa: E402
from autometa.records import Ledger, LedgerEntry, Status  # noqa: E402

LOG_LOSS = resolve_metric("log_loss", "binary")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(80, 4)), columns=list("abcd"))
    return X, (X["a"] + 0.5 * rng.normal(size=80) > 0).map({True: "$yes$", False: "<no>"})


@pytest.fixture(scope="module")
def model(table):
    return AutoMetaClassifier(max_trials=3, families=["linear", "knn"], random_state=0).fit(*table)


def trial(score, *, started, seconds=1.0, source="search", status=Status.OK, family="knn", k=1):
    return LedgerEntry(Candidate(family, {"k": k}), status, source, score, seconds, started)


LEDGER = Ledger(
    (
        trial(-0.5, started=0.0),
        trial(-0.7, started=1.0, k=2),
        trial(float("nan"), started=2.0, status=Status.FAILED, k=3),
        trial(-0.3, started=3.0, k=4),
        trial(0.9, started=4.0, source="refit"),  # a weight, not a score
        LedgerEntry(None, Status.SKIPPED, "search", reason="no time"),
    )
)


def test_best_so_far_by_hand():
    frame = plots.best_so_far(LEDGER, LOG_LOSS)
    assert frame["seconds"].tolist() == [1.0, 2.0, 4.0]
    assert frame["score"].tolist() == [0.5, 0.7, 0.3]
    assert frame["best"].tolist() == [0.5, 0.5, 0.3]
    assert plots.best_so_far(LEDGER)["best"].tolist() == [-0.5, -0.5, -0.3]


def test_forecast_pairs_by_hand():
    forecast = Forecast(-0.4, -0.6, -0.2, 1.0)
    known = Candidate("knn", {"k": 2}, forecast=forecast)
    candidates = (known, Candidate("knn", {"k": 9}, forecast=forecast), Candidate("knn", {"k": 1}))
    pairs = plots.forecast_pairs(SimpleNamespace(candidates=candidates, metric=LOG_LOSS), LEDGER)
    assert pairs.drop(columns="config").to_numpy().tolist() == [["knn", 0.4, 0.2, 0.6, 0.7]]


def test_anytime_curve_draws_the_best_so_far():
    ax = plots.anytime_curve(LEDGER, LOG_LOSS)
    best, trials = ax.get_lines()
    assert best.get_ydata().tolist() == [0.5, 0.5, 0.3]
    assert len(trials.get_ydata()) == 3
    assert "lower is better" in ax.get_ylabel()
    with pytest.raises(ValueError, match="at least one finished trial"):
        plots.anytime_curve(Ledger())


def test_family_ranking_draws_every_forecast_best_on_top(table):
    selection = select(*table, families=["linear", "knn", "naive_bayes"])
    ax = selection.plot()
    ax.figure.canvas.draw()
    shown = [label.get_text() for label in ax.get_yticklabels()]
    assert shown[::-1] == selection.to_frame()["family"].tolist()
    middle = ax.containers[0].lines[0].get_xdata()
    assert sorted(middle) == sorted(selection.to_frame()["roc_auc"])
    given = plt.subplots()[1]
    assert plots.family_ranking(selection, ax=given) is given
    with pytest.raises(ValueError, match="without a meta-model"):
        select(*table, families=["knn"], meta_model="none").plot()


def test_forecast_against_reality_of_a_fitted_model(model):
    ax = plots.forecast_against_reality(model)
    pairs = plots.forecast_pairs(model.selection_, model.ledger_)
    drawn = np.concatenate([c.lines[0].get_ydata() for c in ax.containers])
    assert sorted(drawn) == pytest.approx(sorted(pairs["measured"]))
    assert 1 <= len(pairs) <= 3


def test_every_trial_of_the_leaderboard_is_drawn(model):
    frame = plots.best_so_far(model.ledger_, model.metric_)
    assert sorted(frame["score"]) == pytest.approx(sorted(model.leaderboard_["roc_auc"]))
    assert frame["best"].iloc[-1] == pytest.approx(model.best_score_)


def test_ensemble_weights_are_shares(model):
    member = model.predictor_.members[0]
    two = SimpleNamespace(members=[SimpleNamespace(family="a", weight=3.0), SimpleNamespace(family="a", weight=1.0)])
    ax = plots.ensemble_weights(two)
    assert sorted(bar.get_width() for bar in ax.patches) == [0.25, 0.75]
    ax.figure.canvas.draw()
    assert [label.get_text() for label in ax.get_yticklabels()] == ["2. a", "1. a"]
    assert plots.ensemble_weights(model).patches[-1].get_width() == pytest.approx(
        member.weight / sum(m.weight for m in model.predictor_.members)
    )


def test_learning_rate_schedule_draws_the_rates():
    schedule = Schedule("cosine", peak=0.1)
    candidate = Candidate("mlp", {"schedule": "constant", "learning_rate": 0.02, "optimizer": "adamw"})
    first, second = plots.learning_rate_schedule(schedule, candidate).get_lines()
    assert first.get_ydata()[[0, -1]].tolist() == pytest.approx([0.1, 0.0])
    assert set(second.get_ydata()) == {0.02}
    assert second.get_label() == "mlp, adamw, constant, peak 0.02"
    with pytest.raises(ValueError, match="must have a schedule"):
        plots.learning_rate_schedule(Candidate("knn", {}))
    with pytest.raises(ValueError, match="at least one"):
        plots.learning_rate_schedule()


def test_the_plane_keeps_two_clusters_apart_and_a_copy_on_its_original():
    rng = np.random.default_rng(0)
    known = pd.DataFrame(rng.normal(size=(40, 5)) + np.repeat([[0], [6]], 20, axis=0), columns=list("vwxyz"))
    plane = plots.meta_feature_plane(known, known.iloc[3])
    assert plane[["x", "y"]].iloc[-1].tolist() == pytest.approx(plane[["x", "y"]].iloc[3].tolist())
    left, right = plane["x"].iloc[:20], plane["x"].iloc[20:40]
    assert left.max() < right.min() or right.max() < left.min()


def test_nearest_datasets_names_the_neighbours(table):
    selection = select(*table, families=["knn"], name="mine")
    ax = plots.nearest_datasets(selection)
    assert {text.get_text() for text in ax.texts} == {name for name, _ in selection.neighbours}
    assert "mine" in [text.get_text() for text in ax.get_legend().get_texts()]
    assert len(ax.collections[0].get_offsets()) == len(plots.shipped_meta_features())


@pytest.mark.parametrize("name", ["$x$", r"\frac{", "_hidden", "<script>", "日本", "a\nb", "x" * 200])
def test_names_from_data_are_drawn_and_not_read(name):
    member = SimpleNamespace(family=name, weight=1.0)
    ax = plots.ensemble_weights(SimpleNamespace(members=[member]))
    ax.figure.canvas.draw()
    assert len(ax.get_yticklabels()[0].get_text()) < 50
