"""The optimisers: SGD with momentum, Adam, AdamW and RMSprop, on one flat vector of weights.

A small net on a small table spends its time in the overhead of single operations, not in arithmetic. So all weights
of a net lie in one vector (:class:`FlatParameters`): one optimiser step is a handful of operations whatever the number
of layers, the gradient norm is one operation, and keeping the best weights is one copy. The optimisers of
``torch.optim`` would also import its compiler, about two seconds in each fresh process.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

OPTIMIZERS = ("sgd", "adam", "adamw", "rmsprop")
"""Names of the optimisers, see :class:`Optimizer`."""

_BETA2 = 0.99
_EPS = 1e-8


class FlatParameters:
    """All trainable parameters of a net as one vector, and their gradients as another.

    While this object is in use the net's parameters and gradients are views of the two vectors; the net is called,
    differentiated and moved by an optimiser as usual. Call :meth:`release` when training is over.

    Parameters
    ----------
    net : Module
        Its trainable parameters must share one dtype and device.
    """

    def __init__(self, net: nn.Module) -> None:
        self._parameters = [p for p in net.parameters() if p.requires_grad]
        if not self._parameters:
            raise ValueError("The net must have trainable parameters. Got none.")
        self.weights = torch.cat([p.detach().reshape(-1) for p in self._parameters])  # (P,)
        self.gradient = torch.zeros_like(self.weights)  # (P,)
        start = 0
        for p in self._parameters:
            stop = start + p.numel()
            p.data = self.weights[start:stop].view(p.shape)
            p.grad = self.gradient[start:stop].view(p.shape)
            start = stop

    def clip_gradient(self, max_norm: float) -> None:
        """Scale the gradient down to a Euclidean norm of at most ``max_norm``; no host-device synchronisation."""
        norm = torch.linalg.vector_norm(self.gradient)
        self.gradient.mul_(torch.clamp(max_norm / (norm + 1e-12), max=1.0))

    def release(self) -> None:
        """Give each parameter its own memory back, so that the net can be copied and pickled at its true size."""
        for p in self._parameters:
            p.data = p.data.clone()
            p.grad = None


@dataclass(frozen=True)
class OptimizerConfig:
    """Which optimiser, and how it is set.

    Parameters
    ----------
    name : {"sgd", "adam", "adamw", "rmsprop"}
    weight_decay : float, default 0.0
        "adamw" shrinks the weights by ``rate * weight_decay`` each step (decoupled); the others add
        ``weight_decay * weights`` to the gradient (L2 penalty).
    momentum : float, default 0.9
        Nesterov momentum of "sgd", the first moment's decay (beta 1) of "adam" and "adamw"; not used by "rmsprop".

    Raises
    ------
    ValueError
        An unknown name or a number out of its range.
    """

    name: str
    weight_decay: float = 0.0
    momentum: float = 0.9

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise ValueError(f"The optimizer must be one of {', '.join(OPTIMIZERS)}. Got {self.name!r} instead.")
        if not (math.isfinite(self.weight_decay) and self.weight_decay >= 0):
            raise ValueError(f"weight_decay must be a number >= 0. Got {self.weight_decay!r} instead.")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1). Got {self.momentum!r} instead.")


@dataclass
class Optimizer:
    """Moves a flat vector of weights against its gradient; the learning rate is given at each step.

    Parameters
    ----------
    config : OptimizerConfig
    n_steps : int
        Steps done so far.
    moments : dict of str to Tensor of shape (P,)
        The running averages; with ``n_steps`` they are all there is to save and resume.

    References
    ----------
    Sutskever et al., On the importance of initialization and momentum, 2013 ("sgd"); Kingma and Ba, Adam, 2015;
    Loshchilov and Hutter, Decoupled weight decay regularization, 2019; Tieleman and Hinton, RMSprop, 2012.
    """

    config: OptimizerConfig
    n_steps: int = 0
    moments: dict[str, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def step(self, weights: Tensor, gradient: Tensor, rate: float) -> None:
        """One update of ``weights`` in place. ``gradient`` may be changed.

        Parameters
        ----------
        weights, gradient : Tensor of shape (P,)
        rate : float
            Learning rate of this step.
        """
        self.n_steps += 1
        if self.config.weight_decay and self.config.name == "adamw":
            weights.mul_(1.0 - rate * self.config.weight_decay)
        elif self.config.weight_decay:
            gradient.add_(weights, alpha=self.config.weight_decay)
        if self.config.name == "sgd":
            self._step_sgd(weights, gradient, rate)
        elif self.config.name == "rmsprop":
            self._step_rmsprop(weights, gradient, rate)
        else:
            self._step_adam(weights, gradient, rate)

    def _moment(self, name: str, like: Tensor) -> Tensor:
        if name not in self.moments:
            self.moments[name] = torch.zeros_like(like)
        return self.moments[name]

    def _step_sgd(self, weights: Tensor, gradient: Tensor, rate: float) -> None:
        velocity = self._moment("first", weights)
        velocity.mul_(self.config.momentum).add_(gradient)
        weights.add_(gradient, alpha=-rate).add_(velocity, alpha=-rate * self.config.momentum)

    def _step_adam(self, weights: Tensor, gradient: Tensor, rate: float) -> None:
        beta1, n = self.config.momentum, self.n_steps
        first, second = self._moment("first", weights), self._moment("second", weights)
        first.lerp_(gradient, 1.0 - beta1)
        second.mul_(_BETA2).addcmul_(gradient, gradient, value=1.0 - _BETA2)
        scale = second.sqrt().mul_(1.0 / math.sqrt(1.0 - _BETA2**n)).add_(_EPS)
        weights.addcdiv_(first, scale, value=-rate / (1.0 - beta1**n))

    def _step_rmsprop(self, weights: Tensor, gradient: Tensor, rate: float) -> None:
        second = self._moment("second", weights)
        second.mul_(_BETA2).addcmul_(gradient, gradient, value=1.0 - _BETA2)
        # The average starts at zero: without the correction the first steps would be ten times too long.
        scale = second.sqrt().mul_(1.0 / math.sqrt(1.0 - _BETA2**self.n_steps)).add_(_EPS)
        weights.addcdiv_(gradient, scale, value=-rate)


def make_optimizer(name: str, *, weight_decay: float = 0.0, momentum: float = 0.9) -> Optimizer:
    """A fresh optimiser by name; see :class:`OptimizerConfig` for the meaning of the numbers.

    Examples
    --------
    >>> weights = torch.tensor([1.0])
    >>> make_optimizer("sgd", momentum=0.0).step(weights, torch.tensor([0.5]), rate=0.1)
    >>> weights
    tensor([0.9500])
    """
    return Optimizer(OptimizerConfig(name, weight_decay, momentum))
