"""Models of folds in a file: which are kept, and what is read of a file that was cut off."""

import time

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from autometa import fold_models
from autometa.data import TaskType
from autometa.families import default_families
from autometa.family import MatrixShape
from autometa.fitting import FittedModel
from autometa.fold_models import MAX_FOLD_MODELS, FoldModels, read_fold_models
from autometa.frozen_models import freeze

CLASSES = np.arange(2)
FAMILIES = {family.name: family for family in default_families()}


def model(seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(30, 2))
    return FittedModel(LogisticRegression().fit(X, X[:, 0] > 0), CLASSES, 2)


def coefficients(models):
    return [float(one.estimator.coef_[0, 0]) for one in models]


def test_the_first_models_are_kept_in_order(tmp_path):
    path, models = str(tmp_path / "models"), [model(seed) for seed in range(MAX_FOLD_MODELS + 2)]
    with FoldModels(path) as store:
        for one in models:
            store.add(one)
    assert coefficients(read_fold_models(path)) == coefficients(models[:MAX_FOLD_MODELS])


def test_waiting_finds_every_model_in_the_file(tmp_path):
    path = str(tmp_path / "models")
    with FoldModels(path) as store:
        store.wait()
        store.add(model())
        store.wait()
        assert len(read_fold_models(path)) == 1


class Slow(LogisticRegression):
    def __reduce__(self):
        time.sleep(0.3)
        return super().__reduce__()


def test_writing_takes_no_time_of_the_one_who_adds(tmp_path):
    X = np.eye(4)
    slow = FittedModel(Slow().fit(X, [0, 1, 0, 1]), CLASSES, 2)
    path = str(tmp_path / "models")
    with FoldModels(path) as store:
        store.add(slow)
        assert read_fold_models(path) == []
    assert len(read_fold_models(path)) == 1


class Unpicklable(LogisticRegression):
    def __reduce__(self):
        raise TypeError("It holds a socket.")


def test_models_that_cannot_travel_or_are_too_large_leave_no_file(tmp_path, monkeypatch):
    path = tmp_path / "models"
    with FoldModels(str(path)) as store:
        store.add(model())
        store.add(FittedModel(Unpicklable(), CLASSES, 2))
        store.add(model())
    assert not path.exists()
    monkeypatch.setattr(fold_models, "_MAX_BYTES", 1_000)
    with FoldModels(str(path)) as store:
        for seed in range(4):
            store.add(model(seed))
    assert not path.exists()
    assert read_fold_models(str(path)) == []


def test_discarded_models_leave_no_file_and_none_is_written_without_a_path(tmp_path):
    path = tmp_path / "models"
    with FoldModels(str(path)) as store:
        store.add(model())
        store.discard()
        store.add(model())
    assert not path.exists()
    with FoldModels(None) as store:
        store.add(model())
        store.discard()


def test_a_model_that_was_cut_off_is_left_out(tmp_path):
    path = tmp_path / "models"
    with FoldModels(str(path)) as store:
        store.add(model(1))
        store.add(model(2))
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    assert coefficients(read_fold_models(str(path))) == coefficients([model(1)])


@pytest.mark.parametrize("n_classes", [0, 2, 3])
@pytest.mark.parametrize("name", ["lightgbm", "xgboost"])
def test_frozen_boosting_is_what_the_library_writes(name, n_classes):
    family = FAMILIES[name]
    family.check_available()
    rng = np.random.default_rng(0)
    X = rng.normal(size=(300, 4)).astype(np.float32)
    y = X[:, 0] if n_classes == 0 else np.digitize(X[:, 0], np.linspace(-0.5, 0.5, n_classes - 1))
    task = {0: TaskType.REGRESSION, 2: TaskType.BINARY, 3: TaskType.MULTICLASS}[n_classes]
    fitted = family.build(family.default_config, MatrixShape(task, 300, n_classes, 0)).fit(X, y)
    frozen = freeze(fitted)
    if name == "lightgbm":
        assert frozen.content == fitted.booster_.model_to_string()
    else:
        assert frozen.json == bytes(fitted.get_booster().save_raw("json")).decode()
    method = "predict_proba" if n_classes else "predict"
    np.testing.assert_allclose(getattr(frozen, method)(X), getattr(fitted, method)(X), rtol=1e-6)
