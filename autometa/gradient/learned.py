"""A learned birth as data: first weights and learning rates, in one safetensors file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from autometa.exceptions import ArtefactError
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
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        header = {"n_steps": self.n_steps, "method": self.method, "records": dict(self.records)}
        tensors = {f"weight.{name}": value for name, value in self.weights.items()}
        tensors |= {f"rate.{name}": value for name, value in self.rates.items()}
        plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        neighbour = path.with_name(f"{path.name}.{os.getpid()}.part")
        save_file(plain, neighbour, metadata={"format": _FORMAT, "header": json.dumps(header)})
        os.replace(neighbour, path)

    @classmethod
    def load(cls, path: str | Path) -> Initialisation:
        """Read what :meth:`save` wrote.

        Raises
        ------
        ArtefactError
            The file is not there, damaged, or of another format.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            if metadata.get("format") != _FORMAT:
                raise ArtefactError(f"The file {str(path)!r} must have the format {_FORMAT}. Train it again.")
            header = json.loads(metadata["header"])
            return cls(
                {n.removeprefix("weight."): t for n, t in tensors.items() if n.startswith("weight.")},
                {n.removeprefix("rate."): t for n, t in tensors.items() if n.startswith("rate.")},
                int(header["n_steps"]), str(header["method"]), dict(header["records"]),
            )  # fmt: skip
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, ArtefactError):
                raise
            raise ArtefactError(f"The initialisation {str(path)!r} cannot be read ({error}).") from error
