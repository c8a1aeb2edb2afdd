"""Configurations near good ones, and at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from autometa.family import Candidate
from autometa.search_space import SearchSpace
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
    found = []
    for _ in range(n):
        moved = rng.random(len(space)) < 0.5
        moved[rng.integers(len(space))] = True
        other = space.sample(rng)
        config = dict(candidate.config)
        for name in np.array(list(space))[moved]:
            config[name] = _step(spaces, candidate, str(name), other[str(name)], rng=rng, width=width)
        found.append(spaces.canonical(Candidate(candidate.family, config)))
    return found


def _step(
    spaces: Spaces, candidate: Candidate, name: str, other: object, *, rng: np.random.Generator, width: float
) -> object:
    """The hyperparameter's new value; ``other`` is one drawn at random."""
    single = SearchSpace({name: spaces[candidate.family][name]})
    unit = single.encode({name: candidate.config[name]})
    if len(unit) > 1:
        return other
    step = width * 10.0 ** -rng.random() * rng.standard_normal()
    return single.decode(np.clip(unit + step, 0.0, 1.0))[name]


def at_random(spaces: Spaces, rng: np.random.Generator, *, n: int) -> list[Candidate]:
    """``n`` configurations, the family first, then uniform in its unit cube."""
    names = list(spaces)
    families = [names[i] for i in rng.integers(len(names), size=n)]
    return [spaces.canonical(Candidate(name, spaces[name].sample(rng))) for name in families]
