"""How each kind of fitted model becomes data and is read back: one small table, no pickle, no fallback.

An artefact names its codecs, and only those of :data:`CODECS` exist. What an artefact can make happen is therefore
what the functions here do: build arrays, hand text to LightGBM, XGBoost and CatBoost, fill the attributes of listed
scikit-learn classes.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator

from autometa.exceptions import ArtefactError
from autometa.frozen_models import FrozenForest, FrozenHistogram, FrozenLightGBM, FrozenXGBoost
from autometa.persistence.model_texts import check_lightgbm, check_xgboost
from autometa.persistence.skops_codec import check_indices, parts_of, read_skops, write_skops
from autometa.persistence.states import from_files, to_files

Files = Mapping[str, bytes]

_PLAIN = {
    "CalibratedClassifierCV": "sklearn.calibration",
    "DummyClassifier": "sklearn.dummy",
    "DummyRegressor": "sklearn.dummy",
    "ElasticNet": "sklearn.linear_model",
    "GaussianNB": "sklearn.naive_bayes",
    "KernelClassifier": "autometa.families._estimators",
    "KernelRegressor": "autometa.families._estimators",
    "LabelBinarizer": "sklearn.preprocessing",
    "LogisticRegression": "sklearn.linear_model",
    "Nystroem": "sklearn.kernel_approximation",
    "OneVsRestClassifier": "sklearn.multiclass",
    "Pipeline": "sklearn.pipeline",
    "Ridge": "sklearn.linear_model",
    "SVC": "sklearn.svm",
    "SVR": "sklearn.svm",
    "StandardScaler": "sklearn.preprocessing",
    "TransformedTargetRegressor": "sklearn.compose",
    "_CalibratedClassifier": "sklearn.calibration",
    "_MarginReadout": "autometa.families._estimators",
    "_SigmoidCalibration": "sklearn.calibration",
}
"""Estimators whose whole state is numbers, text, arrays and each other, and where each is imported from."""

_NEIGHBORS = {"KNeighborsClassifier": "sklearn.neighbors", "KNeighborsRegressor": "sklearn.neighbors"}
_CATBOOST = ("CategoricalCatBoostClassifier", "CategoricalCatBoostRegressor")
_NETS = ("NetClassifier", "NetRegressor")
_NET_HOME = "autometa.families._net_estimators"
_ADAPTABLE_HOME = "autometa.families._net_adaptable"
_ESTIMATOR_HOME = "autometa.families._estimators"


@dataclass(frozen=True)
class Codec:
    """One way to write a model.

    Parameters
    ----------
    name : str
        As in the manifest; it never changes its meaning.
    matches : callable
        ``matches(model) -> bool``; the first codec of the table that matches is taken.
    write : callable
        ``write(model, trusted) -> files``, by suffix.
    read : callable
        ``read(files, trusted) -> model``.
    """

    name: str
    matches: Callable[[Any], bool]
    write: Callable[[Any, Sequence[str]], Files]
    read: Callable[[Files, Sequence[str]], Any]


def _is_from(model: Any, names: Mapping[str, str]) -> bool:
    """Exactly one of the listed classes, and not a subclass that may hold more."""
    kind = type(model)
    return kind.__name__ in names and f"{kind.__module__}.".startswith(f"{names[kind.__name__]}.")


def _read_forest(files: Files, trusted: Sequence[str]) -> FrozenForest:
    return FrozenForest.from_state(from_files(files))


def _read_histogram(files: Files, trusted: Sequence[str]) -> FrozenHistogram:
    return FrozenHistogram.from_state(from_files(files))


def _write_lightgbm(model: FrozenLightGBM, trusted: Sequence[str]) -> Files:
    check_lightgbm(model.content)  # what could not be loaded again is not saved
    return {"txt": model.content.encode(), **to_files({"classes": getattr(model, "classes_", None)})}


def _write_xgboost(model: FrozenXGBoost, trusted: Sequence[str]) -> Files:
    text = model.json
    check_xgboost(text)
    return {"xgboost": text.encode(), **to_files({"classes": getattr(model, "classes_", None)})}


def _read_lightgbm(files: Files, trusted: Sequence[str]) -> FrozenLightGBM:
    text = files["txt"].decode()
    check_lightgbm(text)
    model = FrozenLightGBM(text, from_files(files)["classes"])
    _ = model.booster  # a broken text is an error of loading, not of the first prediction
    return model


def _read_xgboost(files: Files, trusted: Sequence[str]) -> FrozenXGBoost:
    check_xgboost(files["xgboost"].decode())
    model = FrozenXGBoost(files["xgboost"], from_files(files)["classes"])
    _ = model.booster  # a broken text is an error of loading, not of the first prediction
    return model


def _write_catboost(model: Any, trusted: Sequence[str]) -> Files:
    with tempfile.TemporaryDirectory() as folder:  # CatBoost writes to a path only
        path = Path(folder) / "model.cbm"
        model.model_.save_model(str(path), format="cbm")
        content = path.read_bytes()
    state = {"class": type(model).__name__, "params": model.get_params(), "classes": getattr(model, "classes_", None)}
    return {"cbm": content, **to_files(state)}


def _read_catboost(files: Files, trusted: Sequence[str]) -> Any:
    import catboost

    state = from_files(files)
    name = _one_of(state["class"], _CATBOOST)
    model = getattr(import_module(_ESTIMATOR_HOME), name)(**state["params"])
    booster = catboost.CatBoostClassifier() if name == _CATBOOST[0] else catboost.CatBoostRegressor()
    model.model_ = booster.load_model(blob=files["cbm"])
    if state["classes"] is not None:
        model.classes_ = state["classes"]
    return model


def _write_net(model: Any, trusted: Sequence[str]) -> Files:
    header, arrays = model.to_state()
    return to_files({"class": type(model).__name__, "header": header, "arrays": dict(arrays)})


def _read_net(files: Files, trusted: Sequence[str]) -> Any:
    state = from_files(files)
    estimator = getattr(import_module(_NET_HOME), _one_of(state["class"], _NETS))
    return estimator.from_state(state["header"], state["arrays"])


def _write_adaptable(model: Any, trusted: Sequence[str]) -> Files:
    header, arrays = model.to_state()
    return to_files({"header": header, "arrays": arrays})


def _read_adaptable(files: Files, trusted: Sequence[str]) -> Any:
    state = from_files(files)
    return import_module(_ADAPTABLE_HOME).AdaptableNet.from_state(state["header"], state["arrays"])


def _is_plain(model: Any) -> bool:
    """Whether the model and every estimator in it is listed."""
    return _is_from(model, _PLAIN) and all(
        _is_from(part, _PLAIN) for part in parts_of(model) if isinstance(part, BaseEstimator)
    )


def _write_plain(model: Any, trusted: Sequence[str]) -> Files:
    return to_files(_plain_state(model))


def _plain_state(value: Any) -> Any:
    if _is_from(value, _PLAIN):
        return {"estimator": type(value).__name__, "attributes": _plain_state(dict(vars(value)))}
    if type(value) is dict:
        return {name: _plain_state(item) for name, item in value.items()}
    return type(value)(map(_plain_state, value)) if type(value) in (list, tuple) else value


def _read_plain(files: Files, trusted: Sequence[str]) -> Any:
    model = _plain_model(from_files(files))
    check_indices(model)
    return model


def _plain_model(state: Any) -> Any:
    if type(state) in (list, tuple):
        return type(state)(map(_plain_model, state))
    if type(state) is not dict:
        return state
    if set(state) != {"estimator", "attributes"}:
        return {key: _plain_model(item) for key, item in state.items()}
    name = _one_of(state["estimator"], _PLAIN)
    kind = getattr(import_module(_PLAIN[name]), name)
    model = kind.__new__(kind)  # some constructors ask for what is among the attributes
    vars(model).update({str(key): _plain_model(item) for key, item in state["attributes"].items()})
    return model


def _write_neighbors(model: Any, trusted: Sequence[str]) -> Files:
    target = model._y if not hasattr(model, "classes_") else model.classes_[model._y]
    return to_files({"class": type(model).__name__, "params": model.get_params(), "X": model._fit_X, "y": target})


def _read_neighbors(files: Files, trusted: Sequence[str]) -> Any:
    """Index the kept rows again: the same rows give the same tree."""
    state = from_files(files)
    name = _one_of(state["class"], _NEIGHBORS)
    if state["params"].get("metric", "minkowski") != "minkowski" or len(state["X"]) != len(state["y"]):
        raise ArtefactError("Saved neighbours must be rows and targets under a Minkowski distance.")
    return getattr(import_module(_NEIGHBORS[name]), name)(**state["params"]).fit(np.asarray(state["X"]), state["y"])


def _one_of(name: Any, listed: Mapping[str, str] | Sequence[str]) -> str:
    if name not in listed:
        raise ArtefactError(f"A saved class must be one of {', '.join(listed)}. Got {name!r:.80} instead.")
    return str(name)


CODECS = (
    Codec("forest", lambda m: isinstance(m, FrozenForest), lambda m, _: to_files(m.to_state()), _read_forest),
    Codec("histogram", lambda m: isinstance(m, FrozenHistogram), lambda m, _: to_files(m.to_state()), _read_histogram),
    Codec("lightgbm", lambda m: isinstance(m, FrozenLightGBM), _write_lightgbm, _read_lightgbm),
    Codec("xgboost", lambda m: isinstance(m, FrozenXGBoost), _write_xgboost, _read_xgboost),
    Codec("catboost", lambda m: _is_exactly(m, _ESTIMATOR_HOME, _CATBOOST), _write_catboost, _read_catboost),
    Codec("net", lambda m: _is_exactly(m, _NET_HOME, _NETS), _write_net, _read_net),
    Codec(
        "adaptable_net", lambda m: _is_exactly(m, _ADAPTABLE_HOME, ["AdaptableNet"]), _write_adaptable, _read_adaptable
    ),
    Codec("plain", _is_plain, _write_plain, _read_plain),
    Codec("neighbors", lambda m: _is_from(m, _NEIGHBORS), _write_neighbors, _read_neighbors),
    Codec("skops", lambda m: True, write_skops, read_skops),
)
"""All codecs, the most specific first. skops, the last, refuses what its allow-list does not name."""


def _is_exactly(model: Any, home: str, names: Sequence[str]) -> bool:
    return type(model).__module__ == home and type(model).__name__ in names


def find_codec(model: Any) -> Codec:
    """The codec that writes a model."""
    return next(codec for codec in CODECS if codec.matches(model))


def codec_named(name: Any) -> Codec:
    """The codec of a manifest; ArtefactError where there is none of this name."""
    for codec in CODECS:
        if codec.name == name:
            return codec
    known = ", ".join(codec.name for codec in CODECS)
    raise ArtefactError(f"The codec of a saved model must be one of {known}. Got {name!r:.40}: upgrade autometa.")
