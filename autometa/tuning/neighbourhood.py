"""Configurations near good ones, and at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from optuna.distributions import CategoricalDistribution

from autometa.family import Candidate
from autometa.tuning.spaces import Spaces


class SupportsSample(Protocol):
    """What proposes candidates for a dataset: a proposal policy, say."""

    def sample(self, rng: np.random.Generator, n: int) -> Sequence[Candidate]:
        """``n`` candidates."""


@dataclass(frozen=True)
class DatasetPolicy:
    """A :class:`autometa.meta_model.ProposalPolicy` with the dataset that it proposes for.

    Parameters
    ----------
    policy : ProposalPolicy
    meta_features : Series or mapping
        Of the dataset, as for the meta-model.
    families : tuple of str or None
        Families that may be proposed; ``None``: all that the policy knows.
    """

    policy: Any
    meta_features: Any
    families: tuple[str, ...] | None = None

    def sample(self, rng: np.random.Generator, n: int) -> list[Candidate]:
        """At most ``n`` different candidates."""
        return list(self.policy.sample(self.meta_features, n, rng=rng, families=self.families))


def perturbed(
    candidate: Candidate, spaces: Spaces, rng: np.random.Generator, *, n: int, width: float = 0.15
) -> list[Candidate]:
    """``n`` configurations near a candidate.

    In each, about half of the hyperparameters move: numbers by a Gaussian step in the unit cube, whose width varies
    from a tenth of ``width`` to ``width``; categories to another choice.
    """
    space = spaces[candidate.family]
    if not len(space):
        return []
    names = np.array(list(space))
    start = space.encode(candidate.config)
    choices = [d.choices if isinstance(d, CategoricalDistribution) else () for d in space.values()]
    widths, numeric = [len(found) or 1 for found in choices], [not found for found in choices]
    at = np.cumsum([0, *widths])[:-1]  # first coordinate of each hyperparameter
    found = []
    for _ in range(n):
        moved = rng.random(len(names)) < 0.5
        moved[rng.integers(len(names))] = True
        other = {} if np.array(numeric)[moved].all() else space.sample(rng)
        unit = start.copy()
        steps = width * 10.0 ** -rng.random(len(names)) * rng.standard_normal(len(names))
        unit[at[numeric]] = np.clip(unit[at[numeric]] + steps[numeric], 0.0, 1.0)
        stepped = space.decode(unit)
        config = dict(candidate.config)
        for name, number in zip(names[moved].tolist(), np.array(numeric)[moved], strict=True):
            config[name] = stepped[name] if number else other[name]
        found.append(spaces.canonical(Candidate(candidate.family, config)))
    return found


def at_random(spaces: Spaces, rng: np.random.Generator, *, n: int) -> list[Candidate]:
    """``n`` configurations, the family first, then uniform in its unit cube."""
    names = list(spaces)
    families = [names[i] for i in rng.integers(len(names), size=n)]
    return [spaces.canonical(Candidate(name, spaces[name].sample(rng))) for name in families]
