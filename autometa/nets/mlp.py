"""The multilayer perceptron for tables: one input module, one stack of layers, one forward pass."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import rtdl_num_embeddings
import torch
from torch import Tensor, nn

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "selu": nn.SELU}
NUMERICAL_EMBEDDINGS = ("none", "piecewise_linear", "periodic")

_CATEGORY_EMBEDDING = 8
_NUMERICAL_EMBEDDING = 8
_N_FREQUENCIES = 16


class NetInput(nn.Module):
    """The first module of a net: a matrix as the families get it, (N, F), to numbers (N, ``n_outputs``)."""

    n_outputs: int


class TableInput(NetInput):
    """From a matrix whose first columns are category codes to one vector of numbers a row.

    Parameters
    ----------
    n_numeric : int
        Columns after the codes.
    category_sizes : sequence of int
        Number of codes of each categorical column; code 0 is "unknown or missing".
    numerical_embedding : {"none", "piecewise_linear", "periodic"}, default "none"
    bins : sequence of Tensor or None
        Bin edges of each numeric column, for "piecewise_linear"
        (``rtdl_num_embeddings.compute_bins``). At least two edges each.
    frequency_scale : float, default 0.05
        Spread of the initial frequencies of "periodic".

    Shape
    -----
    (N, len(category_sizes) + n_numeric) -> (N, ``n_outputs``), both float32.

    References
    ----------
    Gorishniy et al., On embeddings for numerical features in tabular deep learning, 2022.
    """

    def __init__(
        self,
        n_numeric: int,
        category_sizes: Sequence[int] = (),
        *,
        numerical_embedding: str = "none",
        bins: Sequence[Tensor] | None = None,
        frequency_scale: float = 0.05,
    ) -> None:
        super().__init__()
        if n_numeric + len(category_sizes) == 0:
            raise ValueError("The net must have at least one input column. Got none.")
        self.n_categorical, self.n_numeric = len(category_sizes), n_numeric
        self.categorical = CategoryEmbedding(category_sizes) if category_sizes else None
        self.numerical = (
            _make_numerical_embedding(numerical_embedding, n_numeric, bins, frequency_scale) if n_numeric else None
        )
        size = 1 if self.numerical is None else _NUMERICAL_EMBEDDING
        self.chunks = [_CATEGORY_EMBEDDING] * self.n_categorical + [size] * n_numeric
        """Length of each column's part of the output."""
        self.n_outputs = sum(self.chunks)

    def forward(self, x: Tensor) -> Tensor:  # (N, F) -> (N, D)
        parts = []
        if self.categorical is not None:
            parts.append(self.categorical(x[:, : self.n_categorical].long()))  # (N, n_categorical * E)
        if self.n_numeric:
            numbers = x[:, self.n_categorical :]  # (N, n_numeric)
            parts.append(numbers if self.numerical is None else self.numerical(numbers).flatten(1))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class CategoryEmbedding(nn.Module):
    """One embedding table for all categorical columns: a single look-up whatever their number.

    Shape
    -----
    (N, n_categorical) int64 -> (N, n_categorical * 8).
    """

    offsets: Tensor

    def __init__(self, category_sizes: Sequence[int]) -> None:
        super().__init__()
        sizes = torch.tensor(list(category_sizes))
        self.register_buffer("offsets", torch.cumsum(sizes, 0) - sizes, persistent=False)
        self.table = nn.Embedding(int(sizes.sum()), _CATEGORY_EMBEDDING)
        nn.init.normal_(self.table.weight, std=_CATEGORY_EMBEDDING**-0.5)

    def forward(self, codes: Tensor) -> Tensor:
        embedded: Tensor = self.table(codes + self.offsets)  # (N, n_categorical, E)
        return embedded.flatten(1)


def _make_numerical_embedding(
    kind: str, n_numeric: int, bins: Sequence[Tensor] | None, frequency_scale: float
) -> nn.Module | None:
    if kind == "none":
        return None
    if kind == "periodic":
        return rtdl_num_embeddings.PeriodicEmbeddings(  # type: ignore[no-any-return]
            n_numeric, _NUMERICAL_EMBEDDING, n_frequencies=_N_FREQUENCIES,
            frequency_init_scale=frequency_scale, activation=True, lite=True,
        )  # fmt: skip
    if kind == "piecewise_linear":
        if bins is None or len(bins) != n_numeric:
            raise ValueError(f"'piecewise_linear' needs the bin edges of {n_numeric} columns. Got {bins!r} instead.")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a 0/1 column has one bin, which is right
            return rtdl_num_embeddings.PiecewiseLinearEmbeddings(  # type: ignore[no-any-return]
                list(bins), _NUMERICAL_EMBEDDING, activation=False, version="B"
            )
    raise ValueError(f"numerical_embedding must be one of {', '.join(NUMERICAL_EMBEDDINGS)}. Got {kind!r} instead.")


class MLP(nn.Module):
    """Input module, hidden layers, output layer. Holds no state beside its parameters, so that
    ``torch.func.functional_call`` runs it with weights that something else has written.

    Parameters
    ----------
    table_input : NetInput
    n_outputs : int
        Classes, or 1 for regression.
    hidden_sizes : sequence of int, default (128, 128)
    activation : {"relu", "silu", "selu"}, default "silu"
    dropout : float, default 0.0
        After each hidden layer, in [0, 1).
    linear_skip : bool, default False
        Add a linear map of the inputs to the output, past the hidden layers.

    Shape
    -----
    (N, F) -> (N, n_outputs).

    Examples
    --------
    >>> net = MLP(TableInput(3, [4]), 2, hidden_sizes=(16,))
    >>> net(torch.tensor([[1.0, 0.5, -0.2, 0.0]])).shape
    torch.Size([1, 2])
    """

    def __init__(
        self,
        table_input: NetInput,
        n_outputs: int,
        *,
        hidden_sizes: Sequence[int] = (128, 128),
        activation: str = "silu",
        dropout: float = 0.0,
        linear_skip: bool = False,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}. Got {activation!r} instead.")
        self.table_input = table_input
        layers: list[nn.Module] = []
        n_inputs = table_input.n_outputs
        for size in hidden_sizes:
            layers += [nn.Linear(n_inputs, size), ACTIVATIONS[activation]()]
            if dropout > 0:
                layers.append(nn.Dropout(dropout))
            n_inputs = size
        self.hidden = nn.Sequential(*layers)
        self.output = nn.Linear(n_inputs, n_outputs)
        self.skip = nn.Linear(table_input.n_outputs, n_outputs, bias=False) if linear_skip else None

    def forward(self, x: Tensor) -> Tensor:  # (N, F) -> (N, C)
        x = self.table_input(x)  # (N, D)
        answer: Tensor = self.output(self.hidden(x))  # (N, H) -> (N, C)
        return answer if self.skip is None else answer + self.skip(x)
