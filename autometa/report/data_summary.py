"""What is worth knowing of a table before its model is trusted: its shape, and what looks wrong with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import spearmanr

from autometa.data import ColumnKind, Dataset

Level = Literal["warning", "note"]
MAX_ROWS = 5_000
"""Rows that the checks of single columns read, of at most 200 columns; copies are looked for in the first 20,000."""
_MAX_DUPLICATE_ROWS = 20_000
_MAX_COLUMNS = 200
_MAX_NAMED = 8
_FEW_ROWS = 100
_FEW_IN_CLASS = 10
_MOSTLY = 0.5


@dataclass(frozen=True)
class Problem:
    """Something about the data that a person should look at.

    Parameters
    ----------
    level : {"warning", "note"}
        A warning may make the validation score wrong; a note is good to know.
    text : str
        What was found, one sentence.
    advice : str
        What to do about it.
    columns : tuple of str
        The columns concerned, at most eight of them.
    """

    level: Level
    text: str
    advice: str
    columns: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataSummary:
    """The table of a fit in a few numbers; no value of it but the class labels.

    Parameters
    ----------
    name, fingerprint, task : str
    n_rows, n_features, n_splits : int
        ``n_splits`` is the number of validation splits that every candidate was measured on.
    kinds : mapping of str to int
        Number of columns of each kind.
    classes : tuple of (label, n_rows)
        Most frequent first, at most 20; empty for regression.
    target : mapping of str to float
        Minimum, quartiles and maximum for regression; empty for classification.
    row_data : tuple of str
        Which of groups, time and sample_weight were given.
    problems : tuple of Problem
    """

    name: str
    fingerprint: str
    task: str
    n_rows: int
    n_features: int
    n_splits: int
    kinds: dict[str, int]
    classes: tuple[tuple[str, int], ...]
    target: dict[str, float]
    row_data: tuple[str, ...]
    problems: tuple[Problem, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain lists, dicts, numbers and text."""
        plain = asdict(self)
        plain["classes"] = [list(pair) for pair in self.classes]
        plain["row_data"] = list(self.row_data)
        plain["problems"] = [{**asdict(p), "columns": list(p.columns)} for p in self.problems]
        return plain


Sample = tuple[pd.DataFrame, NDArray[Any]]


def summarise(dataset: Dataset, *, n_splits: int = 0) -> DataSummary:
    """The summary of a dataset, with its problems; bounded in time whatever the size of the table."""
    classes: list[tuple[str, int]] = []
    target: dict[str, float] = {}
    if dataset.classes is None:
        names = ("minimum", "lower quartile", "median", "upper quartile", "maximum")
        target = dict(zip(names, map(float, np.quantile(dataset.y, [0, 0.25, 0.5, 0.75, 1])), strict=True))
    else:
        counts = np.bincount(dataset.y, minlength=dataset.n_classes)
        order = np.argsort(-counts, kind="stable")[:20]
        classes = [(str(dataset.classes[i]), int(counts[i])) for i in order]
    given = [name for name in ("groups", "time", "sample_weight") if getattr(dataset, name) is not None]
    return DataSummary(
        dataset.name, dataset.fingerprint, str(dataset.task), dataset.n_rows, dataset.n_features, n_splits,
        dict(Counter(str(kind) for kind in dataset.kinds.values())), tuple(classes), target, tuple(given),
        tuple(find_problems(dataset)),
    )  # fmt: skip


def find_problems(dataset: Dataset) -> list[Problem]:
    """What looks wrong with a table, warnings first.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> rng = np.random.default_rng(0)
    >>> X = pd.DataFrame({"id": range(200), "same": 1.0, "x": rng.normal(size=200)})
    >>> [p.columns for p in find_problems(Dataset.from_arrays(X, X["x"] + rng.normal(size=200)))]
    [('same',), ('id',)]
    """
    sample = _take(dataset, MAX_ROWS)
    found = [problem for check in _CHECKS for problem in check(sample, dataset)]
    return sorted(found, key=lambda problem: problem.level != "warning")


def _take(dataset: Dataset, n_rows: int) -> Sample:
    """Evenly spaced rows of the usable columns, and their targets."""
    rows = np.linspace(0, dataset.n_rows - 1, min(n_rows, dataset.n_rows)).astype(int)
    used = [name for name, kind in dataset.kinds.items() if kind is not ColumnKind.EMPTY][:_MAX_COLUMNS]
    return dataset.X[used].iloc[rows], dataset.y[rows]


def _few_rows(sample: Sample, dataset: Dataset) -> Iterator[Problem]:
    if dataset.n_rows < _FEW_ROWS:
        text = f"There are only {dataset.n_rows} rows."
        yield Problem("warning", text, "Differences between models of this size are mostly noise; collect more rows.")


def _rare_classes(sample: Sample, dataset: Dataset) -> Iterator[Problem]:
    if dataset.classes is None:
        return
    counts = np.bincount(dataset.y, minlength=dataset.n_classes)
    rare = [str(dataset.classes[i]) for i in np.flatnonzero(counts < _FEW_IN_CLASS)]
    if rare:
        text = f"{_count(rare, 'class has', 'classes have')} fewer than {_FEW_IN_CLASS} rows: {_listed(rare)}."
        yield Problem("warning", text, "A model cannot learn a class from so few rows; merge classes or add rows.")
    elif counts.min() < 0.05 * counts.sum():
        share = counts.min() / counts.sum()
        text = f"The rarest class, {dataset.classes[counts.argmin()]}, has {share:.1%} of the rows."
        yield Problem("note", text, "Accuracy says little here; prefer ROC AUC, log loss or balanced accuracy.")


def _duplicates(sample: Sample, dataset: Dataset) -> Iterator[Problem]:
    frame = dataset.X.iloc[:_MAX_DUPLICATE_ROWS].apply(_hashable)
    rows = pd.util.hash_pandas_object(frame, index=False)
    labels = pd.Series(dataset.y[: len(frame)], index=rows.index)
    share = float(pd.DataFrame({"row": rows, "y": labels}).duplicated().mean())
    if share > 0.01 and dataset.groups is None:
        # In a table of a few codes rows meet by chance; beside a measured number they are copies.
        level: Level = "warning" if int(frame.nunique().max()) > 100 else "note"
        advice = "Copies on both sides of a split make validation too good; drop them, or pass groups=."
        yield Problem(level, f"{share:.1%} of the rows repeat an earlier one, target included.", advice)
    if dataset.task.is_classification:
        mixed = float((labels.groupby(rows.to_numpy()).transform("nunique") > 1).mean())
        if mixed > 0.01:
            text = f"{mixed:.1%} of the rows have the same features as a row of another class."
            yield Problem("note", text, "No model can tell these rows apart; a column may be missing.")


def _telling_columns(sample: Sample, dataset: Dataset) -> Iterator[Problem]:
    X, y = sample
    tell = [str(name) for name in X.columns if _tells_all(X[name], y, dataset.kinds[name], dataset.n_classes)]
    if tell:
        text = f"{_count(tell, 'column tells', 'columns tell')} the target almost alone: {_listed(tell)}."
        advice = "If it is known only once the target is known, it leaks: leave it out."
        yield Problem("warning", text, advice, tuple(tell[:_MAX_NAMED]))


def _dates_without_time(sample: Sample, dataset: Dataset) -> Iterator[Problem]:
    dates = [str(name) for name, kind in dataset.kinds.items() if kind is ColumnKind.DATETIME]
    if dates and dataset.time is None:
        text = f"There are dates ({_listed(dates)}), but rows were split at random."
        advice = "If the model is to predict the future, pass time= so that validation rows come later."
        yield Problem("warning", text, advice, tuple(dates[:_MAX_NAMED]))


def _empty_columns(sample: Sample, dataset: Dataset) -> Iterator[Problem]:
    empty = [str(name) for name, kind in dataset.kinds.items() if kind is ColumnKind.EMPTY]
    if empty:
        text = f"{_count(empty, 'column has', 'columns have')} no value or always the same: {_listed(empty)}."
        yield Problem("note", text, "Nothing to do: they are left out.", tuple(empty[:_MAX_NAMED]))


def _identifiers(sample: Sample, dataset: Dataset) -> Iterator[Problem]:
    X, _ = sample
    found = [str(name) for name in X.columns if _is_identifier(X[name], dataset.kinds[name])]
    if found:
        text = f"{_count(found, 'column has', 'columns have')} a different value in every row: {_listed(found)}."
        advice = "A row number or key helps no prediction of new rows; leave it out."
        yield Problem("note", text, advice, tuple(found[:_MAX_NAMED]))


def _missing(sample: Sample, dataset: Dataset) -> Iterator[Problem]:
    X, _ = sample
    found = [str(name) for name, share in X.isna().mean().items() if share > _MOSTLY]
    if found:
        text = f"{_count(found, 'column is', 'columns are')} missing in more than half of the rows: {_listed(found)}."
        yield Problem("note", text, "Check that they will be filled alike in new rows.", tuple(found[:_MAX_NAMED]))


def _infinite(sample: Sample, dataset: Dataset) -> Iterator[Problem]:
    numbers = sample[0].select_dtypes("number")
    found = [str(name) for name in numbers.columns if np.isinf(numbers[name].to_numpy(float, na_value=np.nan)).any()]
    if found:
        text = f"{_count(found, 'column holds', 'columns hold')} infinite values: {_listed(found)}."
        advice = "They are read as very large or missing; repair them at the source."
        yield Problem("note", text, advice, tuple(found[:_MAX_NAMED]))


def _equal_columns(sample: Sample, dataset: Dataset) -> Iterator[Problem]:
    X, _ = sample
    first: dict[bytes, str] = {}
    twins = []
    for name in X.columns:
        key = pd.util.hash_pandas_object(_hashable(X[name]), index=False).to_numpy().tobytes()
        if key in first:
            twins.append(str(name))
        first.setdefault(key, str(name))
    if twins:
        text = f"{_count(twins, 'column equals', 'columns equal')} another one: {_listed(twins)}."
        yield Problem("note", text, "Leave out one of each pair.", tuple(twins[:_MAX_NAMED]))


def _heavy_target(sample: Sample, dataset: Dataset) -> Iterator[Problem]:
    if dataset.task.is_classification or dataset.n_rows < _FEW_ROWS:
        return
    squares = np.sort((dataset.y - dataset.y.mean()) ** 2)[::-1]
    share = float(squares[: max(1, len(squares) // 100)].sum() / max(squares.sum(), np.finfo(float).tiny))
    if share > _MOSTLY:
        text = f"1 % of the rows hold {share:.0%} of the target's squared deviation."
        yield Problem("note", text, "RMSE is decided by them; consider predicting the logarithm, or MAE as metric.")


_CHECKS: tuple[Callable[[Sample, Dataset], Iterator[Problem]], ...] = (
    _few_rows, _rare_classes, _duplicates, _telling_columns, _dates_without_time,
    _empty_columns, _identifiers, _missing, _infinite, _equal_columns, _heavy_target,
)  # fmt: skip


def _tells_all(column: pd.Series, y: Any, kind: ColumnKind, n_classes: int) -> bool:
    """Whether this column alone orders or separates the targets (nearly) without error."""
    known = column.notna().to_numpy()
    if known.sum() < 50 or known.mean() < 0.9:
        return False
    values, y = column[known], y[known]
    if kind is ColumnKind.NUMERIC:
        numbers = pd.to_numeric(values, errors="coerce").to_numpy(float, na_value=np.nan)
        if not np.isfinite(numbers).all():
            return False
        if not n_classes:
            return bool(abs(spearmanr(numbers, y).statistic) > 0.999)
        labels = y[np.argsort(numbers, kind="stable")]
        n_changes = int((np.diff(labels) != 0).sum())
        return n_changes <= max(n_classes - 1, 0.002 * len(y)) and _is_pure(numbers, y)
    if n_classes and kind in {ColumnKind.CATEGORICAL, ColumnKind.BOOLEAN}:
        words = values.astype(str)
        return words.nunique() <= len(y) / 5 and _is_pure(words.to_numpy(), y)
    return False


def _is_pure(values: NDArray[Any], y: NDArray[Any]) -> bool:
    """Whether rows with the same value have the same class."""
    return bool((pd.Series(y).groupby(values).transform("nunique") > 1).mean() <= 0.002)


def _is_identifier(column: pd.Series, kind: ColumnKind) -> bool:
    """Row numbers and keys: all different, and whole numbers without gaps or text without spaces."""
    if len(column) < 50 or column.isna().any():
        return False
    if kind is ColumnKind.NUMERIC:
        numbers = pd.to_numeric(column, errors="coerce").to_numpy(float, na_value=np.nan)
        if not np.isfinite(numbers).all() or (numbers != np.round(numbers)).any():
            return False
        steps = np.diff(np.sort(numbers))
        return bool(steps.min() > 0 and steps.max() <= 2 * np.ceil(steps.mean()))
    if kind not in {ColumnKind.TEXT, ColumnKind.CATEGORICAL}:
        return False
    texts = column.astype(str)
    return bool(texts.is_unique and not texts.str.contains(" ", regex=False).any())


def _hashable(column: pd.Series) -> pd.Series:
    """The column itself, or its values as text where they may be lists, sets and the like."""
    return column.map(str, na_action="ignore") if pd.api.types.is_object_dtype(column.dtype) else column


def _count(names: list[str], one: str, many: str) -> str:
    return f"{len(names)} {one if len(names) == 1 else many}"


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more
