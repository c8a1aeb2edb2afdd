"""A learned birth as data: first weights and learning rates, in one safetensors file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autometa.exceptions import ArtefactError
from autometa.gradient.checkpoints import read_tensors, write_tensors
from autometa.gradient.fit import Rows
from autometa.gradient.inner_loop import adapt_weights
from autometa.gradient.losses import Loss

_FORMAT = "autometa-initialisation-1"


@dataclass(frozen=True, eq=False)
class Initialisation:
    """What meta-training has learned: where a net starts, and how far it steps.

    Parameters
    ----------
    weights : mapping of str to Tensor
        First weights by parameter name. A net's parameters that are not named keep their own first values.
    rates : mapping of str to Tensor
        Learning rate of each parameter that moves in the inner loop: shape () or the parameter's own.
    n_steps : int
        Inner steps that it was trained for.
    method : str
    records : mapping of str to JSON
        How it was trained.
    """

    weights: Mapping[str, Tensor] = field(repr=False)
    rates: Mapping[str, Tensor] = field(repr=False)
    n_steps: int
    method: str
    records: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @torch.no_grad()
    def install(self, net: nn.Module) -> None:
        """Write the weights into a net.

        Raises
        ------
        ValueError
            The net has no such parameter, or one of another shape.
        """
        parameters = dict(net.named_parameters())
        for name, value in self.weights.items():
            if name not in parameters or parameters[name].shape != value.shape:
                found = tuple(parameters[name].shape) if name in parameters else "none"
                raise ValueError(f"The net must have a weight {name!r} of shape {tuple(value.shape)}. Got {found}.")
            parameters[name].copy_(value)

    def adapt(
        self, net: nn.Module, rows: Rows, *, loss: Loss, n_steps: int | None = None, rate_factor: float = 1.0
    ) -> None:
        """Take the inner steps on some rows, in place; the net must hold the first weights (:meth:`install`).

        Parameters
        ----------
        n_steps : int or None
            ``None``: as many as it was trained for.
        rate_factor : float, default 1.0
            The learned rates are multiplied by it.
        """
        steps = self.n_steps if n_steps is None else n_steps
        weights = {name: value.detach() for name, value in net.named_parameters()}
        device = rows.x.device
        rates = {name: rate_factor * value.to(device) for name, value in self.rates.items()}
        adapted = adapt_weights(net, weights, rows, loss=loss, rates=rates, n_steps=steps)
        with torch.no_grad():
            for name, value in net.named_parameters():
                value.copy_(adapted[name])

    def save(self, path: str | Path) -> None:
        """Write one safetensors file, whole or not at all."""
        header = {"n_steps": self.n_steps, "method": self.method, "records": dict(self.records)}
        tensors = {f"weight.{name}": value for name, value in self.weights.items()}
        tensors |= {f"rate.{name}": value for name, value in self.rates.items()}
        write_tensors(path, tensors, kind=_FORMAT, header=header)

    @classmethod
    def load(cls, path: str | Path) -> Initialisation:
        """Read what :meth:`save` wrote.

        Raises
        ------
        ArtefactError
            The file is not there, damaged, or of another format.
        """
        header, tensors = read_tensors(path, kind=_FORMAT)
        try:
            return cls(
                {n.removeprefix("weight."): t for n, t in tensors.items() if n.startswith("weight.")},
                {n.removeprefix("rate."): t for n, t in tensors.items() if n.startswith("rate.")},
                int(header["n_steps"]), str(header["method"]), dict(header["records"]),
            )  # fmt: skip
        except (KeyError, TypeError, ValueError) as error:
            raise ArtefactError(f"The initialisation {str(path)!r} cannot be read ({error}).") from error
