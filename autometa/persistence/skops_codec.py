"""scikit-learn estimators through skops, behind this project's own list of names.

skops trusts every estimator of scikit-learn by default; here nothing is trusted that is not listed. The names and the
loaders in a file are read from its JSON before skops sees it, so a name that is not listed is never imported. What
compiled code would follow blindly (child indices of trees, counts of support vectors) is checked after loading, before
the first prediction.
"""

from __future__ import annotations

import copy
import io
import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from autometa.exceptions import ArtefactError

TRUSTED_TYPES = frozenset(
    {
        "autometa.families._estimators.KernelClassifier",
        "autometa.families._estimators.KernelRegressor",
        "autometa.families._estimators._MarginReadout",
        "builtins.bool",
        "builtins.dict",
        "builtins.float",
        "builtins.int",
        "builtins.list",
        "builtins.slice",
        "builtins.str",
        "builtins.tuple",
        "functools.partial",
        "numpy.bool",
        "numpy.bool_",
        "numpy.dtype",
        "numpy.float32",
        "numpy.float64",
        "numpy.int32",
        "numpy.int64",
        "numpy.ndarray",
        "numpy.uint64",
        "sklearn._loss._loss.CyHalfBinomialLoss",
        "sklearn._loss._loss.CyHalfMultinomialLoss",
        "sklearn._loss._loss.CyHalfSquaredError",
        "sklearn._loss.link.IdentityLink",
        "sklearn._loss.link.Interval",
        "sklearn._loss.link.LogitLink",
        "sklearn._loss.link.MultinomialLogit",
        "sklearn._loss.loss.HalfBinomialLoss",
        "sklearn._loss.loss.HalfMultinomialLoss",
        "sklearn._loss.loss.HalfSquaredError",
        "sklearn.calibration.CalibratedClassifierCV",
        "sklearn.calibration._CalibratedClassifier",
        "sklearn.calibration._SigmoidCalibration",
        "sklearn.compose._column_transformer.ColumnTransformer",
        "sklearn.ensemble._hist_gradient_boosting.binning._BinMapper",
        "sklearn.ensemble._hist_gradient_boosting.gradient_boosting.HistGradientBoostingClassifier",
        "sklearn.ensemble._hist_gradient_boosting.gradient_boosting.HistGradientBoostingRegressor",
        "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
        "sklearn.kernel_approximation.Nystroem",
        "sklearn.linear_model._logistic.LogisticRegression",
        "sklearn.linear_model._ridge.Ridge",
        "sklearn.multiclass.OneVsRestClassifier",
        "sklearn.pipeline.Pipeline",
        "sklearn.preprocessing._data.StandardScaler",
        "sklearn.preprocessing._encoders.OrdinalEncoder",
        "sklearn.preprocessing._function_transformer.FunctionTransformer",
        "sklearn.preprocessing._label.LabelBinarizer",
        "sklearn.preprocessing._label.LabelEncoder",
        "sklearn.svm._classes.SVC",
        "sklearn.svm._classes.SVR",
        "sklearn.utils.validation.check_array",
    }
)
"""Every type and function that a saved scikit-learn estimator may name."""

TRUSTED_LOADERS = frozenset(
    {
        "CachedNode", "DTypeNode", "DictNode", "FunctionNode", "JsonNode", "ListNode", "LossNode", "NdArrayNode",
        "ObjectNode", "PartialNode", "SliceNode", "TupleNode", "TypeNode",
    }
)  # fmt: skip
"""What skops may do with them. Bound methods, operators, generators, sparse matrices and trees are left out."""

_MAX_INNER_FILES = 50_000
_MAX_INNER_BYTES = 2 * 1024**3


def write_skops(model: Any, trusted: Sequence[str]) -> Mapping[str, bytes]:
    """The estimator as one skops file; ArtefactError names the first type that is not listed."""
    from skops.io import dumps
    from skops.io.exceptions import UnsupportedTypeException

    try:
        content = dumps(_without_generators(model), compression=zipfile.ZIP_DEFLATED)
    except (UnsupportedTypeException, TypeError, ValueError) as error:
        raise ArtefactError(f"A model of type {type(model).__name__} cannot be saved as data: {error}") from error
    _check_names(content, trusted)
    return {"skops": content}


def read_skops(files: Mapping[str, bytes], trusted: Sequence[str]) -> Any:
    """The estimator of a skops file, after its names, its sizes and its indices were checked."""
    content = files["skops"]
    _check_names(content, trusted)
    from skops.io import get_untrusted_types, loads

    allowed = [*TRUSTED_TYPES, *trusted]
    unlisted = sorted(set(get_untrusted_types(data=content)) - set(allowed))
    if unlisted:
        raise _unlisted(unlisted[0])
    model = loads(content, trusted=allowed)
    check_indices(model)
    return model


def _without_generators(model: Any) -> Any:
    """A shallow copy without the random generator that histogram boosting keeps from its fit."""
    if not hasattr(model, "_feature_subsample_rng"):
        return model
    model = copy.copy(model)
    model._feature_subsample_rng = None
    return model


def _check_names(content: bytes, trusted: Sequence[str]) -> None:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = archive.infolist()
        if len(entries) > _MAX_INNER_FILES or sum(entry.file_size for entry in entries) > _MAX_INNER_BYTES:
            raise ArtefactError("A saved estimator must unpack to at most 2 GiB. The file declares more.")
        schema = json.loads(archive.read("schema.json"))
    for node in _nodes(schema):
        name = f"{node.get('__module__')}.{node.get('__class__')}"
        if name not in TRUSTED_TYPES and name not in trusted and node.get("__loader__") != "CachedNode":
            raise _unlisted(name)
        if node.get("__loader__") not in TRUSTED_LOADERS:
            raise _unlisted(f"{name} by {node.get('__loader__')}")
        if "__reduce__" in node and node["__loader__"] != "LossNode":
            raise _unlisted(f"{name} by reduction")


def _nodes(schema: Any) -> Iterator[dict[str, Any]]:
    """All typed nodes of a schema. A stack, because depth is the sender's choice."""
    stack = [schema]
    while stack:
        item = stack.pop()
        if isinstance(item, dict):
            if not {"__class__", "__module__", "__loader__"}.isdisjoint(item):
                yield item
            stack.extend(item.values())
        elif isinstance(item, list):
            stack.extend(item)


def _unlisted(name: str) -> ArtefactError:
    return ArtefactError(
        f"A saved estimator may hold only types on the list of autometa. Got {name:.200}: if you vouch for it, "
        "name it in trusted=[...]."
    )


def parts_of(value: Any) -> Iterator[Any]:
    """The object and everything that it holds in attributes, lists and dicts."""
    seen: set[int] = set()
    stack = [value]
    while stack:
        item = stack.pop()
        if id(item) in seen or isinstance(item, str | bytes | int | float | np.ndarray | np.generic | None):
            continue
        seen.add(id(item))
        yield item
        if isinstance(item, dict):
            stack += item.values()
        elif isinstance(item, list | tuple):
            stack += item
        else:
            stack += getattr(item, "__dict__", {}).values()


def check_indices(model: Any) -> None:
    """Raise ArtefactError where compiled code would walk out of the arrays of an estimator or one of its parts."""
    for part in parts_of(model):
        kind = type(part).__name__
        if kind.startswith("HistGradientBoosting"):
            for stage in part._predictors:
                for tree in stage:
                    _check_boosted_tree(tree, int(part._n_features))
        elif kind in {"SVC", "SVR"} and hasattr(part, "support_vectors_"):
            _check_support(part)


def _check_boosted_tree(tree: Any, n_columns: int) -> None:
    nodes, place = tree.nodes, np.arange(len(tree.nodes))
    inner = nodes["is_leaf"] == 0
    left, right = nodes["left"].astype(np.int64), nodes["right"].astype(np.int64)
    sound = (left > place) & (right > place) & (left < len(nodes)) & (right < len(nodes))
    known = (nodes["feature_idx"] >= 0) & (nodes["feature_idx"] < n_columns)
    categorical = inner & (nodes["is_categorical"] != 0)
    listed = (nodes["bitset_idx"] < len(tree.raw_left_cat_bitsets)) & (
        nodes["bitset_idx"] < len(tree.binned_left_cat_bitsets)
    )
    if not (len(nodes) and (sound & known)[inner].all() and listed[categorical].all()):
        raise ArtefactError("The nodes of a boosted tree do not form a tree: the file is damaged.")


def _check_support(machine: Any) -> None:
    """libsvm walks its arrays by these counts."""
    n_vectors = len(machine.support_vectors_)
    counts = np.asarray(machine._n_support)
    n_classes = len(counts)
    n_pairs = max(1, n_classes * (n_classes - 1) // 2)
    rows = max(1, n_classes - 1)
    is_regression = type(machine).__name__ == "SVR"
    expected = n_vectors if is_regression else int(counts.sum())
    dual = machine._dual_coef_
    sound = (
        (counts >= 0).all()
        and expected == n_vectors == len(machine.support_) == dual.shape[1]
        and dual.shape[0] == (1 if is_regression else rows)
        and machine._intercept_.shape == (1 if is_regression else n_pairs,)
        and machine.support_vectors_.shape[1] == machine.shape_fit_[1]
        and machine._sparse is False
        and machine._probA.shape in {(0,), (n_pairs,)}
        and machine._probB.shape == machine._probA.shape
    )
    if not sound:
        raise ArtefactError("The arrays of a support vector machine do not fit together: the file is damaged.")
