"""Small tasks drawn from whole tables, for meta-training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from autometa.gradient.fit import Rows
from autometa.gradient.inner_loop import TaskBatch

_MIN_ROWS = 4


@dataclass(frozen=True)
class SampledTasks:
    """Draws tasks from tables of the same columns: some rows to adapt on, others of the same table to judge.

    Parameters
    ----------
    tables : tuple of Rows
        At least 4 rows each.
    n_tasks : int
        Tasks a draw; a table may be drawn twice.
    n_support : tuple of (int, int)
        Smallest and largest number of support rows, drawn on a logarithmic scale, the same for the tasks of a draw. A
        table always leaves a quarter of its rows for the query.
    n_query : int
        Largest number of query rows.
    """

    tables: tuple[Rows, ...]
    n_tasks: int
    n_support: tuple[int, int]
    n_query: int

    @classmethod
    def of(cls, tables: Sequence[Rows], n_tasks: int, n_support: tuple[int, int], n_query: int) -> SampledTasks:
        """See the class.

        Raises
        ------
        ValueError
            No table has the 4 rows that a task needs.
        """
        usable = tuple(table for table in tables if len(table) >= _MIN_ROWS)
        if not usable:
            raise ValueError(f"tasks must hold a table of at least {_MIN_ROWS} rows. Got {len(tables)} smaller ones.")
        return cls(usable, n_tasks, n_support, n_query)

    def __call__(self, generator: torch.Generator) -> TaskBatch:
        low, high = (math.log(n) for n in self.n_support)
        n_support = round(math.exp(low + (high - low) * float(torch.rand((), generator=generator))))
        picks = torch.randint(len(self.tables), (self.n_tasks,), generator=generator).tolist()
        pairs = [self._split(self.tables[i], n_support, generator) for i in picks]
        return TaskBatch(
            pad_rows([support for support, _ in pairs], n_support), pad_rows([query for _, query in pairs])
        )

    def _split(self, table: Rows, n_support: int, generator: torch.Generator) -> tuple[Rows, Rows]:
        order = torch.randperm(len(table), generator=generator).to(table.x.device)
        cut = min(n_support, max(1, 3 * len(table) // 4))
        return table.take(order[:cut]), table.take(order[cut : cut + self.n_query])


def pad_rows(parts: Sequence[Rows], n_rows: int | None = None) -> Rows:
    """Several tables as one block: x (B, N, F), y (B, N), weight (B, N), 0 for the rows that fill up.

    Parameters
    ----------
    n_rows : int or None
        N; ``None`` takes the longest table.
    """
    size = max(len(part) for part in parts) if n_rows is None else n_rows
    x = parts[0].x.new_zeros(len(parts), size, *parts[0].x.shape[1:])
    y = parts[0].y.new_zeros(len(parts), size)
    weight: Tensor = x.new_zeros(len(parts), size)
    for i, part in enumerate(parts):
        x[i, : len(part)], y[i, : len(part)] = part.x, part.y
        weight[i, : len(part)] = 1.0 if part.weight is None else part.weight
    return Rows(x, y, weight)
