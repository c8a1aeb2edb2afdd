"""save and load: the same bits for every family, and one named exception for everything that is wrong."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightgbm.basic import LightGBMError
from sklearn.base import BaseEstimator

from autometa.adaptation import LEARNED_BIRTH, adapt, way_to_adapt
from autometa.data import Dataset
from autometa.exceptions import ArtefactError
from autometa.families import default_families
from autometa.families._net_adaptable import AdaptableNet
from autometa.fitting import EncodedData, fit_model
from autometa.frozen_models import FrozenLightGBM, FrozenXGBoost
from autometa.gradient.initialization import initialize
from autometa.gradient.learned import Initialisation
from autometa.nets.mlp import MLP, TableInput
from autometa.persistence import FORMAT_VERSION, load, read_manifest, save, sealed_files
from autometa.persistence.model_texts import check_lightgbm, check_xgboost
from autometa.persistence.states import from_files, to_files
from autometa.predictor import Member, Predictor, make_predictor
from autometa.preprocessing import encode_dataset

FIXTURES = Path(__file__).parent / "fixtures" / "artefacts"
FAMILIES = {family.name: family for family in default_families()}
SMALL = {
    "n_estimators": 50, "max_iter": 30, "iterations": 30, "n_epochs": 16, "width": 32, "n_layers": 1,
}  # fmt: skip


def table(n_rows: int = 150, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "größe": rng.normal(size=n_rows),
            "町": rng.choice(["東京", "Łódź", 'a,b"c'], n_rows),
            "rooms": rng.integers(1, 6, n_rows),
            "garden": rng.random(n_rows) < 0.5,
        }
    )
    frame.loc[::7, "größe"] = np.nan
    return frame


def target(frame: pd.DataFrame, task: str) -> Any:
    score = frame["größe"].fillna(0) + 0.4 * frame["rooms"] + frame["garden"]
    if task == "regression":
        return score * 1e3 + 0.123456789
    if task == "binary":
        return pd.Series(np.where(score > score.median(), "так", "no"), dtype=object)
    return pd.cut(score, 3, labels=False).to_numpy() * 10 + 5


def predictor_of(name: str, task: str, config: dict[str, Any] | None = None, n_models: int = 1) -> Predictor:
    frame, family = table(), FAMILIES[name]
    dataset = Dataset.from_arrays(frame, target(frame, task), task=task)
    encoder, matrix = encode_dataset(dataset, family.matrix)
    data = EncodedData(matrix, dataset.y, dataset.task, dataset.n_classes, encoder.n_categorical_)
    small = {key: value for key, value in SMALL.items() if key in family.default_config}
    config = {**family.default_config, **small, **(config or {})}
    models = tuple(fit_model(family, config, data=data, seed=seed) for seed in range(n_models))
    return make_predictor(dataset, (Member(name, config, family.matrix, models),), encoders={family.matrix: encoder})


def adaptable_predictor(task: str) -> Predictor:
    """A net with a birth, as MetaInitializer makes it, but never meta-trained."""
    frame = table()
    dataset = Dataset.from_arrays(frame, target(frame, task), task=task)
    encoder, matrix = encode_dataset(dataset, "net")
    sizes = tuple(int(matrix[:, i].max()) + 1 for i in range(encoder.n_categorical_))
    n_outputs = max(1, dataset.n_classes)
    shape = TableInput(matrix.shape[1] - len(sizes), sizes)
    weights = dict(initialize(lambda: MLP(shape, n_outputs, hidden_sizes=(6, 5)), seed=1).named_parameters())
    rates = {name: torch.full_like(value, 0.05) for name, value in weights.items()}
    birth = Initialisation({name: value.detach() for name, value in weights.items()}, rates, 3, "meta_sgd")
    moments = (0.0, 1.0) if dataset.n_classes else (float(dataset.y.mean()), float(dataset.y.std()))
    net = AdaptableNet(birth, sizes, dataset.n_classes, *moments)
    return make_predictor(dataset, (Member("adaptable_net", {}, "net", (net,)),), encoders={"net": encoder})


SKOPS_TYPE = "sklearn.discriminant_analysis.LinearDiscriminantAnalysis"


def skops_predictor() -> Predictor:
    """A model that only skops can write, and only for those who vouch for its type."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    predictor = predictor_of("linear", "binary")
    X = predictor.encoders["linear"].transform(table())
    model = LinearDiscriminantAnalysis().fit(X, np.arange(len(X)) % 2)
    return dataclasses.replace(predictor, members=(Member("lda", {}, "linear", (model,)),))


def cases() -> list[tuple[str, str, dict[str, Any]]]:
    found: list[tuple[str, str, dict[str, Any]]] = []
    for name, family in FAMILIES.items():
        found += [(name, task, {}) for task in ("binary", "multiclass", "regression") if task in family.tasks]
    found += [("linear", task, {"l1_ratio": 0.5}) for task in ("binary", "regression")]
    found += [
        ("svm", task, {"kernel": kernel}) for task in ("multiclass", "regression") for kernel in ("poly", "sigmoid")
    ]
    found += [("knn", "multiclass", {"weights": "uniform", "p": 1})]
    return found


@pytest.mark.parametrize(("name", "task", "config"), cases())
def test_predictions_after_loading_are_bit_equal(tmp_path, name, task, config):
    if not FAMILIES[name].is_available():
        pytest.skip(f"{name} is not installed")
    predictor = predictor_of(name, task, config, n_models=2)
    path = save(predictor, tmp_path / "model")
    loaded, new = load(path), table(80, seed=1)
    new.loc[0, "町"] = "never seen"
    assert np.array_equal(loaded.predict_raw(new), predictor.predict_raw(new))
    assert np.array_equal(loaded.predict_raw(new.iloc[:1]), predictor.predict_raw(new.iloc[:1]))
    assert np.array_equal(loaded.predict(new), predictor.predict(new))
    assert loaded.columns == predictor.columns
    assert dict(loaded.members[0].config) == dict(predictor.members[0].config)
    again = load(save(loaded, tmp_path / "again.zip"))
    assert np.array_equal(again.predict_raw(new), predictor.predict_raw(new))


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_a_net_with_a_birth_comes_back_before_and_after_adaptation(tmp_path, task):
    born, few, new = adaptable_predictor(task), table(40, seed=2), table(50, seed=3)
    y = np.asarray(target(few, task))
    adapted = adapt(born, few[:20], y[:20])
    for name, model in (("born", born), ("adapted.zip", adapted)):
        loaded = load(save(model, tmp_path / name))
        assert way_to_adapt(loaded) == LEARNED_BIRTH
        assert np.array_equal(loaded.predict_raw(new), model.predict_raw(new))
        again = adapt(loaded, few[20:], y[20:])
        assert np.array_equal(again.predict_raw(new), adapt(model, few[20:], y[20:]).predict_raw(new))
    assert not np.array_equal(adapted.predict_raw(new), born.predict_raw(new))
    whole = adapt(born, few, y)
    assert np.array_equal(whole.predict_raw(new), adapt(adapted, few[20:], y[20:]).predict_raw(new))


@pytest.mark.parametrize("large", ["svm"])
def test_the_approximation_for_large_tables_is_saved_too(tmp_path, monkeypatch, large):
    monkeypatch.setattr("autometa.families._estimators._MAX_EXACT_ROWS", 20)
    for task in ("binary", "multiclass", "regression"):
        predictor = predictor_of(large, task)
        loaded = load(save(predictor, tmp_path / task))
        assert np.array_equal(loaded.predict_raw(table()), predictor.predict_raw(table()))


@pytest.mark.parametrize(
    "values",
    [
        ["no", "yes"], [False, True], [1.5, 2.5], [3, 7, 11], np.array(["a", "é"], dtype="<U1"),
        pd.to_datetime(["2020-01-01", "2021-01-01"]).to_numpy(),
    ],
    ids=str,
)  # fmt: skip
def test_labels_come_back_in_their_own_form(tmp_path, values):
    frame = table()
    labels = np.asarray(values)[np.arange(len(frame)) % len(values)]
    dataset = Dataset.from_arrays(frame, labels, task="multiclass")
    encoder, matrix = encode_dataset(dataset, "tree")
    data = EncodedData(matrix, dataset.y, dataset.task, dataset.n_classes, 1)
    model = fit_model(FAMILIES["extra_trees"], {**FAMILIES["extra_trees"].default_config, "n_estimators": 2}, data=data)
    predictor = make_predictor(dataset, (Member("extra_trees", {}, "tree", (model,)),), encoders={"tree": encoder})
    loaded = load(save(predictor, tmp_path / "model"))
    assert loaded.classes is not None
    assert loaded.classes.dtype == predictor.classes.dtype
    assert loaded.classes.tolist() == predictor.classes.tolist()
    assert [type(label) for label in loaded.predict(frame)] == [type(label) for label in predictor.predict(frame)]


def test_a_fold_model_without_a_class_is_restored(tmp_path):
    frame = table()
    dataset = Dataset.from_arrays(frame, target(frame, "multiclass"), task="multiclass")
    encoder, matrix = encode_dataset(dataset, "tree")
    data = EncodedData(matrix, dataset.y, dataset.task, 3, 1)
    rows = np.flatnonzero(dataset.y != 1)
    family = FAMILIES["lightgbm"]
    model = fit_model(family, {**family.default_config, "n_estimators": 5}, data=data, rows=rows)
    predictor = make_predictor(dataset, (Member("lightgbm", {}, "tree", (model,)),), encoders={"tree": encoder})
    loaded = load(save(predictor, tmp_path / "model"))
    assert loaded.members[0].class_codes == ((0, 2),)
    assert (loaded.predict_raw(frame)[:, 1] == 0).all()
    assert np.array_equal(loaded.predict_raw(frame), predictor.predict_raw(frame))


def test_column_names_need_not_be_text(tmp_path):
    frame = table().rename(columns={"rooms": 3, "garden": ("a", 1)})
    dataset = Dataset.from_arrays(frame.copy(), target(table(), "binary"))
    encoder, matrix = encode_dataset(dataset, "linear")
    data = EncodedData(matrix, dataset.y, dataset.task, 2)
    model = fit_model(FAMILIES["linear"], FAMILIES["linear"].default_config, data=data)
    predictor = make_predictor(dataset, (Member("linear", {}, "linear", (model,)),), encoders={"linear": encoder})
    loaded = load(save(predictor, tmp_path / "model"))
    assert loaded.feature_names == ["größe", "町", 3, ("a", 1)]
    assert np.array_equal(loaded.predict_raw(frame), predictor.predict_raw(frame))


class FakeEstimator:
    """What save expects of an estimator."""

    def __init__(self, predictor: Predictor) -> None:
        self.predictor_ = predictor

    def _artefact_records(self) -> dict[str, Any]:
        return {"leaderboard": [{"family": "linear", "score": 0.5, "seconds": float("nan")}], "note": "naïve"}


def test_records_of_the_estimator_are_kept(tmp_path, forest):
    loaded = load(save(FakeEstimator(forest), tmp_path / "model"))
    assert loaded.records["note"] == "naïve"
    assert np.isnan(loaded.records["leaderboard"][0]["seconds"])
    assert load(save(loaded, tmp_path / "again")).records["note"] == "naïve"
    with pytest.raises(ArtefactError, match="plain name"):
        save(dataclasses.replace(forest, records={"../x": 1}), tmp_path / "bad")
    with pytest.raises(TypeError, match="Got int"):
        save(3, tmp_path / "bad")


def test_the_manifest_tells_schema_and_libraries(tmp_path, forest):
    manifest = read_manifest(save(forest, tmp_path / "model"))
    assert manifest["format_version"] == FORMAT_VERSION
    assert [column["kind"] for column in manifest["columns"]] == ["numeric", "categorical", "numeric", "boolean"]
    assert manifest["members"][0]["family"] == "random_forest"
    assert {"autometa-ml", "python", "numpy", "scikit-learn"} <= set(manifest["libraries"])


# --- what an artefact may not do

ODD_VALUES = [None, -1, 10**30, 1e308, "", "x", "../../etc/passwd", [], {}, {"$": "array"}, [[]], True]


@pytest.fixture(scope="module")
def forest() -> Predictor:
    return predictor_of("random_forest", "binary")


def save_mixed(forest: Predictor, names: tuple[str, ...], path: Path) -> Path:
    members, encoders = list(forest.members), dict(forest.encoders)
    for name in names:
        if FAMILIES[name].is_available():
            other = predictor_of(name, "binary")
            members += other.members
            encoders.update(other.encoders)
    whole = dataclasses.replace(forest, members=tuple(members), encoders=encoders, records={"ledger": [1, 2]})
    return save(whole, path)


@pytest.fixture(scope="module")
def mixed(forest, tmp_path_factory) -> Path:
    """An artefact with a member of each codec that needs no torch."""
    names = ("lightgbm", "xgboost", "catboost", "linear", "knn", "svm", "hist_gradient_boosting")
    return save_mixed(forest, names, tmp_path_factory.mktemp("mixed") / "model")


@pytest.fixture(scope="module")
def quick(forest, tmp_path_factory) -> Path:
    """An artefact of several members that loads in milliseconds."""
    return save_mixed(forest, ("lightgbm", "linear"), tmp_path_factory.mktemp("quick") / "model")


def reseal(folder: Path) -> None:
    """What someone does who changes a file and knows how the seal works."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    for name in manifest["files"]:
        data = (folder / name).read_bytes()
        manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    write_manifest(folder, manifest)


def write_manifest(folder: Path, manifest: Any) -> None:
    text = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(text)
    (folder / "manifest.sha256").write_text(hashlib.sha256(text).hexdigest())


@pytest.fixture
def artefact(forest, tmp_path) -> Path:
    return save(forest, tmp_path / "model")


@given(data=st.data())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_file_is_one_named_exception(mixed, tmp_path, data):
    """Flipped bits, cut ends and added bytes, in any file, are found by the hashes."""
    name = data.draw(st.sampled_from(sorted(path.name for path in mixed.iterdir())))
    content = bytearray((mixed / name).read_bytes())
    kind = data.draw(st.sampled_from(["flip", "cut", "add", "empty"]))
    place = data.draw(st.integers(0, len(content) - 1))
    if kind == "flip":
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "add":
        content[place:place] = b"\x01"
    else:
        del content[place if kind == "cut" else 0 :]
    copy = tmp_path / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(mixed, copy)
    (copy / name).write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    if name == "manifest.sha256" and content.strip() == (mixed / name).read_bytes().strip():
        load(copy)
        return
    with pytest.raises(ArtefactError):
        load(copy)
    assert sorted(tmp_path.rglob("*")) == before


@given(data=st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_resealed_change_of_the_manifest_loads_or_is_refused(quick, tmp_path, data):
    """The manifest's own values replaced by anything: the seal fits, so only the checks behind it can tell."""
    manifest = json.loads((quick / "manifest.json").read_text(encoding="utf-8"))
    places: list[tuple[Any, Any]] = []
    stack: list[Any] = [manifest]
    while stack:
        node = stack.pop()
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            stack += [node[key]] if isinstance(node[key], dict | list) else []
    node, key = data.draw(st.sampled_from(places))
    node[key] = data.draw(st.sampled_from(ODD_VALUES))
    copy = tmp_path / "copy"
    if not copy.exists():
        shutil.copytree(quick, copy)
    write_manifest(copy, manifest)
    try:
        loaded = load(copy)
    except ArtefactError:
        return
    assert isinstance(loaded, Predictor)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory) -> Path:
    """An artefact of a net with its birth and the rows that it was adapted to."""
    few = table(20, seed=2)
    model = adapt(adaptable_predictor("binary"), few, target(few, "binary"))
    return save(model, tmp_path_factory.mktemp("adapted") / "model")


def test_a_changed_file_of_an_adapted_net_is_one_named_exception(adapted, tmp_path):
    for name in sorted(path.name for path in adapted.iterdir()):
        content = (adapted / name).read_bytes()
        for changed in (content[: len(content) // 2], b"", content[:-1] + bytes([content[-1] ^ 1]), b"x" + content):
            shutil.rmtree(tmp_path / "copy", ignore_errors=True)
            shutil.copytree(adapted, tmp_path / "copy")
            (tmp_path / "copy" / name).write_bytes(changed)
            if name == "manifest.sha256" and changed.strip() == content.strip():
                continue
            with pytest.raises(ArtefactError):
                load(tmp_path / "copy")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("category_sizes", [10**9]), ("category_sizes", []), ("category_sizes", [-4, 8]), ("n_classes", 10**9),
        ("n_classes", 0), ("n_steps", 0), ("scale", 0.0), ("mean", float("inf")), ("n_threads", "x"), ("format", "2"),
        ("weights.hidden.0.weight", np.zeros((10**4, 1), np.float32)), ("weights.output.bias", np.zeros(3, np.float32)),
        ("weights.hidden.2.weight", np.zeros(3, np.float32)), ("weights.spare", np.zeros(3, np.float32)),
        ("birth.output.weight", np.zeros((2, 9), np.float32)), ("rate.output.weight", np.zeros(7, np.float32)),
        ("rate.spare", np.zeros(1, np.float32)), ("rows.x", np.zeros((20, 1), np.float32)),
        ("rows.x", np.full((20, 4), 1e9, np.float32)), ("rows.x", np.full((20, 4), np.nan, np.float32)),
        ("rows.y", np.full(20, 2)), ("rows.y", np.full(20, -1)), ("rows.y", np.zeros(19, np.int64)),
        ("rows.y", np.zeros(20, np.float32)),
    ],
    ids=str,
)  # fmt: skip
def test_a_resealed_net_whose_parts_do_not_fit_is_refused(adapted, tmp_path, place, value):
    copy = tmp_path / "copy"
    shutil.copytree(adapted, copy)
    names = {suffix: copy / f"model-0-0.{suffix}" for suffix in ("json", "safetensors")}
    state = from_files({suffix: path.read_bytes() for suffix, path in names.items()})
    state["arrays" if "." in place else "header"][place] = value
    for suffix, data in to_files(state).items():
        names[suffix].write_bytes(data)
    reseal(copy)
    with pytest.raises(ArtefactError):
        load(copy)


@pytest.mark.parametrize("name", ["../evil.txt", "/etc/passwd", "a/b.json", "..", ".hidden", "a\\b.json", "C:x.json"])
def test_a_path_in_the_manifest_is_refused(artefact, name):
    manifest = json.loads((artefact / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"][name] = {"bytes": 1, "sha256": "0" * 64}
    write_manifest(artefact, manifest)
    with pytest.raises(ArtefactError, match="plain name"):
        load(artefact)


@pytest.mark.parametrize("name", ["../evil.txt", "/evil.txt", "a/b.json"])
def test_a_path_in_a_zip_is_refused_and_nothing_is_written(forest, tmp_path, name):
    path = save(forest, tmp_path / "in" / "model.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, "x")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ArtefactError, match="plain name"):
        load(path)
    assert sorted(tmp_path.rglob("*")) == before


def test_links_are_not_followed(artefact, tmp_path):
    name = next(path for path in artefact.iterdir() if path.suffix == ".json" and path.name.startswith("model"))
    shutil.move(name, tmp_path / "elsewhere")
    name.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtefactError, match="link"):
        load(artefact)


def test_links_in_a_zip_are_refused(forest, tmp_path):
    path = save(forest, tmp_path / "model.zip")
    with zipfile.ZipFile(path, "a") as archive:
        entry = zipfile.ZipInfo("model-9-9.json")
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(ArtefactError, match="plain files"):
        load(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_does_not_hang(artefact):
    name = next(artefact.glob("encoder-*"))
    name.unlink()
    os.mkfifo(name)
    with pytest.raises(ArtefactError, match="regular"):
        load(artefact)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(forest, tmp_path, monkeypatch):
    path = save(forest, tmp_path / "model.zip")
    with pytest.raises(ArtefactError, match="at most 1000 bytes"):
        load(path, max_bytes=1000)
    monkeypatch.setattr(sealed_files, "MAX_MANIFEST_BYTES", 10**6)
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", b" " * 10**7)
        archive.writestr("manifest.sha256", "0" * 64)
    with pytest.raises(ArtefactError, match="at most 1000000 bytes"):
        load(tmp_path / "bomb.zip")


def test_a_zip_bomb_inside_an_estimator_is_refused(tmp_path, monkeypatch):
    path = save(skops_predictor(), tmp_path / "model", trusted=[SKOPS_TYPE])
    monkeypatch.setattr("autometa.persistence.skops_codec._MAX_INNER_BYTES", 10**6)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("schema.json", b" " * 10**7)
    (path / "model-0-0.skops").write_bytes(buffer.getvalue())
    reseal(path)
    with pytest.raises(ArtefactError, match="at most 2 GiB"):
        load(path)


def test_a_newer_format_asks_for_an_upgrade(artefact):
    manifest = json.loads((artefact / "manifest.json").read_text(encoding="utf-8"))
    write_manifest(artefact, {**manifest, "format_version": FORMAT_VERSION + 1})
    with pytest.raises(ArtefactError, match="Upgrade autometa"):
        load(artefact)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not an artefact" * 100])
def test_what_is_no_artefact_is_said_to_be_none(tmp_path, content):
    (tmp_path / "file.zip").write_bytes(content)
    for path in (tmp_path / "file.zip", tmp_path, tmp_path / "absent"):
        with pytest.raises(ArtefactError):
            load(path)


class Dropper(BaseEstimator):
    """A type that is on nobody's list."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        raise AssertionError("a type that is not listed was built")


def test_a_type_that_is_not_listed_is_never_built(tmp_path):
    """Neither saved nor loaded, though skops itself would trust some of them."""
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.gaussian_process import GaussianProcessClassifier
    from skops.io import dumps

    predictor = skops_predictor()
    for model in (Dropper(), GaussianProcessClassifier()):
        member = dataclasses.replace(predictor.members[0], models=(model,), class_codes=((0, 1),))
        with pytest.raises(ArtefactError, match="only types on the list"):
            save(dataclasses.replace(predictor, members=(member,)), tmp_path / "no")
        assert not (tmp_path / "no").exists()
    path = save(predictor, tmp_path / "model", trusted=[SKOPS_TYPE])
    X = np.random.default_rng(0).normal(size=(20, 2))
    for model in (Dropper(), GaussianProcessClassifier(), RandomForestClassifier(2).fit(X, X[:, 0] > 0), os.system):
        (path / "model-0-0.skops").write_bytes(dumps(model))
        reseal(path)
        with pytest.raises(ArtefactError, match="only types on the list"):
            load(path)


def test_a_type_that_the_caller_vouches_for_is_saved(tmp_path):
    predictor = skops_predictor()
    path = save(predictor, tmp_path / "model", trusted=[SKOPS_TYPE])
    assert np.array_equal(load(path, trusted=[SKOPS_TYPE]).predict_raw(table()), predictor.predict_raw(table()))
    with pytest.raises(ArtefactError, match="vouch"):
        load(path)


# --- writing


def test_an_artefact_is_replaced_only_when_asked(artefact, forest):
    with pytest.raises(ArtefactError, match="overwrite=True"):
        save(forest, artefact)
    (artefact / "model-0-0.json").unlink()
    load(save(forest, artefact, overwrite=True))


@pytest.mark.parametrize("suffix", ["", ".zip"])
def test_only_artefacts_are_overwritten(forest, tmp_path, suffix):
    path = tmp_path / f"precious{suffix}"
    if suffix:
        path.write_text("data")
    else:
        path.mkdir()
        (path / "thesis.txt").write_text("data")
    with pytest.raises(ArtefactError, match="Only an artefact"):
        save(forest, path, overwrite=True)
    assert path.read_text() == "data" if suffix else (path / "thesis.txt").read_text() == "data"


@pytest.mark.parametrize("suffix", ["", ".zip"])
@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_an_interrupted_save_leaves_the_old_artefact(forest, tmp_path, monkeypatch, suffix, step):
    path = save(forest, tmp_path / f"model{suffix}")
    other = predictor_of("linear", "binary")
    calls = []
    names = {"fsync": ("fsync",), "rename": ("rename", "replace")}[step]
    for name in names:
        real = getattr(os, name)

        def fail(*args: Any, real: Any = real, **options: Any) -> Any:
            calls.append(args)
            if step == "fsync" or str(args[0]).endswith("new"):
                raise KeyboardInterrupt
            return real(*args, **options)

        monkeypatch.setattr(os, name, fail)
    with pytest.raises(KeyboardInterrupt):
        save(other, path, overwrite=True)
    monkeypatch.undo()
    assert calls
    assert np.array_equal(load(path).predict_raw(table()), forest.predict_raw(table()))
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_zip_and_directory_hold_the_same(forest, tmp_path):
    folder, packed = save(forest, tmp_path / "model"), save(forest, tmp_path / "model.zip")
    with zipfile.ZipFile(packed) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            path.name: path.read_bytes() for path in folder.iterdir()
        }


# --- plain data

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(),
    st.sampled_from([np.float32(1.5), np.int64(-3), np.datetime64("2020-01-01"), np.bool_(True)]),
)  # fmt: skip
ARRAYS = st.sampled_from(
    [
        np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6.0).reshape(2, 3)), np.zeros((0, 3), np.float32),
        np.array(3, np.int8), np.array(["a", "éé"]), np.array([None, "x", 2], dtype=object), np.array([True, False]),
        np.array(["NaT", "2020-01-01"], dtype="datetime64[ns]"), np.arange(10)[::2], np.array([np.nan, np.inf]),
        np.arange(3, dtype=">f8"),
    ]
)  # fmt: skip
VALUES = st.recursive(
    SCALARS | ARRAYS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(st.one_of(st.text(), st.integers()), inner, max_size=3),
        st.dictionaries(st.just("$"), inner, max_size=1),
    ),
    max_leaves=10,
)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        layout = a.flags.c_contiguous == b.flags.c_contiguous or not a.flags.f_contiguous
        return a.dtype == b.dtype and a.shape == b.shape and repr(a.tolist()) == repr(b.tolist()) and layout
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and repr(a) == repr(b)


@given(VALUES)
@settings(max_examples=200, deadline=None)
def test_plain_data_comes_back_as_it_was(value):
    assert same(value, from_files(to_files(value)))


NUMBERS = st.sampled_from([-(2**31), -999, -1, 0, 1, 3, 40, 999, 2**31 - 1, 10**12, "x", "nan", ""])


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_lightgbm_text_that_is_no_forest_is_refused_before_it_is_parsed(lightgbm_text, data):
    """Numbers of the structure replaced: either the walk still ends in a leaf, or the text is refused."""
    lines = lightgbm_text().split("\n")
    names = ("left_child", "right_child", "split_feature", "num_leaves", "num_cat", "cat_boundaries", "cat_threshold",
             "decision_type", "leaf_value", "tree_sizes", "max_feature_idx", "num_class", "threshold")  # fmt: skip
    name = data.draw(st.sampled_from(names))
    place = data.draw(st.sampled_from([i for i, line in enumerate(lines) if line.startswith(f"{name}=")]))
    values = lines[place].removeprefix(f"{name}=").split(" ")
    values[data.draw(st.integers(0, len(values) - 1))] = str(data.draw(NUMBERS))
    sizes = [len(line) for line in lines]
    lines[place] = f"{name}={' '.join(values)}"
    if name != "tree_sizes" and lines[place] and "Tree=0" in lines[:place]:
        at, shift = lines.index(next(line for line in lines if line.startswith("tree_sizes="))), len(lines[place])
        tree = sum(line.startswith("Tree=") for line in lines[:place]) - 1
        counts = lines[at].removeprefix("tree_sizes=").split(" ")
        counts[tree] = str(int(counts[tree]) + shift - sizes[place])
        lines[at] = f"tree_sizes={' '.join(counts)}"
    text = "\n".join(lines)
    try:
        check_lightgbm(text)
    except ArtefactError:
        return
    try:
        model = FrozenLightGBM(text, np.arange(3))
        model._outputs(np.full((4, 4), np.nan, dtype=np.float32))
    except LightGBMError:
        pass


def test_a_number_of_categories_beyond_the_memory_is_refused_at_once(lightgbm_text):
    text = lightgbm_text()
    start = text.index("Tree=0\n")
    sizes = text[text.index("tree_sizes=") :].split("\n")[0].removeprefix("tree_sizes=").split(" ")
    ends = start + np.cumsum([int(size) for size in sizes])
    first = next(i for i, end in enumerate(ends) if "num_cat=0" not in text[end - int(sizes[i]) : end])
    tree = text[ends[first] - int(sizes[first]) : ends[first]]
    changed = re.sub("num_cat=[0-9]+", "num_cat=1000000000000", tree)
    sizes[first] = str(len(changed))
    head = re.sub("tree_sizes=.*", f"tree_sizes={' '.join(sizes)}", text[:start])
    with pytest.raises(ArtefactError, match="does not describe trees"):
        check_lightgbm(head + text[start:].replace(tree, changed))


@pytest.mark.parametrize("target", ["constant", "one split", "many columns"])
def test_the_text_of_every_sound_lightgbm_model_passes(target):
    from lightgbm import LGBMRegressor

    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 40 if target == "many columns" else 2)).astype(np.float32)
    X[:, 0] = rng.integers(0, 70, 80)
    y = np.ones(80) if target == "constant" else (X[:, 1] > 0) * 1.0
    options = {"min_child_samples": 30 if target == "one split" else 2, "categorical_feature": [0], "verbose": -1}
    check_lightgbm(LGBMRegressor(n_estimators=5, **options).fit(X, y).booster_.model_to_string())


@pytest.fixture(scope="module")
def lightgbm_text() -> Callable[[], str]:
    text = str(predictor_of("lightgbm", "multiclass", {"n_estimators": 30}).members[0].models[0].content)
    check_lightgbm(text)
    return lambda: text


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_an_xgboost_text_that_is_no_forest_is_refused_before_it_is_parsed(xgboost_text, data):
    tree = json.loads(xgboost_text())
    model = tree["learner"]["gradient_booster"]["model"]
    one = model["trees"][data.draw(st.integers(0, len(model["trees"]) - 1))]
    nodes = [one[name] for name in one if isinstance(one[name], list) and one[name]]
    node = data.draw(st.sampled_from([*nodes, one["tree_param"], model["gbtree_model_param"], model["tree_info"]]))
    key = data.draw(st.sampled_from(list(node) if isinstance(node, dict) else list(range(len(node)))))
    node[key] = data.draw(st.sampled_from([-(2**31), -2, -1, 0, 1, 5, 99, 2**31 - 1, 0.5, "3", "x", None]))
    text = json.dumps(tree)
    try:
        check_xgboost(text)
    except ArtefactError:
        return
    with contextlib.suppress(ValueError):  # XGBoostError: its own parser may still refuse, as long as it says so
        FrozenXGBoost(text.encode(), np.arange(3))._outputs(np.full((4, 4), np.nan, dtype=np.float32))


@pytest.fixture(scope="module")
def xgboost_text() -> Callable[[], str]:
    if not FAMILIES["xgboost"].is_available():
        pytest.skip("xgboost is not installed")
    text = str(predictor_of("xgboost", "multiclass", {"n_estimators": 5}).members[0].models[0].json)
    return lambda: text


def test_what_is_no_data_is_not_written():
    for value in (object(), {1, 2}, np.array([1j]), np.zeros(2, dtype=[("a", "i4")]), b"x"):
        with pytest.raises(ArtefactError, match="Got"):
            to_files({"x": value})
    deep: Any = 1
    for _ in range(100):
        deep = [deep]
    with pytest.raises(ArtefactError, match="levels"):
        from_files({"json": json.dumps(deep).encode()})


# --- released formats and fresh processes


@pytest.mark.parametrize("path", sorted(FIXTURES.glob("v*")), ids=lambda path: path.name)
def test_every_released_format_still_loads(path):
    expected = json.loads((path / "expected.json").read_text(encoding="utf-8"))
    found = load(path / "model").predict_raw(pd.DataFrame(expected["rows"]))
    assert np.allclose(found, expected["predictions"], rtol=expected.get("rtol", 1e-12))


def test_there_is_a_fixture_of_this_format():
    assert list(FIXTURES.glob(f"v{FORMAT_VERSION}-*"))


@pytest.mark.parametrize("name", ["random_forest", "hist_gradient_boosting", "svm", "linear", "lightgbm"])
def test_a_model_is_served_without_torch_and_optuna(tmp_path, name):
    artefact = save(predictor_of(name, "binary"), tmp_path / "model")
    code = (
        "import sys, pandas as pd; from autometa.persistence import load; model = load(sys.argv[1]);"
        "model.predict(pd.DataFrame({'größe': [1.0], '町': ['東京'], 'rooms': [2], 'garden': [True]}));"
        "print([name for name in ('torch', 'optuna', 'skops', 'skrub', 'pickle5') if name in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(artefact)], capture_output=True, text=True, check=True, timeout=120
    )
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_the_constant_of_a_search_without_a_model_is_saved(tmp_path, task):
    from sklearn.dummy import DummyClassifier, DummyRegressor

    frame = table()
    dataset = Dataset.from_arrays(frame, target(frame, task), task=task)
    encoder, matrix = encode_dataset(dataset, "tree")
    model = (DummyClassifier() if dataset.task.is_classification else DummyRegressor()).fit(matrix, dataset.y)
    predictor = make_predictor(dataset, (Member("constant", {}, "tree", (model,)),), encoders={"tree": encoder})
    loaded = load(save(predictor, tmp_path / "model"))
    assert np.array_equal(loaded.predict_raw(frame), predictor.predict_raw(frame))
