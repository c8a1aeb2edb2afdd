"""The input of nets whose weights are generated: categories as indicators, all columns standardised."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from autometa.nets.mlp import NetInput

MAX_LEVELS = 10
"""Levels of a category that get a column, the most frequent first."""

CLIP = 5.0
"""Standardised values stay within this."""


class StandardInput(NetInput):
    """From a matrix whose first columns are category codes to standardised numbers; takes the place of
    :class:`autometa.nets.mlp.TableInput`.

    A category of two levels becomes one indicator, one of more levels an indicator for each (the 10 most frequent);
    code 0, unknown or missing, is none of them. Of more than ``max_outputs`` columns those are kept that vary most: in
    which the commonest value is rarest (on wide tables better than principal components, by .8 nats at 32 rows and .2
    at 512). Then each column is standardised and smoothly clipped. What it learns (:meth:`learn`) are buffers: they are
    saved with the net, and no optimiser moves them.

    Parameters
    ----------
    n_numeric : int
        Columns after the codes.
    category_sizes : sequence of int
        Number of codes of each leading column.
    max_outputs : int, default 150

    Shape
    -----
    (N, len(category_sizes) + n_numeric) -> (N, ``n_outputs``).

    Examples
    --------
    >>> x = torch.tensor([[1.0, 0.3], [2.0, 0.1], [1.0, 0.2]])
    >>> StandardInput(1, [3]).learn(x)(x).shape
    torch.Size([3, 2])
    """

    mean: Tensor
    factor: Tensor
    columns: Tensor | None

    def __init__(self, n_numeric: int, category_sizes: Sequence[int] = (), *, max_outputs: int = 150) -> None:
        super().__init__()
        self.category_sizes = list(category_sizes)
        n_columns = sum(n_indicators(size) for size in category_sizes) + n_numeric
        self.n_outputs = min(n_columns, max_outputs)
        self.register_buffer("mean", torch.zeros(1, self.n_outputs))
        self.register_buffer("factor", torch.zeros(1, self.n_outputs))
        self.register_buffer("columns", torch.arange(max_outputs) if n_columns > max_outputs else None)

    def learn(self, x: Tensor) -> Self:
        """Columns and scales of training rows (N, F)."""
        raw = expand_categories(x, self.category_sizes)  # (N, D)
        if self.columns is not None:
            commonest = (raw == raw.mode(0)[0]).float().mean(0)  # (D,)
            self.columns = commonest.argsort(stable=True)[: self.n_outputs].sort()[0]
        self.mean, self.factor = column_scales(self._chosen(raw))
        return self

    def forward(self, x: Tensor) -> Tensor:
        return standardise(self._chosen(expand_categories(x, self.category_sizes)), self.mean, self.factor)

    def _chosen(self, raw: Tensor) -> Tensor:
        return raw if self.columns is None else raw[:, self.columns]


def n_indicators(size: int) -> int:
    """Columns of a category with this many codes."""
    n_levels = min(size - 1, MAX_LEVELS)
    return 1 if n_levels == 2 else n_levels


def expand_categories(x: Tensor, category_sizes: Sequence[int]) -> Tensor:
    """Leading category codes as indicators of levels; (N, F) -> (N, D)."""
    parts = []
    for i, size in enumerate(category_sizes):
        levels = torch.arange(1, 1 + n_indicators(size), device=x.device)
        parts.append(x[:, i, None].long() == levels)  # (N, levels)
    return torch.cat([*(part.to(x.dtype) for part in parts), x[:, len(category_sizes) :]], 1)


def column_scales(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and inverse standard deviation over the rows (second axis from the end); 0 for a constant column."""
    mean = x.mean(-2, keepdim=True)
    spread = (x - mean).square().mean(-2, keepdim=True).sqrt()
    varies = spread > 1e-5 * (1 + mean.abs())
    return mean, torch.where(varies, 1 / spread.clamp_min(1e-12), torch.zeros_like(spread))


def standardise(x: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    """Standardised columns, smoothly clipped to (-5, 5)."""
    values = (x - mean) * factor
    return values / torch.sqrt(1 + (values / CLIP) ** 2)
