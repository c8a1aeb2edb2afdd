"""Tasks for the training of a weight generator: batches of tables of one shape, synthetic or cut out of real ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autometa.data import Dataset
from autometa.meta_training.synthetic_tables import Dice, draw_tables
from autometa.nets.standard_input import column_scales, expand_categories, standardise
from autometa.preprocessing import encode_dataset

TRAINED_CLASSES, TRAINED_FEATURES = 10, 60
"""Most classes and columns of a task; more cost more than they teach."""

_MIN_CLASS_ROWS = 8
_MAX_TASKS = 96
_QUERY_ROWS = 128
_REAL_QUERY_ROWS = 64
_MAX_TARGET = 8.0


@dataclass(frozen=True)
class TaskShape:
    """What all tasks of a batch have in common; ``n_classes`` is 0 for regression."""

    n_tasks: int
    n_context: int
    n_query: int
    n_features: int
    n_classes: int


@dataclass(frozen=True, eq=False)
class GeneratorTasks:
    """B tasks of one shape.

    Parameters
    ----------
    x, y : Tensor of shape (B, N, F) and (B, N)
        Standardised over the context; class codes, or a target standardised over the context.
    query_x, query_y : Tensor of shape (B, M, F) and (B, M)
    query_weight : Tensor of shape (B, M)
        0 for a row whose class is not in the context.
    n_classes : int
    """

    x: Tensor
    y: Tensor
    query_x: Tensor
    query_y: Tensor
    query_weight: Tensor
    n_classes: int

    @classmethod
    def of(cls, x: Tensor, y: Tensor, n_context: int, n_classes: int) -> GeneratorTasks:
        """From raw tables (B, N + M, F); tasks whose context is constant in the target are left out."""
        x = standardise(x, *column_scales(x[:, :n_context]))
        context, query = y[:, :n_context], y[:, n_context:]
        varies = (context != context[:, :1]).any(1)
        if n_classes:
            weight = (context[:, None] == query[..., None]).any(2).float()
        else:
            mean, factor = column_scales(context[..., None])
            y = ((y - mean[..., 0]) * factor[..., 0]).clamp(-_MAX_TARGET, _MAX_TARGET)
            context, query, weight = y[:, :n_context], y[:, n_context:], torch.ones_like(query)
        return cls(
            x[varies, :n_context], context[varies], x[varies, n_context:], query[varies], weight[varies], n_classes
        )

    def __len__(self) -> int:
        return len(self.x)


def draw_shape(dice: Dice, cost: float = 600.0) -> TaskShape:
    """A random shape: 16 to 1,024 context rows, 2 to 60 features, 2 to 10 classes or a numeric target.

    ``cost`` is about the CPU milliseconds of one training step on the batch, which say how many tasks it has.
    """
    n_context = 1_024 if dice.chance(0.04) else int(dice.log_uniform(16, 640, 1))
    n_features = 2 + int((TRAINED_FEATURES - 2) * float(dice.uniform(1)) ** 2.5 + 0.5)
    if dice.chance(0.22):
        n_classes = 0
    else:
        n_classes = 2 if dice.chance(0.45) else 3 + int((TRAINED_CLASSES - 2) * float(dice.uniform(1)) ** 1.6)
    n_context = max(n_context, 4 * n_classes)
    task_cost = 2.5 + 8e-4 * n_context * n_features + 0.045 * (n_classes or 5) * n_features
    return TaskShape(int(np.clip(cost / task_cost, 2, _MAX_TASKS)), n_context, _QUERY_ROWS, n_features, n_classes)


def draw_synthetic(dice: Dice, shape: TaskShape) -> GeneratorTasks:
    """A batch from the prior of :mod:`autometa.meta_training.synthetic_tables`."""
    x, y = draw_tables(
        dice, shape.n_tasks, n_rows=shape.n_context + shape.n_query, n_features=shape.n_features,
        n_classes=shape.n_classes,
    )  # fmt: skip
    return GeneratorTasks.of(x, y, shape.n_context, shape.n_classes)


@dataclass(frozen=True, eq=False)
class TableSource:
    """A real table as a matrix, from which tasks are cut.

    Parameters
    ----------
    name, group : str
    x : ndarray of shape (N, D)
        float32: indicators of categories, numbers.
    y : ndarray of shape (N,)
        int64 class codes, or float32 values where ``n_classes`` is 0.
    n_classes : int
    """

    name: str
    group: str
    x: NDArray[np.float32]
    y: NDArray[Any]
    n_classes: int

    @classmethod
    def of(cls, dataset: Dataset, group: str, *, n_rows: int = 1_500, n_columns: int = 150) -> TableSource:
        """At most ``n_rows`` rows and ``n_columns`` columns of a dataset; classes with fewer than 8 rows left out."""
        dataset = dataset.subsample(n_rows)
        encoder, matrix = encode_dataset(dataset, "net")
        n_categorical = encoder.n_categorical_
        sizes = [int(size) + 1 for size in matrix[:, :n_categorical].max(axis=0)] if n_categorical else []
        x = expand_categories(torch.from_numpy(matrix), sizes).numpy()
        y, n_classes = np.asarray(dataset.y), 0
        if dataset.task.is_classification:
            codes, counts = np.unique(y, return_counts=True)
            kept = np.isin(y, codes[counts >= _MIN_CLASS_ROWS])
            x, (labels, y) = x[kept], np.unique(y[kept], return_inverse=True)
            n_classes = len(labels)
        else:
            y = (y - y.mean()) / (y.std() or 1.0)  # in double precision: a year has few digits to spare
        x = x[:, (x != x[:1]).any(axis=0)]
        if x.shape[1] > n_columns:
            x = x[:, np.sort(np.random.default_rng(0).permutation(x.shape[1])[:n_columns])]
        return cls(dataset.name, group, x, y.astype(np.int64 if n_classes else np.float32), n_classes)

    @property
    def is_usable(self) -> bool:
        """Whether there are columns, rows and classes to cut tasks from."""
        return self.x.shape[1] >= 2 and len(self.y) >= 40 and self.n_classes != 1


class RealTables:
    """Draws batches of tasks from real tables: random rows, columns and classes.

    Tables with about as many columns as asked are drawn most often, so that tasks are like whole tables. A numeric
    target also serves as classes, cut at random thresholds.

    Parameters
    ----------
    sources : sequence of TableSource
    """

    def __init__(self, sources: Sequence[TableSource]) -> None:
        self.sources = list(sources)
        self._rows = np.array([len(source.y) for source in sources])
        self._columns = np.array([source.x.shape[1] for source in sources])
        self._classes = np.array([source.n_classes for source in sources])

    def draw(self, dice: Dice, shape: TaskShape) -> GeneratorTasks | None:
        """A batch of at most this shape; None where fewer than 4 tasks can be cut."""
        rng = np.random.default_rng(int(dice.integers(2**31 - 1, 1)))
        n_rows = shape.n_context + _REAL_QUERY_ROWS
        fits = (self._rows >= n_rows) & (self._columns >= shape.n_features)
        numeric = self._classes == 0
        fits &= (numeric | (self._classes >= shape.n_classes)) if shape.n_classes else numeric
        if not fits.any():
            return None
        weight = np.where(fits, (shape.n_features / np.maximum(self._columns, 1)) ** 1.5, 0.0)
        if shape.n_classes:
            weight = weight * np.where(numeric, 0.5, 1.0)
        chosen = rng.choice(len(weight), size=shape.n_tasks, p=weight / weight.sum())
        batch = cut_tasks([self.sources[i] for i in chosen], replace(shape, n_query=_REAL_QUERY_ROWS), rng)
        return batch if batch is not None and len(batch) >= 4 else None


def cut_tasks(sources: Sequence[TableSource], shape: TaskShape, rng: np.random.Generator) -> GeneratorTasks | None:
    """One task of each source, as far as it has the rows and classes for it; None where none has."""
    cut = [_cut_task(source, shape, rng) for source in sources]
    found = [task for task in cut if task is not None]
    if not found:
        return None
    x, y = torch.from_numpy(np.stack([x for x, _ in found])), torch.from_numpy(np.stack([y for _, y in found]))
    return GeneratorTasks.of(x, y, shape.n_context, shape.n_classes)


def _cut_task(
    source: TableSource, shape: TaskShape, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[Any]] | None:
    """Rows, columns and classes of one task; None where too few rows are left."""
    y, rows = source.y, np.arange(len(source.y))
    if source.n_classes > shape.n_classes > 0:
        rows = np.flatnonzero(np.isin(y, rng.permutation(source.n_classes)[: shape.n_classes]))
    n_rows = shape.n_context + shape.n_query
    if len(rows) < n_rows:
        return None
    rows = rng.permutation(rows)[:n_rows]
    y = y[rows]
    if shape.n_classes and source.n_classes == 0:
        y = _cut_target(y, shape.n_classes, rng)
    if shape.n_classes:
        labels, y = np.unique(y, return_inverse=True)
        y = rng.permutation(shape.n_classes)[y].astype(np.int64)
        if len(labels) < 2:
            return None
    columns = rng.permutation(source.x.shape[1])[: shape.n_features]
    return source.x[rows][:, columns], y


def _cut_target(y: NDArray[Any], n_classes: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Classes of a numeric target: about equal or random shares."""
    levels = rng.random(n_classes - 1)
    if rng.random() < 0.5:
        levels = (np.arange(1, n_classes) + 0.9 * (levels - 0.5)) / n_classes
    cuts = np.sort(np.quantile(y, levels))
    return np.searchsorted(cuts, y).astype(np.int64)
