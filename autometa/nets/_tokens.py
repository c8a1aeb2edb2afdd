"""Tokens on the class x feature grid of a table, and the block that lets them talk."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from autometa.nets._readout import Labels, Shrinkage, discriminant, leave_one_out_skill

PENALTIES = (0.03, 0.3, 3.0)
"""Ridge penalties at which the leave-one-out skill of inputs is told to the generator."""

_CENTRES = tuple(-2.1 + 0.6 * i for i in range(8))
_BASIS_WIDTH = 0.45
_N_BASIS = 3 + len(_CENTRES)
N_CHANNELS = 2 * _N_BASIS + 10 + len(PENALTIES)
"""Numbers of a token before the first layer."""

_MAX_LOG_ROWS = math.log(2_048)


@dataclass(frozen=True, eq=False)
class Grid:
    """What the generator sees of B tables.

    Parameters
    ----------
    tokens : Tensor of shape (B, C, F, N_CHANNELS)
        Class-conditional statistics.
    correlations : Tensor of shape (B, F, F)
        Within classes, without the diagonal, divided by the square root of F.
    weights : Tensor of shape (B, C, 1, 1)
        Equal weights of the classes that have a row; they sum to 1.
    skill : Tensor of shape (B, len(PENALTIES))
        Leave-one-out skill of linear readouts.
    """

    tokens: Tensor
    correlations: Tensor
    weights: Tensor
    skill: Tensor


def _basis(x: Tensor) -> Tensor:
    """Powers and bumps of each value, (B, N, F) -> (B, N, F, _N_BASIS); their averages describe a distribution."""
    x = x[..., None]
    bumps = torch.exp(-(((x - torch.tensor(_CENTRES, dtype=x.dtype, device=x.device)) / _BASIS_WIDTH) ** 2))
    return torch.cat([x, x**2 / 3, x**3 / 10, bumps], -1)


@torch.no_grad()
def read_table(x: Tensor, labels: Labels, level: Tensor, targets: Tensor) -> Grid:
    """The grid of standardised inputs.

    Parameters
    ----------
    x : Tensor of shape (B, N, F)
        Standardised over the rows.
    labels : Labels
        Classes, or ordered bins of a numeric target.
    level : Tensor of shape (B, C)
        Mean target of each bin; zeros for classes, which have no order.
    targets : Tensor of shape (B, N, T)
        What the linear readouts are judged on: one-hot classes, or the numeric target.
    """
    (b, n, f), c = x.shape, labels.shares.shape[1]
    phi = _basis(x)  # (B, N, F, P)
    by_class = (labels.averages @ phi.flatten(2)).view(b, c, f, _N_BASIS)
    overall = phi.mean(1)[:, None].expand(b, c, f, _N_BASIS)
    means = labels.averages @ x  # (B, C, F)
    residuals = x - labels.one_hot @ means
    covariance = residuals.transpose(1, 2) @ residuals / n  # (B, F, F)
    spread = torch.diagonal(covariance, dim1=1, dim2=2).clamp_min(1e-3).sqrt()  # (B, F)
    correlations = covariance / spread[:, :, None] / spread[:, None, :]
    correlations = (correlations - torch.diag_embed(torch.diagonal(correlations, dim1=1, dim2=2))) / math.sqrt(f)
    skill = leave_one_out_skill(x, targets, PENALTIES)  # (B, 3)
    counts = labels.shares * n  # (B, C)
    ordered = float(targets.shape[2] == 1)
    cells = [
        _discriminant_weights(x, labels, 0.05, 0.02),
        _discriminant_weights(x, labels, 0.5, 0.3),
        ((means - x.mean(1, keepdim=True)) / spread[:, None] * counts[..., None].sqrt()).clamp(-20, 20) / 5,
        (counts.clamp_min(0.5).log().clamp_max(_MAX_LOG_ROWS) - 3)[..., None],
        labels.shares.clamp_min(1e-3).log()[..., None],
        spread[:, None],
        level[..., None],
        x.new_full((1, 1, 1), math.log(f) - 2),
        x.new_full((1, 1, 1), min(math.log(n), _MAX_LOG_ROWS) - 4),
        x.new_full((1, 1, 1), ordered),
        *(skill[:, i, None, None] for i in range(len(PENALTIES))),
    ]
    stacked = torch.stack([cell.expand(b, c, f) for cell in cells], -1)
    present = labels.present
    weights = (present / present.sum(1, keepdim=True))[:, :, None, None]
    return Grid(torch.cat([by_class, overall, stacked], -1), correlations, weights, skill)


def _discriminant_weights(x: Tensor, labels: Labels, mix: float, ridge: float) -> Tensor:
    """(B, C, F), clipped to what a token can say."""
    one = x.new_ones(len(x), x.shape[2])
    return discriminant(x, labels, Shrinkage(one * mix, one * ridge, one))[0].clamp(-8, 8) / 2


class _FeatureAttention(nn.Module):
    """Multi-head attention among the features of one class, (B', F, d) -> (B', F, d)."""

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query_key_value = nn.Linear(width, 3 * width, bias=False)
        self.output = _small(nn.Linear(width, width, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        b, f, d = x.shape
        split = self.query_key_value(x).view(b, f, 3, self.n_heads, d // self.n_heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)  # (B', heads, F, d / heads) each
        mixed = functional.scaled_dot_product_attention(query, key, value)
        answer: Tensor = self.output(mixed.transpose(1, 2).reshape(b, f, d))
        return answer


class GridBlock(nn.Module):
    """One layer on the grid: features attend to each other within a class and through their correlations, then
    classes exchange mean and maximum, then each token thinks alone. Equivariant to the order of both.

    Shape
    -----
    (B, C, F, width) -> (B, C, F, width).
    """

    def __init__(self, width: int, n_heads: int = 4) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.attention = _FeatureAttention(width, n_heads)
        self.value = nn.Linear(width, width, bias=False)
        self.correlated = _small(nn.Linear(width, width, bias=False))
        self.classes = _small(nn.Linear(2 * width, width))
        self.expand, self.contract = nn.Linear(width, 2 * width), _small(nn.Linear(2 * width, width))

    def forward(self, tokens: Tensor, grid: Grid) -> Tensor:
        z = self.norms[0](tokens)  # (B, C, F, d)
        tokens = tokens + self.attention(z.flatten(0, 1)).view_as(tokens)
        tokens = tokens + self.correlated(grid.correlations[:, None] @ self.value(z))
        tokens = tokens + self.classes(torch.cat(pool_classes(self.norms[1](tokens), grid.weights), -1))[:, None]
        answer: Tensor = tokens + self.contract(functional.gelu(self.expand(self.norms[2](tokens))))
        return answer


def pool_classes(z: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and maximum over the classes that have a row, (B, C, F, d) -> two of (B, F, d)."""
    return (z * weights).sum(1), z.masked_fill(weights == 0, -1e4).amax(1)


def _small(layer: nn.Linear) -> nn.Linear:
    """A layer that says little at first, so that a block starts near the identity."""
    nn.init.normal_(layer.weight, std=0.02)
    return layer
