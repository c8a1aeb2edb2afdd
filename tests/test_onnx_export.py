"""ONNX: the runtime predicts what the model predicts, or the export says why not."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

from autometa.adaptation import adapt
from autometa.data import Dataset
from autometa.exceptions import ArtefactError
from autometa.families import default_families
from autometa.fitting import EncodedData, fit_model
from autometa.meta_initializer import MetaInitializer
from autometa.onnx_export import export_onnx, onnx_inputs
from autometa.onnx_export.export import to_onnx
from autometa.persistence import load, save
from autometa.predictor import Member, Predictor, make_predictor
from autometa.preprocessing import encode_dataset

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

FAMILIES = {family.name: family for family in default_families()}
EXPORTED = (
    "linear", "naive_bayes", "knn", "svm", "random_forest", "extra_trees", "hist_gradient_boosting", "lightgbm",
    "xgboost", "mlp", "tabm",
)  # fmt: skip
TASKS = ("binary", "multiclass", "regression")
SMALL = {"n_estimators": 15, "max_iter": 15, "iterations": 15, "n_epochs": 16, "width": 32}
VARIANTS = [
    ("knn", {"n_neighbors": 1, "weights": "distance", "p": 1}), ("knn", {"weights": "uniform", "p": 1}),
    ("svm", {"kernel": "poly"}), ("svm", {"kernel": "sigmoid"}),
    ("mlp", {"numerical_embedding": "none", "activation": "relu", "n_layers": 1}),
    ("mlp", {"numerical_embedding": "periodic", "activation": "selu"}),
    ("mlp", {"numerical_embedding": "piecewise_linear"}), ("mlp", {"init": "learned", "dropout": 0.1}),
    ("mlp", {"init": "generated"}), ("tabm", {"numerical_embedding": "none"}),
]  # fmt: skip


def table(n_rows: int = 200, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "größe": rng.normal(size=n_rows),
            "町": rng.choice(["東京", "Łódź", 'a,b"c', "大阪", "Rome"], n_rows),
            "when": 1.7e9 + rng.normal(size=n_rows) * 1e4,  # beyond float32
            "garden": rng.random(n_rows) < 0.5,
            "floor": rng.integers(0, 4, n_rows).astype(str),
            "same": 1,
        }
    )
    frame.loc[rng.random(n_rows) < 0.2, "größe"] = np.nan
    frame.loc[rng.random(n_rows) < 0.2, "町"] = None
    return frame


def target(frame: pd.DataFrame, task: str) -> Any:
    score = frame["größe"].fillna(0.5) + frame["garden"] + frame["町"].isin(["東京", "Rome"]) * 1.5
    score = score + (frame["when"] - 1.7e9) / 1e4
    if task == "regression":
        return score
    return pd.qcut(score, 2 if task == "binary" else 3, labels=False) * 10


def predictor_of(names: tuple[str, ...], task: str, rows: Any = None, *, changes: Any = None) -> Predictor:
    frame = table()
    return predictor_on(Dataset.from_arrays(frame, target(frame, task), task=task), names, rows, changes=changes)


def predictor_on(dataset: Dataset, names: tuple[str, ...], rows: Any = None, *, changes: Any = None) -> Predictor:
    members, encoders = [], {}
    for name in names:
        family = FAMILIES[name]
        if dataset.task not in family.tasks or not family.is_available():
            pytest.skip(f"{name} is not installed, or not for this task")
        encoder, matrix = encode_dataset(dataset, family.matrix)
        encoders[family.matrix] = encoder
        data = EncodedData(matrix, dataset.y, dataset.task, dataset.n_classes, encoder.n_categorical_)
        config = {**family.default_config, **{k: v for k, v in SMALL.items() if k in family.default_config}}
        config |= changes or {}
        models = tuple(fit_model(family, config, data=data, seed=seed, rows=rows) for seed in range(2))
        members.append(Member(name, config, family.matrix, models, 1.0 + len(members)))
    return make_predictor(dataset, tuple(members), encoders=encoders)


def assert_same(predictor: Predictor, path: Any, columns: Any = None, tolerance: float = 1e-5) -> None:
    export_onnx(predictor, path)
    frame = table(300, seed=5)
    frame.loc[:9, "町"] = "never seen"
    frame["größe"] = frame["größe"] * 3
    frame = frame if columns is None else frame[columns]
    session = onnxruntime.InferenceSession(str(path))
    found = session.run(None, onnx_inputs(predictor, frame))
    expected = predictor.predict_raw(frame)
    assert np.allclose(found[-1], expected, rtol=tolerance, atol=tolerance)
    if predictor.classes is not None:
        clear = np.sort(expected, axis=1)[:, -1] - np.sort(expected, axis=1)[:, -2] > 2 * tolerance
        assert (found[0] == predictor.predict(frame))[clear].all()


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", EXPORTED)
def test_the_runtime_predicts_what_the_model_predicts(tmp_path, name, task):
    assert_same(predictor_of((name,), task), tmp_path / "model.onnx")


@pytest.mark.parametrize(("name", "changes"), VARIANTS)
def test_every_kernel_embedding_and_birth_is_exported(tmp_path, name, changes):
    task = TASKS[len(str(changes)) % 3]
    assert_same(predictor_of((name,), task, changes=changes), tmp_path / "model.onnx")


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_kernel_approximations_are_exported(tmp_path, monkeypatch, task):
    monkeypatch.setattr("autometa.families._estimators._MAX_EXACT_ROWS", 100)
    for kernel in ("rbf", "poly", "sigmoid"):
        predictor = predictor_of(("svm",), task, changes={"kernel": kernel})
        assert type(predictor.members[0].models[0].model_).__name__ == "Pipeline"
        assert_same(predictor, tmp_path / "model.onnx")


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_a_kernel_machine_with_too_few_rows_to_calibrate_is_exported(tmp_path, task):
    codes = np.asarray(target(table(), task))
    rows = np.concatenate([np.flatnonzero(codes == 0)[:2], np.flatnonzero(codes != 0)])
    predictor = predictor_of(("svm",), task, rows)
    assert type(predictor.members[0].models[0].model_).__name__ == "_MarginReadout"
    assert_same(predictor, tmp_path / "model.onnx")


@pytest.mark.parametrize("task", TASKS)
def test_catboost_is_exported_where_it_reads_numbers_only(tmp_path, task):
    frame = table()
    numbers = ["größe", "when", "garden"]
    dataset = Dataset.from_arrays(frame[numbers], target(frame, task), task=task)
    assert_same(predictor_on(dataset, ("catboost",)), tmp_path / "model.onnx", numbers)
    with pytest.raises(ArtefactError, match="CatBoost model that reads categories"):
        export_onnx(predictor_of(("catboost",), task), tmp_path / "other.onnx")


def test_an_ensemble_of_other_kinds_is_exported_after_loading(tmp_path):
    predictor = predictor_of(("svm", "knn", "naive_bayes", "tabm"), "binary")
    assert_same(load(save(predictor, tmp_path / "model")), tmp_path / "model.onnx")


def test_a_net_adapted_from_its_birth_is_exported(tmp_path):
    markets = [(table(60, seed), target(table(60, seed), "regression") + seed) for seed in range(6)]
    birth = MetaInitializer(n_shots=(10, 30), n_meta_steps=5, random_state=0).fit(markets[:5])
    frame, y = markets[5]
    adapted = birth.adapt(frame[:30], y[:30])
    assert_same(load(save(adapted, tmp_path / "model")), tmp_path / "model.onnx")


def test_neighbours_at_equal_distances_are_no_mystery(tmp_path):
    """Which of many equally distant rows counts is up to chance: said in a sentence, not called a fault."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.choice(list("xyz"), 200), "b": rng.choice(list("uvw"), 200)})
    dataset = Dataset.from_arrays(frame, rng.integers(0, 2, 200))
    predictor = predictor_on(dataset, ("knn",), changes={"n_neighbors": 3})
    with pytest.raises(ArtefactError, match="equal distances"):
        export_onnx(predictor, tmp_path / "model.onnx")


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_ensembles_temperatures_and_adapted_models_are_exported(tmp_path, task):
    predictor = predictor_of(("linear", "lightgbm", "extra_trees"), task)
    if task == "binary":
        predictor = dataclasses.replace(predictor, temperature=1.7)
    assert_same(predictor, tmp_path / "model.onnx")
    frame = table(60, seed=8)
    y = target(frame, task)
    adapted = adapt(predictor, frame, y + 3.0 if task == "regression" else 10 - y)
    assert not np.allclose(adapted.predict_raw(frame), predictor.predict_raw(frame), atol=0.1)
    assert_same(adapted, tmp_path / "adapted.onnx")


def test_classes_that_a_model_never_saw_get_nothing(tmp_path):
    rows = np.flatnonzero(np.asarray(target(table(), "multiclass")) != 10)
    predictor = predictor_of(("lightgbm", "linear"), "multiclass", rows)
    assert predictor.members[0].class_codes[0] == (0, 2)
    assert_same(predictor, tmp_path / "model.onnx")


class _Unheard(LogisticRegression):
    """An estimator of somebody else."""


def test_what_has_no_form_in_onnx_is_said(tmp_path):
    path = tmp_path / "model.onnx"
    known = predictor_of(("linear",), "binary")
    other = dataclasses.replace(known.members[0], models=(_Unheard(),), class_codes=((0, 1),))
    with pytest.raises(ArtefactError, match="family 'linear' has no form in ONNX"):
        export_onnx(dataclasses.replace(known, members=(other,)), path)
    frame = table().assign(sold=pd.date_range("2020-01-01", periods=200))
    dataset = Dataset.from_arrays(frame, target(frame, "binary"))
    encoder, matrix = encode_dataset(dataset, "linear")
    model = fit_model(FAMILIES["linear"], FAMILIES["linear"].default_config,
                      data=EncodedData(matrix, dataset.y, dataset.task, 2))  # fmt: skip
    dated = make_predictor(dataset, (Member("linear", {}, "linear", (model,)),), encoders={"linear": encoder})
    with pytest.raises(ArtefactError, match="datetime columns cannot be exported"):
        export_onnx(dated, path)
    assert not path.exists()


def test_a_graph_that_predicts_something_else_is_not_written(tmp_path, monkeypatch):
    predictor = predictor_of(("linear",), "binary")
    other = dataclasses.replace(predictor, temperature=3.0)
    monkeypatch.setattr("autometa.onnx_export.export.to_onnx", lambda _: to_onnx(other))
    with pytest.raises(ArtefactError, match="must predict as the model does"):
        export_onnx(predictor, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()
