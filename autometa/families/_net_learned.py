"""The learned birth at use: one net for all tables, its hidden layers meta-trained, its output layer at zero."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import torch

from autometa.exceptions import ArtefactError, FamilyUnavailable
from autometa.gradient.fit import Rows
from autometa.gradient.initialization import initialize
from autometa.gradient.learned import Initialisation
from autometa.gradient.losses import classification_loss, regression_loss
from autometa.nets.mlp import MLP
from autometa.nets.projection import HIDDEN_SIZES, ProjectedInput, fit_layout

_FOLDER = Path(__file__).resolve().parents[1] / "pretrained" / "learned_birth"
_RATE_FACTORS = (1.0, 0.3, 0.1)


@lru_cache(maxsize=8)
def shipped_birth(kind: str, fold: int | None = None) -> Initialisation:
    """The learned birth that comes with the library.

    Parameters
    ----------
    kind : {"classification", "regression"}
    fold : int or None
        One that was trained without the tables of this fold (see the card), for measurements on them.

    Raises
    ------
    FamilyUnavailable
        Its file is missing or damaged.
    """
    name = f"{kind}.safetensors" if fold is None else f"{kind}_fold{fold}.safetensors"
    try:
        return Initialisation.load(_FOLDER / name)
    except ArtefactError as error:
        raise FamilyUnavailable(f"The shipped learned birth cannot be used: {error}") from error


def make_learned_net(n_columns: int, category_sizes: Sequence[int], n_outputs: int, *, dropout: float = 0.0) -> MLP:
    """The net of the learned birth (64-64, silu) behind its own input module; weights are to be filled in."""
    table_input = ProjectedInput(n_columns - len(category_sizes), category_sizes)
    return MLP(table_input, n_outputs, hidden_sizes=HIDDEN_SIZES, dropout=dropout)


@torch.no_grad()
def learned_net(
    rows: Rows, category_sizes: Sequence[int], n_classes: int, *, dropout: float = 0.0, seed: int = 0,
    n_steps: int = 0, birth: Initialisation | None = None,
) -> MLP:  # fmt: skip
    """A net that begins where meta-training ended.

    The layout (standardised columns, 20 principal components) is fitted on the rows and trained on with the rest; the
    output layer begins at the constant answer.

    Parameters
    ----------
    rows : Rows
        Training rows; class codes, or standardised targets.
    category_sizes : sequence of int
        Number of codes of each leading column.
    n_classes : int
        0 for regression.
    dropout : float, default 0.0
        For the training that follows.
    seed : int, default 0
    n_steps : int, default 0
        Inner steps to take at once, on all of the rows; it was trained for 5. The rates are the learned ones, or
        smaller where these would raise the training loss.
    birth : Initialisation or None
        ``None`` takes the shipped one.

    Raises
    ------
    FamilyUnavailable
        The shipped birth cannot be read.
    """
    birth = birth or shipped_birth("classification" if n_classes else "regression")
    size = (rows.x.shape[1], category_sizes, max(1, n_classes))
    net = initialize(lambda: make_learned_net(*size), seed=seed)
    layout = fit_layout(rows.x, category_sizes)
    for name in ("levels", "projection", "shift"):
        net.get_submodule("table_input").get_parameter(name).copy_(getattr(layout, name))
    birth.install(net)
    shares = torch.bincount(rows.y, minlength=n_classes).float() + 1.0 if n_classes else torch.ones(1)
    net.output.weight.zero_()
    net.output.bias.copy_((shares / shares.sum()).log())
    if n_steps:
        take_steps(net, birth, rows, n_classes, n_steps)
    if not dropout:
        return net
    with_dropout = initialize(lambda: make_learned_net(*size, dropout=dropout), seed=seed)
    for target, value in zip(with_dropout.parameters(), net.parameters(), strict=True):
        target.copy_(value)
    return with_dropout


def take_steps(net: MLP, birth: Initialisation, rows: Rows, n_classes: int, n_steps: int) -> None:
    """The inner steps in place; targets with wild outliers need shorter ones than those of meta-training."""
    loss = classification_loss() if n_classes else regression_loss()
    first = [value.clone() for value in net.parameters()]
    before = float(loss(net(rows.x), rows.y, rows.weight))
    for factor in _RATE_FACTORS:
        with torch.enable_grad():
            birth.adapt(net, rows, loss=loss, n_steps=n_steps, rate_factor=factor)
        if float(loss(net(rows.x), rows.y, rows.weight)) < before:
            return
        for value, old in zip(net.parameters(), first, strict=True):
            value.copy_(old)
