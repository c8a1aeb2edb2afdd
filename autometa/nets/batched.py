"""A batch of small nets whose weights something else has written: the one MLP, run and moved by a few steps."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional

from autometa.nets.mlp import MLP, NetInput, TableInput

HIDDEN = 64
"""Units of each of the two hidden layers of the net whose weights are generated."""

Weights = Mapping[str, Tensor]
"""Parameters of a net by name, each with a leading axis of B tasks."""


def make_child(n_features: int, n_outputs: int, *, table_input: NetInput | None = None) -> MLP:
    """The net whose weights are generated: 64-64, ReLU, with a linear skip.

    Parameters
    ----------
    n_features, n_outputs : int
    table_input : NetInput or None
        ``None`` takes standardised numbers as they are.
    """
    return MLP(
        table_input or TableInput(n_features), n_outputs, hidden_sizes=(HIDDEN, HIDDEN), activation="relu",
        linear_skip=True,
    )  # fmt: skip


def call_batched(net: nn.Module, weights: Weights, x: Tensor) -> Tensor:
    """Each task's net on its own rows, (B, N, F) -> (B, N, C)."""

    def call(parameters: Weights, rows: Tensor) -> Tensor:
        answer: Tensor = functional_call(net, dict(parameters), (rows,))  # (N, C)
        return answer

    outputs: Tensor = vmap(call)(dict(weights), x)
    return outputs


def task_losses(output: Tensor, y: Tensor, row_weight: Tensor | None = None) -> Tensor:
    """Mean loss of each task, (B,).

    Parameters
    ----------
    output : Tensor of shape (B, N, C)
    y : Tensor of shape (B, N)
        Whole numbers are classes (cross-entropy), others standardised values (squared error; C is 1).
    row_weight : Tensor of shape (B, N) or None
    """
    if y.is_floating_point():
        rows = (output[..., 0] - y).square()
    else:
        rows = functional.cross_entropy(output.flatten(0, 1), y.flatten(), reduction="none").view_as(y)
    if row_weight is None:
        return rows.mean(1)
    return (rows * row_weight).sum(1) / row_weight.sum(1).clamp_min(1)


def descend(
    net: nn.Module, weights: Weights, x: Tensor, y: Tensor, *, rates: Tensor, first_order: bool = True
) -> dict[str, Tensor]:
    """Weights after a few full-batch gradient steps with a rate for each task, step and tensor.

    Parameters
    ----------
    net : Module
    weights : mapping of str to Tensor of shape (B, ...)
    x, y : Tensor of shape (B, N, F) and (B, N)
    rates : Tensor of shape (B, n_steps, len(weights))
        In the order of ``weights``. The gradient of each tensor is scaled down to a norm of at most 1 first.
    first_order : bool, default True
        Take the steps for constants where the result is differentiated: the gradient reaches ``weights`` as if
        unchanged, and ``rates`` exactly. Otherwise the result is differentiated through the steps.

    References
    ----------
    Finn et al., Model-agnostic meta-learning, 2017; Li et al., Meta-SGD, 2017.
    """
    current = dict(weights)
    for step in range(rates.shape[1]):
        gradients = _gradients(net, current, x, y, first_order=first_order)
        for i, (name, gradient) in enumerate(gradients.items()):
            broadcast = (-1,) + (1,) * (gradient.ndim - 1)
            norm = gradient.flatten(1).norm(dim=1).clamp_min(1.0).view(broadcast)
            current[name] = current[name] - rates[:, step, i].view(broadcast) * gradient / norm
    return current


def _gradients(net: nn.Module, weights: Weights, x: Tensor, y: Tensor, *, first_order: bool) -> dict[str, Tensor]:
    """Gradient of each task's loss by its own weights."""
    with torch.enable_grad():
        leaves = {
            name: value.detach().requires_grad_() if first_order or not value.requires_grad else value
            for name, value in weights.items()
        }
        total = task_losses(call_batched(net, leaves, x), y).sum()
        found = torch.autograd.grad(total, list(leaves.values()), create_graph=not first_order)
    return dict(zip(leaves, found, strict=True))
