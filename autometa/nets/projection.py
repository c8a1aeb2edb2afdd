"""One fixed layout for every table: standardised columns, projected on their first principal components."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from autometa.nets.mlp import NetInput

N_COMPONENTS = 20
"""Numbers a row in the layout."""

HIDDEN_SIZES = (64, 64)
"""Hidden layers of the nets whose first weights are learned for this layout."""

_MAX_ROWS = 1_000
_FLOOR = 1e-6


@dataclass(frozen=True, eq=False)
class Layout:
    """From a "net" matrix to the layout: ``z = sum of the rows of ``levels`` + numbers @ projection + shift``.

    Parameters
    ----------
    levels : Tensor of shape (sum of category sizes, Z)
    projection : Tensor of shape (n_numeric, Z)
    shift : Tensor of shape (Z,)
    """

    levels: Tensor
    projection: Tensor
    shift: Tensor


def fit_layout(x: Tensor, category_sizes: Sequence[int] = (), n_components: int = N_COMPONENTS) -> Layout:
    """Learn the layout of a table.

    Each column enters with variance 1: numbers are standardised, the indicators of a categorical column are centred
    and divided by the root of their summed variance, so that rare categories stay small. The principal components are
    scaled together, to a summed variance of ``n_components`` whatever the number of columns; their signs make the
    skewness positive. Components that are not there are 0. (Whitening them half way made nets overfit sooner.)

    Parameters
    ----------
    x : Tensor of shape (N, len(category_sizes) + n_numeric)
        Category codes first. Above 1,000 rows, evenly spaced ones are used.
    category_sizes : sequence of int
    n_components : int, default 20
    """
    rows = x[torch.linspace(0, len(x) - 1, _MAX_ROWS).long()] if len(x) > _MAX_ROWS else x
    n_categorical = len(category_sizes)
    parts = [
        _standardise(functional.one_hot(rows[:, i].long(), size).double(), together=True)
        for i, size in enumerate(category_sizes)
    ]
    parts.append(_standardise(rows[:, n_categorical:].double(), together=False))
    values = torch.cat([part[0] for part in parts], dim=1)  # (N, D) standardised
    directions = _principal_directions(values, n_components)  # (D, Z)
    scale = torch.cat([part[2] for part in parts])  # (D,)
    centre = torch.cat([part[1] for part in parts])  # (D,)
    weights = directions * scale[:, None]  # (D, Z)
    n_levels = sum(category_sizes)
    return Layout(weights[:n_levels].float(), weights[n_levels:].float(), -(centre @ weights).float())


def _standardise(values: Tensor, *, together: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Standardised values (N, K), centre (K,) and scale (K,); constant columns become 0."""
    centre = values.mean(0)
    variance = (values - centre).square().mean(0)
    variance = variance.sum().expand_as(variance) if together else variance
    scale = torch.where(variance > _FLOOR, variance.clamp_min(_FLOOR).rsqrt(), 0.0)
    return (values - centre) * scale, centre, scale


def _principal_directions(values: Tensor, n_components: int) -> Tensor:
    """Scaled and signed principal directions (D, Z)."""
    n, d = values.shape
    if d <= n:
        variances, vectors = torch.linalg.eigh(values.T @ values / n)
    else:
        variances, rows = torch.linalg.eigh(values @ values.T / n)
        vectors = values.T @ rows / (variances.clamp_min(_FLOOR) * n).sqrt()
    kept = min(n_components, len(variances))
    variances, vectors = variances.flip(0)[:kept], vectors.flip(1)[:, :kept]
    alive = variances > _FLOOR * variances[:1].clamp_min(1.0)
    variances = torch.where(alive, variances, 0.0)
    skewness = (values @ vectors).pow(3).sum(0)
    sign = torch.where(skewness < 0, -1.0, 1.0)
    found = vectors * (alive * sign * (n_components / variances.sum().clamp_min(_FLOOR)).sqrt())
    return functional.pad(found, (0, n_components - kept))


class ProjectedInput(NetInput):
    """The layout as the input of a net; takes the place of :class:`autometa.nets.mlp.TableInput`.

    Parameters
    ----------
    n_numeric : int
        Columns after the codes.
    category_sizes : sequence of int
        Number of codes of each categorical column.
    layout : Layout or None
        ``None``: zeros, to be loaded.

    Shape
    -----
    (N, len(category_sizes) + n_numeric) -> (N, 20), both float32.
    """

    offsets: Tensor

    def __init__(self, n_numeric: int, category_sizes: Sequence[int] = (), *, layout: Layout | None = None) -> None:
        super().__init__()
        n_levels = sum(category_sizes)
        if layout is None:
            zeros = torch.zeros
            layout = Layout(zeros(n_levels, N_COMPONENTS), zeros(n_numeric, N_COMPONENTS), zeros(N_COMPONENTS))
        self.n_categorical, self.n_outputs = len(category_sizes), N_COMPONENTS
        sizes = torch.tensor(list(category_sizes), dtype=torch.long)
        self.register_buffer("offsets", torch.cumsum(sizes, 0) - sizes, persistent=False)
        self.levels = nn.Parameter(layout.levels.clone())
        self.projection = nn.Parameter(layout.projection.clone())
        self.shift = nn.Parameter(layout.shift.clone())

    def forward(self, x: Tensor) -> Tensor:  # (N, F) -> (N, Z)
        z = x[:, self.n_categorical :] @ self.projection + self.shift
        if self.n_categorical:
            codes = x[:, : self.n_categorical].long() + self.offsets  # (N, n_categorical)
            z = z + functional.embedding(codes, self.levels).sum(1)
        return z
