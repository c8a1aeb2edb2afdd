"""TableEncoder: fitted once per dataset and shared by all trials and folds; the hot path is array operations."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.exceptions import NotFittedError
from sklearn.utils import check_random_state

from autometa.data import ColumnKind, Dataset, as_frame, check_columns, feature_names, infer_kinds
from autometa.exceptions import ArtefactError, DataError
from autometa.family import MatrixKind
from autometa.preprocessing.columns import (
    MISSING,
    DateColumn,
    category_codes,
    category_levels,
    category_lookup,
    column_at,
    read_numbers,
    read_texts,
)
from autometa.preprocessing.scaling import NumberScaling
from autometa.preprocessing.text import TextColumn

STATE_VERSION = 1
_MATRICES = ("tree", "linear", "net")
_MAX_ONE_HOT = 30


class TableEncoder(TransformerMixin, BaseEstimator):
    """Table to float32 matrix, in the layout that a kind of model wants.

    The target is never looked at. What is learned is plain data: see :meth:`to_state`.

    Parameters
    ----------
    matrix : {"tree", "linear", "net"}, default="linear"
        - "tree": category codes first (0 is the most frequent; -1 unknown, NaN missing), then numbers, dates and
          texts. NaN where missing, infinities as the largest float32. Numbers are left as they are, but shifted by
          their median where float32 could not tell them apart (years in seconds, say).
        - "linear": one column per category (30 at most, rare ones together, missing ones apart), then clipped and
          standardised numbers with the median where missing, then missing indicators. Finite.
        - "net": category codes first (0 unknown or missing, then 1, 2, ...), then numbers divided by their
          interquartile range and smoothly clipped (RealMLP; Holzmüller et al., 2024), then missing indicators.
          Finite.
    kinds : mapping of column name to ColumnKind, or None, default=None
        Must name every column of the table; ``None`` infers them in ``fit``. ``EMPTY`` columns are left out.
    random_state : int, RandomState or None, default=0
        For the components of text columns.

    Attributes
    ----------
    kinds_ : dict of column name to ColumnKind
    n_categorical_ : int
        Leading columns that hold category codes; 0 for "linear".
    n_features_in_ : int
    feature_names_in_ : ndarray of shape (n_features_in_,)
        Only if all names are strings.
    categories_ : list of list of str
        Levels of each categorical column, the most frequent first.

    Examples
    --------
    >>> import pandas as pd
    >>> table = pd.DataFrame({"age": [20.0, None, 40.0], "city": ["Rome", "Oslo", "Rome"]})
    >>> TableEncoder("tree").fit_transform(table)
    array([[ 0., 20.],
           [ 1., nan],
           [ 0., 40.]], dtype=float32)
    """

    def __init__(
        self,
        matrix: MatrixKind = "linear",
        kinds: Mapping[Hashable, ColumnKind] | None = None,
        random_state: Any = 0,
    ) -> None:
        self.matrix = matrix
        self.kinds = kinds
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn categories, scales and text components of a table; ``y`` is ignored.

        Raises
        ------
        DataError
            The table has no row or column, or a column cannot be read as its kind.
        """
        if self.matrix not in _MATRICES:
            raise ValueError(f"matrix must be one of {', '.join(_MATRICES)}. Got {self.matrix!r} instead.")
        frame = as_frame(X)
        check_columns(frame)
        if frame.shape[1] == 0:
            raise DataError(
                f"The table has no column: 0 feature(s) (shape={frame.shape}) while a minimum of 1 is required."
            )
        if len(frame) == 0:
            raise DataError(
                f"The table has no row: 0 sample(s) (shape={frame.shape}) while a minimum of 1 is required."
            )
        self._set_kinds(_resolve_kinds(frame, self.kinds), named=_has_names(X))
        positions: dict[Hashable, int] = {name: i for i, name in enumerate(frame.columns)}
        self._fit_categories(frame, positions)
        cyclic = self.matrix != "tree"
        rng = check_random_state(self.random_state)
        self.dates_ = [DateColumn.fit(column_at(frame, positions[name]), cyclic) for name in self._names("dates")]
        texts = [read_texts(column_at(frame, positions[name])) for name in self._names("texts")]
        self.texts_ = [TextColumn.fit(values, rng) for values in texts]
        raw = self._raw(frame, positions)
        self.scaling_ = NumberScaling.fit(raw, self.matrix, self._owns_indicator())
        return self._prepare()

    def transform(self, X: Any) -> NDArray[np.float32]:
        """Matrix of shape (n_rows, n_columns), C-contiguous. Extra columns and the order of columns do not matter.

        Raises
        ------
        DataError
            A column is missing, or its values cannot be read as what they were in ``fit``.
        """
        self._check_fitted()
        frame = as_frame(X)
        positions = self._find_columns(frame, _has_names(X))
        codes = self._codes(frame, positions)
        return self._assemble(codes, self._raw(frame, positions))

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[Any]:
        """Unique names of the columns of the matrix. Shape (n_columns,)."""
        self._check_fitted()
        raw = [str(name) for name in self._names("numbers")]
        raw += [
            f"{name} {part}"
            for name, parts in zip(self._names("dates") + self._names("texts"), self._part_names(), strict=True)
            for part in parts
        ]
        if self.matrix == "linear":
            found = self._one_hot_names()
        else:
            found = [str(name) for name in self._names("categories")]
        found += raw + [f"{raw[i]} is missing" for i in self.scaling_.indicators]
        return np.array(_unique(found or ["constant"]), dtype=object)

    def to_state(self) -> dict[str, Any]:
        """Everything learned, as scalars, lists, dicts and NumPy arrays; :meth:`from_state` reads it back.

        Raises
        ------
        DataError
            A column name is of a type that cannot be written down.
        """
        seed = self.random_state
        return {
            "version": STATE_VERSION,
            "matrix": self.matrix,
            "random_state": int(seed) if isinstance(seed, int | np.integer) else None,
            "kinds_given": self.kinds is not None,
            "named": bool(self._named),
            "kinds": [[_name_to_state(name), str(kind.value)] for name, kind in self.kinds_.items()],
            "categories": [list(levels) for levels in self.categories_],
            "slots": list(self.slots_),
            "slot_names": [list(names) for names in self.slot_names_],
            "dates": [{**asdict(column), "parts": list(column.parts)} for column in self.dates_],
            "texts": [column.to_state() for column in self.texts_],
            "scaling": self.scaling_.to_state(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> TableEncoder:
        """A fitted encoder that transforms exactly as the one that gave the state.

        Raises
        ------
        ArtefactError
            The state is of another version.
        """
        if state.get("version") != STATE_VERSION:
            raise ArtefactError(
                f"The state of a TableEncoder must be of version {STATE_VERSION}. Got {state.get('version')!r} "
                "instead: load it with the release of autometa that saved it."
            )
        kinds = {_name_from_state(name): ColumnKind(kind) for name, kind in state["kinds"]}
        encoder = cls(state["matrix"], kinds if state["kinds_given"] else None, state["random_state"])
        encoder._set_kinds(kinds, named=state["named"])
        encoder.categories_ = [list(levels) for levels in state["categories"]]
        encoder.slots_ = [np.asarray(slots, dtype=np.int64) for slots in state["slots"]]
        encoder.slot_names_ = [list(names) for names in state["slot_names"]]
        encoder.dates_ = [DateColumn(**{**column, "parts": tuple(column["parts"])}) for column in state["dates"]]
        encoder.texts_ = [TextColumn.from_state(column) for column in state["texts"]]
        encoder.scaling_ = NumberScaling.from_state(state["scaling"])
        return encoder._prepare()

    def _check_fitted(self) -> None:
        if not hasattr(self, "scaling_"):
            raise NotFittedError("This TableEncoder is not fitted yet. Call 'fit' with a table first.")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = True
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = []  # always float32
        return tags

    def _set_kinds(self, kinds: dict[Hashable, ColumnKind], named: bool) -> None:
        self.kinds_ = kinds
        self._named = named
        self.n_features_in_ = len(kinds)
        self.n_categorical_ = n_leading_categories(kinds, self.matrix)
        self.__dict__.pop("feature_names_in_", None)
        if named and all(isinstance(name, str) for name in kinds):
            self.feature_names_in_ = np.array(list(kinds), dtype=object)
        self._groups = {
            "categories": feature_names(kinds, [ColumnKind.CATEGORICAL]),
            "numbers": feature_names(kinds, [ColumnKind.NUMERIC, ColumnKind.BOOLEAN]),
            "dates": feature_names(kinds, [ColumnKind.DATETIME]),
            "texts": feature_names(kinds, [ColumnKind.TEXT]),
        }
        self._number_kinds = [kinds[name] for name in self._groups["numbers"]]

    def _names(self, group: str) -> list[Hashable]:
        return self._groups[group]

    def _fit_categories(self, frame: pd.DataFrame, positions: Mapping[Hashable, int]) -> None:
        """Levels, and for "linear" the column of each level, of a missing and of an unknown value (-1: none)."""
        self.categories_, self.slots_, self.slot_names_ = [], [], []
        offset = 0
        for name in self._names("categories"):
            levels, counts, missing = category_levels(column_at(frame, positions[name]))
            self.categories_.append(levels)
            if self.matrix == "linear":
                slots, names = _one_hot_slots(levels, counts, missing, len(frame))
                self.slots_.append(np.where(slots >= 0, slots + offset, -1))
                self.slot_names_.append(names)
                offset += len(names)

    def _prepare(self) -> Self:
        """What the hot path looks up, derived from the fitted attributes."""
        self._lookups = [category_lookup(levels) for levels in self.categories_]
        self._n_one_hot = sum(len(names) for names in self.slot_names_)
        self._used = [name for group in self._groups.values() for name in group]
        self._all_names = list(self.kinds_)
        self._own_positions = {name: i for i, name in enumerate(self._all_names)}
        return self

    def _owns_indicator(self) -> NDArray[np.bool_]:
        """Of the parts of a date only the first gets a missing indicator: they are missing together."""
        owns = [True] * len(self._names("numbers"))
        for parts in self._part_names():
            owns += [True] + [False] * (len(parts) - 1)
        return np.array(owns, dtype=bool)

    def _part_names(self) -> list[list[str]]:
        """Names of the parts of each date and text column."""
        return [column.names for column in self.dates_] + [column.names for column in self.texts_]

    def _find_columns(self, frame: pd.DataFrame, named: bool) -> Mapping[Hashable, int]:
        """Position of each column in the table; a table without names is read by position."""
        names = frame.columns.tolist()
        if names == self._all_names:
            return self._own_positions
        by_position = not named or not self._named
        positions: dict[Hashable, int] = {name: i for i, name in enumerate(names)}
        absent = [name for name in self._used if name not in positions]
        if by_position and (absent or not named):
            if len(names) != len(self._all_names):
                raise DataError(
                    f"X has {len(names)} features, but TableEncoder is expecting {len(self._all_names)} features "
                    "as input."
                )
            return self._own_positions
        if absent:
            raise DataError(
                f"The table must have the columns of fit. Got no column {', '.join(map(repr, absent[:5]))}"
                f"{f' and {len(absent) - 5} more' if len(absent) > 5 else ''}: add "
                f"{'it' if len(absent) == 1 else 'them'}, with missing values if need be."
            )
        return positions

    def _codes(self, frame: pd.DataFrame, positions: Mapping[Hashable, int]) -> NDArray[np.int64]:
        """Category codes of shape (n_rows, n_categorical)."""
        codes = np.empty((len(frame), len(self._lookups)), dtype=np.int64)
        for i, (name, lookup) in enumerate(zip(self._names("categories"), self._lookups, strict=True)):
            codes[:, i] = category_codes(column_at(frame, positions[name]), lookup)
        return codes

    def _raw(self, frame: pd.DataFrame, positions: Mapping[Hashable, int]) -> NDArray[np.float64]:
        """Numbers, parts of dates and of texts, NaN where missing. Shape (n_rows, n_numbers)."""
        blocks = [read_numbers(frame, [positions[name] for name in self._names("numbers")], self._number_kinds)]
        for name, date in zip(self._names("dates"), self.dates_, strict=True):
            blocks.append(date.transform(column_at(frame, positions[name])))
        for name, text in zip(self._names("texts"), self.texts_, strict=True):
            blocks.append(text.transform(read_texts(column_at(frame, positions[name]))))
        return blocks[0] if len(blocks) == 1 else np.hstack(blocks)

    def _assemble(self, codes: NDArray[np.int64], raw: NDArray[np.float64]) -> NDArray[np.float32]:
        n_rows, n_numbers = raw.shape
        n_left = self._n_one_hot if self.matrix == "linear" else codes.shape[1]
        indicators = self.scaling_.indicators
        out = np.zeros((n_rows, max(1, n_left + n_numbers + len(indicators))), dtype=np.float32)
        if self.matrix == "linear":
            self._fill_one_hot(out, codes)
        elif self.matrix == "net":
            np.maximum(codes + 1, 0, out=out[:, :n_left], casting="unsafe")
        else:
            out[:, :n_left] = np.where(codes == MISSING, np.nan, codes)
        out[:, n_left : n_left + n_numbers] = self.scaling_.transform(raw)
        if len(indicators):
            out[:, n_left + n_numbers :] = np.isnan(raw[:, indicators])
        return out

    def _fill_one_hot(self, out: NDArray[np.float32], codes: NDArray[np.int64]) -> None:
        for i, slots in enumerate(self.slots_):
            column = slots[codes[:, i]]
            rows = np.flatnonzero(column >= 0)
            out[rows, column[rows]] = 1.0

    def _one_hot_names(self) -> list[str]:
        names = self._names("categories")
        return [f"{name}={slot}" for name, slots in zip(names, self.slot_names_, strict=True) for slot in slots]


def encode_dataset(dataset: Dataset, matrix: MatrixKind) -> tuple[TableEncoder, NDArray[np.float32]]:
    """A fitted encoder and the matrix of a dataset, for all trials and folds (no encoder sees the target)."""
    encoder = TableEncoder(matrix, dataset.kinds).fit(dataset.X)
    return encoder, encoder.transform(dataset.X)


def n_leading_categories(kinds: Mapping[Hashable, ColumnKind], matrix: MatrixKind) -> int:
    """How many leading columns of the matrix hold category codes: known before anything is fitted.

    Examples
    --------
    >>> n_leading_categories({"city": ColumnKind.CATEGORICAL, "age": ColumnKind.NUMERIC}, "tree")
    1
    """
    if matrix == "linear":
        return 0
    return sum(kind is ColumnKind.CATEGORICAL for kind in kinds.values())


def _has_names(X: Any) -> bool:
    return isinstance(X, pd.DataFrame) or hasattr(X, "to_pandas")


def _resolve_kinds(frame: pd.DataFrame, kinds: Mapping[Hashable, ColumnKind] | None) -> dict[Hashable, ColumnKind]:
    if kinds is None:
        return infer_kinds(frame)
    absent = [name for name in kinds if name not in frame.columns]
    unnamed = [name for name in frame.columns if name not in kinds]
    if absent or unnamed:
        problem = f"{absent[0]!r} is not in the table" if absent else f"{unnamed[0]!r} has no kind"
        raise DataError(f"kinds must name the columns of the table. Got a mismatch: {problem}.")
    return {name: ColumnKind(kinds[name]) for name in frame.columns}


def _one_hot_slots(
    levels: Sequence[str], counts: Sequence[int], missing: bool, n_rows: int
) -> tuple[NDArray[np.int64], list[str]]:
    """Column of each level, then of a missing, then of an unknown value (-1: none); and the columns' names.

    A level has its own column if it is among the 30 most frequent and has 5 rows (fewer in tables below 1,000 rows).
    """
    least = min(5, max(1, n_rows // 200))
    n_own = min(_MAX_ONE_HOT, sum(count >= least for count in counts))
    names = list(levels[:n_own])
    infrequent = -1
    if len(levels) > n_own:
        infrequent = len(names)
        names.append("(infrequent)")
    absent = -1
    if missing:
        absent = len(names)
        names.append("(missing)")
    slots = [*range(n_own), *[infrequent] * (len(levels) - n_own), absent, infrequent]
    return np.array(slots, dtype=np.int64), names


def _unique(names: list[str]) -> list[str]:
    """The names, with a number behind those that occur again (columns 1 and "1" are told apart)."""
    taken: set[str] = set()
    found = []
    for name in names:
        candidate, number = name, 2
        while candidate in taken:
            candidate, number = f"{name} ({number})", number + 1
        taken.add(candidate)
        found.append(candidate)
    return found


def _name_to_state(name: Hashable) -> list[Any]:
    """A column name as [type, value], for JSON."""
    if isinstance(name, pd.Timestamp):
        return ["timestamp", name.isoformat()]
    if isinstance(name, tuple):
        return ["tuple", [_name_to_state(part) for part in name]]
    for label, types in (("bool", bool | np.bool_), ("int", int | np.integer), ("float", float | np.floating)):
        if isinstance(name, types):
            return [label, {"bool": bool, "int": int, "float": float}[label](name)]
    if name is None or isinstance(name, str):
        return ["plain", name]
    raise DataError(
        f"Column names must be text, numbers, dates or tuples of these to be saved. Got {name!r} "
        f"({type(name).__name__}) instead: rename the column."
    )


def _name_from_state(state: Sequence[Any]) -> Hashable:
    label, value = state
    if label == "tuple":
        return tuple(_name_from_state(part) for part in value)
    name: Hashable = pd.Timestamp(value) if label == "timestamp" else value
    return name
