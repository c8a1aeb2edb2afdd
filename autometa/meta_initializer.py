"""``MetaInitializer``: a net that starts from what many tables of the same columns have taught."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from autometa.adaptation import adapt_birth
from autometa.data import Dataset, TaskType, as_dataset, as_frame, read_table
from autometa.exceptions import DataError
from autometa.families._net_adaptable import AdaptableNet, known_codes
from autometa.gradient import losses
from autometa.gradient.devices import torch_threads
from autometa.gradient.fit import Rows
from autometa.gradient.initialization import initialize
from autometa.meta_training.initialisation import MetaTrainingPlan, meta_train_initialisation
from autometa.nets.mlp import MLP, TableInput
from autometa.predictor import Member, Predictor, make_predictor
from autometa.preprocessing import TableEncoder

_MIN_ROWS = 4
_TABLE_SUFFIXES = {".csv", ".tsv", ".parquet", ".pq"}


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
    predictor_ : Predictor
        The shared net before any step, with its birth: what :func:`autometa.save` writes and
        :func:`autometa.adaptation.adapt` starts from.

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
        parts = np.split(whole.y, np.cumsum([len(frame) for frame in frames])[:-1])
        net = self._shared_net(matrix, parts, whole)
        config = {"method": self.method, "n_tables": len(frames)}
        member = Member("adaptable_net", config, "net", (net,))
        self.predictor_ = make_predictor(whole, (member,), encoders={"net": self.encoder_})
        return self

    def adapt(self, X: Any, y: Any, *, n_steps: int | None = None) -> Predictor:
        """A model of one table: the learned weights, moved by a few steps on its rows.

        :func:`autometa.adaptation.adapt` adapts it again when more rows arrive, and it is saved and served as any
        other model.

        Parameters
        ----------
        X : DataFrame or array of shape (n_rows, n_features)
            With the columns of the collection; a handful of rows will do.
        y : array-like of shape (n_rows,)
            Rows without a target are left out.
        n_steps : int or None
            Gradient steps; ``None``: as many as it was meta-trained for, or from 30 rows on up to eight times as
            many, by cross-validation on the rows; 0: the shared weights as they are.

        Raises
        ------
        DataError
            A column is missing, no row has a target, or a class is none of ``classes_``.
        """
        check_is_fitted(self, "predictor_")
        return adapt_birth(self.predictor_, X, y, n_steps=n_steps)

    def _shared_net(self, matrix: NDArray[np.float32], parts: Sequence[NDArray[Any]], whole: Dataset) -> AdaptableNet:
        """Meta-train; the net with the first weights."""
        n_categorical, n_classes = self.encoder_.n_categorical_, whole.n_classes
        sizes = tuple(int(matrix[:, i].max()) + 1 for i in range(n_categorical))
        mean, scale = (0.0, 1.0) if n_classes else (float(whole.y.mean()), float(whole.y.std()) or 1.0)
        targets = [part if n_classes else ((part - mean) / scale).astype(np.float32) for part in parts]
        matrices = np.split(matrix, np.cumsum([len(part) for part in parts])[:-1])
        rows = [
            Rows(known_codes(x, sizes), torch.from_numpy(y.astype(np.int64) if n_classes else y))
            for x, y in zip(matrices, targets, strict=True)
        ]
        plan = MetaTrainingPlan(
            n_meta_steps=self.n_meta_steps, n_inner_steps=self.n_inner_steps, inner_rate=self.inner_rate,
            meta_rate=self.meta_rate, n_support=(int(self.n_shots[0]), int(self.n_shots[1])),
        )  # fmt: skip
        table_input = (matrix.shape[1] - n_categorical, sizes)
        net = initialize(
            lambda: MLP(TableInput(*table_input), max(1, n_classes), hidden_sizes=tuple(self.hidden_sizes)),
            seed=int(self.random_state),
        )
        net.get_parameter("output.weight").data.mul_(0.1)  # an untrained net should say little
        loss = losses.classification_loss() if n_classes else losses.regression_loss()
        with torch_threads(self.n_threads):
            self.initialisation_ = meta_train_initialisation(
                rows, self.method, net=net, loss=loss, plan=plan, seed=int(self.random_state), device=self.device,
            )  # fmt: skip
        return AdaptableNet(self.initialisation_, sizes, n_classes, mean, scale, self.n_threads)


def read_tables(path: str | PathLike[str], *, target: str, by: str | None = None) -> list[tuple[pd.DataFrame, Any]]:
    """What :meth:`MetaInitializer.fit` takes, from files.

    Parameters
    ----------
    path : path
        One CSV or Parquet file that ``by`` cuts into tables, or a folder with one file a table.
    target : str
        Column to predict; rows without it are left out.
    by : str or None
        Column whose values tell the tables of one file apart; it is no feature.

    Raises
    ------
    DataError
        A file cannot be read, a column is missing, or ``by`` is not given exactly where there is one file.
    """
    path = Path(path)
    if path.is_dir() == (by is not None):
        raise DataError("by must name a column of one file, and must be left out for a folder with a file a table.")
    files = sorted(file for file in path.iterdir() if _TABLE_SUFFIXES & set(file.suffixes)) if by is None else [path]
    frames = [read_table(file) for file in files]
    for file, frame in zip(files, frames, strict=True):
        absent = [name for name in (target, by) if name is not None and name not in frame.columns]
        if absent:
            raise DataError(f"The file {str(file)!r} must have a column {absent[0]!r}. Got {list(frame.columns)[:10]}.")
    if by is not None:
        frames = [part.drop(columns=[by]) for _, part in frames[0].groupby(by, observed=True, sort=True)]
    labelled = [frame[frame[target].notna()].reset_index(drop=True) for frame in frames]
    return [(frame.drop(columns=[target]), frame[target]) for frame in labelled]


def _read_tables(
    tables: Sequence[Any],
) -> tuple[list[pd.DataFrame], list[NDArray[Any]], TaskType | None]:
    """Features and targets of each usable table, and the task if Datasets tell it."""
    frames: list[pd.DataFrame] = []
    targets: list[NDArray[Any]] = []
    tasks = set()
    for table in tables:
        if isinstance(table, Dataset):
            frame, y = table.X, table.labels
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
