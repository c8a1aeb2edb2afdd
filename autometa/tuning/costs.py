"""What trials are expected to cost, and how that weighs against what they promise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from autometa.family import Candidate
from autometa.tuning.spaces import Floats

if TYPE_CHECKING:
    from autometa.meta_model.belief import Belief

FIXED_SECONDS = 0.05
"""What a trial costs beside fitting: sending it to a worker, updating the belief."""

_FIRST_SECONDS = 2.0
_LONG_TAIL = 0.8


class Costs(NamedTuple):
    """How expected improvement is weighed.

    Parameters
    ----------
    per_second : bool
    n_fits : int
        Fits of a trial.
    overhead : float
        Seconds of a trial beside fitting.
    remaining : float
        Seconds left; dearer candidates are not proposed while there is an affordable one.
    first : float
        Limit in seconds on the very first trial, where there is a candidate that keeps it.
    extra : mapping of str to float
        Seconds that a trial of a family takes on top, such as the first import of a library.
    caution : float
        Standard deviations of the logarithm between the expected seconds and what will hardly be exceeded.
    """

    per_second: bool = True
    n_fits: int = 1
    overhead: float = FIXED_SECONDS
    remaining: float = math.inf
    first: float = _FIRST_SECONDS
    extra: Mapping[str, float] = {}
    caution: float = _LONG_TAIL


def within(costs: Costs, seconds: float, remaining: float) -> Costs:
    """The same costs within a budget of ``seconds``, of which some remain; the first trial gets a twentieth of it."""
    first = min(_FIRST_SECONDS, 0.05 * seconds) if math.isfinite(seconds) else _FIRST_SECONDS
    return costs._replace(remaining=remaining, first=first)


def trial_seconds(
    belief: Belief, candidates: Sequence[Candidate], costs: Costs, *, at: Sequence[int] | None = None
) -> tuple[Floats, Floats]:
    """Expected seconds of whole trials, and what they will hardly exceed, each of shape (len(candidates),).

    An average stands where nothing is known. ``at``: positions in the belief; by default the first ones.
    """
    index = np.arange(len(candidates)) if at is None else np.asarray(at, dtype=np.intp)
    everyone = np.asarray(belief.seconds, dtype=float)
    known = np.isfinite(everyone)
    seconds = np.where(known, everyone, np.median(everyone[known]) if known.any() else 1.0)[index] * costs.n_fits
    seconds = seconds + np.array([costs.extra.get(c.family, 0.0) for c in candidates])
    tail = np.clip(np.nan_to_num(np.asarray(belief.seconds_std, dtype=float)[index], nan=0.5), 0.1, 1.2)
    return seconds, seconds * np.exp(costs.caution * tail)


def value_per_second(gain: Floats, seconds: Floats, most: Floats, costs: Costs) -> Floats:
    """Gain per expected second of a trial, where costs count; what is not affordable comes last.

    Parameters
    ----------
    gain, seconds, most : ndarray of shape (n_candidates,)
        Expected improvement, expected seconds, and seconds that will hardly be exceeded.
    costs : Costs
    """
    if not costs.per_second:
        return gain
    value = gain / (seconds + costs.overhead)
    affordable = most <= costs.remaining
    return np.where(affordable | ~affordable.any(), value, -1.0 / (1.0 + np.maximum(value, 0.0)))
