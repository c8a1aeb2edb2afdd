"""The one thing to subclass: a model family. And the candidate, a family's name with a configuration."""

from __future__ import annotations

import importlib.util
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from autometa.data import TaskType
from autometa.exceptions import FamilyUnavailable

if TYPE_CHECKING:
    from sklearn.base import BaseEstimator

    from autometa.search_space import SearchSpace

MatrixKind = Literal["tree", "linear", "net"]
ALL_TASKS = frozenset(TaskType)
CLASSIFICATION_TASKS = frozenset({TaskType.BINARY, TaskType.MULTICLASS})


@dataclass(frozen=True)
class Forecast:
    """What the meta-model expects of a candidate.

    Parameters
    ----------
    score, score_low, score_high : float
        Expected validation score (higher is better) and its 80 % interval, in the metric's raw units.
    fit_seconds : float
        Expected seconds of one fit, with the prediction of the rows held out.
    reason : str
        Where the forecast comes from, in a few words.
    """

    score: float
    score_low: float
    score_high: float
    fit_seconds: float
    reason: str = ""


@dataclass(frozen=True)
class Candidate:
    """A family's name with a configuration, and what is predicted of it.

    Parameters
    ----------
    family : str
    config : mapping
        One value per hyperparameter; compared and hashed by content.
    forecast : Forecast or None
        What a Selection says of it; not part of its identity.
    builder : callable or None
        Set by a Selection, which knows the family and the table; see :meth:`build`.

    Examples
    --------
    >>> Candidate("knn", {"n_neighbors": 5}) == Candidate("knn", {"n_neighbors": 5})
    True
    """

    family: str
    config: Mapping[str, Any] = field(default_factory=dict)
    forecast: Forecast | None = field(default=None, compare=False, repr=False)
    builder: Callable[[Candidate], BaseEstimator] | None = field(default=None, compare=False, repr=False)

    @cached_property
    def key(self) -> str:
        """Canonical text of family and configuration: the same candidate has the same key everywhere."""
        return f"{self.family} {json.dumps(dict(self.config), sort_keys=True, default=_plain)}"

    def __hash__(self) -> int:
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Candidate) and self.key == other.key

    def build(self) -> BaseEstimator:
        """An unfitted scikit-learn estimator for the raw table (encoder and model in one Pipeline).

        Raises
        ------
        ValueError
            The candidate does not come from a Selection; use ``family.build(config, shape)`` then.
        """
        if self.builder is None:
            raise ValueError(
                "This candidate does not know its table. Take it from a Selection (select(...).best.build()), "
                "or call build(config, shape) of its family."
            )
        return self.builder(self)

    def with_forecast(self, forecast: Forecast | None) -> Candidate:
        """The same candidate with another forecast."""
        return replace(self, forecast=forecast)


def _plain(value: Any) -> Any:
    """NumPy scalars as Python numbers, for JSON."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"A configuration must hold numbers, text, booleans or None. Got {value!r} instead.")


@dataclass(frozen=True)
class MatrixShape:
    """What a family may know of the matrix it will be fitted on.

    Parameters
    ----------
    task : TaskType
    n_rows : int
        Training rows; caps that depend on size are applied with it in ``build``.
    n_classes : int
        0 for regression.
    n_categorical : int
        The first ``n_categorical`` columns of "tree" and "net" matrices hold category codes 0, 1, 2, ...
    """

    task: TaskType
    n_rows: int
    n_classes: int
    n_categorical: int = 0


class ModelFamily(ABC):
    """A kind of model with a constant search space.

    A family is stateless. Its estimators are fitted on a float32 matrix (see ``double_precision``) made by
    :class:`autometa.preprocessing.TableEncoder` and on class codes 0 .. n_classes - 1 or float targets;
    classifiers have ``predict_proba``.

    Attributes
    ----------
    name : str
        Lower-case identifier, unique among the families in use.
    version : int
        Raised whenever the same configuration no longer means the same model.
    matrix : {"tree", "linear", "net"}
        The encoding that the model wants.

        - "tree": category codes first (-1 unknown, NaN missing), then raw numbers, NaN where missing
        - "linear": one-hot categories, imputed and standardised numbers, missing indicators; no NaN
        - "net": category codes first (0 unknown or missing, then 1, 2, ...), then robustly scaled and smoothly
          clipped numbers and missing indicators; no NaN
    double_precision : bool
        Whether it is fitted on the matrix in float64. Its sums then agree on all machines, and for one row or many.
    tasks : frozenset of TaskType
    requires : tuple of str
        Modules that must be importable.
    install_hint : str
        What to install when they are not.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    matrix: ClassVar[MatrixKind] = "linear"
    double_precision: ClassVar[bool] = False
    tasks: ClassVar[frozenset[TaskType]] = ALL_TASKS
    requires: ClassVar[tuple[str, ...]] = ()
    install_hint: ClassVar[str] = ""
    search_space: ClassVar[SearchSpace]
    default_config: ClassVar[Mapping[str, Any]]
    presets: ClassVar[Sequence[Mapping[str, Any]]] = ()
    """Further well-known configurations, given as changes to the default; they open the family's pool."""

    @abstractmethod
    def build(
        self, config: Mapping[str, Any], shape: MatrixShape, *, random_state: int = 0, n_threads: int = 1
    ) -> BaseEstimator:
        """An unfitted estimator for one configuration on a matrix of this shape."""

    def is_available(self) -> bool:
        """Whether the required modules are installed (nothing is imported)."""
        return all(importlib.util.find_spec(module) is not None for module in self.requires)

    def check_available(self) -> None:
        """Raise :class:`FamilyUnavailable`, with the install hint, unless the family can be used."""
        if not self.is_available():
            raise FamilyUnavailable(f"The family {self.name!r} needs {', '.join(self.requires)}. {self.install_hint}")

    def default_candidate(self) -> Candidate:
        """The default configuration as a candidate."""
        return Candidate(self.name, dict(self.default_config))

    def pool(self, n_candidates: int, seed: int = 0) -> list[Candidate]:
        """The first candidates to consider: default, presets, then a scrambled Sobol sequence in the unit cube.

        A longer pool begins with the shorter one; the same seed gives the same pool.
        """
        from scipy.stats import qmc

        configs = [dict(self.default_config)] + [{**self.default_config, **preset} for preset in self.presets]
        n_extra = max(0, n_candidates - len(configs))
        if n_extra and len(self.search_space):
            sobol = qmc.Sobol(len(self.search_space), scramble=True, rng=np.random.default_rng(seed))
            points = sobol.random_base2(max(1, int(np.ceil(np.log2(n_extra)))))[:n_extra]
            configs += [self.search_space.from_cube(point) for point in points]
        unique = dict.fromkeys(Candidate(self.name, config) for config in configs[:n_candidates])
        return list(unique)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"
