"""``WeightGenerator``: a hypernetwork that reads a training table and writes the weights of an MLP in one pass."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from autometa.exceptions import ArtefactError, FamilyUnavailable
from autometa.nets._readout import Labels, Shrinkage, discriminant, leave_one_out_skill, ridge_regression
from autometa.nets._tokens import N_CHANNELS, PENALTIES, Grid, GridBlock, pool_classes, read_table
from autometa.nets.batched import HIDDEN, call_batched, make_child, task_losses

MAX_CLASSES = 32
MAX_FEATURES = 150
"""More than the 10 classes and 60 features of the training: statistics carry over (with 11 to 32 classes as good as a
random forest on 11 real tables; on wide tables more columns told more)."""

MAX_ROWS = 5_000
N_STEPS = 5
"""Gradient steps for which rates are generated."""

TENSORS = (
    "hidden.0.weight", "hidden.0.bias", "hidden.2.weight", "hidden.2.bias", "output.weight", "output.bias",
    "skip.weight",
)  # fmt: skip
"""Names of the tensors of the generated net, in the order of the rates."""

_RANK = 8
_MAX_RATE = 2.0
_N_BINS = 5
_FORMAT = "autometa-weight-generator-1"
_WEIGHTS_FILE = "weights.safetensors"


@dataclass(frozen=True, eq=False)
class Birth:
    """What was generated for B tables.

    Parameters
    ----------
    weights : dict of str to Tensor of shape (B, ...)
        Parameters of :func:`autometa.nets.batched.make_child`, by name.
    rates : Tensor of shape (B, 5, 7)
        Learning rate of each step and tensor, for :func:`autometa.nets.batched.descend`; at most 2.
    """

    weights: dict[str, Tensor]
    rates: Tensor


class WeightGenerator(nn.Module):
    """Reads tables, writes the weights of a 64-64 MLP with a linear skip for each, and the rates of its first steps.

    A table becomes tokens on a class x feature grid (class-conditional statistics); blocks that are equivariant to the
    order of classes and features turn them into the first layer and a low-rank change of the second; the readout is a
    shrunk closed-form solve (linear discriminants, or ridge regression) whose shrinkage is generated too. Then the
    net's gradient and the leave-one-out skill of its hidden units are shown to one more block, which refines all.
    A numeric target is cut into quantile bins, which take the place of classes in the grid.

    Parameters
    ----------
    width : int, default 96
        Of a token.
    n_blocks : int, default 3
    head_width : int, default 352
        Hidden units of the heads that write.
    seed : int, default 0
        Of the first weights; the global random state is left as it was.

    Raises
    ------
    FamilyUnavailable
        In :meth:`forward`: more than 32 classes, 150 features or 5,000 rows.

    References
    ----------
    Ha et al., HyperNetworks, 2017; Bertinetto et al., Meta-learning with differentiable closed-form solvers, 2019;
    Mueller et al., MotherNet, 2023.

    Examples
    --------
    >>> x, y = torch.randn(1, 40, 3), torch.arange(40)[None] % 2
    >>> birth = WeightGenerator(width=16, n_blocks=1, head_width=16)(x, y, n_classes=2)
    >>> birth.weights["hidden.0.weight"].shape
    torch.Size([1, 64, 3])
    """

    def __init__(self, *, width: int = 96, n_blocks: int = 3, head_width: int = 352, seed: int = 0) -> None:
        super().__init__()
        self.settings = {"width": width, "n_blocks": n_blocks, "head_width": head_width}
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.read = nn.Linear(N_CHANNELS, width)
            self.blocks = nn.ModuleList(GridBlock(width) for _ in range(n_blocks))
            self.norm = nn.LayerNorm(width)
            self.first = _Writer(width, head_width, scale=1.0)
            self.feedback = _head(2 * HIDDEN, head_width // 2, width)
            self.refine = GridBlock(width)
            self.refine_norm = nn.LayerNorm(width)
            self.second = _Writer(width, head_width, scale=0.3)
            self.shrinkage = _head(width + len(PENALTIES), head_width, 3 * (HIDDEN + 1), 0.1)
            n_rates = N_STEPS * len(TENSORS)
            self.adjust = _head(width + 2 * len(PENALTIES), head_width, 3 * (HIDDEN + 1) + n_rates, 0.1)
            self.hidden_weight = nn.Parameter(torch.randn(HIDDEN, HIDDEN) * math.sqrt(2 / HIDDEN))
            self.hidden_bias = nn.Parameter(torch.randn(HIDDEN) * 0.5)
            self.log_rates = nn.Parameter(torch.full((N_STEPS, len(TENSORS)), math.log(0.03)))

    def forward(self, x: Tensor, y: Tensor, *, n_classes: int = 0) -> Birth:
        """Weights for each table.

        Parameters
        ----------
        x : Tensor of shape (B, N, F)
            Inputs, standardised over the rows.
        y : Tensor of shape (B, N)
            Class codes, or a standardised target where ``n_classes`` is 0.
        n_classes : int
        """
        check_limits(x.shape[1], x.shape[2], n_classes)
        labels, level, targets = _describe_target(y, n_classes, x.dtype)
        context = _Context(x, y, labels, targets)
        grid = read_table(x, labels, level, targets)
        tokens: Tensor = self.read(grid.tokens)  # (B, C, F, d)
        for block in self.blocks:
            tokens = block(tokens, grid)
        layers, summary = self.first(self.norm(tokens), grid, self._constant_layers(len(x)))
        values = self.shrinkage(torch.cat([summary, grid.skill], 1))
        weights, _ = self._close(layers, context, values)
        return self._refine(context, grid, tokens, layers, weights, values)

    def _constant_layers(self, n_tasks: int) -> dict[str, Tensor]:
        """What the hidden layers are before anything was read."""
        return {
            "hidden.0.bias": self.hidden_bias.expand(n_tasks, HIDDEN),
            "hidden.2.weight": self.hidden_weight.expand(n_tasks, HIDDEN, HIDDEN),
        }

    def _refine(
        self, context: _Context, grid: Grid, tokens: Tensor, layers: dict[str, Tensor], weights: dict[str, Tensor],
        values: Tensor,
    ) -> Birth:  # fmt: skip
        """Show the net's gradient and skill to one more block and write again."""
        gradient = _first_layer_gradient(context, weights).transpose(1, 2)  # (B, F, H)
        gradient = gradient / (gradient.flatten(1).std(1)[:, None, None] + 1e-6)
        scaled = layers["hidden.0.weight"].detach().transpose(1, 2) * math.sqrt(context.x.shape[2])
        said = self.feedback(torch.cat([gradient, scaled], -1))  # (B, F, d)
        tokens = self.refine_norm(self.refine(tokens + said[:, None], grid))
        layers, summary = self.second(tokens, grid, layers)
        hidden = _hidden_units(layers, context.x)  # (B, N, H)
        skill = leave_one_out_skill(torch.cat([hidden, context.x], -1), context.targets, PENALTIES)
        found = self.adjust(torch.cat([summary, grid.skill, skill], 1))
        change, rates = found[:, : values.shape[1]], found[:, values.shape[1] :]
        weights, _ = self._close(layers, context, values + change, hidden)
        rates = torch.exp(self.log_rates + rates.view(-1, N_STEPS, len(TENSORS))).clamp(max=_MAX_RATE)
        return Birth(weights, rates)

    def _close(
        self, layers: dict[str, Tensor], context: _Context, values: Tensor, hidden: Tensor | None = None
    ) -> tuple[dict[str, Tensor], Tensor]:
        """All weights: the hidden layers and the closed-form readout of hidden units and inputs."""
        x, hidden = context.x, _hidden_units(layers, context.x) if hidden is None else hidden
        z = torch.cat([hidden, x], -1)  # (B, N, H + F)
        mix, ridge, gain = (
            torch.cat([part[:, :HIDDEN], part[:, HIDDEN:].expand(-1, x.shape[2])], 1)  # (B, H + F)
            for part in values.chunk(3, 1)
        )
        shrinkage = Shrinkage(torch.sigmoid(mix - 1), torch.exp(ridge - 1.5), torch.exp(gain - 0.4))
        if context.y.is_floating_point():
            weight, bias = ridge_regression(z, context.y, shrinkage)
        else:
            weight, bias = discriminant(z, context.labels, shrinkage)
        readout = {"output.weight": weight[..., :HIDDEN], "output.bias": bias, "skip.weight": weight[..., HIDDEN:]}
        return {name: {**layers, **readout}[name] for name in TENSORS}, hidden

    def save(self, folder: str | Path, card: Mapping[str, Any]) -> None:
        """Write weights (safetensors, half precision) and what :meth:`load` needs; ``card`` goes into the header."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        header = {"format": _FORMAT, "settings": json.dumps(self.settings), "card": json.dumps(dict(card))}
        tensors = {name: value.detach().to(torch.float16).contiguous() for name, value in self.state_dict().items()}
        save_file(tensors, folder / _WEIGHTS_FILE, metadata=header)

    @classmethod
    def load(cls, folder: str | Path) -> WeightGenerator:
        """The generator that :meth:`save` wrote, in evaluation mode, with its ``card``.

        Raises
        ------
        ArtefactError
            The file is missing, damaged or of another format.
        """
        path = Path(folder) / _WEIGHTS_FILE
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
            if header.get("format") != _FORMAT:
                raise ArtefactError(f"The file {str(path)!r} must have the format {_FORMAT}. Got another one.")
            generator = cls(**json.loads(header["settings"]))
            generator.load_state_dict(tensors)
            generator.card = json.loads(header["card"])
        except (SafetensorError, OSError, KeyError, TypeError, RuntimeError, json.JSONDecodeError) as error:
            raise ArtefactError(f"The weight generator {str(path)!r} cannot be read: {error}") from error
        return generator.eval().requires_grad_(False)

    card: Mapping[str, Any] = {}
    """What it was trained on and how; empty before training."""


@dataclass(frozen=True, eq=False)
class _Context:
    """The rows of B tables and their target as given, as classes, and as the readouts are judged."""

    x: Tensor
    y: Tensor
    labels: Labels
    targets: Tensor


class _Writer(nn.Module):
    """From tokens to the two hidden layers, as a change of what they were."""

    def __init__(self, width: int, head_width: int, *, scale: float) -> None:
        super().__init__()
        self.columns = _head(2 * width, head_width, HIDDEN, scale)
        self.whole = _head(width, head_width, 2 * HIDDEN + 2 * _RANK * HIDDEN, 0.3 * scale)

    def forward(self, tokens: Tensor, grid: Grid, layers: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Tensor]:
        """Layers by name, and a summary (B, d) of each table."""
        (b, _, f, _), h = tokens.shape, HIDDEN
        mean, maximum = pool_classes(tokens, grid.weights)  # (B, F, d) each
        summary = mean.mean(1)  # (B, d)
        first = self.columns(torch.cat([mean, maximum], -1)).transpose(1, 2) * (1.5 / math.sqrt(f))  # (B, H, F)
        bias1, bias2, left, right = self.whole(summary).split([h, h, _RANK * h, _RANK * h], -1)
        second = left.view(b, h, _RANK) @ right.view(b, _RANK, h) / math.sqrt(h)
        change = {"hidden.0.weight": first, "hidden.0.bias": bias1, "hidden.2.weight": second, "hidden.2.bias": bias2}
        return {name: layers[name] + value if name in layers else value for name, value in change.items()}, summary


def _head(n_inputs: int, width: int, n_outputs: int, scale: float = 1.0) -> nn.Sequential:
    last = nn.Linear(width, n_outputs)
    with torch.no_grad():
        last.weight.mul_(scale)
        last.bias.zero_()
    return nn.Sequential(nn.Linear(n_inputs, width), nn.GELU(), last)


def check_limits(n_rows: int, n_features: int, n_classes: int) -> None:
    """Raise FamilyUnavailable where a table is outside of what the generator was made for."""
    for name, value, limit in (
        ("rows", n_rows, MAX_ROWS), ("features", n_features, MAX_FEATURES), ("classes", n_classes, MAX_CLASSES),
    ):  # fmt: skip
        if value > limit:
            raise FamilyUnavailable(
                f"The weight generator reads at most {limit:,} {name}. Got {value:,}: take init='random'."
            )


def _describe_target(y: Tensor, n_classes: int, dtype: torch.dtype) -> tuple[Labels, Tensor, Tensor]:
    """Classes or quantile bins, the mean target of each bin (B, C), and the targets of linear readouts (B, N, T)."""
    if n_classes:
        labels = Labels.of(y, n_classes, dtype)
        return labels, torch.zeros_like(labels.shares), labels.one_hot
    shares = torch.linspace(0, 1, _N_BINS + 1, dtype=y.dtype, device=y.device)[1:-1]
    edges = torch.quantile(y, shares, dim=1).transpose(0, 1)  # (B, bins - 1)
    labels = Labels.of(torch.searchsorted(edges.contiguous(), y.contiguous()), _N_BINS, dtype)
    return labels, (labels.averages @ y[..., None])[..., 0], y[..., None]


def _hidden_units(layers: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Outputs of the second hidden layer, (B, N, F) -> (B, N, H)."""
    hidden = make_child(x.shape[2], 1).hidden
    return call_batched(hidden, {name.removeprefix("hidden."): value for name, value in layers.items()}, x)


def _first_layer_gradient(context: _Context, weights: Mapping[str, Tensor]) -> Tensor:
    """Gradient of each task's loss by its first layer, (B, H, F); the gradient of the generator does not pass."""
    net = make_child(context.x.shape[2], weights["output.bias"].shape[1])
    with torch.enable_grad():
        leaf = weights["hidden.0.weight"].detach().requires_grad_()
        constants = {name: value.detach() for name, value in weights.items()} | {"hidden.0.weight": leaf}
        total = task_losses(call_batched(net, constants, context.x), context.y).sum()
        return torch.autograd.grad(total, leaf)[0]
