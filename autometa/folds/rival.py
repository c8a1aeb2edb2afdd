"""The best candidate so far, against which a running one is judged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr

_PRUNED_BELOW = 0.01
_PRIOR_FOLDS = 4
_SLACK = 1.0


@dataclass(frozen=True)
class Rival:
    """The best candidate so far, against which a running one is pruned.

    Parameters
    ----------
    metric : str
    scores : tuple of float
        One per split, higher is better.
    noise : float
        Standard deviation of the difference of two candidates on one split.
    keep_from : float, default=-inf
        Mean score below which nobody wants a candidate's models, so that they are not stored.
    """

    metric: str
    scores: tuple[float, ...]
    noise: float
    keep_from: float = -math.inf

    def verdict(self, scores: Sequence[float]) -> str:
        """Why a candidate with these first scores should be stopped; empty to go on.

        It is stopped when the probability that it ends less than one ``noise`` behind is below 1 %. Differences on
        splits are taken as Gaussian with the same mean, their variance shrunk towards ``noise``; a candidate that is
        a little worse may still help an ensemble.

        Examples
        --------
        >>> rival = Rival("accuracy", (0.9, 0.9, 0.9, 0.9, 0.9), noise=0.01)
        >>> rival.verdict([0.89])
        ''
        >>> rival.verdict([0.7])
        'It would most likely end far behind the best: 0.2 worse in accuracy after 1 of 5 folds.'
        """
        done, total = len(scores), len(self.scores)
        if not 0 < done < total or total < 3 or not self.noise > 0:
            return ""
        difference = np.asarray(scores) - np.asarray(self.scores[:done])
        if not np.isfinite(difference).all():
            return ""
        mean = float(difference.mean())
        freedom = _PRIOR_FOLDS + done - 1
        variance = (_PRIOR_FOLDS * self.noise**2 + float(np.square(difference - mean).sum())) / freedom
        rest = total - done
        error = math.sqrt(variance * (1 / done + 1 / rest)) * rest / total
        if float(stdtr(freedom, (mean + _SLACK * self.noise) / error)) >= _PRUNED_BELOW:
            return ""
        behind = f"{-mean:.4g} worse in {self.metric} after {done} of {total} folds"
        return f"It would most likely end far behind the best: {behind}."
