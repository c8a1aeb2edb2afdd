"""The inner loop of learned births: a few gradient steps as a pure function of the first weights and the rates.

Everything here takes the weights as an argument and calls the one MLP with ``torch.func.functional_call``, so that an
outer loop can differentiate through the steps (``torch.func.grad``) and run many tasks side by side
(``torch.func.vmap``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from autometa.gradient.fit import Rows
from autometa.gradient.losses import Loss

Weights = Mapping[str, Tensor]
"""Parameters of a net by name."""

_BETA2 = 0.99
_EPS = 1e-8


@dataclass(frozen=True)
class TaskBatch:
    """Several small tasks of one shape; rows that only fill up have weight 0.

    Parameters
    ----------
    support : Rows
        x (B, S, F), y (B, S), weight (B, S) or None: what a task is adapted on.
    query : Rows
        x (B, Q, F), y (B, Q), weight (B, Q) or None: what the adapted weights are judged on.
    own : mapping of str to Tensor of shape (B, ...)
        Weights that each task starts with from its own rows (the output bias, say) and that are not learned.
    """

    support: Rows
    query: Rows
    own: Weights = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.support)

    def to(self, device: str) -> TaskBatch:
        """The tasks on a device."""
        own = {name: value.to(device) for name, value in self.own.items()}
        return TaskBatch(self.support.to(device), self.query.to(device), own)


def rows_loss(net: nn.Module, weights: Weights, rows: Rows, loss: Loss) -> Tensor:
    """Loss of a net with these weights on the rows of one task, shape ()."""
    return loss(functional_call(net, dict(weights), (rows.x,)), rows.y, rows.weight)


def adapt_weights(
    net: nn.Module, weights: Weights, rows: Rows, *, loss: Loss, rates: Mapping[str, Tensor | float], n_steps: int
) -> dict[str, Tensor]:
    """The weights after ``n_steps`` steps of plain gradient descent on the rows of one task.

    Differentiable in ``weights`` and ``rates``, to any order.

    Parameters
    ----------
    net : Module
        Without randomness (no dropout); its own parameters are not used.
    weights : mapping of str to Tensor
        All parameters of the net.
    rows : Rows
    loss : callable
    rates : mapping of str to Tensor or float
        Learning rate of each weight that moves, broadcast against it; weights without an entry stay.
    n_steps : int
        0 returns the weights as they are.

    Raises
    ------
    ValueError
        ``rates`` names a weight that is not there, or ``n_steps`` is negative.

    References
    ----------
    Finn et al., Model-agnostic meta-learning for fast adaptation of deep networks, 2017.
    """
    unknown = sorted(set(rates) - set(weights))
    if unknown:
        raise ValueError(f"rates must name weights of the net. Got {unknown[0]!r}; the net has {sorted(weights)}.")
    if n_steps < 0:
        raise ValueError(f"n_steps must be at least 0. Got {n_steps} instead.")
    fixed = {name: value for name, value in weights.items() if name not in rates}
    moving = {name: weights[name] for name in rates}

    def task_loss(some: dict[str, Tensor]) -> Tensor:
        return rows_loss(net, {**fixed, **some}, rows, loss)

    for _ in range(n_steps):
        gradient = grad(task_loss)(moving)
        moving = {name: value - rates[name] * gradient[name] for name, value in moving.items()}
    return {**fixed, **moving}


def adapt_batch(
    net: nn.Module, weights: Weights, tasks: TaskBatch, *, loss: Loss, rates: Mapping[str, Tensor | float],
    n_steps: int, optimizer: str = "sgd",
) -> dict[str, Tensor]:  # fmt: skip
    """Weights (B, ...) of every task after its own steps, all tasks side by side. Not meant to be differentiated.

    Parameters
    ----------
    net, weights, loss, rates, n_steps
        As in :func:`adapt_weights`; the weights are shared by all tasks at the beginning.
    tasks : TaskBatch
        Adapted on their support rows.
    optimizer : {"sgd", "adam"}, default "sgd"
        "adam" keeps no first moment, as in Reptile's inner loop (Nichol et al., 2018).
    """
    first = expand_weights(weights, tasks)
    moving = {name: first[name] for name in rates}
    fixed = {name: value for name, value in first.items() if name not in rates}

    def task_loss(some: Weights, rest: Weights, x: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
        return rows_loss(net, {**rest, **some}, Rows(x, y, weight), loss)

    gradients = vmap(grad(task_loss), in_dims=(0, 0, 0, 0, None if tasks.support.weight is None else 0))
    second = {name: torch.zeros_like(value) for name, value in moving.items()}
    for step in range(1, n_steps + 1):
        gradient = gradients(moving, fixed, tasks.support.x, tasks.support.y, tasks.support.weight)
        for name, g in gradient.items():
            if optimizer == "adam":
                second[name] = second[name].lerp(g.square(), 1.0 - _BETA2)
                g = g / ((second[name] / (1.0 - _BETA2**step)).sqrt() + _EPS)
            moving[name] = moving[name] - rates[name] * g
    return {**fixed, **moving}


def query_losses(net: nn.Module, weights: Weights, tasks: TaskBatch, *, loss: Loss) -> Tensor:
    """Query loss (B,) of each task under its own weights (B, ...)."""

    def task_loss(some: Weights, x: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
        return rows_loss(net, some, Rows(x, y, weight), loss)

    query = tasks.query
    in_dims = (0, 0, 0, None if query.weight is None else 0)
    losses: Tensor = vmap(task_loss, in_dims=in_dims)(dict(weights), query.x, query.y, query.weight)
    return losses


def expand_weights(weights: Weights, tasks: TaskBatch) -> dict[str, Tensor]:
    """Weights (B, ...): shared ones once a task, then what the tasks own."""
    n_tasks = len(tasks)
    shared = {name: value.expand(n_tasks, *value.shape) for name, value in weights.items() if name not in tasks.own}
    return {**shared, **tasks.own}
