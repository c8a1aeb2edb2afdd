"""What a further model is worth to an ensemble: more than its own score where its errors are its own."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from autometa.data import TaskType
from autometa.exceptions import ArtefactError
from autometa.tuning.spaces import Floats

if TYPE_CHECKING:
    from autometa.meta_model.belief import Belief

MIN_MODELS = 3
"""With fewer models the expected improvement of the best single one is mixed in."""
MAX_MEMBERS = 8
"""Models, best first, that a newcomer is compared with: as many as an ensemble holds."""
SLOPES = ("decorrelation", "novelty", "log_size", "log_rows")
_FOLDER = files("autometa") / "pretrained" / "ensemble_gain"


@dataclass(frozen=True)
class EnsembleGain:
    """How much a model adds to an ensemble, as an improvement on its best single model by score plus bonus.

    The gain of a newcomer whose score lies ``margin`` above the best one is taken to be the expected positive part of
    ``margin + bonus + blur * Z``, all in normalised units (0 = the dataset's median candidate, 1 = its best), with Z
    standard normal. The bonus is linear in what is known before the newcomer is fitted. Its numbers are learned from
    cached out-of-fold predictions of the corpus (``experiments/ensemble_gain``).

    Parameters
    ----------
    families : tuple of str
    correlation : tuple of tuple of float
        Expected correlation of the errors of two models by their families, shape (F, F).
    slopes : mapping of str to float
        For each of :data:`SLOPES`.
    intercept, blur : mapping of str to float
        By task.

    References
    ----------
    Caruana et al. (2004), Ensemble selection from libraries of models; expected improvement: Jones et al. (1998).

    Examples
    --------
    >>> correlation = ((0.95, 0.6), (0.6, 0.95))
    >>> slopes = {"decorrelation": 0.5, "novelty": 0.0, "log_size": 0.0, "log_rows": 0.0}
    >>> gain = EnsembleGain(("linear", "knn"), correlation, slopes, {"binary": 0.0}, {"binary": 0.1})
    >>> bonus = gain.bonus(["linear", "knn"], ["linear", "linear"], task=TaskType.BINARY, n_rows=1000)
    >>> bool(bonus[1] > bonus[0])
    True
    """

    families: tuple[str, ...]
    correlation: tuple[tuple[float, ...], ...]
    slopes: Mapping[str, float]
    intercept: Mapping[str, float]
    blur: Mapping[str, float]

    def bonus(self, families: Sequence[str], members: Sequence[str], *, task: TaskType, n_rows: int) -> Floats:
        """What candidates are worth beside their score, normalised units, shape (len(families),).

        Parameters
        ----------
        families : sequence of str
            Of the candidates.
        members : sequence of str
            Families of the models that are there, best first, at least one.
        task : TaskType
        n_rows : int
        """
        described = describe(families, members, n_rows=n_rows, correlation=self._correlations)
        return np.asarray(self.intercept[str(task)] + described @ [self.slopes[name] for name in SLOPES])

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """What :meth:`to_dict` wrote.

        Raises
        ------
        ArtefactError
            Something is missing or of another shape.
        """
        try:
            correlation = tuple(tuple(float(v) for v in row) for row in content["correlation"])
            families = tuple(str(name) for name in content["families"])
            numbers = [{str(k): float(v) for k, v in content[n].items()} for n in ("slopes", "intercept", "blur")]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtefactError(f"The numbers of the ensemble gain cannot be read: {error!r}.") from error
        if any(len(row) != len(families) for row in (correlation, *correlation)) or set(numbers[0]) != set(SLOPES):
            raise ArtefactError("The numbers of the ensemble gain must name a correlation for each pair of families.")
        return cls(families, correlation, *numbers)

    @property
    def _correlations(self) -> dict[tuple[str, str], float]:
        return {
            (a, b): value
            for a, row in zip(self.families, self.correlation, strict=True)
            for b, value in zip(self.families, row, strict=True)
        }


@dataclass(frozen=True)
class EnsembleValue:
    """The expected gain to the ensemble of one dataset, for the ranking of candidates.

    Parameters
    ----------
    gain : EnsembleGain
    task : TaskType
    n_rows : int
    """

    gain: EnsembleGain
    task: TaskType
    n_rows: int

    def __call__(self, belief: Belief, families: Sequence[str], members: Sequence[str]) -> Floats:
        """Expected gain of each candidate of a belief, raw units, shape (C,).

        Parameters
        ----------
        belief : Belief
        families : sequence of str
            Of the candidates.
        members : sequence of str
            Families of the models that are there, best first, at least one.
        """
        share, task = min(1.0, len(members) / MIN_MODELS), str(self.task)
        bonus = self.gain.bonus(families, members, task=self.task, n_rows=self.n_rows)
        value = share * belief.expected_improvement(bonus=bonus, blur=self.gain.blur[task])
        return value if share == 1.0 else value + (1.0 - share) * belief.expected_improvement()


@cache
def shipped_gain() -> EnsembleGain:
    """The one that comes with the library."""
    return EnsembleGain.from_dict(json.loads((_FOLDER / "gain.json").read_text("utf-8")))


def describe(
    families: Sequence[str], members: Sequence[str], *, n_rows: int, correlation: Mapping[tuple[str, str], float]
) -> Floats:
    """What the bonus depends on, shape (len(families), len(SLOPES)).

    One less the mean error correlation with the best models there; 1 / (1 + models of the family there); logarithms
    (base 10) of the number of models, and of the rows in thousands. An unknown pair of families has the mean
    correlation of all pairs.
    """
    best, counts = members[:MAX_MEMBERS], Counter(members)
    unknown = float(np.mean(list(correlation.values())))
    rows = {
        name: (
            1.0 - float(np.mean([correlation.get((name, other), unknown) for other in best])),
            1.0 / (1.0 + counts[name]),
            float(np.log10(len(members))),
            float(np.log10(max(n_rows, 1) / 1000.0)),
        )
        for name in set(families)
    }
    return np.array([rows[name] for name in families]).reshape(len(families), len(SLOPES))
