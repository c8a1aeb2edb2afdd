"""``extract``: all meta-features of a dataset, with the seconds they took."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from autometa.data import Dataset
from autometa.meta_features.distribution import INFORMATION, REDUNDANCY, STATISTICAL
from autometa.meta_features.landmarkers import LANDMARKERS, fixed_work_seconds
from autometa.meta_features.sample import TableSample, draw_sample
from autometa.meta_features.simple import MISSINGNESS, SIMPLE, TARGET
from autometa.meta_features.structure import STRUCTURE

Feature = Callable[[TableSample], float]

VERSION = 1
"""Raised whenever a definition changes: features of different versions must not be mixed."""

_FUNCTIONS: Mapping[str, tuple[Feature, ...]] = {
    "simple": SIMPLE,
    "missingness": MISSINGNESS,
    "target": TARGET,
    "statistical": STATISTICAL,
    "information": INFORMATION,
    "redundancy": REDUNDANCY,
    "structure": STRUCTURE,
    "landmarkers": LANDMARKERS,
}

FEATURE_GROUPS: Mapping[str, tuple[str, ...]] = {
    group: tuple(function.__name__ for function in functions) for group, functions in _FUNCTIONS.items()
}
"""Names of the features of each group, in the order of :data:`FEATURE_NAMES`."""

FEATURE_NAMES: tuple[str, ...] = tuple(name for names in FEATURE_GROUPS.values() for name in names)
"""All features, in the order of ``MetaFeatures.values``."""


@dataclass(frozen=True)
class MetaFeatures:
    """The description of a dataset that the meta-model reads.

    Parameters
    ----------
    values : mapping of str to float
        One value for each of :data:`FEATURE_NAMES`, in that order; NaN = not defined for this table, or its group was
        not asked for.
    seconds : float
        Wall-clock seconds of the extraction.
    group_seconds : mapping of str to float
        Seconds of each group; ``"sample"`` is the drawing and encoding of the sample.
    machine_seconds : float
        Seconds of a fixed piece of work, measured on the way: how slow this machine is now. Not deterministic, and
        so no feature. NaN if the landmarkers were not asked for.
    """

    values: Mapping[str, float]
    seconds: float = 0.0
    group_seconds: Mapping[str, float] = field(default_factory=dict)
    machine_seconds: float = float("nan")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.values)

    @property
    def vector(self) -> NDArray[np.float64]:
        """The values in order. Shape (n_values,)."""
        return np.array(list(self.values.values()), dtype=float)

    def to_series(self) -> pd.Series:
        """The values by name."""
        return pd.Series(dict(self.values), dtype=float, name="value")


def extract(dataset: Dataset, *, seed: int = 0, groups: Sequence[str] | None = None) -> MetaFeatures:
    """Describe a dataset by the features of :data:`FEATURE_NAMES`.

    The cost is bounded: whatever the size of the table, at most 5,000 rows and 100 columns of it are read (class
    counts and groups of rows excepted), and landmarkers see at most 800 rows and 30 columns.

    The result is the same for the same content and seed: neither the order of columns nor names matter, and the order
    of rows does not below the row limit (5,000 rows, fewer above 400 columns). Renaming classes matters only where it
    changes their order. Sample weights only enter ``effective_row_share``.

    Parameters
    ----------
    dataset : Dataset
    seed : int, default 0
        Draws the sample and the folds of the landmarkers.
    groups : sequence of str or None
        Groups to compute, of :data:`FEATURE_GROUPS`; the others are NaN. ``None``: all.

    Returns
    -------
    MetaFeatures

    Raises
    ------
    ValueError
        An unknown group.

    Examples
    --------
    >>> import pandas as pd
    >>> from autometa.data import Dataset
    >>> table = pd.DataFrame({"size": range(100), "colour": ["red", "blue"] * 50})
    >>> features = extract(Dataset.from_arrays(table, ["no", "yes"] * 50), groups=["simple"])
    >>> features.values["log_rows"], features.values["categorical_share"]
    (2.0, 0.5)
    """
    wanted = tuple(FEATURE_GROUPS) if groups is None else tuple(groups)
    unknown = [group for group in wanted if group not in FEATURE_GROUPS]
    if unknown:
        raise ValueError(f"groups must be among {', '.join(FEATURE_GROUPS)}. Got {', '.join(map(repr, unknown))}.")
    start = time.perf_counter()
    values = dict.fromkeys(FEATURE_NAMES, float("nan"))
    seconds: dict[str, float] = {}
    with warnings.catch_warnings(), np.errstate(all="ignore"), threadpool_limits(limits=1):
        warnings.simplefilter("ignore")
        sample = draw_sample(dataset, seed)
        seconds["sample"] = time.perf_counter() - start
        for group in FEATURE_GROUPS:
            if group in wanted:
                began = time.perf_counter()
                values.update({function.__name__: _value(function, sample) for function in _FUNCTIONS[group]})
                seconds[group] = time.perf_counter() - began
        machine_seconds = fixed_work_seconds() if "landmarkers" in wanted else float("nan")
    return MetaFeatures(values, time.perf_counter() - start, seconds, machine_seconds)


def describe(name: str) -> str:
    """The definition and source of a feature.

    Examples
    --------
    >>> describe("log_rows")
    'log10 of the number of rows (``nr_inst``, Michie et al. 1994).'
    """
    for functions in _FUNCTIONS.values():
        for function in functions:
            if function.__name__ == name:
                return " ".join((function.__doc__ or "").split())
    raise ValueError(f"name must be one of FEATURE_NAMES. Got {name!r} instead.")


def describe_all() -> pd.DataFrame:
    """Group and definition of every feature, indexed by name."""
    rows = [(name, group, describe(name)) for group, names in FEATURE_GROUPS.items() for name in names]
    return pd.DataFrame(rows, columns=["name", "group", "definition"]).set_index("name")


def _value(function: Feature, sample: TableSample) -> float:
    """The feature, NaN where a table is too small or too odd for it."""
    try:
        value = float(function(sample))
    except (ArithmeticError, ValueError):
        return float("nan")
    return value if np.isfinite(value) else float("nan")
