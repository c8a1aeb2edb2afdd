"""Small tasks drawn from tables of any columns, in the one fixed layout that learned births share."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from autometa.data import Dataset
from autometa.gradient.fit import Rows
from autometa.gradient.inner_loop import TaskBatch, Weights
from autometa.meta_training.episodes import pad_rows
from autometa.nets.projection import N_COMPONENTS, ProjectedInput, fit_layout
from autometa.preprocessing import TableEncoder

MAX_CLASSES = 10
"""Outputs of a net for classification tasks; a table with more classes gives tasks of ten of them."""

_ABSENT = -20.0
_MAX_TRIES = 20


@dataclass(frozen=True, eq=False)
class EncodedTable:
    """A table that tasks are drawn from.

    Parameters
    ----------
    name, group : str
    x : Tensor of shape (N, F)
        A "net" matrix.
    y : Tensor of shape (N,)
        Class codes (int64) or values (float32).
    category_sizes : tuple of int
    n_classes : int
        0 for regression.
    """

    name: str
    group: str
    x: Tensor
    y: Tensor
    category_sizes: tuple[int, ...]
    n_classes: int

    def __len__(self) -> int:
        return len(self.x)


def encode_table(dataset: Dataset, *, group: str | None = None, max_rows: int = 1_000, seed: int = 0) -> EncodedTable:
    """A dataset as an :class:`EncodedTable`, at most ``max_rows`` of its rows."""
    rows = np.sort(np.random.default_rng(seed).permutation(dataset.n_rows)[:max_rows])
    frame = dataset.X.iloc[rows].reset_index(drop=True)
    encoder = TableEncoder("net", kinds=dataset.kinds)
    x = torch.from_numpy(encoder.fit_transform(frame))
    sizes = tuple(int(x[:, i].max()) + 1 for i in range(encoder.n_categorical_))
    kind = np.int64 if dataset.task.is_classification else np.float32
    y = torch.from_numpy(dataset.y[rows].astype(kind))
    return EncodedTable(dataset.name, group or dataset.name, x, y, sizes, dataset.n_classes)


@dataclass(frozen=True)
class TableTasks:
    """Draws tasks from tables of any columns, all for classification or all for regression.

    A task's rows are projected by a layout that its support rows alone have fitted, its classes are numbered at
    random, a regression target is standardised by the support rows. The output layer belongs to the task: its weights
    begin at zero, because neither the number of a class nor the sign of a target means anything across tables, and
    its bias at the constant answer.

    Parameters
    ----------
    tables : tuple of EncodedTable
    n_hidden : int
        Inputs of the output layer.
    n_tasks : int
        Tasks a draw.
    n_support : tuple of (int, int)
        Smallest and largest number of support rows, drawn on a logarithmic scale.
    n_query : int
    """

    tables: tuple[EncodedTable, ...]
    n_hidden: int
    n_tasks: int = 16
    n_support: tuple[int, int] = (16, 256)
    n_query: int = 128

    def __post_init__(self) -> None:
        if not self.tables:
            raise ValueError("tables must hold at least one table. Got none.")
        if len({table.n_classes > 0 for table in self.tables}) > 1:
            raise ValueError("tables must be all for classification or all for regression. Got both.")

    @property
    def n_outputs(self) -> int:
        """Outputs of the net."""
        return MAX_CLASSES if self.tables[0].n_classes else 1

    def __call__(self, generator: torch.Generator) -> TaskBatch:
        low, high = (math.log(n) for n in self.n_support)
        n_support = round(math.exp(low + (high - low) * float(torch.rand((), generator=generator))))
        drawn: list[tuple[Rows, Rows, Tensor]] = []
        while len(drawn) < self.n_tasks:
            for _ in range(_MAX_TRIES):
                table = self.tables[int(torch.randint(len(self.tables), (), generator=generator))]
                task = _draw_task(table, n_support, self.n_query, generator)
                if task is not None:
                    drawn.append(task)
                    break
            else:
                raise ValueError(
                    f"No table gives a task of {n_support} rows. Pass larger tables or a smaller n_support."
                )
        bias = torch.stack([bias for _, _, bias in drawn])  # (B, C)
        own: Weights = {
            "output.weight": torch.zeros(self.n_tasks, self.n_outputs, self.n_hidden), "output.bias": bias,
        }  # fmt: skip
        return TaskBatch(
            pad_rows([support for support, _, _ in drawn], n_support),
            pad_rows([query for _, query, _ in drawn], self.n_query), own,
        )  # fmt: skip


def _draw_task(
    table: EncodedTable, n_support: int, n_query: int, generator: torch.Generator
) -> tuple[Rows, Rows, Tensor] | None:
    """Support, query and output bias (C,) of a task; ``None`` where its rows would teach nothing."""
    order = torch.randperm(len(table), generator=generator)
    y = table.y
    if table.n_classes > MAX_CLASSES:
        chosen = torch.randperm(table.n_classes, generator=generator)[:MAX_CLASSES]
        order = order[torch.isin(y[order], chosen)]
    n_support = min(n_support, 2 * len(order) // 3)
    if n_support < 4:
        return None
    train, test = order[:n_support], order[n_support : n_support + n_query]
    if table.n_classes:
        prepared = _class_codes(y[train], y[test], generator)
    else:
        prepared = _standardised(y[train], y[test])
    if prepared is None:
        return None
    y_train, y_test, bias, known = prepared
    project = ProjectedInput(
        table.x.shape[1] - len(table.category_sizes), table.category_sizes,
        layout=fit_layout(table.x[train], table.category_sizes),
    )  # fmt: skip
    with torch.no_grad():
        z = project(table.x[torch.cat([train, test])])  # (S + Q, Z)
    signs = torch.randint(0, 2, (N_COMPONENTS,), generator=generator).float() * 2 - 1
    z = z * signs
    return Rows(z[:n_support], y_train), Rows(z[n_support:], y_test, known), bias


def _class_codes(
    y_train: Tensor, y_test: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Classes of the support rows under random numbers; query rows of other classes get weight 0."""
    present, codes = torch.unique(y_train, return_inverse=True)
    if len(present) < 2:
        return None
    number = torch.randperm(MAX_CLASSES, generator=generator)[: len(present)]
    matches = y_test[:, None] == present  # (Q, C)
    known = matches.any(1)
    test = torch.where(known, number[matches.long().argmax(1)], number[0])
    shares = torch.bincount(codes, minlength=len(present)).float() + 1.0
    bias = torch.full((MAX_CLASSES,), _ABSENT)
    bias[number] = (shares / shares.sum()).log()
    return number[codes], test, bias, known.float()


def _standardised(y_train: Tensor, y_test: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor] | None:
    """Targets in units of the support rows' deviation, query targets clipped to 5 of them."""
    mean, scale = y_train.mean(), y_train.std()
    if not bool(scale > 1e-6 * (1 + mean.abs())):
        return None
    test = ((y_test - mean) / scale).clamp(-5, 5)
    return (y_train - mean) / scale, test, torch.zeros(1), torch.ones(len(y_test))
