import numpy as np
import pandas as pd
import polars as pl
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_iris
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline
from test_tuning import Keeper

import autometa
from autometa.exceptions import DataError
from autometa.selection import Selection, select


@pytest.fixture(scope="module")
def iris() -> pd.DataFrame:
    return load_iris(as_frame=True).frame.assign(target=lambda f: f["target"].map({0: "a", 1: "b", 2: "c"}))


@pytest.fixture(scope="module")
def selection(iris) -> Selection:
    return select(iris, target="target", name="iris")


def test_every_available_family_is_ranked_with_a_forecast(selection):
    frame = selection.to_frame()
    assert set(frame["family"]) == {family.name for family in selection.families}
    assert frame["log_loss"].is_monotonic_increasing  # its own sign: a loss, best first
    assert (frame["log_loss_low"] <= frame["log_loss"]).all()
    assert (frame["log_loss"] <= frame["log_loss_high"]).all()
    assert (frame["fit_seconds"] > 0).all()
    assert len(selection.to_frame(every=True)) == len(selection.candidates) > len(frame)


def test_best_builds_an_unfitted_pipeline_that_takes_the_raw_table(selection, iris):
    model = selection.best.build()
    assert isinstance(model, Pipeline)
    X, y = iris.drop(columns="target"), iris["target"]
    assert model.fit(X, y).score(X, y) > 0.9
    assert list(model.classes_) == ["a", "b", "c"]


def test_every_family_builds_a_model_for_text_labels(selection, iris):
    X, y = iris.drop(columns="target"), iris["target"]
    for candidate in selection.ranking:
        if candidate.family not in {"mlp", "tabm"}:
            assert candidate.build().fit(X, y).score(X, y) > 0.8, candidate.family


def test_inputs_are_interchangeable(iris, selection, tmp_path):
    X, y = iris.drop(columns="target"), iris["target"]
    iris.to_csv(tmp_path / "t.csv", index=False)
    iris.to_parquet(tmp_path / "t.parquet")
    ways = [
        select(X, y),
        select(pl.from_pandas(iris), target="target"),
        select(tmp_path / "t.csv", target="target"),
        select(str(tmp_path / "t.parquet"), target="target"),
        select(autometa.Dataset.from_frame(iris, "target")),
        select(X.to_numpy(), y.to_numpy()),
    ]
    for other in ways:
        assert [c.key for c in other.candidates] == [c.key for c in selection.candidates]


def test_text_and_html_show_the_ranking(selection):
    assert selection.best.family in str(selection)
    assert "log_loss" in str(selection)
    assert selection.best.family in selection._repr_html_()
    assert selection.best.family in selection.explain()


def test_learning_rates_of_neural_candidates_are_forecast(selection):
    rates = selection.schedules()
    assert {r.candidate.family for r in rates} == {"mlp", "tabm"} & {f.name for f in selection.families}
    for one in rates:
        assert one.epochs.shape == one.rates.shape
        assert one.rates.max() <= one.candidate.config["learning_rate"] * (1 + 1e-9)
        assert one.rates[0] == pytest.approx(one.schedule.rate(0.0))
        assert one.optimizer == one.candidate.config["optimizer"]
        assert one.optimizer in selection.explain()
        assert one.birth in str(one)
    assert len(selection.schedules(every=True)) > len(rates)


def test_explanation_names_similar_datasets_and_what_moved_the_forecast(selection):
    text = selection.explain()
    assert "won)" in text
    assert any(name in text for name, _ in selection.neighbours)
    assert 0 <= selection.novelty <= 1
    assert 0 < selection.trust <= 1
    assert 64 < selection.memory_bound_mb < 80


def test_a_table_unlike_all_known_ones_is_drawn_to_the_portfolio():
    rng = np.random.default_rng(0)
    values = np.where(rng.random((60, 1500)) < 0.6, np.nan, np.exp(30 * rng.normal(size=(60, 1500))))
    odd = pd.DataFrame(values).add_prefix("c").assign(target=rng.choice(list("abcdefghijkl"), 60))
    selection = select(odd, target="target")
    assert selection.novelty > 0.98
    assert selection.trust < 0.2
    assert any("drawn to what is best on average" in note for note in selection.notes)
    assert "drawn to what is best on average" in selection.explain()


def test_html_does_not_run_scripts(iris):
    bad = select(iris, target="target", name="<script>alert(1)</script>", families=["linear"])
    assert "<script>" not in bad._repr_html_()


def test_regression_leaves_out_classifiers():
    X, y = load_diabetes(return_X_y=True)
    selection = select(X, y, families=["naive_bayes", "linear", "lightgbm"])
    assert {c.family for c in selection.candidates} == {"linear", "lightgbm"}
    with pytest.raises(ValueError, match="can do a regression task"):
        select(X, y, families=["naive_bayes"])


def test_a_family_the_meta_model_never_met_enters_with_its_default():
    X, y = load_diabetes(return_X_y=True)
    selection = select(X, y, families=["linear", Keeper()])
    assert selection.candidates[-1] == Keeper().default_candidate()
    assert selection.candidates[-1].forecast is None
    assert any("keeper" in note for note in selection.notes)


def test_without_meta_knowledge_the_defaults_come_in_order(iris):
    selection = select(iris, target="target", families=["knn", "linear"], meta_model="none")
    assert [c.family for c in selection.candidates] == ["knn", "linear"]
    assert selection.best.forecast is None
    assert "no meta-model" in selection.explain()


def test_a_metric_the_corpus_does_not_hold_is_ranked_by_the_default_one(iris):
    selection = select(iris, target="target", metric="matthews_corrcoef")
    assert selection.best.forecast is None
    assert any("log_loss" in note for note in selection.notes)


def test_metrics_of_the_corpus_have_forecasts(iris):
    selection = select(iris, target="target", metric="accuracy")
    assert 0.5 < selection.best.forecast.score <= 1.2


def test_selection_is_deterministic_and_blind_to_column_order(iris, selection):
    again = select(iris[iris.columns[::-1]], target="target")
    assert [c.key for c in again.candidates] == [c.key for c in selection.candidates]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: select(f, target="nothing"), "not in the table"),
        (lambda f: select(f), "target=<column name>"),
        (lambda f: select(f, target="target", metric="rmse"), "does not fit"),
        (lambda f: select(f, target="target", metric="nonsense"), "must be one of"),
        (lambda f: select(f, target="target", families=["nonsense"]), "must be one of"),
        (lambda f: select("no_such_file.csv", target="target"), "There is no file"),
        (lambda f: select(f.assign(target="same"), target="target"), "at least 2 classes"),
        (lambda f: select(f.assign(target=np.nan), target="target"), "no value at all"),
        (lambda f: select(f.iloc[:2], target="target"), "At least 3 rows"),
        (lambda f: select(f.iloc[:0], target="target"), "empty"),
        (lambda f: select(pd.concat([f, f], axis=1), target="target"), "must be unique"),
    ],
)
def test_bad_input_gets_one_sentence(iris, call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call(iris)
    assert "\n" not in str(caught.value)


def test_data_errors_are_value_errors():
    assert issubclass(DataError, ValueError)


def test_plot_returns_axes(selection):
    pytest.importorskip("matplotlib").use("Agg")
    assert selection.plot().get_xlabel().startswith("forecast log_loss")


def test_no_candidate_is_listed_twice(selection):
    keys = [(c.family, tuple(sorted((k, str(v)) for k, v in c.config.items()))) for c in selection.candidates]
    values = [(c.family, frozenset(c.config.items())) for c in selection.candidates]
    assert len(set(values)) == len(values) == len(set(keys))


def test_a_counterfactual_names_another_family_than_the_leader() -> None:
    X, y = load_breast_cancer(return_X_y=True, as_frame=True)
    kept, _, labels, _ = train_test_split(X, y, test_size=0.25, random_state=0, stratify=y)
    selection = select(kept, labels)
    told = [reason for reason in selection.reasons if "would lead" in reason]
    assert not any(f" {selection.candidates[0].family} would lead" in reason for reason in told)
