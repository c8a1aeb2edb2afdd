"""``MetaInitializer``: a net that starts from what many tables of the same columns have taught."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from autometa.data import Dataset, TaskType, as_dataset, as_frame
from autometa.exceptions import DataError
from autometa.gradient import losses
from autometa.gradient.devices import torch_threads
from autometa.gradient.fit import Rows
from autometa.gradient.initialization import initialize
from autometa.meta_training.initialisation import MetaTrainingPlan, meta_train_initialisation
from autometa.nets.mlp import MLP, TableInput
from autometa.preprocessing import TableEncoder

_MIN_ROWS = 4


class MetaInitializer(BaseEstimator):
    """Meta-trains a net on tables of the same columns (one a customer, shop, city), then adapts it to a new one.

    ``fit`` learns first weights and learning rates such that a few gradient steps on a few rows of a table predict
    the rest of that table; ``adapt`` takes these steps on the rows of a new table. Two effects are told apart that a
    single model of all tables cannot: what all tables have in common sits in the first weights, how they differ is
    what the steps move.

    Parameters
    ----------
    method : {"meta_sgd", "maml", "fomaml", "reptile", "anil"}, default "meta_sgd"
        See :func:`autometa.meta_training.initialisation.meta_train_initialisation`.
    n_shots : tuple of (int, int), default (5, 40)
        Smallest and largest number of rows of a new table to be ready for.
    n_inner_steps : int, default 5
    n_meta_steps : int, default 1500
    hidden_sizes : tuple of int, default (64, 64)
    inner_rate : float, default 0.03
        Learning rate of the inner steps; "meta_sgd" begins with it and learns one for each parameter.
    meta_rate : float, default 0.002
    random_state : int, default 0
    n_threads : int or None, default 1
        CPU threads inside fit and adapt; ``None`` leaves PyTorch's setting.
    device : str, default "cpu"
        Of the meta-training.
    task : {"binary", "multiclass", "regression"} or None, default None
        ``None``: what the Datasets say, else inferred from all targets together.

    Attributes
    ----------
    initialisation_ : Initialisation
    encoder_ : TableEncoder
        Fitted on all tables together.
    task_ : TaskType
    classes_ : ndarray or None
        Labels of all tables; ``None`` for regression.
    n_tables_ : int

    References
    ----------
    Finn et al., Model-agnostic meta-learning, 2017; Li et al., Meta-SGD, 2017.

    Examples
    --------
    >>> import numpy as np
    >>> rng = np.random.default_rng(0)
    >>> tables = []
    >>> for slope in rng.normal(size=8):
    ...     x = rng.normal(size=(30, 2))
    ...     tables.append((x, slope * x[:, 0]))
    >>> meta = MetaInitializer(n_meta_steps=20, hidden_sizes=(8,)).fit(tables)
    >>> meta.adapt(*tables[0]).predict(tables[0][0]).shape
    (30,)
    """

    def __init__(
        self,
        method: str = "meta_sgd",
        *,
        n_shots: tuple[int, int] = (5, 40),
        n_inner_steps: int = 5,
        n_meta_steps: int = 1500,
        hidden_sizes: tuple[int, ...] = (64, 64),
        inner_rate: float = 0.03,
        meta_rate: float = 2e-3,
        random_state: int = 0,
        n_threads: int | None = 1,
        device: str = "cpu",
        task: TaskType | str | None = None,
    ) -> None:
        self.method = method
        self.n_shots = n_shots
        self.n_inner_steps = n_inner_steps
        self.n_meta_steps = n_meta_steps
        self.hidden_sizes = hidden_sizes
        self.inner_rate = inner_rate
        self.meta_rate = meta_rate
        self.random_state = random_state
        self.n_threads = n_threads
        self.device = device
        self.task = task

    def fit(self, tables: Iterable[Dataset | tuple[Any, Any]], y: Any = None) -> Self:
        """Meta-train on a collection of tables.

        Parameters
        ----------
        tables : iterable of Dataset or (X, y)
            At least two of 4 rows or more, all with the columns of the first; further columns are left out.
        y : None
            Ignored.

        Raises
        ------
        DataError
            Fewer than two tables, columns that are missing, or different tasks.
        """
        frames, targets, task = _read_tables(list(tables))
        pooled = pd.concat(frames, ignore_index=True)
        whole = as_dataset(pooled, np.concatenate(targets), task=self.task or task)
        self.task_, self.classes_, self.n_tables_ = whole.task, whole.classes, len(frames)
        self.encoder_ = TableEncoder("net", kinds=whole.kinds).fit(pooled)
        matrix = self.encoder_.transform(pooled)
        self._sizes = [int(matrix[:, i].max()) + 1 for i in range(self.encoder_.n_categorical_)]
        self._mean, self._scale = (0.0, 1.0)
        if self.classes_ is None:
            self._mean, self._scale = float(whole.y.mean()), float(whole.y.std()) or 1.0
        ends = np.cumsum([len(frame) for frame in frames])
        self._n_columns = matrix.shape[1]
        parts = zip(np.split(matrix, ends[:-1]), np.split(whole.y, ends[:-1]), strict=True)
        rows = [self._rows(part, target) for part, target in parts]
        plan = MetaTrainingPlan(
            n_meta_steps=self.n_meta_steps, n_inner_steps=self.n_inner_steps, inner_rate=self.inner_rate,
            meta_rate=self.meta_rate, n_support=(int(self.n_shots[0]), int(self.n_shots[1])),
        )  # fmt: skip
        net = self._net()
        net.get_parameter("output.weight").data.mul_(0.1)  # an untrained net should say little
        with torch_threads(self.n_threads):
            self.initialisation_ = meta_train_initialisation(
                rows, self.method, net=net, loss=self._loss(), plan=plan, seed=int(self.random_state),
                device=self.device,
            )  # fmt: skip
        return self

    def adapt(self, X: Any, y: Any, *, n_steps: int | None = None) -> AdaptedNet:
        """A model of one table: the learned weights, moved by a few steps on its rows.

        Parameters
        ----------
        X : DataFrame or array of shape (n_rows, n_features)
            With the columns of the collection; a handful of rows will do.
        y : array-like of shape (n_rows,)
        n_steps : int or None
            Gradient steps; ``None``: as many as it was meta-trained for, 0: the shared weights as they are.

        Raises
        ------
        DataError
            A column or a target is missing, or a class is none of ``classes_``.
        """
        check_is_fitted(self, "initialisation_")
        matrix = self.encoder_.transform(X)
        codes = self._encode(np.asarray(y))
        if len(codes) != len(matrix):
            raise DataError(f"X and y must have the same number of rows. Got {len(matrix)} and {len(codes)}.")
        net = self._net()
        with torch_threads(self.n_threads):
            self.initialisation_.install(net)
            self.initialisation_.adapt(net, self._rows(matrix, codes), loss=self._loss(), n_steps=n_steps)
        return AdaptedNet(
            net.eval(), self.encoder_, tuple(self._sizes), self.classes_, self._mean, self._scale, self.n_threads
        )

    def _net(self) -> MLP:
        table_input = (self._n_columns - len(self._sizes), self._sizes)
        n_outputs = 1 if self.classes_ is None else len(self.classes_)
        return initialize(
            lambda: MLP(TableInput(*table_input), n_outputs, hidden_sizes=tuple(self.hidden_sizes)),
            seed=int(self.random_state),
        )

    def _loss(self) -> losses.Loss:
        return losses.regression_loss() if self.classes_ is None else losses.classification_loss()

    def _rows(self, matrix: NDArray[np.float32], y: NDArray[Any]) -> Rows:
        target = y.astype(np.int64) if self.classes_ is not None else (y - self._mean) / self._scale
        kind = np.int64 if self.classes_ is not None else np.float32
        return Rows(_known_codes(matrix, self._sizes), torch.from_numpy(np.asarray(target).astype(kind)))

    def _encode(self, y: NDArray[Any]) -> NDArray[Any]:
        if self.classes_ is None:
            values = y.astype(np.float64)
            if not np.isfinite(values).all():
                raise DataError("The target must be finite. Got NaN or infinite values.")
            return values
        strange = sorted({str(label) for label in y} - {str(label) for label in self.classes_})
        if strange:
            raise DataError(f"The classes must be among {self.classes_.tolist()}. Got {strange[0]!r}.")
        return np.searchsorted(self.classes_, y.astype(self.classes_.dtype))


@dataclass(frozen=True, eq=False)
class AdaptedNet:
    """A net adapted to one table; made by :meth:`MetaInitializer.adapt`.

    Attributes
    ----------
    classes_ : ndarray or None
        Labels in the order of the probabilities; ``None`` for regression.
    """

    net: MLP = field(repr=False)
    encoder: TableEncoder = field(repr=False)
    category_sizes: tuple[int, ...] = field(repr=False)
    classes_: NDArray[Any] | None
    mean: float = field(repr=False)
    scale: float = field(repr=False)
    n_threads: int | None = field(repr=False)

    def predict(self, X: Any) -> NDArray[Any]:
        """Labels or values of shape (n_rows,)."""
        if self.classes_ is None:
            output = self._outputs(X).squeeze(-1).double().numpy()
            values: NDArray[np.float64] = output * self.scale + self.mean
            return values
        return np.asarray(self.classes_[self.predict_proba(X).argmax(axis=1)])

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Class probabilities of shape (n_rows, n_classes)."""
        if self.classes_ is None:
            raise AttributeError("predict_proba is defined for classification only; use predict for regression.")
        probabilities: NDArray[np.float64] = torch.softmax(self._outputs(X).double(), dim=-1).numpy()
        return probabilities

    @torch.inference_mode()
    def _outputs(self, X: Any) -> torch.Tensor:
        with torch_threads(self.n_threads):
            output: torch.Tensor = self.net(_known_codes(self.encoder.transform(X), self.category_sizes))
        return output


def _known_codes(matrix: NDArray[np.float32], sizes: Sequence[int]) -> torch.Tensor:
    """A "net" matrix as a tensor, category codes that no table had as 0 (unknown)."""
    codes = matrix[:, : len(sizes)]
    known = (codes >= 0) & (codes < np.array(sizes, dtype=np.float32))
    return torch.from_numpy(np.concatenate([np.where(known, codes, 0.0), matrix[:, len(sizes) :]], 1, dtype=np.float32))


def _read_tables(
    tables: Sequence[Any],
) -> tuple[list[pd.DataFrame], list[NDArray[Any]], TaskType | None]:
    """Features and targets of each usable table, and the task if Datasets tell it."""
    frames: list[pd.DataFrame] = []
    targets: list[NDArray[Any]] = []
    tasks = set()
    for table in tables:
        if isinstance(table, Dataset):
            frame = table.X
            y = table.y if table.classes is None else table.classes[table.y]
            tasks.add(TaskType.REGRESSION if table.classes is None else TaskType.MULTICLASS)
        else:
            frame, y = as_frame(table[0]), np.asarray(table[1])
        if len(frame) < _MIN_ROWS:
            continue
        if frames:
            absent = [name for name in frames[0].columns if name not in frame.columns]
            if absent:
                raise DataError(f"All tables must have the columns of the first. One has no column {absent[0]!r}.")
            frame = frame[list(frames[0].columns)]
        frames.append(frame)
        targets.append(np.asarray(y))
    if len(frames) < 2:
        raise DataError(f"MetaInitializer needs at least 2 tables of {_MIN_ROWS} rows or more. Got {len(frames)}.")
    if len(tasks) > 1:
        raise DataError("All tables must be for classification or all for regression. Got both.")
    return frames, targets, next(iter(tasks)) if tasks else None
