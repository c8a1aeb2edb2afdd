"""What a fitted model is once the search is over: encoders, members and the table's schema; it only predicts."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from autometa.correction import Correction
from autometa.data import ColumnKind, Dataset, TaskType, as_frame
from autometa.exceptions import DataError
from autometa.family import Candidate, MatrixKind
from autometa.fitting import FittedModel
from autometa.frozen_models import freeze

if TYPE_CHECKING:
    from autometa.preprocessing import TableEncoder


@dataclass(frozen=True)
class Column:
    """One column of the table that a model was fitted on.

    Parameters
    ----------
    name : Hashable
    kind : ColumnKind
    dtype : str
        Name of the pandas dtype at fit time.
    categories : tuple of str
        Values seen at fit time, for ``CATEGORICAL`` columns; empty for others.
    """

    name: Hashable
    kind: ColumnKind
    dtype: str
    categories: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Member:
    """One candidate of the ensemble with its fitted models.

    Parameters
    ----------
    family : str
    config : mapping
    matrix : {"tree", "linear", "net"}
        Which encoder feeds it.
    models : tuple of FittedModel or estimators
        One model fitted on all rows, or several fold models whose predictions are averaged. Held in the form that
        :func:`autometa.frozen_models.freeze` gives them, so that saving changes no bit of a prediction.
    weight : float, default=1.0
        Share in the ensemble, >= 0; shares are divided by their sum.
    class_codes : tuple of tuple of int, default=()
        The dataset's class code behind each probability of each model. Taken from a
        :class:`~autometa.fitting.FittedModel`, else from the estimator's ``classes_``; empty tuples for regression.
    """

    family: str
    config: Mapping[str, Any]
    matrix: MatrixKind
    models: tuple[Any, ...] = field(repr=False)
    weight: float = 1.0
    class_codes: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if not self.models:
            raise ValueError(f"A member must have at least one fitted model. Got none for {self.family!r}.")
        if not (np.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(f"A member's weight must be finite and >= 0. Got {self.weight!r} for {self.family!r}.")
        codes = self.class_codes or tuple(_class_codes(model) for model in self.models)
        if len(codes) != len(self.models):
            raise ValueError(f"class_codes must have an entry per model ({len(self.models)}). Got {len(codes)}.")
        estimators = (model.estimator if isinstance(model, FittedModel) else model for model in self.models)
        object.__setattr__(self, "class_codes", codes)
        object.__setattr__(self, "models", tuple(freeze(estimator) for estimator in estimators))

    @property
    def candidate(self) -> Candidate:
        """What was fitted."""
        return Candidate(self.family, dict(self.config))

    def predict_raw(self, matrix: NDArray[np.float32], n_classes: int) -> NDArray[np.float64]:
        """Mean over the models: probabilities (n_rows, n_classes), or values (n_rows,) where ``n_classes`` is 0."""
        found = [
            _raw_prediction(model, matrix, codes, n_classes)
            for model, codes in zip(self.models, self.class_codes, strict=True)
        ]
        total = found[0]
        for part in found[1:]:
            total = total + part
        return total / len(found)


def _class_codes(model: Any) -> tuple[int, ...]:
    classes = model.classes if isinstance(model, FittedModel) else getattr(model, "classes_", None)
    return () if classes is None else tuple(int(code) for code in classes)


def _raw_prediction(
    model: Any, matrix: NDArray[np.float32], codes: tuple[int, ...], n_classes: int
) -> NDArray[np.float64]:
    if n_classes == 0:
        return np.asarray(model.predict(matrix), dtype=np.float64).reshape(len(matrix))
    found = np.asarray(model.predict_proba(matrix), dtype=np.float64)
    if found.shape != (len(matrix), len(codes)):
        raise ValueError(f"Probabilities must have shape {(len(matrix), len(codes))}. Got {found.shape} instead.")
    if len(codes) == n_classes and codes == tuple(range(n_classes)):
        return found
    full = np.zeros((len(matrix), n_classes))
    full[:, codes] = found  # a fold model that never saw a class gives it no probability
    return full


@dataclass(frozen=True, eq=False)
class Predictor:
    """Everything that is needed to predict raw tables, and nothing else.

    Parameters
    ----------
    members : tuple of Member
        With at least one positive weight.
    encoders : mapping of matrix kind to fitted TableEncoder
        One for each kind of matrix that a member wants.
    task : TaskType
    columns : tuple of Column
        The features in the order of the table of ``fit``.
    classes : ndarray of shape (n_classes,) or None
        Labels in sorted order; ``None`` for regression.
    temperature : float, default=1.0
        Probabilities are raised to 1 / temperature and normalised again; 1 leaves them as they are.
    records : mapping of str to JSON, default={}
        What the estimator wants to keep beside the model (leaderboard, ledger, selection).
    libraries : mapping of str to str, default={}
        Versions that an artefact was saved with; empty for a model that was never saved.
    correction : Correction or None, default=None
        What :func:`autometa.adaptation.adapt` learned from later rows; applied last.

    Raises
    ------
    ValueError
        The parts do not fit together.
    """

    members: tuple[Member, ...]
    encoders: Mapping[MatrixKind, TableEncoder] = field(repr=False)
    task: TaskType
    columns: tuple[Column, ...] = field(repr=False)
    classes: NDArray[Any] | None = None
    temperature: float = 1.0
    records: Mapping[str, Any] = field(default_factory=dict, repr=False)
    libraries: Mapping[str, str] = field(default_factory=dict, repr=False)
    correction: Correction | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not sum(member.weight for member in self.members) > 0:
            raise ValueError("A Predictor must have at least one member with a positive weight.")
        lacking = {member.matrix for member in self.members} - set(self.encoders)
        if self.correction is not None:
            lacking |= {self.correction.matrix} - set(self.encoders)
        if lacking:
            raise ValueError(f"encoders must hold every matrix that a member wants. Got none for {sorted(lacking)}.")
        if self.task.is_classification == (self.classes is None):
            raise ValueError(f"classes must be given for classification only. Got {self.classes!r} for {self.task}.")
        for member in self.members:
            for codes in member.class_codes:
                if len(set(codes)) != len(codes) or not set(codes) <= set(range(self.n_classes)):
                    raise ValueError(f"class_codes must be below the number of classes {self.n_classes}. Got {codes}.")
        if not (np.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature must be finite and > 0. Got {self.temperature!r} instead.")
        if self.correction is not None and len(self.correction.intercept) != (self.n_classes or 1):
            n_outputs = len(self.correction.intercept)
            raise ValueError(f"correction must have {self.n_classes or 1} outputs. Got {n_outputs} instead.")

    @property
    def n_features(self) -> int:
        """Number of columns of the raw table."""
        return len(self.columns)

    @property
    def n_classes(self) -> int:
        """Number of classes; 0 for regression."""
        return 0 if self.classes is None else len(self.classes)

    @property
    def feature_names(self) -> list[Hashable]:
        """Names of the columns, in order."""
        return [column.name for column in self.columns]

    def predict_raw(self, X: Any) -> NDArray[np.float64]:
        """Weighted mean over the members, corrected for later rows where the model was adapted.

        Parameters
        ----------
        X : DataFrame (pandas or polars) or array of shape (n_rows, n_features)
            The order of named columns and further columns do not matter.

        Returns
        -------
        ndarray
            Probabilities of shape (n_rows, n_classes), or values of shape (n_rows,) for regression.

        Raises
        ------
        DataError
            A column is missing, or its values cannot be read as what they were at fit time.
        """
        raw = self.predict_uncorrected(X)
        if self.correction is None or len(raw) == 0:
            return raw
        return self.correction.apply(raw, self.encoders[self.correction.matrix].transform(X))

    def predict_uncorrected(self, X: Any) -> NDArray[np.float64]:
        """As :meth:`predict_raw`, before the correction."""
        frame = as_frame(X)
        if len(frame) == 0:
            return np.zeros((0, self.n_classes) if self.n_classes else 0)
        used = [member for member in self.members if member.weight > 0]
        # The encoders read nameless arrays by position, so they get the table as it came.
        matrices = {kind: self.encoders[kind].transform(X) for kind in dict.fromkeys(m.matrix for m in used)}
        share = 1.0 / sum(member.weight for member in used)
        total = used[0].weight * share * used[0].predict_raw(matrices[used[0].matrix], self.n_classes)
        for member in used[1:]:
            total = total + member.weight * share * member.predict_raw(matrices[member.matrix], self.n_classes)
        return self._calibrate(total) if self.n_classes else total

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Class probabilities of shape (n_rows, n_classes), in the order of ``classes``; see :meth:`predict_raw`."""
        if self.classes is None:
            raise AttributeError("predict_proba is defined for classification only; use predict for regression.")
        return self.predict_raw(X)

    def predict(self, X: Any) -> NDArray[Any]:
        """Labels in their original form, or values. Shape (n_rows,); see :meth:`predict_raw`."""
        raw = self.predict_raw(X)
        return raw if self.classes is None else np.asarray(self.classes[raw.argmax(axis=1)])

    def _calibrate(self, probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
        powered = probabilities if self.temperature == 1.0 else np.power(probabilities, 1.0 / self.temperature)
        total = powered.sum(axis=1, keepdims=True)
        return np.where(total > 0, powered / np.where(total > 0, total, 1.0), probabilities)


def schema_of(frame: pd.DataFrame, kinds: Mapping[Hashable, ColumnKind]) -> tuple[Column, ...]:
    """The columns of a table with their kinds, dtypes and categories."""
    absent = [name for name in frame.columns if name not in kinds]
    if absent:
        raise DataError(f"kinds must name every column of the table. Got none for {absent[0]!r}.")
    return tuple(
        Column(
            name,
            ColumnKind(kinds[name]),
            str(frame[name].dtype),
            _categories(frame[name]) if kinds[name] is ColumnKind.CATEGORICAL else (),
        )
        for name in frame.columns
    )


def _categories(column: pd.Series) -> tuple[str, ...]:
    return tuple(sorted({str(value) for value in column.dropna().unique()}))


def make_predictor(
    dataset: Dataset,
    members: tuple[Member, ...],
    *,
    encoders: Mapping[MatrixKind, TableEncoder],
    temperature: float = 1.0,
    records: Mapping[str, Any] | None = None,
) -> Predictor:
    """A :class:`Predictor` that takes task, classes and schema from the dataset it was fitted on."""
    return Predictor(
        members,
        dict(encoders),
        dataset.task,
        schema_of(dataset.X, dataset.kinds),
        dataset.classes,
        temperature=temperature,
        records=dict(records or {}),
    )
