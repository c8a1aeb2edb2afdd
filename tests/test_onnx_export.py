"""ONNX: the runtime predicts what the model predicts, or the export says why not."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
import pytest

from autometa.adaptation import adapt
from autometa.data import Dataset
from autometa.exceptions import ArtefactError
from autometa.families import default_families
from autometa.fitting import EncodedData, fit_model
from autometa.onnx_export import export_onnx, onnx_inputs
from autometa.onnx_export.export import to_onnx
from autometa.predictor import Member, Predictor, make_predictor
from autometa.preprocessing import encode_dataset

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

FAMILIES = {family.name: family for family in default_families()}
EXPORTED = ("linear", "random_forest", "extra_trees", "hist_gradient_boosting", "lightgbm", "xgboost")
SMALL = {"n_estimators": 15, "max_iter": 15}


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


def predictor_of(names: tuple[str, ...], task: str, rows: Any = None) -> Predictor:
    frame = table()
    dataset = Dataset.from_arrays(frame, target(frame, task), task=task)
    members, encoders = [], {}
    for name in names:
        family = FAMILIES[name]
        if not family.is_available():
            pytest.skip(f"{name} is not installed")
        encoder, matrix = encode_dataset(dataset, family.matrix)
        encoders[family.matrix] = encoder
        data = EncodedData(matrix, dataset.y, dataset.task, dataset.n_classes, encoder.n_categorical_)
        config = {**family.default_config, **{k: v for k, v in SMALL.items() if k in family.default_config}}
        models = tuple(fit_model(family, config, data=data, seed=seed, rows=rows) for seed in range(2))
        members.append(Member(name, config, family.matrix, models, 1.0 + len(members)))
    return make_predictor(dataset, tuple(members), encoders=encoders)


def assert_same(predictor: Predictor, path: Any) -> None:
    export_onnx(predictor, path)
    frame = table(300, seed=5)
    frame.loc[:9, "町"] = "never seen"
    frame["größe"] = frame["größe"] * 3
    session = onnxruntime.InferenceSession(str(path))
    found = session.run(None, onnx_inputs(predictor, frame))
    expected = predictor.predict_raw(frame)
    assert np.allclose(found[-1], expected, rtol=1e-5, atol=1e-5)
    if predictor.classes is not None:
        clear = np.sort(expected, axis=1)[:, -1] - np.sort(expected, axis=1)[:, -2] > 1e-5
        assert (found[0] == predictor.predict(frame))[clear].all()


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
@pytest.mark.parametrize("name", EXPORTED)
def test_the_runtime_predicts_what_the_model_predicts(tmp_path, name, task):
    assert_same(predictor_of((name,), task), tmp_path / "model.onnx")


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


def test_what_has_no_form_in_onnx_is_said(tmp_path):
    path = tmp_path / "model.onnx"
    for name in ("knn", "svm"):
        with pytest.raises(ArtefactError, match=f"family '{name}' has no form in ONNX"):
            export_onnx(predictor_of((name,), "binary"), path)
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
