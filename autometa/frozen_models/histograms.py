"""scikit-learn's histogram gradient boosting as arrays over all nodes of all trees."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from autometa.exceptions import ArtefactError

Matrix = NDArray[np.float32]
_CHUNK_CELLS = 400_000
_MAX_CODE = 255
_NAMES = {"left": np.int32, "right": np.int32, "feature": np.int32, "threshold": np.float64, "missing_left": np.bool_,
          "value": np.float64, "bitset": np.int32}  # fmt: skip
_FIELDS = {"feature_idx": "feature", "num_threshold": "threshold", "missing_go_to_left": "missing_left"}
_LOSSES = {"HalfSquaredError": "identity", "HalfBinomialLoss": "logistic", "HalfMultinomialLoss": "softmax"}


class FrozenHistogram:
    """Boosted trees over a "tree" matrix, with native categories.

    Rows walk down all trees at once; sums are taken in scikit-learn's order, so the bits are those of the estimator.

    Parameters
    ----------
    nodes : mapping of str to array of shape (n_nodes,)
        ``left`` and ``right`` (children from the tree's root, -1 in leaves), ``feature``, ``threshold``,
        ``missing_left``, ``value``, and ``bitset``, the row of ``left_codes`` that decides (-1 for a number).
    starts : int64 array of shape (n_trees + 1,)
        Where each tree's nodes begin; tree i adds to output ``i % n_outputs``.
    left_codes : bool array of shape (n_bitsets, 256)
        Which ordinals of a category go left.
    levels : list of float64 arrays
        Codes of each leading categorical column that were seen in fit, sorted; a code's place is its ordinal.
    baseline : float64 array of shape (n_outputs,)
    link : {"identity", "logistic", "softmax"}
    classes : ndarray or None
    n_columns : int
    """

    def __init__(
        self,
        nodes: Mapping[str, NDArray[Any]],
        starts: NDArray[np.int64],
        *,
        left_codes: NDArray[np.bool_],
        levels: list[NDArray[np.float64]],
        baseline: NDArray[np.float64],
        link: str,
        classes: NDArray[Any] | None,
        n_columns: int,
    ) -> None:
        self.nodes: dict[str, NDArray[Any]] = {
            name: np.asarray(nodes[name], dtype=dtype) for name, dtype in _NAMES.items()
        }
        self.starts, self.left_codes, self.levels = starts, left_codes, levels
        self.baseline, self.link, self.n_columns = baseline, link, n_columns
        if classes is not None:
            self.classes_ = classes
        self._check()
        offset = np.repeat(starts[:-1], np.diff(starts))
        inner = self.nodes["left"] >= 0
        self._left = np.where(inner, self.nodes["left"] + offset, -1)
        self._right = np.where(inner, self.nodes["right"] + offset, -1)
        self._feature = np.where(inner, self.nodes["feature"], 0).astype(np.intp)

    @staticmethod
    def can_hold(model: Any) -> bool:
        """Whether categorical columns lead and the loss is one of the three that the families use."""
        categorical = model.is_categorical_
        leading = categorical is None or not (np.diff(categorical.astype(int)) > 0).any()
        return bool(leading) and type(model._loss).__name__ in _LOSSES

    @classmethod
    def from_estimator(cls, model: Any) -> Self:
        """From a fitted HistGradientBoostingClassifier or HistGradientBoostingRegressor."""
        trees = [tree for stage in model._predictors for tree in stage]
        counts = [len(tree.nodes) for tree in trees]
        # np.concatenate compares the fields of every pair of arrays, which takes ten times as long
        rows: Any = np.frombuffer(b"".join(tree.nodes.tobytes() for tree in trees), dtype=trees[0].nodes.dtype)
        leaf = rows["is_leaf"].astype(bool)
        nodes = {name: rows[field] for field, name in {**_FIELDS, "value": "value"}.items()}
        bitsets = [len(tree.raw_left_cat_bitsets) for tree in trees]
        first = np.repeat(np.concatenate([[0], np.cumsum(bitsets)[:-1]]), counts)
        nodes["bitset"] = np.where(rows["is_categorical"].astype(bool) & ~leaf, rows["bitset_idx"] + first, -1)
        for side in ("left", "right"):
            nodes[side] = np.where(leaf, -1, rows[side].astype(np.int64))
        words = np.concatenate([tree.raw_left_cat_bitsets for tree in trees])
        left_codes = np.unpackbits(words.astype("<u4").view(np.uint8), axis=1, bitorder="little").astype(bool)
        return cls(
            nodes,
            np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            left_codes=left_codes.reshape(-1, _MAX_CODE + 1),
            levels=_levels(model),
            baseline=np.asarray(model._baseline_prediction, dtype=np.float64).ravel(),
            link=_LOSSES[type(model._loss).__name__],
            classes=getattr(model, "classes_", None),
            n_columns=int(model._n_features),
        )

    def to_state(self) -> dict[str, Any]:
        """Arrays and numbers; :meth:`from_state` reads them back."""
        names = ("nodes", "starts", "left_codes", "levels", "baseline", "link", "n_columns")
        return {**{name: getattr(self, name) for name in names}, "classes": getattr(self, "classes_", None)}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """From :meth:`to_state`; ArtefactError where its nodes do not form trees."""
        return cls(**state)

    def _check(self) -> None:
        """Children lie behind their parent in the same tree, so every walk ends inside the arrays."""
        n_nodes, starts, nodes = len(self.nodes["left"]), self.starts, self.nodes
        n_outputs = {"identity": 1, "logistic": 1, "softmax": len(getattr(self, "classes_", ()))}.get(self.link, 0)
        fits = all(array.shape == (n_nodes,) for array in nodes.values())
        fits = fits and starts.ndim == 1 and len(starts) > 1 and starts[0] == 0 and starts[-1] == n_nodes
        fits = fits and self.left_codes.ndim == 2 and self.left_codes.shape[1] == _MAX_CODE + 1
        fits = fits and n_outputs > 0 and self.baseline.shape == (n_outputs,) and (len(starts) - 1) % n_outputs == 0
        fits = fits and (self.link == "identity") != hasattr(self, "classes_")
        fits = fits and (self.link != "logistic" or len(self.classes_) == 2)
        fits = fits and len(self.levels) <= self.n_columns and all(0 < len(known) <= 256 for known in self.levels)
        if not (fits and (np.diff(starts) > 0).all()):
            raise ArtefactError("The arrays of boosted trees do not fit together: the file is damaged.")
        sizes = np.repeat(np.diff(starts), np.diff(starts))
        place = np.arange(n_nodes) - np.repeat(starts[:-1], np.diff(starts))
        inner, categorical = nodes["left"] >= 0, nodes["bitset"] >= 0
        sound = (nodes["left"] > place) & (nodes["right"] > place) & (nodes["left"] < sizes) & (nodes["right"] < sizes)
        sound &= (nodes["feature"] >= 0) & (nodes["feature"] < self.n_columns)
        sound &= nodes["bitset"] < len(self.left_codes)
        sound &= ~categorical | (nodes["feature"] < len(self.levels))
        if not sound[inner].all():
            raise ArtefactError("The nodes of boosted trees do not form trees: the file is damaged.")

    def predict_proba(self, X: Matrix) -> NDArray[np.float64]:
        """Class probabilities, shape (n_rows, n_classes)."""
        raw = self._raw(X)
        if self.link == "logistic":
            from scipy.special import expit

            second = expit(raw[:, 0])
            return np.column_stack([1 - second, second])
        raw = np.exp(raw - raw.max(axis=1, keepdims=True))
        return np.asarray(raw / raw.sum(axis=1, keepdims=True))

    def predict(self, X: Matrix) -> NDArray[Any]:
        """Values, or the most probable class, shape (n_rows,)."""
        if self.link == "identity":
            return self._raw(X)[:, 0]
        return np.asarray(self.classes_[self.predict_proba(X).argmax(axis=1)])

    def _raw(self, X: Matrix) -> NDArray[np.float64]:
        """Sum of the trees, shape (n_rows, n_outputs)."""
        cells = self._ordinals(np.asarray(X))
        n_trees, n_outputs = len(self.starts) - 1, len(self.baseline)
        step = max(1, _CHUNK_CELLS // n_trees)
        out = np.empty((len(cells), n_outputs))
        for start in range(0, len(cells), step):
            leaves = self._walk(cells[start : start + step])
            total = np.repeat(self.baseline[:, None], leaves.shape[1], axis=1)  # (n_outputs, n_rows)
            for tree, leaf in enumerate(leaves):  # in the order of the trees: the same bits
                total[tree % n_outputs] += self.nodes["value"][leaf]
            out[start : start + step] = total.T
        return out

    def _ordinals(self, X: Matrix) -> NDArray[np.float64]:
        """The matrix with categories as ordinals, NaN where missing or not seen in fit."""
        if X.ndim != 2 or X.shape[1] != self.n_columns:
            raise ValueError(f"X must have {self.n_columns} columns. Got shape {X.shape} instead.")
        cells = X.astype(np.float64)
        for i, known in enumerate(self.levels):
            place = np.minimum(np.searchsorted(known, cells[:, i]), len(known) - 1)
            cells[:, i] = np.where(known[place] == cells[:, i], place, np.nan)
        return cells

    def _walk(self, X: NDArray[np.float64]) -> NDArray[np.intp]:
        """Leaf of each tree and row, shape (n_trees, n_rows)."""
        n_rows, n_trees, nodes = len(X), len(self.starts) - 1, self.nodes
        node = np.repeat(self.starts[:-1], n_rows)
        cells = np.ascontiguousarray(X).ravel()
        row_start = np.tile(np.arange(n_rows) * self.n_columns, n_trees)
        active = np.flatnonzero(self._left[node] >= 0)
        while len(active):
            at = node[active]
            cell = cells[row_start[active] + self._feature[at]]
            missing, bitset = np.isnan(cell), nodes["bitset"][at]
            goes_left = cell <= nodes["threshold"][at]
            coded = np.flatnonzero((bitset >= 0) & ~missing)
            goes_left[coded] = self.left_codes[bitset[coded], cell[coded].astype(np.intp)]
            goes_left = np.where(missing, nodes["missing_left"][at], goes_left)
            at = np.where(goes_left, self._left[at], self._right[at])
            node[active] = at
            active = active[self._left[at] >= 0]
        return node.reshape(n_trees, n_rows)


def _levels(model: Any) -> list[NDArray[np.float64]]:
    """Codes that each categorical column had in fit, without NaN, which is no category to the model."""
    if model._preprocessor is None:
        return []
    found = model._preprocessor.named_transformers_["encoder"].categories_
    return [np.asarray(known, dtype=np.float64)[~np.isnan(np.asarray(known, dtype=np.float64))] for known in found]
