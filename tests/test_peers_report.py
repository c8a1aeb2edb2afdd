"""The reading of side-by-side runs: ranks, normalised errors, failures."""

import json

import pandas as pd
import pytest


@pytest.fixture(scope="module")
def study(load_experiment):
    return load_experiment("anytime/peers_report.py")


def run(dataset: str, peer: str, value: float | None, seed: int = 0, task: str = "binary") -> dict:
    metric = {"binary": "roc_auc", "regression": "rmse"}[task]
    status = "ok" if value is not None else "timeout"
    return {"dataset": dataset, "task": task, "peer": peer, "budget": 10.0, "seed": seed, "status": status,
            "metrics": {} if value is None else {metric: value}, "fit_s": 9.0, "n_train": 100}  # fmt: skip


@pytest.fixture
def results(tmp_path):
    runs = [run(f"d{i}", "dummy", 0.5) for i in range(8)]
    runs += [run(f"d{i}", "autometa", 0.9) for i in range(8)]
    runs += [run(f"d{i}", "rival", 0.8 if i else None) for i in range(8)]
    runs += [run("numbers", "dummy", 4.0, task="regression"), run("numbers", "autometa", 2.0, task="regression")]
    runs += [run("numbers", "rival", 1.0, task="regression"), run("alone", "autometa", 0.9)]
    path = tmp_path / "results.jsonl"
    path.write_text("\n".join(json.dumps(r) for r in [run("d1", "autometa", 0.6), *runs]))
    return path


def test_a_run_without_a_model_counts_as_the_constant(study, results):
    table = study.errors(study.read(results))
    assert "alone" not in table.index
    assert table.loc["d1", "autometa"] == pytest.approx(0.1)  # the last run of a cell counts
    scaled = study.normalised(table)
    assert scaled.loc["d0", "rival"] == 1.0
    assert scaled.loc["d1", "rival"] == pytest.approx(0.25)
    assert scaled.loc["numbers", "autometa"] == pytest.approx(1 / 3)


def test_the_report_says_who_is_ahead(study, results, tmp_path):
    runs = study.read(results)
    report = study.summarise(runs, "autometa")
    assert list(report) == ["autometa", "rival"]
    assert report["autometa"]["rank"][0] == pytest.approx(10 / 9)
    assert report["rival"] | {"focus_better": 8, "focus_worse": 1, "failed": 1} == report["rival"]
    assert report["rival"]["behind"][1] > 0
    assert report["rival"]["p"] < 0.05
    text = study.show(runs, report)
    assert "| numbers | 2 | **1** |" in text
    assert "| d0 | **0.1** | none |" in text
    runs.to_csv(tmp_path / "rows.csv", index=False)
    again = study.read(tmp_path / "rows.csv")
    assert study.show(again, study.summarise(again, "autometa")) == text


def test_errors_are_drawn_beside_seconds(study, results, tmp_path):
    study.plot(study.summarise(study.read(results), "autometa"), "autometa", tmp_path / "plot.svg")
    assert "<svg" in (tmp_path / "plot.svg").read_text("utf-8")


def test_a_small_budget_is_set_against_a_large_one(study, results):
    runs = study.read(results)
    early = runs[runs["peer"] == "rival"].assign(peer="autometa", budget=1.0)  # d0 without a model
    early.loc[early["dataset"] == "d1", "error"] -= 0.05
    early.loc[early["dataset"] == "d2", "error"] = float("nan")
    report = study.head_start(early, runs, "autometa", ["autometa", "rival"])
    assert "| rival | 1 | 7 | 1 | 0.89 [" in report


def test_holm_corrects_by_the_number_of_hypotheses_left(study):
    corrected = study.holm(pd.Series({"a": 0.01, "b": 0.04, "c": 0.03}))
    assert corrected.to_dict() == pytest.approx({"a": 0.03, "c": 0.06, "b": 0.06})
