"""The ablation on small tables: its arms, its switch and its rows."""

import json

import pytest
from sklearn.datasets import load_iris

import autometa.estimator
from autometa.data import Dataset, TaskType
from autometa.opening import provisional_selection


@pytest.fixture(scope="module")
def study(load_experiment):
    return load_experiment("anytime/small_tables.py")


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    X, y = load_iris(return_X_y=True, as_frame=True)
    return Dataset.from_arrays(X, y)


def test_arms_cross_start_end_and_value(study):
    assert len({str(arm) for arm in study.ARMS}) == 8
    assert {(arm.start, arm.ensemble) for arm in study.ARMS if not arm.by_gain} == {
        (start, end) for start in ("belief", "portfolio", "defaults") for end in (True, False)
    }
    assert not [arm for arm in study.ARMS if arm.by_gain and (arm.start == "defaults" or not arm.ensemble)]


def test_the_warm_start_is_replaced_in_the_context_only(study, dataset):
    from autometa.families import default_families
    from autometa.metrics import METRICS

    selection = provisional_selection(dataset, METRICS["log_loss"], default_families())
    with study.valued_by_gain(TaskType.MULTICLASS, 150):
        assert autometa.estimator.warm_start(selection).ensemble.task is TaskType.MULTICLASS
    assert autometa.estimator.warm_start(selection).ensemble is None


def test_a_fit_is_better_than_the_constant(study, dataset):
    constant = study.measure(dataset, None, None, budget=2.0, seed=0)
    fit = study.measure(dataset, study.Arm("defaults", True), "none", budget=2.0, seed=0)
    assert fit["status"] == constant["status"] == "ok"
    assert fit["n_train"] == 112
    assert fit["metrics"]["log_loss"] < 0.5 * constant["metrics"]["log_loss"]


def test_rows_resume(study, dataset, tmp_path, monkeypatch):
    file, measured = tmp_path / "rows.jsonl", []
    name = "wooldridge_meap93"
    monkeypatch.setattr(study, "load_entry", lambda entry: dataset)

    def measure(dataset, arm, model, *, budget, seed):
        measured.append((str(arm), model))
        return {"status": "ok", "metrics": {"log_loss": 0.1}, "fit_s": 1.0, "n_train": 112}

    monkeypatch.setattr(study, "measure", measure)
    models = {"belief": "b", "portfolio": "p", "defaults": "none"}
    study.run(file, models, [name], budget=10.0, seeds=1)
    lines = file.read_text().splitlines()
    assert len(lines) == len(measured) == 9
    assert dict(measured)["belief, ensemble, by gain"] == "b"
    file.write_text("\n".join(lines[:5]) + "\n")
    study.run(file, models, [name], budget=10.0, seeds=1)
    assert len(measured) == 13
    assert len({json.loads(line)["peer"] for line in file.read_text().splitlines()}) == 9
