"""Landmarkers: what quick models reach on a small sample, and where they differ.

Sources: Pfahringer et al., "Meta-learning by landmarking various learning algorithms" (2000); Fuernkranz and Petrak,
"An evaluation of landmarking variants" (2001) for differences; Leite and Brazdil (2005) for partial training data.

One score for all tasks, so that a landmark means the same everywhere: 0 is a constant prediction and 1 a perfect one.
For classes it is 2 AUC - 1 (one class against the rest, averaged with the class shares), for regression R2, not below
-1.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.tree import DecisionTreeRegressor, ExtraTreeRegressor

from autometa.data import Dataset, stratified_sample
from autometa.meta_features.distribution import bin_columns, bin_target, mutual_information
from autometa.meta_features.sample import Floats, TableSample, standardise
from autometa.meta_features.simple import NAN
from autometa.meta_features.structure import order_by_time
from autometa.metrics import task_metrics

MAX_ROWS = 800
MAX_COLUMNS = 30
_MAX_CLASSES = 20
_MAX_INDICATORS = 8
_N_FOLDS = 3
_N_BAGGED = 10
_MIN_ROWS = 9

Rows = NDArray[np.intp]
Split = tuple[Rows, Rows]


@dataclass(frozen=True, eq=False)
class Arena:
    """Where landmarkers meet: at most 800 rows and 30 columns.

    Parameters
    ----------
    codes : ndarray of shape (n, f)
        Columns as standardised numbers, categories as codes, for trees.
    design : ndarray of shape (n, d)
        Standardised numbers and indicators of categories, for the rest.
    target : ndarray of shape (n, k)
        The standardised target; for classes one indicator each (the second only, if there are two).
    labels : ndarray of shape (n,)
    splits : list of (training positions, test positions)
    is_classification : bool
    seed : int
    """

    codes: NDArray[np.float32]
    design: Floats
    target: Floats
    labels: NDArray[np.intp]
    splits: list[Split]
    is_classification: bool
    seed: int


def build_arena(sample: TableSample) -> Arena:
    """The landmarkers' rows, columns and folds."""
    rows = np.arange(sample.n_rows)
    if sample.n_rows > MAX_ROWS:
        rows = stratified_sample(sample.y, sample.dataset.task, MAX_ROWS, sample.seed)
    columns = _choose_columns(sample, rows)
    labels = _merge_rare(sample.y[rows]) if sample.is_classification else np.zeros(len(rows), dtype=np.intp)
    if sample.is_classification:
        target = (labels[:, None] == np.arange(labels.max() + 1)).astype(float)
        target = target[:, 1:] if target.shape[1] == 2 else target
    else:
        target = standardise(np.asarray(sample.y[rows], dtype=float)[:, None])
    codes = sample.filled[np.ix_(rows, columns)]
    return Arena(
        codes=np.ascontiguousarray(standardise(codes), dtype=np.float32),
        design=_design(codes, sample.is_code[columns]),
        target=target,
        labels=labels,
        splits=_splits(sample, rows, labels if sample.is_classification else target[:, 0]),
        is_classification=sample.is_classification,
        seed=sample.seed,
    )


def _choose_columns(sample: TableSample, rows: Rows) -> Rows:
    """Up to 30 columns: the most informative on the rows that landmarkers do not see, or else by content hash.

    Choosing on the landmarkers' own rows would make noise look informative in wide tables.
    """
    n_columns = sample.values.shape[1]
    others = np.setdiff1d(np.arange(sample.n_rows), rows)
    if n_columns <= MAX_COLUMNS or len(others) < MAX_ROWS:
        return np.arange(min(n_columns, MAX_COLUMNS))
    found = mutual_information(sample.once(bin_columns)[others], bin_target(sample)[others])
    return np.sort(np.argsort(-found.mutual, kind="stable")[:MAX_COLUMNS])


def _merge_rare(y: NDArray[np.intp]) -> NDArray[np.intp]:
    """Classes of the sample coded 0, 1, ...; all beyond the 20 largest become one class."""
    _, codes, counts = np.unique(y, return_inverse=True, return_counts=True)
    rank = np.argsort(np.argsort(-counts, kind="stable"), kind="stable")
    if len(counts) <= _MAX_CLASSES:
        return np.asarray(codes)
    return np.asarray(np.minimum(rank[codes], _MAX_CLASSES))


def _design(codes: Floats, is_code: NDArray[np.bool_]) -> Floats:
    """Standardised numbers, cut at five standard deviations, and indicators of the eight largest levels."""
    parts = [codes[:, ~is_code]]
    for j in np.flatnonzero(is_code):
        levels, counts = np.unique(codes[:, j], return_counts=True)
        largest = np.sort(levels[np.argsort(-counts, kind="stable")[:_MAX_INDICATORS]])
        parts.append((codes[:, j, None] == largest[1:] if len(levels) == 2 else codes[:, j, None] == largest) * 1.0)
    return np.clip(standardise(np.hstack(parts)), -5.0, 5.0)


def _splits(sample: TableSample, rows: Rows, y: NDArray[np.float64] | NDArray[np.intp]) -> list[Split]:
    """Three folds that respect groups and time, stratified otherwise."""
    n = len(rows)
    if sample.dataset.time is not None:
        order = np.argsort(np.argsort(order_by_time(sample))[rows], kind="stable")
        cuts = [n * k // (_N_FOLDS + 1) for k in range(1, _N_FOLDS + 2)]
        return [(np.sort(order[:a]), np.sort(order[a:b])) for a, b in pairwise(cuts)]
    if sample.dataset.groups is not None:
        labels = np.array([str(group) for group in sample.dataset.groups[sample.rows[rows]]])
        _, first, group = np.unique(labels, return_index=True, return_inverse=True)
        fold = np.argsort(np.argsort(first))[group] % _N_FOLDS
    else:
        fold = np.empty(n, dtype=np.intp)
        fold[np.argsort(y, kind="stable")] = np.arange(n) % _N_FOLDS
    return [(np.flatnonzero(fold != k), np.flatnonzero(fold == k)) for k in range(_N_FOLDS)]


# --- the models: arena, training rows, test rows -> predictions of shape (n_test, k) -------------------------------

Model = Callable[[Arena, Rows, Rows], Floats]


def _tree(max_depth: int | None) -> Model:
    def predict(arena: Arena, train: Rows, test: Rows) -> Floats:
        # squared error on class indicators is the Gini index, so one tree serves every task
        tree = DecisionTreeRegressor(max_depth=max_depth, random_state=arena.seed % 2**31)
        return _fit_predict(tree, arena, train, test)

    return predict


def _fit_predict(tree: DecisionTreeRegressor, arena: Arena, train: Rows, test: Rows) -> Floats:
    """Unchecked, as the arena is finite and of the types that trees need: checks cost as much as small trees."""
    tree.fit(arena.codes[train], arena.target[train], check_input=False)
    return np.asarray(tree.predict(arena.codes[test], check_input=False)).reshape(len(test), -1)


def _bagged_trees(arena: Arena, train: Rows, test: Rows) -> Floats:
    """Mean of ten extremely randomised trees (Geurts et al., 2006)."""
    total = np.zeros((len(test), arena.target.shape[1]))
    for k in range(_N_BAGGED):
        tree = ExtraTreeRegressor(max_features=0.5, random_state=(arena.seed + k) % 2**31)
        total += _fit_predict(tree, arena, train, test)
    return total / _N_BAGGED


def _neighbors(n_neighbors: int) -> Model:
    def predict(arena: Arena, train: Rows, test: Rows) -> Floats:
        a, b = arena.design[test], arena.design[train]
        distances = (b**2).sum(axis=1) - 2 * a @ b.T
        n_used = min(n_neighbors, len(train))
        nearest = np.argpartition(distances, n_used - 1, axis=1)[:, :n_used]
        return np.asarray(arena.target[train][nearest].mean(axis=1))

    return predict


def _linear(arena: Arena, train: Rows, test: Rows) -> Floats:
    """Ridge regression on the target or on class indicators; penalty = number of columns (signal equals noise)."""
    x, y = arena.design[train], arena.target[train]
    mean_x, mean_y = x.mean(axis=0), y.mean(axis=0)
    x = x - mean_x
    weights = np.linalg.solve(x.T @ x + x.shape[1] * np.eye(x.shape[1]), x.T @ (y - mean_y))
    return np.asarray(mean_y + (arena.design[test] - mean_x) @ weights)


def _naive(arena: Arena, train: Rows, test: Rows) -> Floats:
    """What ignores dependence between columns: Gaussian naive Bayes, or one component of partial least squares."""
    x, z = arena.design[train], arena.design[test]
    if not arena.is_classification:
        mean_x, y = x.mean(axis=0), arena.target[train]
        direction = (x - mean_x).T @ (y - y.mean(axis=0))
        component = (x - mean_x) @ direction
        slope = (component * (y - y.mean(axis=0))).sum() / max(float((component**2).sum()), 1e-12)
        return np.asarray(y.mean(axis=0) + slope * ((z - mean_x) @ direction))
    labels, n_classes = arena.labels[train], int(arena.labels.max()) + 1
    member = (labels == np.arange(n_classes)[:, None]).astype(float)  # (C, n)
    counts = member.sum(axis=1)
    means = member @ x / np.maximum(counts, 1)[:, None]
    variances = np.maximum(member @ x**2 / np.maximum(counts, 1)[:, None] - means**2, 0) + 1e-2
    quadratic = z**2 @ (1 / variances).T - 2 * z @ (means / variances).T + (means**2 / variances).sum(axis=1)
    logits = np.log(np.maximum(counts, 1e-9)) - 0.5 * (quadratic + np.log(variances).sum(axis=1))
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    return np.asarray(p[:, 1:] if n_classes == 2 else p)


def _on_half(model: Model, half: int) -> Model:
    return lambda arena, train, test: model(arena, train[half::2], test)


_MODELS: dict[str, Model] = {
    "stump": _tree(1),
    "shallow_tree": _tree(3),
    "tree": _tree(None),
    "trees": _bagged_trees,
    "nearest": _neighbors(1),
    "neighbors": _neighbors(5),
    "naive": _naive,
    "linear": _linear,
}
_HALVES: dict[str, Model] = {
    "neighbors_on_half_0": _on_half(_neighbors(5), 0),
    "neighbors_on_half_1": _on_half(_neighbors(5), 1),
    "linear_on_half_0": _on_half(_linear, 0),
    "linear_on_half_1": _on_half(_linear, 1),
}


def skill(truth: Floats, prediction: Floats, is_classification: bool) -> float:
    """0 for a constant prediction, 1 for a perfect one: mean of 2 AUC - 1 over classes, or R2 not below -1.

    Both arguments have shape (n_test, k).
    """
    if not is_classification:
        total = ((truth - truth.mean(axis=0)) ** 2).sum()
        return max(-1.0, 1 - float(((truth - prediction) ** 2).sum() / total)) if total > 0 and len(truth) > 1 else NAN
    positive = truth.sum(axis=0)
    negative = len(truth) - positive
    used = (positive > 0) & (negative > 0)
    if not used.any():
        return NAN
    ranks = (rankdata(prediction[:, used], axis=0) * truth[:, used]).sum(axis=0)
    positive, negative = positive[used], negative[used]
    auc = (ranks - positive * (positive + 1) / 2) / (positive * negative)
    return float(np.average(2 * auc - 1, weights=positive))


def error_skill(truth: Floats, prediction: Floats, is_classification: bool) -> float:
    """Share of a constant's errors that are avoided: error rate of the largest class, or MAE of the median."""
    if is_classification:
        truth, prediction = (np.hstack([1 - m, m]) if m.shape[1] == 1 else m for m in (truth, prediction))
        constant = 1 - truth.mean(axis=0).max()
        error = np.mean(truth.argmax(axis=1) != prediction.argmax(axis=1))
    else:
        constant = np.abs(truth - np.median(truth, axis=0)).mean()
        error = np.abs(truth - prediction).mean()
    return max(-1.0, 1 - float(error / constant)) if constant > 0 else NAN


def landmarks(sample: TableSample) -> dict[str, Floats]:
    """Skill of each model in each fold, shape (n_folds,); and ``"trees_errors"``, the error skill of the trees."""
    models = _MODELS | _HALVES
    nothing = {name: np.full(_N_FOLDS, NAN) for name in (*models, "trees_errors")}
    if sample.n_rows < _MIN_ROWS or sample.values.shape[1] == 0:
        return nothing
    arena = build_arena(sample)
    splits = [(train, test) for train, test in arena.splits if len(train) > 1 and len(test) > 1]
    if not splits or (not arena.is_classification and not arena.target.any()):
        return nothing
    truths = [arena.target[test] for _, test in splits]
    guesses = {name: [model(arena, *split) for split in splits] for name, model in models.items()}
    is_classes = arena.is_classification
    scores = {
        name: np.array([skill(t, g, is_classes) for t, g in zip(truths, folds, strict=True)])
        for name, folds in guesses.items()
    }
    errors = [error_skill(t, g, is_classes) for t, g in zip(truths, guesses["trees"], strict=True)]
    return scores | {"trees_errors": np.array(errors)}


def _mean(sample: TableSample, name: str) -> float:
    scores = sample.once(landmarks)[name]
    return float(np.nanmean(scores)) if not np.isnan(scores).all() else NAN


# --- the features ---------------------------------------------------------------------------------------------------


def landmark_stump(sample: TableSample) -> float:
    """Skill of a tree with one split (Pfahringer et al. 2000, "decision node")."""
    return _mean(sample, "stump")


def landmark_shallow_tree(sample: TableSample) -> float:
    """Skill of a tree of depth 3."""
    return _mean(sample, "shallow_tree")


def landmark_tree(sample: TableSample) -> float:
    """Skill of a full tree (Bensusan and Giraud-Carrier, 2000)."""
    return _mean(sample, "tree")


def landmark_trees(sample: TableSample) -> float:
    """Skill of ten extremely randomised trees."""
    return _mean(sample, "trees")


def landmark_trees_errors(sample: TableSample) -> float:
    """Errors (misclassified rows, or absolute error) of a constant prediction that ten randomised trees avoid."""
    return _mean(sample, "trees_errors")


def landmark_nearest(sample: TableSample) -> float:
    """Skill of the nearest neighbour (Pfahringer et al. 2000)."""
    return _mean(sample, "nearest")


def landmark_neighbors(sample: TableSample) -> float:
    """Skill of five nearest neighbours."""
    return _mean(sample, "neighbors")


def landmark_naive(sample: TableSample) -> float:
    """Skill of Gaussian naive Bayes (Pfahringer et al. 2000), or of one component of partial least squares."""
    return _mean(sample, "naive")


def landmark_linear(sample: TableSample) -> float:
    """Skill of ridge regression on the target or on class indicators (Pfahringer et al. 2000, "linear")."""
    return _mean(sample, "linear")


def landmark_best(sample: TableSample) -> float:
    """Best skill of a landmarker."""
    return float(np.nanmax([_mean(sample, name) for name in _MODELS]))


def landmark_spread(sample: TableSample) -> float:
    """Standard deviation of the skill over landmarkers: does the choice of a model matter?"""
    return float(np.nanstd([_mean(sample, name) for name in _MODELS]))


def landmark_noise(sample: TableSample) -> float:
    """Standard deviation of the skill over folds, root mean square over landmarkers: how noisy validation is."""
    return float(np.sqrt(np.nanmean([np.nanvar(sample.once(landmarks)[name], ddof=1) for name in _MODELS])))


def nonlinearity(sample: TableSample) -> float:
    """Skill of ten randomised trees minus that of the linear model."""
    return _mean(sample, "trees") - _mean(sample, "linear")


def interaction(sample: TableSample) -> float:
    """Skill of a tree of depth 3 minus that of a stump."""
    return _mean(sample, "shallow_tree") - _mean(sample, "stump")


def overfitting(sample: TableSample) -> float:
    """Skill of a tree of depth 3 minus that of a full tree: positive where the target is noisy."""
    return _mean(sample, "shallow_tree") - _mean(sample, "tree")


def ensemble_gain(sample: TableSample) -> float:
    """Skill of ten randomised trees minus that of one full tree."""
    return _mean(sample, "trees") - _mean(sample, "tree")


def locality(sample: TableSample) -> float:
    """Skill of five nearest neighbours minus that of the linear model."""
    return _mean(sample, "neighbors") - _mean(sample, "linear")


def smoothness(sample: TableSample) -> float:
    """Skill of five nearest neighbours minus that of one: positive where labels are noisy."""
    return _mean(sample, "neighbors") - _mean(sample, "nearest")


def dependence(sample: TableSample) -> float:
    """Skill of the linear model minus that of the naive one: positive where columns must be weighed together."""
    return _mean(sample, "linear") - _mean(sample, "naive")


def more_rows_neighbors(sample: TableSample) -> float:
    """Skill that five nearest neighbours gain by twice the training rows (Leite and Brazdil, 2005)."""
    return _gain_by_rows(sample, "neighbors")


def more_rows_linear(sample: TableSample) -> float:
    """Skill that the linear model gains by twice the training rows (Leite and Brazdil, 2005)."""
    return _gain_by_rows(sample, "linear")


def _gain_by_rows(sample: TableSample, name: str) -> float:
    halves = [_mean(sample, half) for half in _HALVES if half.startswith(f"{name}_on_half")]
    return _mean(sample, name) - float(np.mean(halves))


LANDMARKERS = (
    landmark_stump, landmark_shallow_tree, landmark_tree, landmark_trees, landmark_trees_errors, landmark_nearest,
    landmark_neighbors, landmark_naive, landmark_linear, landmark_best, landmark_spread, landmark_noise, nonlinearity,
    interaction, overfitting, ensemble_gain, locality, smoothness, dependence, more_rows_neighbors, more_rows_linear,
)  # fmt: skip


def constant_scores(dataset: Dataset) -> dict[str, float]:
    """Score (higher is better) of the best constant for each built-in metric of the task: class shares, or the mean.

    MAE is given for the median. Landmarks say how far above these a model may get.
    """
    y = dataset.y
    if dataset.task.is_classification:
        shares = np.bincount(y, minlength=dataset.n_classes) / len(y)
        prediction = np.broadcast_to(shares, (len(y), dataset.n_classes))
        return {metric.name: metric.score(y, prediction) for metric in task_metrics(dataset.task)}
    centre = {"mae": float(np.median(y))}
    mean = float(y.mean())
    return {m.name: m.score(y, np.full(len(y), centre.get(m.name, mean))) for m in task_metrics(dataset.task)}


def fixed_work_seconds(n_repeats: int = 3) -> float:
    """Least seconds of a fixed piece of work (one tree on 1,000 rows, one matrix product): the speed of a machine."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1_000, 8))
    y = x[:, 0] * x[:, 1] + 0.1 * rng.standard_normal(1_000)
    least = np.inf
    for _ in range(n_repeats):
        start = time.perf_counter()
        DecisionTreeRegressor(max_depth=6, random_state=0).fit(x, y)
        (x @ x.T).sum()
        least = min(least, time.perf_counter() - start)
    return float(least)
