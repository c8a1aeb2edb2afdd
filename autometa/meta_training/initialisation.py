"""Learned births: first weights from which a few gradient steps go far, on tasks like those of the training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from autometa.exceptions import TrainingDiverged
from autometa.gradient.fit import Rows
from autometa.gradient.inner_loop import TaskBatch, Weights, adapt_batch, adapt_weights, query_losses, rows_loss
from autometa.gradient.learned import Initialisation
from autometa.gradient.losses import Loss
from autometa.gradient.optimizers import make_optimizer
from autometa.gradient.schedules import Schedule
from autometa.meta_training.episodes import SampledTasks

METHODS = ("maml", "fomaml", "reptile", "anil", "meta_sgd")
"""Names of the methods, see :func:`meta_train_initialisation`."""

TaskSampler = Callable[[torch.Generator], TaskBatch]
"""Draws the tasks of one meta-step."""

_HEAD = "output."
_MAX_META_NORM = 10.0
_REPORT_EVERY = 50


@dataclass(frozen=True)
class MetaTrainingPlan:
    """How an initialisation is to be learned.

    Parameters
    ----------
    n_meta_steps : int, default 1000
    n_inner_steps : int, default 5
    inner_rate : float, default 0.05
        Learning rate of the inner loop; "meta_sgd" begins with it.
    inner_optimizer : {"sgd", "adam"}, default "sgd"
        "adam" only for "fomaml" and "reptile", which do not differentiate through the steps.
    meta_rate : float, default 0.001
        Peak learning rate of the outer loop (Adam, cosine to zero).
    tasks_per_step : int, default 16
        Where tables are given; a sampler decides for itself.
    n_support : tuple of (int, int), default (5, 40)
        Smallest and largest number of rows that a task of a table is adapted on, drawn on a logarithmic scale.
    n_query : int, default 64
        Largest number of rows that it is judged on.

    Raises
    ------
    ValueError
        A number is out of its range.
    """

    n_meta_steps: int = 1000
    n_inner_steps: int = 5
    inner_rate: float = 0.05
    inner_optimizer: str = "sgd"
    meta_rate: float = 1e-3
    tasks_per_step: int = 16
    n_support: tuple[int, int] = (5, 40)
    n_query: int = 64

    def __post_init__(self) -> None:
        for name in ("n_meta_steps", "n_inner_steps", "tasks_per_step", "n_query"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1. Got {getattr(self, name)!r} instead.")
        for name in ("inner_rate", "meta_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive. Got {getattr(self, name)!r} instead.")
        if not 1 <= self.n_support[0] <= self.n_support[1]:
            raise ValueError(f"n_support must be (smallest, largest), both at least 1. Got {self.n_support!r} instead.")
        if self.inner_optimizer not in ("sgd", "adam"):
            raise ValueError(f"inner_optimizer must be 'sgd' or 'adam'. Got {self.inner_optimizer!r} instead.")


def meta_train_initialisation(
    tasks: Sequence[Rows] | TaskSampler,
    method: str = "maml",
    *,
    net: nn.Module,
    loss: Loss,
    plan: MetaTrainingPlan | None = None,
    seed: int = 0,
    device: str = "cpu",
    on_step: Callable[[int, float], None] | None = None,
) -> Initialisation:
    """Learn first weights that adapt quickly: min over theta of sum_i L_i(theta - alpha grad L_i(theta)).

    Parameters
    ----------
    tasks : sequence of Rows, or callable
        Tables of the same columns, from which small tasks are drawn (:class:`SampledTasks`), or a function that draws
        a :class:`TaskBatch` with a generator.
    method : {"maml", "fomaml", "reptile", "anil", "meta_sgd"}, default "maml"
        - "maml": the gradient goes through the inner steps (second order)
        - "fomaml": the inner steps count as constants (first order)
        - "reptile": towards the weights after the inner steps on all rows of a task; judged on nothing
        - "anil": as "maml", but only the output layer moves in the inner loop
        - "meta_sgd": as "maml", and each parameter learns its own (positive) inner rate
    net : Module
        Gives the architecture and the weights to begin with; it is left as it is. No dropout.
    loss : callable
        See :mod:`autometa.gradient.losses`.
    plan : MetaTrainingPlan, optional
    seed : int, default 0
        On the CPU the same seed gives the same weights.
    device : str, default "cpu"
    on_step : callable, optional
        Called with the number of the meta-step and its loss (query loss; "reptile": support loss).

    Returns
    -------
    Initialisation
        On the CPU.

    Raises
    ------
    ValueError
        An unknown method, or one that does not go with the plan.
    TrainingDiverged
        The loss became NaN or infinite.

    References
    ----------
    Finn et al., Model-agnostic meta-learning, 2017 ("maml", "fomaml"); Nichol et al., On first-order meta-learning
    algorithms, 2018 ("reptile"); Raghu et al., Rapid learning or feature reuse?, 2020 ("anil"); Li et al., Meta-SGD,
    2017 (here with rates held positive).
    """
    plan = plan or MetaTrainingPlan()
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}. Got {method!r} instead.")
    if plan.inner_optimizer == "adam" and method not in ("fomaml", "reptile"):
        raise ValueError(f"The inner optimizer 'adam' goes with 'fomaml' and 'reptile' only. Got {method!r} instead.")
    draw = tasks if callable(tasks) else SampledTasks.of(tasks, plan.tasks_per_step, plan.n_support, plan.n_query)
    generator = torch.Generator().manual_seed(seed)
    learner = _Learner(net, method, loss, plan, device)
    schedule = Schedule("cosine", plan.meta_rate)
    optimizer = make_optimizer("adam")
    history = []
    for step in range(plan.n_meta_steps):
        value, gradient = learner.gradient(draw(generator).to(device))
        norm = torch.linalg.vector_norm(gradient)
        gradient = gradient * torch.clamp(_MAX_META_NORM / (norm + 1e-12), max=1.0)
        optimizer.step(learner.theta, gradient, schedule.rate(step / plan.n_meta_steps))
        if step % _REPORT_EVERY == 0 or step == plan.n_meta_steps - 1:
            history.append(_finite(float(value), step))
        if on_step is not None:
            on_step(step, float(value))
    return learner.result({"plan": asdict(plan), "seed": seed, "losses": history})


def _finite(value: float, step: int) -> float:
    if value != value or value in (float("inf"), float("-inf")):
        raise TrainingDiverged(f"The loss became {value} in meta-step {step + 1}. Lower inner_rate or meta_rate.")
    return value


class _Learner:
    """The learned weights as one vector ``theta`` (P,), for "meta_sgd" followed by the logarithms of the rates."""

    def __init__(self, net: nn.Module, method: str, loss: Loss, plan: MetaTrainingPlan, device: str) -> None:
        self.net, self.method, self.loss, self.plan = net, method, loss, plan
        first = {name: value.detach().to(device).clone() for name, value in net.named_parameters()}
        moving = [name for name in first if method != "anil" or name.startswith(_HEAD)]
        if not moving:
            raise ValueError("'anil' moves the weights of 'output' only. The net must have a layer of this name.")
        self.moving = moving
        self._shapes = {name: value.shape for name, value in first.items()}
        parts = [value.reshape(-1) for value in first.values()]
        if method == "meta_sgd":
            rate = torch.tensor(plan.inner_rate).log().item()
            parts += [torch.full_like(first[name], rate).reshape(-1) for name in moving]
        self.theta = torch.cat(parts)  # (P,) or (2 P,)

    def gradient(self, tasks: TaskBatch) -> tuple[Tensor, Tensor]:
        """Mean loss () and what the outer optimiser descends along, of the shape of ``theta``."""
        if self.method == "reptile":
            return self._towards_adapted(tasks)
        if self.method == "fomaml":
            return self._first_order(tasks)
        gradient, value = grad(self._meta_loss, has_aux=True)(self.theta, tasks)
        return value, gradient

    def _meta_loss(self, theta: Tensor, tasks: TaskBatch) -> tuple[Tensor, Tensor]:
        """Mean query loss after the inner steps, through all of them."""
        weights, rates = self._read(theta)

        def one(own: Weights, x: Tensor, y: Tensor, w: Tensor | None, qx: Tensor, qy: Tensor, qw: Tensor | None) -> Any:
            adapted = adapt_weights(
                self.net, {**weights, **own}, Rows(x, y, w), loss=self.loss, rates=rates,
                n_steps=self.plan.n_inner_steps,
            )  # fmt: skip
            return rows_loss(self.net, adapted, Rows(qx, qy, qw), self.loss)

        support, query = tasks.support, tasks.query
        dims = (0, 0, 0, None if support.weight is None else 0, 0, 0, None if query.weight is None else 0)
        own = dict(tasks.own)
        value = vmap(one, in_dims=dims)(own, support.x, support.y, support.weight, query.x, query.y, query.weight)
        mean = value.mean()
        return mean, mean

    def _first_order(self, tasks: TaskBatch) -> tuple[Tensor, Tensor]:
        adapted = self._adapt(tasks)  # (B, ...)
        total, value = grad(self._query_mean, has_aux=True)(adapted, tasks)
        return value, self._flat({name: total[name].sum(0) for name in self._shapes if name not in tasks.own})

    def _query_mean(self, adapted: dict[str, Tensor], tasks: TaskBatch) -> tuple[Tensor, Tensor]:
        mean = query_losses(self.net, adapted, tasks, loss=self.loss).mean()
        return mean, mean

    def _towards_adapted(self, tasks: TaskBatch) -> tuple[Tensor, Tensor]:
        joined = TaskBatch(_join(tasks.support, tasks.query), tasks.support, tasks.own)
        adapted = self._adapt(joined)
        value = query_losses(self.net, adapted, joined, loss=self.loss).mean()
        weights, _ = self._read(self.theta)
        return value, self._flat(
            {n: weights[n] - adapted[n].mean(0) for n in self._shapes if n not in tasks.own}
        )  # fmt: skip

    def _adapt(self, tasks: TaskBatch) -> dict[str, Tensor]:
        weights, rates = self._read(self.theta)
        return adapt_batch(
            self.net, weights, tasks, loss=self.loss, rates=rates, n_steps=self.plan.n_inner_steps,
            optimizer=self.plan.inner_optimizer,
        )  # fmt: skip

    def _read(self, theta: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Weights and rates by name, as views of ``theta``."""
        weights, start = self._cut(theta, list(self._shapes), 0)
        if self.method == "meta_sgd":
            logs, _ = self._cut(theta, self.moving, start)
            return weights, {name: value.exp() for name, value in logs.items()}
        return weights, {name: theta.new_tensor(self.plan.inner_rate) for name in self.moving}

    def _cut(self, theta: Tensor, names: Sequence[str], start: int) -> tuple[dict[str, Tensor], int]:
        found = {}
        for name in names:
            stop = start + self._shapes[name].numel()
            found[name] = theta[start:stop].view(self._shapes[name])
            start = stop
        return found, start

    def _flat(self, gradient: Mapping[str, Tensor]) -> Tensor:
        """Gradients by name as one vector; weights that the tasks own have none."""
        zeros = self.theta.new_zeros
        return torch.cat([gradient.get(n, zeros(s)).reshape(-1) for n, s in self._shapes.items()])

    def result(self, records: Mapping[str, Any]) -> Initialisation:
        weights, rates = self._read(self.theta)
        return Initialisation(
            {name: value.detach().cpu().clone() for name, value in weights.items()},
            {name: value.detach().cpu().clone() for name, value in rates.items()},
            self.plan.n_inner_steps, self.method, records,
        )  # fmt: skip


def _join(a: Rows, b: Rows) -> Rows:
    """Support and query rows of each task together, (B, S + Q, ...)."""
    weight = None
    if a.weight is not None or b.weight is not None:
        first = torch.ones_like(a.y, dtype=a.x.dtype) if a.weight is None else a.weight
        second = torch.ones_like(b.y, dtype=b.x.dtype) if b.weight is None else b.weight
        weight = torch.cat([first, second], dim=1)
    return Rows(torch.cat([a.x, b.x], dim=1), torch.cat([a.y, b.y], dim=1), weight)
