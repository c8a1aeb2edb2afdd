"""Meta-training: from a meta-dataset to a meta-model.

The mean is learned by squared error under heavy regularisation and stacked by group-wise cross-validation; the
covariance comes from residuals on datasets that the mean has not seen. Nothing here looks at the datasets that the
meta-model will be tested on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autometa.meta_dataset import MetaDataset, group_folds
from autometa.meta_model import estimation
from autometa.meta_model.belief import kernel
from autometa.meta_model.encoders import FeatureEncoder
from autometa.meta_model.estimation import Floats, Table
from autometa.meta_model.model import Head, MetaModel, structure
from autometa.meta_model.pool import CandidatePool
from autometa.meta_model.regressors import Forest, Ridge, fit_bag

MAX_POOL = 400
"""Candidates kept as outputs, the most often measured first; the rest is reached through the kernel."""

_SECONDS_WEIGHT = 0.3


@dataclass(frozen=True)
class TrainingOptions:
    """Choices of :func:`train_meta_model`; the defaults are the ones whose ablation was positive.

    Parameters
    ----------
    learners : tuple of {"ridge", "forest", "mlp"}
        Empty: no meta-features, the portfolio mean alone.
    n_folds : int
        Folds of the cross-fitting (by group).
    n_outputs : int
        Principal components of the residual scores that the learners predict.
    n_trees, min_leaf : int
        Of the extra trees.
    n_members, n_hidden, n_steps : int
        Of the bag of MLPs: members (in each cross-fitting fold and in the final bag), hidden units, gradient steps.
    ridge_penalty : float
    bandwidth : float
        Share of the residuals' standard deviation that stays Gaussian; the rest is carried by displacements.
        1 is one Gaussian.
    noise : float
        Variance of a measured score in normalised units where no standard error is given.
    conditional_scale : bool
        Let meta-features shift the prior of offset and scale.
    """

    learners: tuple[str, ...] = ("ridge", "forest")
    n_folds: int = 5
    n_outputs: int = 64
    n_trees: int = 300
    min_leaf: int = 3
    n_members: int = 5
    n_hidden: int = 256
    n_steps: int = 300
    ridge_penalty: float = 3.0
    bandwidth: float = 0.8
    noise: float = 1e-2
    conditional_scale: bool = True


@dataclass(frozen=True, eq=False)
class _Task:
    """What all parts of the training share: encoded meta-features, folds, pool, seed."""

    X: Floats
    fold: NDArray[np.int64]
    pool: CandidatePool
    seed: int
    options: TrainingOptions

    def splits(self, rows: NDArray[np.intp] | None = None) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
        """Cross-fitting splits of these rows (default all), as positions among them."""
        fold = self.fold if rows is None else self.fold[rows]
        pairs = [(np.flatnonzero(fold != f), np.flatnonzero(fold == f)) for f in np.unique(fold)]
        return [(a, b) for a, b in pairs if len(a)]


def train_meta_model(meta_dataset: MetaDataset, seed: int = 0, *, options: TrainingOptions | None = None) -> MetaModel:
    """Learn from earlier datasets what to expect on a new one.

    All metrics and tasks are learned together: one set of learners, one head per metric.

    Parameters
    ----------
    meta_dataset : MetaDataset
        At least 4 datasets.
    seed : int
        The same seed gives the same model.
    options : TrainingOptions, optional

    Raises
    ------
    ValueError
        Too few datasets.
    """
    if len(meta_dataset.datasets) < 4:
        raise ValueError(f"Meta-training needs at least 4 datasets. Got {len(meta_dataset.datasets)}.")
    options = options or TrainingOptions()
    encoder = FeatureEncoder.fit(meta_dataset.meta_features)
    pool, keys = _pool(meta_dataset)
    X = encoder(meta_dataset.meta_features).numpy().astype(float)
    task = _Task(X, _folds(meta_dataset.groups, options.n_folds, seed), pool, seed, options)
    tables = {
        metric: estimation.normalise(_cells(meta_dataset, meta_dataset.score_table(metric), keys), pool.family)
        for metric in meta_dataset.metrics
    }
    blocks = list(tables.values())
    timed = meta_dataset.evaluations["seconds"].notna().any()
    if timed:
        blocks.append(estimation.log_table(_cells(meta_dataset, meta_dataset.seconds_table(), keys), pool.family))
    targets, directions = _shared_targets(task, blocks, n_scored=len(tables))
    learners, held_out = _fit_learners(task, targets)
    heads = [_fit_head(task, t, v, held_out) for t, v in zip(blocks, directions, strict=True)]
    seconds_head = _as_seconds_head(heads.pop()) if timed else None
    model = MetaModel(
        encoder, pool, learners=learners, heads=dict(zip(tables, heads, strict=True)), seconds_head=seconds_head,
        card=_card(meta_dataset, options, seed),
    )  # fmt: skip
    return model.eval()


def _pool(meta_dataset: MetaDataset) -> tuple[CandidatePool, list[str]]:
    """The most often measured candidates, in order of appearance, and their keys."""
    counts = meta_dataset.evaluations.drop_duplicates(["dataset", "key"])["key"].value_counts()
    kept = set(counts.index[:MAX_POOL])
    chosen = {key: c for key, c in meta_dataset.candidates.items() if key in kept}
    return CandidatePool([(c.family, c.config) for c in chosen.values()]), list(chosen)


def _folds(groups: pd.Series, n_folds: int, seed: int) -> NDArray[np.int64]:
    distinct = groups.drop_duplicates()
    folds = group_folds(groups, max(2, min(n_folds, len(distinct))), seed=seed)
    return np.asarray(groups.map(dict(zip(distinct, folds, strict=True))), dtype=np.int64)


def _cells(meta_dataset: MetaDataset, table: pd.DataFrame, keys: list[str]) -> Floats:
    return table.reindex(index=list(meta_dataset.datasets), columns=keys).to_numpy(dtype=float)


def _shared_targets(task: _Task, blocks: Sequence[Table], n_scored: int) -> tuple[Floats, list[Floats]]:
    """Principal components (N, R) of all residual tables side by side, and the way back to each table (R, P)."""
    parts, scales = [], []
    for i, table in enumerate(blocks):
        block = np.zeros((len(task.X), len(table.columns)))
        block[table.rows] = estimation.fill(table.residual)
        weight = 1.0 if i < n_scored else _SECONDS_WEIGHT
        scales.append(weight / max(np.sqrt(np.square(block).mean() * block.shape[1]), 1e-9))
        parts.append(block * scales[-1])
    u, s, v = np.linalg.svd(np.hstack(parts), full_matrices=False)
    n_outputs = min(task.options.n_outputs, int((s > 1e-9 * s[0]).sum()) or 1)
    ends = np.cumsum([len(table.columns) for table in blocks])[:-1]
    pieces = np.split(v[:n_outputs], ends, axis=1)
    return u[:, :n_outputs] * s[:n_outputs], [p / scale for p, scale in zip(pieces, scales, strict=True)]


def _fit_learners(task: _Task, targets: Floats) -> tuple[list[nn.Module], list[Floats]]:
    """Learners fitted on all datasets, and the outputs (N, R) of their twins that have not seen the dataset."""
    X, options, splits = task.X, task.options, task.splits()
    learners: list[nn.Module] = []
    held_out: list[Floats] = []
    for kind in options.learners if X.shape[1] else ():
        outputs = np.zeros_like(targets)
        if kind == "mlp":
            m, everything = options.n_members, np.arange(len(X))
            rows = [train for train, _ in splits for _ in range(m)] + [everything] * m
            bag = fit_bag(X, targets, rows, n_hidden=options.n_hidden, n_steps=options.n_steps, seed=task.seed)
            for f, (_, test) in enumerate(splits):
                outputs[test] = _outputs(bag.members(range(f * m, (f + 1) * m)), X[test])
            learner: nn.Module = bag.members(range(len(splits) * m, len(rows)))
        else:
            for train, test in splits:
                outputs[test] = _outputs(_fit_one(kind, X[train], targets[train], task), X[test])
            learner = _fit_one(kind, X, targets, task)
        learners.append(learner)
        held_out.append(outputs)
    return learners, held_out


def _fit_one(kind: str, X: Floats, T: Floats, task: _Task) -> nn.Module:
    if kind == "ridge":
        return Ridge.fit(X, T, penalty=task.options.ridge_penalty)
    if kind == "forest":
        return Forest.fit(X, T, n_trees=task.options.n_trees, min_leaf=task.options.min_leaf, seed=task.seed)
    raise ValueError(f"A learner must be ridge, forest or mlp. Got {kind!r} instead.")


@torch.no_grad()
def _outputs(learner: nn.Module, X: Floats) -> Floats:
    result: Tensor = learner(torch.from_numpy(X).to(torch.float32))
    return result.numpy().astype(float)


def _fit_head(task: _Task, table: Table, directions: Floats, held_out: Sequence[Floats]) -> Head:
    """Stacking weights, residual covariance and scale prior of one table."""
    pool, splits = task.pool, task.splits(table.rows)
    predictions = [outputs[table.rows] @ directions for outputs in held_out]
    stack = estimation.stack_weights(predictions, table.residual)
    forecast = sum((w * p for w, p in zip(stack, predictions, strict=True)), np.zeros_like(table.residual))
    errors = estimation.fill(table.residual - forecast)
    coef, scale = estimation.fit_scale(table, task.X[table.rows], splits, conditional=task.options.conditional_scale)
    head = Head(
        len(directions), len(table.columns), n_residuals=len(errors), n_learners=len(stack),
        n_scale_inputs=task.X.shape[1],
    )  # fmt: skip
    family, vectors = pool.family[table.columns], pool.vectors[table.columns]
    same = (family[:, None] == family).astype(float)
    near = (2 * kernel(vectors, vectors, pool.length_scale) - 1) * same
    weights = estimation.structure_weights(errors, same, near)
    for name, value in (("members", table.columns), ("portfolio", table.portfolio), ("directions", directions),
                        ("stack", stack), ("residuals", errors), ("coef", coef)):  # fmt: skip
        getattr(head, name).copy_(torch.from_numpy(np.asarray(value)))
    total = table.portfolio + estimation.fill(table.residual)
    head.settings = {
        "structure": weights,
        "shrinkage": estimation.choose_shrinkage(errors, structure(pool, table.columns, weights), splits),
        "bandwidth": task.options.bandwidth,
        "noise": task.options.noise,
        "scale": scale,
        "spread": float(total.std()),
        "family_spread": {
            str(n): float((total[:, family == n] - total[:, family == n].mean()).std()) for n in np.unique(family)
        },
    }
    return head


def _as_seconds_head(head: Head) -> Head:
    """Log-seconds need no unknown scale; the speed of the machine takes the place of the offset."""
    head.settings |= {"speed_std": 0.7, "noise": 0.02, "bandwidth": 1.0}
    return head


def _card(meta_dataset: MetaDataset, options: TrainingOptions, seed: int) -> dict[str, Any]:
    packages = ("autometa-ml", "numpy", "scikit-learn", "torch")
    return {
        "trained_on": list(meta_dataset.datasets),
        "groups": {str(d): str(g) for d, g in meta_dataset.groups.items()},
        "units": meta_dataset.units,
        "n_evaluations": len(meta_dataset.evaluations),
        "seed": seed,
        "options": asdict(options),
        "versions": {name: version(name) for name in packages},
    }
