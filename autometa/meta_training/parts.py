"""The parts of a meta-model, learned from a meta-dataset: learners, tables, covariance, priors of offset and scale.

The mean is learned by squared error under heavy regularisation and stacked by group-wise cross-validation; the
covariance comes from residuals on datasets that the mean has not seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autometa.meta_dataset import MetaDataset, group_folds
from autometa.meta_model import estimation
from autometa.meta_model.encoders import FeatureEncoder
from autometa.meta_model.estimation import Floats, Table
from autometa.meta_model.heads import SIZES, Head, SizeScale
from autometa.meta_model.memory import TaskMemory
from autometa.meta_model.model import MetaModel, structure
from autometa.meta_model.novelty import Novelty
from autometa.meta_model.outputs import TrainRows, output_name
from autometa.meta_model.pool import CandidatePool
from autometa.meta_model.priors import kernel
from autometa.meta_model.regressors import Forest, Ridge, fit_bag
from autometa.meta_training.memory import MemoryOptions, train_memory
from autometa.meta_training.relations import Related, relate

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
    memory : MemoryOptions or None
        Of the memory of the training datasets; ``None``, or no learners: without one.
    n_rehearsals : int
        Folds of the rehearsal (by group) that sets how far forecasts are trusted and calibrates the intervals;
        0: no rehearsal, full trust and Gaussian intervals.
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
    memory: MemoryOptions | None = field(default_factory=MemoryOptions)
    n_rehearsals: int = 5


@dataclass(frozen=True)
class Caution:
    """What rehearsals taught: how far forecasts are to be trusted, and how wide intervals must be.

    Parameters
    ----------
    shrink : mapping of metric to mapping of task to float
        Share of the forecast from meta-features that is kept in a search; task ``""`` stands for all others.
    opening : mapping of metric to mapping of task to float
        The same before the first trial.
    threshold : float
        Novelty beyond which that share falls to zero.
    noise_share : mapping of metric to mapping of task to float
        Share of the squared standard error of a score that is the candidate's own.
    calibration : mapping of metric to mapping of task to mapping
        Specs of :class:`autometa.meta_model.calibration.Calibration`.
    seconds : mapping of task to mapping
        The same for the seconds.
    report : mapping
        Figures for the card.
    """

    shrink: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    opening: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    threshold: float = 1.0
    noise_share: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    calibration: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seconds: Mapping[str, Any] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)


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


@dataclass(frozen=True, eq=False)
class Parts:
    """Everything learned from a meta-dataset but how far to trust it; :meth:`assemble` makes a meta-model of it.

    Made by :func:`learn`.
    """

    common: _Task
    encoder: FeatureEncoder
    novelty: Novelty
    tasks: NDArray[np.str_]
    tables: Mapping[str, Table]
    timed: Table | None
    sizes: tuple[SizeScale, Floats]
    directions: Sequence[Floats]
    learners: Sequence[nn.Module]
    held_out: Sequence[Floats]
    related: Mapping[str, Mapping[str, Related]] = field(default_factory=dict)
    memory: TaskMemory | None = None

    def assemble(self, caution: Caution, card: Mapping[str, Any]) -> MetaModel:
        """A meta-model whose forecasts and intervals are as careful as rehearsals taught."""
        heads = {}
        for (metric, table), directions in zip(self.tables.items(), self.directions, strict=False):
            shrink = caution.shrink.get(metric, {})
            share = np.array([shrink.get(task, shrink.get("", 1.0)) for task in self.tasks[table.rows]])
            related = self.related.get(metric, {})
            heads[metric] = head = _fit_head(
                self.common, table, directions, self.held_out, share=share, related=related
            )
            head.settings |= {
                "shrink": dict(shrink), "opening": dict(caution.opening.get(metric, {})),
                "threshold": caution.threshold,
                "noise_share": dict(caution.noise_share.get(metric, {})),
                "calibration": dict(caution.calibration.get(metric, {})),
            }  # fmt: skip
        seconds_head = None if self.timed is None else self._seconds_head(self.timed, caution)
        return MetaModel(
            self.encoder, self.common.pool, learners=self.learners, heads=heads, seconds_head=seconds_head,
            novelty=self.novelty, memory=self.memory, card=card,
        ).eval()  # fmt: skip

    def _seconds_head(self, table: Table, caution: Caution) -> Head:
        """Log-seconds need no unknown scale; the speed of the machine takes the place of the offset."""
        scale, coef = self.sizes
        head = _fit_head(self.common, table, self.directions[-1], self.held_out, sizes=coef)
        head.settings |= {
            "speed_std": 0.7, "noise": 0.02, "bandwidth": 1.0, "threshold": caution.threshold,
            "sizes": asdict(scale),
            "calibration": dict(caution.seconds),
        }  # fmt: skip
        return head


def learn(meta_dataset: MetaDataset, seed: int, options: TrainingOptions) -> Parts:
    """The parts of a meta-model; all metrics and tasks share the learners, each metric has its own table."""
    features = meta_dataset.meta_features
    encoder = FeatureEncoder.fit(features)
    pool, keys = _pool(meta_dataset)
    X = encoder(features).numpy().astype(float)
    common = _Task(X, _folds(meta_dataset.groups, options.n_folds, seed), pool, seed, options)
    groups, _ = pd.factorize(meta_dataset.groups)
    tables = {
        metric: estimation.normalise(_cells(meta_dataset, meta_dataset.score_table(metric), keys), pool.family)
        for metric in meta_dataset.metrics
    }
    timed, sizes = None, (SizeScale((), ()), np.zeros((0, 0)))
    if meta_dataset.evaluations["seconds"].notna().any():
        timed = estimation.log_table(_cells(meta_dataset, meta_dataset.seconds_table(), keys), pool.family)
        growth = estimation.growth_exponents(
            meta_dataset.growth_table().reindex(columns=[keys[i] for i in timed.columns]).to_numpy(dtype=float),
            pool.family[timed.columns],
        )  # fmt: skip
        timed, sizes = _without_size(timed, features, pool.family, growth)
    blocks = [*tables.values(), *([timed] if timed is not None else [])]
    targets, directions = _shared_targets(common, blocks, n_scored=len(tables))
    learners, held_out = _fit_learners(common, targets)
    parts = Parts(
        common, encoder, Novelty.fit(X, encoder.expand(features), np.asarray(groups, dtype=np.int64)),
        task_names(features), tables, timed, sizes, directions, learners, held_out,
    )  # fmt: skip
    if options.memory is None or not learners:
        return parts
    forgetful = parts.assemble(Caution(), {"trained_on": list(meta_dataset.datasets)})
    return replace(parts, memory=train_memory(meta_dataset, forgetful, seed=seed, options=options.memory))


def with_relations(parts: Parts, meta_dataset: MetaDataset, *, other_metrics: bool = True) -> Parts:
    """With the auxiliary outputs of each metric: the other metrics, and the same metric on fewer training rows.

    Rehearsals do without the former, which is most of the work.
    """
    (pool, keys), tasks, result = _pool(meta_dataset), parts.tasks, {}
    for metric, table in parts.tables.items():
        others = {name: other for name, other in parts.tables.items() if other_metrics and name != metric}
        for n_rows in meta_dataset.train_sizes(metric):
            cells = _cells(meta_dataset, meta_dataset.score_table(metric, train_rows=n_rows), keys)
            if np.isfinite(cells).any():
                others[output_name(TrainRows(n_rows))] = estimation.normalise(cells, pool.family)
        found = {name: relate(table, other, tasks) for name, other in others.items()}
        result[metric] = {name: related for name, related in found.items() if related is not None}
    return replace(parts, related=result)


def task_names(features: pd.DataFrame) -> NDArray[np.str_]:
    """Task of each dataset, empty where the meta-features do not tell."""
    if "task" not in features.columns:
        return np.full(len(features), "", dtype=object).astype(str)
    return features["task"].astype(str).to_numpy(dtype=str)


def _without_size(
    table: Table, features: pd.DataFrame, family: NDArray[np.int64], growth: Floats
) -> tuple[Table, tuple[SizeScale, Floats]]:
    """A table of log-seconds less the effect of rows, columns and classes, and that effect.

    ``growth`` (P,): the power of the rows by which seconds grow beyond the largest table.
    """
    names = [name for name in SIZES if name in features.columns and features[name].nunique() > 1]
    if not names:
        return table, (SizeScale((), ()), np.zeros((0, len(table.columns))))
    rows = features.iloc[table.rows][names].to_numpy(dtype=float)
    best: tuple[float, SizeScale, Floats, Floats] | None = None
    for share in (1.0, 0.9, 0.75, 0.6, 0.5):
        cap = None if share == 1 else float(np.nanquantile(rows[:, 0], share))
        capped = np.column_stack([rows[:, 0] if cap is None else np.minimum(rows[:, 0], cap), rows[:, 1:]])
        largest = float(np.nanmax(rows[:, 0])) if cap is None and names[0] == SIZES[0] else None
        centre = tuple(float(c) for c in np.nanmean(capped, axis=0))
        scale = SizeScale(tuple(names), centre, cap, largest, tuple(growth.round(4).tolist()))
        Z = np.where(np.isfinite(capped), capped - np.asarray(scale.centre), 0.0)
        coef = estimation.size_effect(table.residual, Z, family[table.columns])
        left = table.residual - Z @ coef
        loss = float(np.nansum(np.square(left)))
        if best is None or loss < 0.98 * best[0]:  # a cap has to earn its place
            best = loss, scale, coef, left
    assert best is not None
    return replace(table, residual=best[3]), (best[1], best[2])


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


def _fit_head(
    task: _Task,
    table: Table,
    directions: Floats,
    held_out: Sequence[Floats],
    *,
    share: Floats | None = None,
    sizes: Floats | None = None,
    related: Mapping[str, Related] | None = None,
) -> Head:
    """Stacking weights, residual covariance and scale prior of one table.

    ``share`` (N,) is how much of the forecast each dataset keeps, ``sizes`` (K, P) a linear effect already taken out,
    ``related`` the auxiliary outputs.
    """
    related = related or {}
    pool, splits = task.pool, task.splits(table.rows)
    predictions = [outputs[table.rows] @ directions for outputs in held_out]
    stack = estimation.stack_weights(predictions, table.residual)
    forecast = sum((w * p for w, p in zip(stack, predictions, strict=True)), np.zeros_like(table.residual))
    forecast = forecast if share is None else share[:, None] * forecast
    errors = estimation.fill(table.residual - forecast)
    coef, scale = estimation.fit_scale(table, task.X[table.rows], splits, conditional=task.options.conditional_scale)
    head = Head(
        len(directions), len(table.columns), n_residuals=len(errors), n_learners=len(stack),
        n_scale_inputs=task.X.shape[1], n_sizes=0 if sizes is None else len(sizes), n_auxiliary=len(related),
    )  # fmt: skip
    family, vectors = pool.family[table.columns], pool.vectors[table.columns]
    same = (family[:, None] == family).astype(float)
    near = (2 * kernel(vectors, vectors, pool.length_scale) - 1) * same
    weights = estimation.structure_weights(errors, same, near)
    arrays = {
        "members": table.columns, "portfolio": table.portfolio, "directions": directions, "stack": stack,
        "residuals": errors, "coef": coef, "rows": table.rows, "winners": table.winners, "tail": table.shortfall,
        "sizes_coef": np.zeros((0, len(table.columns))) if sizes is None else sizes,
        "auxiliary": np.array([r.portfolio for r in related.values()]),
    }  # fmt: skip
    for name, value in arrays.items():
        buffer = getattr(head, name)
        buffer.copy_(torch.from_numpy(np.asarray(value)).reshape(buffer.shape))
    total = table.portfolio + estimation.fill(table.residual)
    head.settings = {
        "structure": weights,
        "shrinkage": estimation.choose_shrinkage(errors, structure(pool, table.columns, weights), splits),
        "bandwidth": task.options.bandwidth,
        "noise": task.options.noise,
        "scale": scale,
        "outputs": {name: {t: r.spec for t, r in found.relations.items()} for name, found in related.items()},
        "probes": {name[1:]: found.members.tolist() for name, found in related.items() if name.startswith("@")},
        "spread": float(total.std()),
        "family_spread": {
            str(n): float((total[:, family == n] - total[:, family == n].mean()).std()) for n in np.unique(family)
        },
    }
    return head
