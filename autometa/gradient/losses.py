"""Losses on the output of a net or of an ensemble of nets: weighted means over rows.

A net answers (N, C), an ensemble of K nets (N, K, C). In training each member is judged alone, so that the members
stay different; in validation the averaged prediction is judged, because that is what predicts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Loss = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""``loss(output, target, weight) -> scalar``; weights (N,) need not sum to one."""


def weighted_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Mean over rows, shape (N,) -> ()."""
    return values.mean() if weight is None else (values * weight).sum() / weight.sum().clamp_min(1e-12)


def classification_loss(label_smoothing: float = 0.0) -> Loss:
    """Cross-entropy of class codes (N,), averaged over members."""

    def loss(output: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        if output.ndim == 2 and weight is None:
            return functional.cross_entropy(output, target, label_smoothing=label_smoothing)
        n_members = output.shape[1] if output.ndim == 3 else 1
        flat = output.reshape(-1, output.shape[-1])  # (N * K, C)
        repeated = target.repeat_interleave(n_members)  # (N * K,)
        rows = functional.cross_entropy(flat, repeated, label_smoothing=label_smoothing, reduction="none")
        return weighted_mean(rows.view(-1, n_members).mean(1), weight)

    return loss


def regression_loss() -> Loss:
    """Squared error of standardised targets (N,), averaged over members."""

    def loss(output: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
        error = output.squeeze(-1) - (target if output.ndim == 2 else target[:, None])  # (N,) or (N, K)
        rows = error.square()
        return weighted_mean(rows if rows.ndim == 1 else rows.mean(1), weight)

    return loss


def classification_prediction(output: Tensor) -> Tensor:
    """Class probabilities (N, C), averaged over members."""
    probabilities = torch.softmax(output.float(), dim=-1)
    return probabilities if output.ndim == 2 else probabilities.mean(1)


def regression_prediction(output: Tensor) -> Tensor:
    """Standardised values (N,), averaged over members."""
    values = output.float().squeeze(-1)
    return values if values.ndim == 1 else values.mean(1)


def classification_validation_loss(output: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """Log loss of the averaged probabilities."""
    chosen = classification_prediction(output).gather(1, target[:, None]).squeeze(1)  # (N,)
    return weighted_mean(-chosen.clamp_min(1e-7).log(), weight)


def regression_validation_loss(output: Tensor, target: Tensor, weight: Tensor | None) -> Tensor:
    """Squared error of the averaged values."""
    return weighted_mean((regression_prediction(output) - target).square(), weight)
