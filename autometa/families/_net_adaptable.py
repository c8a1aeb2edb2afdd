"""A net that keeps its learned birth: it predicts, and it can start anew on every labelled row it was told of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autometa.exceptions import ArtefactError
from autometa.families._net_learned import take_steps
from autometa.gradient.devices import torch_threads
from autometa.gradient.fit import Rows
from autometa.gradient.initialization import initialize
from autometa.gradient.inner_loop import TaskBatch, adapt_batch, expand_weights, query_losses
from autometa.gradient.learned import Initialisation
from autometa.gradient.losses import classification_loss, regression_loss
from autometa.nets.mlp import MLP, TableInput

MAX_KEPT_ROWS = 5_000
"""Labelled rows that a net keeps; of more, the latest."""

_MAX_TARGET = 1e6
_MIN_JUDGED_ROWS = 30
_MAX_JUDGED_ROWS = 1_000
_N_FOLDS = 5
_STEP_FACTORS = (1, 2, 4, 8)
_FORMAT = "autometa-adaptable-net-1"
_EMBEDDING = TableInput(0, (1,)).n_outputs
_PARTS = ("weights", "birth", "rate")
State = tuple[dict[str, Any], dict[str, NDArray[Any]]]


@dataclass(frozen=True, eq=False)
class AdaptableNet:
    """A net on a "net" matrix, with the birth that it starts from whenever it is adapted.

    Steps are always taken from the birth, on the rows of all adaptations together: that is what the birth was trained
    for, and the order in which rows came does not matter.

    Parameters
    ----------
    birth : Initialisation
        With a weight for every parameter of the net.
    category_sizes : tuple of int
        Number of codes of each leading column; other codes are read as 0 (unknown).
    n_classes : int
        0 for regression.
    mean, scale : float, default 0.0 and 1.0
        Of the targets that the net was meta-trained on; regression only.
    n_threads : int or None, default 1
        CPU threads inside adapt and predict; ``None`` leaves PyTorch's setting.
    net : MLP or None
        ``None``: with the weights of the birth.
    rows : Rows or None
        What it was adapted to: encoded rows, class codes or standardised targets.

    Raises
    ------
    ValueError
        The birth is none of an MLP on such columns.
    """

    birth: Initialisation = field(repr=False)
    category_sizes: tuple[int, ...] = field(repr=False)
    n_classes: int
    mean: float = field(default=0.0, repr=False)
    scale: float = field(default=1.0, repr=False)
    n_threads: int | None = field(default=1, repr=False)
    net: MLP | None = field(default=None, repr=False)
    rows: Rows | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.net is None:
            object.__setattr__(self, "net", make_net(self.birth.weights, self.category_sizes, self.n_classes))

    @property
    def classes_(self) -> NDArray[np.int64] | None:
        """Class codes in the order of the probabilities; ``None`` for regression."""
        return np.arange(self.n_classes) if self.n_classes else None

    @property
    def n_rows(self) -> int:
        """Labelled rows that it is adapted to."""
        return 0 if self.rows is None else len(self.rows)

    def adapt(self, matrix: NDArray[np.float32], target: NDArray[Any], *, n_steps: int | None = None) -> Self:
        """The net for the table that these and all earlier rows come from.

        Parameters
        ----------
        matrix : ndarray of shape (n_rows, n_columns)
        target : ndarray of shape (n_rows,)
            Class codes, or values in their own unit.
        n_steps : int or None
            Gradient steps; ``None``: as many as the birth was trained for, or from 30 rows on up to eight times as
            many, by five-fold cross-validation on the rows.
        """
        rows = self._with(Rows(known_codes(matrix, self.category_sizes), self._as_target(target)))
        net = make_net(self.birth.weights, self.category_sizes, self.n_classes)
        with torch_threads(self.n_threads), torch.no_grad():
            steps = self._choose_steps(net, rows) if n_steps is None else n_steps
            if steps:
                take_steps(net, self.birth, rows, self.n_classes, steps)
        return replace(self, net=net, rows=rows)

    def predict(self, matrix: NDArray[np.float32]) -> NDArray[Any]:
        """Values, or class codes. Shape (n_rows,)."""
        if self.n_classes:
            return np.asarray(self.predict_proba(matrix).argmax(axis=1))
        values: NDArray[np.float64] = self._outputs(matrix).squeeze(-1).double().numpy()
        return values * self.scale + self.mean

    def predict_proba(self, matrix: NDArray[np.float32]) -> NDArray[np.float64]:
        """Class probabilities of shape (n_rows, n_classes)."""
        probabilities: NDArray[np.float64] = torch.softmax(self._outputs(matrix).double(), dim=-1).numpy()
        return probabilities

    @torch.inference_mode()
    def _outputs(self, matrix: NDArray[np.float32]) -> Tensor:  # (N, F) -> (N, C)
        assert self.net is not None
        with torch_threads(self.n_threads):
            output: Tensor = self.net(known_codes(matrix, self.category_sizes))
        return output

    def _choose_steps(self, net: MLP, rows: Rows) -> int:
        """The number of steps with the least loss on rows held out; few rows cannot tell."""
        if len(rows) < _MIN_JUDGED_ROWS:
            return self.birth.n_steps
        loss = classification_loss() if self.n_classes else regression_loss()
        some = rows.take(slice(-_MAX_JUDGED_ROWS, None))
        size = len(some) // _N_FOLDS
        folds = torch.randperm(len(some), generator=torch.Generator().manual_seed(0))[: size * _N_FOLDS]
        folds = folds.view(_N_FOLDS, size)
        others = torch.stack([torch.cat([folds[:i].flatten(), folds[i + 1 :].flatten()]) for i in range(_N_FOLDS)])
        support, query = some.take(others), some.take(folds)  # (K, 4n, F) and (K, n, F)
        weights = expand_weights(dict(net.named_parameters()), TaskBatch(support, query))
        done, losses = 0, {}
        for steps in (self.birth.n_steps * factor for factor in _STEP_FACTORS):
            tasks = TaskBatch(support, query, weights)
            weights = adapt_batch(net, {}, tasks, loss=loss, rates=self.birth.rates, n_steps=steps - done)
            losses[steps] = float(query_losses(net, weights, tasks, loss=loss).mean().nan_to_num(nan=torch.inf))
            done = steps
        return min(losses, key=lambda steps: losses[steps])

    def _as_target(self, target: NDArray[Any]) -> Tensor:
        if self.n_classes:
            return torch.from_numpy(np.asarray(target, dtype=np.int64))
        standard = (np.asarray(target, dtype=np.float64) - self.mean) / self.scale
        return torch.from_numpy(np.clip(standard, -_MAX_TARGET, _MAX_TARGET).astype(np.float32))

    def _with(self, new: Rows) -> Rows:
        if self.rows is None:
            return new.take(slice(-MAX_KEPT_ROWS, None))
        whole = Rows(torch.cat([self.rows.x, new.x]), torch.cat([self.rows.y, new.y]))
        return whole.take(slice(-MAX_KEPT_ROWS, None))

    def to_state(self) -> State:
        """The net, its birth and its rows as a dict that JSON can hold and a dict of arrays; see :meth:`from_state`."""
        assert self.net is not None
        header = {
            "format": _FORMAT, "category_sizes": list(self.category_sizes), "n_classes": self.n_classes,
            "mean": self.mean, "scale": self.scale, "n_threads": self.n_threads, "n_steps": self.birth.n_steps,
            "method": self.birth.method, "records": dict(self.birth.records),
        }  # fmt: skip
        parts = zip(_PARTS, (dict(self.net.named_parameters()), self.birth.weights, self.birth.rates), strict=True)
        arrays = {f"{part}.{name}": _array(value) for part, found in parts for name, value in found.items()}
        if self.rows is not None:
            arrays |= {"rows.x": _array(self.rows.x), "rows.y": _array(self.rows.y)}
        return header, arrays

    @classmethod
    def from_state(cls, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Self:
        """The net that :meth:`to_state` described; its predictions are bit-equal.

        Raises
        ------
        ArtefactError
            The state is of another format, or its parts do not fit together.
        """
        if header.get("format") != _FORMAT:
            raise ArtefactError(f"The state must be of format {_FORMAT}. Got {header.get('format')!r:.40} instead.")
        try:
            weights, first, rates = (_tensors(arrays, part) for part in _PARTS)
            birth = Initialisation(first, rates, int(header["n_steps"]), str(header["method"]), dict(header["records"]))
            rows = None if "rows.x" not in arrays else Rows(_tensor(arrays["rows.x"]), _tensor(arrays["rows.y"]))
            sizes, n_classes = tuple(map(int, header["category_sizes"])), int(header["n_classes"])
            found = cls(
                birth, sizes, n_classes, float(header["mean"]), float(header["scale"]), _count(header["n_threads"]),
                make_net(weights, sizes, n_classes), rows,
            )  # fmt: skip
            found._check()
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError) as error:
            raise ArtefactError(f"The state of an adaptable net cannot be restored: {error!s:.300}") from error
        return found

    def _check(self) -> None:
        """That birth, rates and rows fit the net; ValueError otherwise."""
        net = make_net(self.birth.weights, self.category_sizes, self.n_classes)
        parameters = dict(net.named_parameters())
        for name, rate in self.birth.rates.items():
            if name not in parameters or rate.shape not in (torch.Size(()), parameters[name].shape):
                raise ValueError(f"rates must be of the net. Got {name!r:.60} of shape {tuple(rate.shape)}")
        if self.birth.n_steps < 1 or not (np.isfinite(self.mean) and 0 < self.scale < np.inf):
            raise ValueError("a birth must have at least one step, and targets a finite mean and scale")
        if self.rows is not None:
            self._check_rows(self.rows, len(self.category_sizes) + n_numeric(net))

    def _check_rows(self, rows: Rows, n_columns: int) -> None:
        dtype = torch.int64 if self.n_classes else torch.float32
        if rows.x.shape != (len(rows.y), n_columns) or rows.y.shape != (len(rows.x),) or rows.y.dtype != dtype:
            raise ValueError(f"the kept rows must have {n_columns} columns and a target each")
        codes = rows.x[:, : len(self.category_sizes)]
        if rows.x.dtype != torch.float32 or not bool((codes == codes.clamp(min=0)).all()):
            raise ValueError("the kept rows must be encoded")
        if bool((codes >= torch.tensor(self.category_sizes)).any()) or (
            self.n_classes and bool(((rows.y < 0) | (rows.y >= self.n_classes)).any())
        ):
            raise ValueError("codes of the kept rows must be below the number of categories and classes")


def make_net(weights: Mapping[str, Tensor], category_sizes: Sequence[int], n_classes: int) -> MLP:
    """The MLP that these weights belong to, filled with them. Its sizes are read from the weights.

    Raises
    ------
    ValueError
        They are no weights of an MLP with such categories and classes.
    """
    layers = [value for name, value in weights.items() if name.startswith("hidden.") and name.endswith(".weight")]
    widths = [value.shape for value in (*layers, weights["output.weight"])]
    if any(len(shape) != 2 for shape in widths) or any(a[0] != b[1] for a, b in pairwise(widths)):
        raise ValueError("the layers of a net must follow each other")
    n_numbers = int(widths[0][1]) - _EMBEDDING * len(category_sizes)
    table = weights.get("table_input.categorical.table.weight")
    n_outputs = int(widths[-1][0])
    if any(size < 1 for size in category_sizes) or sum(category_sizes) != (0 if table is None else len(table)):
        raise ValueError("the embedding must have a row for each category")
    if n_numbers < 0 or n_outputs != max(1, n_classes):
        raise ValueError(f"the net must have {max(1, n_classes)} outputs. Got {n_outputs}")
    hidden = [int(shape[0]) for shape in widths[:-1]]
    net = initialize(lambda: MLP(TableInput(n_numbers, category_sizes), n_outputs, hidden_sizes=hidden))
    net.load_state_dict(dict(weights))
    return net.eval()


def n_numeric(net: MLP) -> int:
    """Columns of numbers that a net of :func:`make_net` reads."""
    return int(net.table_input.n_numeric)  # type: ignore[arg-type]


def known_codes(matrix: NDArray[np.float32], sizes: Sequence[int]) -> Tensor:
    """A "net" matrix as a tensor, category codes that no table of the meta-training had as 0 (unknown)."""
    codes = matrix[:, : len(sizes)]
    known = (codes >= 0) & (codes < np.array(sizes, dtype=np.float32))
    return torch.from_numpy(np.concatenate([np.where(known, codes, 0.0), matrix[:, len(sizes) :]], 1, dtype=np.float32))


def _array(value: Tensor) -> NDArray[Any]:
    return np.array(value.detach().cpu().numpy())


def _tensor(value: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.array(value))


def _tensors(arrays: Mapping[str, NDArray[Any]], part: str) -> dict[str, Tensor]:
    prefix = f"{part}."
    return {name.removeprefix(prefix): _tensor(value) for name, value in arrays.items() if name.startswith(prefix)}


def _count(value: Any) -> int | None:
    return None if value is None else int(value)
