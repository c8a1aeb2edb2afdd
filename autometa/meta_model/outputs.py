"""Auxiliary outputs: scores in another metric, or after training on fewer rows, that inform the belief in the target.

Given a dataset's offset ``a`` and scale ``b``, a candidate's target score is ``a + b f``. Its score in an auxiliary
output is

    z = offset + offset_slope a + d + b' (centre + loading f + residual)
    log b' = log_scale + log_scale_slope log b + e

with one unknown shift ``d`` a dataset and output, and a residual of its own for each candidate. So everything stays
jointly Gaussian given ``b`` and ``e``; ``e`` lives on a small grid beside that of the scales. What ties two outputs is
learned from a corpus, by task. A Gaussian process over several correlated outputs is the linear model of
coregionalisation (Journel and Huijbregts, 1978); that cheap small runs inform about dear large ones is from multi-task
and multi-fidelity optimisation (Swersky et al., 2013).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_LEVELS = math.sqrt(1.5) * np.array([-1.0, 0.0, 1.0])
# Nine settings of up to four three-level factors in which every pair of levels of two factors occurs once.
_ARRAY = np.array([[a, b, (a + b) % 3, (a + 2 * b) % 3] for a in range(3) for b in range(3)])


@dataclass(frozen=True)
class TrainRows:
    """The target's metric, after training on so many rows only.

    Parameters
    ----------
    rows : int
        Must be > 0.
    """

    rows: int

    def __post_init__(self) -> None:
        if self.rows <= 0:
            raise ValueError(f"rows must be > 0. Got {self.rows} instead.")


def output_name(output: str | TrainRows) -> str:
    """What an output is called in a meta-model: a metric by its name, a number of training rows as ``"@128"``."""
    return f"@{output.rows}" if isinstance(output, TrainRows) else output


@dataclass(frozen=True)
class Relation:
    """How an auxiliary output follows from the target, learned from a corpus (see the module).

    Parameters
    ----------
    loading : float
        Of the target's normalised score.
    residual : float
        Variance of what is the output's own, in units of its scale.
    log_scale, log_scale_slope, log_scale_std : float
    offset, offset_slope, offset_std : float
        In units of the metrics.
    noise_correlation : float
        Between the noise of both scores of one trial.
    residual_correlation : float
        Of what is the output's own between candidates, as a share of the correlation of their target scores: what
        makes a family look better in the output makes its like look better too.
    """

    loading: float
    residual: float
    log_scale: float
    log_scale_slope: float
    log_scale_std: float
    offset: float
    offset_slope: float
    offset_std: float
    noise_correlation: float
    residual_correlation: float = 0.0

    @property
    def spec(self) -> dict[str, float]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Relation:
        return cls(**{f.name: float(spec[f.name]) for f in fields(cls) if f.name in spec})


@dataclass(frozen=True, eq=False)
class Output:
    """An auxiliary output on one dataset.

    Parameters
    ----------
    relation : Relation
    centre : ndarray of shape (C,)
        Expected score in units of its scale, less the loading times the target's normalised score. Candidates that
        were added to a belief have none and get the average.
    unit, target_unit : float
        Size of one unit of its raw scores and of the target's.
    """

    relation: Relation
    centre: Floats
    unit: float = 1.0
    target_unit: float = 1.0

    def centre_of(self, index: int) -> float:
        return float(self.centre[index] if index < len(self.centre) else self.centre.mean())

    def log_scale(self, log_scale: Floats, level: Floats) -> Floats:
        """Log-scale of its raw scores for log-scales of the target's, both shape (B,), ``level`` std above the mean."""
        r = self.relation
        free = log_scale - math.log(self.target_unit)
        return r.log_scale + r.log_scale_slope * free + r.log_scale_std * level + math.log(self.unit)

    def offset(self, offset: Floats) -> Floats:
        """Expected offset of its raw scores for offsets of the target's."""
        r = self.relation
        return self.unit * (r.offset + r.offset_slope * offset / self.target_unit)

    @property
    def offset_loading(self) -> float:
        """Change of its offset with the target's, raw units."""
        return self.unit * self.relation.offset_slope / self.target_unit

    @property
    def offset_std(self) -> float:
        """Standard deviation of its offset given the target's, raw units."""
        return self.unit * self.relation.offset_std


@dataclass(frozen=True)
class Hint:
    """One score in an auxiliary output: position of the candidate, name of the output, raw score, standard error."""

    index: int
    output: str
    raw_score: float
    standard_error: float = math.nan


def levels(n_outputs: int) -> Floats:
    """Grid of the free parts of the outputs' log-scales, equally likely, (J, n_outputs); mean 0 and variance 1.

    Three levels of one output, nine settings of up to four; further outputs keep their expected scale.
    """
    settings = np.zeros((1, 0), dtype=int) if n_outputs == 0 else _ARRAY
    if n_outputs == 1:
        settings = np.arange(3)[:, None]
    grid = np.zeros((len(settings), n_outputs))
    used = min(n_outputs, settings.shape[1])
    grid[:, :used] = _LEVELS[settings[:, :used]]
    return grid


def names_of(hints: Sequence[Hint]) -> list[str]:
    """The outputs that were seen, each once."""
    return sorted({hint.output for hint in hints})
