"""Closed-form readouts of a batch of tasks: shrunk linear discriminants, ridge regression, and what they leave out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

ABSENT_BIAS = -30.0
"""Bias of a class without a row: its probability, and so its gradient, is nothing."""

_MIN_RIDGE = 1e-3


@dataclass(frozen=True, eq=False)
class Labels:
    """The classes of the rows of B tasks, as matrices.

    Parameters
    ----------
    one_hot : Tensor of shape (B, N, C)
    averages : Tensor of shape (B, C, N)
        ``averages @ x`` are class means; zero for a class without a row.
    shares : Tensor of shape (B, C)
        Class shares.
    """

    one_hot: Tensor
    averages: Tensor
    shares: Tensor

    @property
    def present(self) -> Tensor:
        """1 for classes with a row, else 0; (B, C)."""
        return (self.shares > 0).to(self.shares.dtype)

    @classmethod
    def of(cls, codes: Tensor, n_classes: int, dtype: torch.dtype) -> Labels:
        """From class codes (B, N)."""
        one_hot = functional.one_hot(codes, n_classes).to(dtype)  # (B, N, C)
        counts = one_hot.sum(1)  # (B, C)
        averages = (one_hot / counts[:, None].clamp_min(1)).transpose(1, 2)
        return cls(one_hot, averages, counts / codes.shape[1])


@dataclass(frozen=True, eq=False)
class Shrinkage:
    """How strongly a readout is shrunk, each of shape (B, D) or (B, 1).

    Parameters
    ----------
    mix : Tensor
        Share of the covariances that is taken away, in (0, 1).
    ridge : Tensor
        Added to the variances, > 0.
    gain : Tensor
        Factor on the weights of an input, > 0.
    """

    mix: Tensor
    ridge: Tensor
    gain: Tensor

    def widened(self, covariance: Tensor) -> Tensor:
        """A covariance (B, D, D) with smaller correlations and larger variances; positive definite."""
        kept = (1 - self.mix.clamp(1e-4, 1 - 1e-4)).sqrt()
        variances = torch.diagonal(covariance, dim1=1, dim2=2)  # (B, D)
        floor = _MIN_RIDGE + 1e-4 * variances.mean(1, keepdim=True)
        extra = variances * (1 - kept.square()) + self.ridge + floor
        return covariance * kept[:, :, None] * kept[:, None, :] + torch.diag_embed(extra.expand_as(variances))


def discriminant(z: Tensor, labels: Labels, shrinkage: Shrinkage) -> tuple[Tensor, Tensor]:
    """Shrunk linear discriminant analysis: weights (B, C, D) and biases (B, C) on inputs ``z`` (B, N, D).

    References
    ----------
    Friedman, Regularized discriminant analysis, 1989.
    """
    means = labels.averages @ z  # (B, C, D)
    residuals = z - labels.one_hot @ means
    covariance = residuals.transpose(1, 2) @ residuals / z.shape[1]  # (B, D, D)
    centre = (means * labels.shares[..., None]).sum(1, keepdim=True)  # (B, 1, D)
    present = labels.present
    offsets = (means - centre) * present[..., None]  # (B, C, D)
    factor = torch.linalg.cholesky(shrinkage.widened(covariance))
    weight = torch.cholesky_solve(offsets.transpose(1, 2), factor).transpose(1, 2)  # (B, C, D)
    weight = weight * shrinkage.gain[:, None]
    bias = -0.5 * (offsets * weight).sum(2) - (weight * centre).sum(2) + labels.shares.clamp_min(1e-4).log()
    return weight, torch.where(present > 0, bias, torch.full_like(bias, ABSENT_BIAS))


def ridge_regression(z: Tensor, target: Tensor, shrinkage: Shrinkage) -> tuple[Tensor, Tensor]:
    """Ridge regression of ``target`` (B, N) on ``z`` (B, N, D): weights (B, 1, D) and biases (B, 1)."""
    centre, level = z.mean(1, keepdim=True), target.mean(1, keepdim=True)  # (B, 1, D), (B, 1)
    deviations = z - centre
    covariance = deviations.transpose(1, 2) @ deviations / z.shape[1]  # (B, D, D)
    factor = torch.linalg.cholesky(shrinkage.widened(covariance))
    against = deviations.transpose(1, 2) @ (target - level)[..., None] / z.shape[1]  # (B, D, 1)
    weight = torch.cholesky_solve(against, factor).transpose(1, 2) * shrinkage.gain[:, None]  # (B, 1, D)
    return weight, level - (weight * centre).sum(2)


@torch.no_grad()
def leave_one_out_skill(z: Tensor, targets: Tensor, penalties: tuple[float, ...]) -> Tensor:
    """Share of the variance of ``targets`` (B, N, T) that ridge regression on ``z`` explains in rows left out.

    Closed form by the diagonal of the hat matrix (PRESS; Allen, 1974). Shape (B, len(penalties)), in [-1, 1].
    """
    n_rows = z.shape[1]
    deviations = z - z.mean(1, keepdim=True)
    deviations = deviations / (deviations.square().mean(1, keepdim=True).sqrt() + 1e-3)  # (B, N, D)
    centred = targets - targets.mean(1, keepdim=True)
    covariance = deviations.transpose(1, 2) @ deviations / n_rows  # (B, D, D)
    identity = torch.eye(z.shape[2], dtype=z.dtype, device=z.device)
    against = deviations.transpose(1, 2) @ centred / n_rows  # (B, D, T)
    total = centred.square().sum((1, 2)).clamp_min(1e-6)
    found = []
    for penalty in penalties:
        factor = torch.linalg.cholesky(covariance + penalty * identity)
        fitted = deviations @ torch.cholesky_solve(against, factor)  # (B, N, T)
        whitened = torch.linalg.solve_triangular(factor, deviations.transpose(1, 2), upper=False)  # (B, D, N)
        leverage = (whitened.square().sum(1) / n_rows + 1 / n_rows).clamp_max(0.98)  # (B, N)
        errors = (centred - fitted) / (1 - leverage)[..., None]
        found.append((1 - errors.square().sum((1, 2)) / total).clamp(-1, 1))
    return torch.stack(found, 1)
