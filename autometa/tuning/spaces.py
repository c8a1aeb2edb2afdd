"""Between the parameters of an Optuna trial and candidates: one search space per family."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution

from autometa.family import Candidate, ModelFamily
from autometa.search_space import SearchSpace

Floats = NDArray[np.float64]

FAMILY = "family"
"""Name of the parameter that says which family a trial is of."""

MISSING: Any = object()

_MAX_REMEMBERED = 4096


class Spaces(Mapping[str, SearchSpace]):
    """Search spaces by family name.

    In a trial the parameters are called ``family`` and ``<family>.<name>``; where there is only one family, plain
    ``<name>`` is understood as well.

    Parameters
    ----------
    spaces : mapping of str to SearchSpace
    defaults : mapping of str to mapping
        Default configurations, by which parameters that a trial did not ask for are filled. Families without one
        use the middle of their space.

    Attributes
    ----------
    even_scale : ndarray of shape (n_dims,)
        Factors on :meth:`vectors` after which a family of many hyperparameters is as wide as one of few: the distance
        of two members of a family is the root mean square over its hyperparameters.
    """

    def __init__(
        self, spaces: Mapping[str, SearchSpace], defaults: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        self._spaces = dict(spaces)
        given = defaults or {}
        self.defaults = {
            name: Candidate(name, space.canonical({**_middle(space), **given.get(name, {})}))
            for name, space in self._spaces.items()
        }
        widths = [len(self._spaces), *(space.n_dims for space in self._spaces.values())]
        self.n_dims = sum(widths)
        middles = [_middle_vector(space) for space in self._spaces.values()]
        self._centre: Floats = np.concatenate([np.zeros(len(self._spaces)), *middles])
        per_family = [1.0, *(1.0 / np.sqrt(max(len(space), 1)) for space in self._spaces.values())]
        self.even_scale: Floats = np.repeat(per_family, widths)
        self._starts = dict(zip(self._spaces, np.cumsum(widths).tolist(), strict=False))
        self._vectors: dict[Candidate, Floats] = {}

    @classmethod
    def of_families(cls, families: Iterable[ModelFamily]) -> Spaces:
        """The spaces and defaults of families."""
        families = list(families)
        return cls({f.name: f.search_space for f in families}, {f.name: f.default_config for f in families})

    def __getitem__(self, name: str) -> SearchSpace:
        return self._spaces[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._spaces)

    def __len__(self) -> int:
        return len(self._spaces)

    def knows(self, parameter: str) -> bool:
        """Whether a parameter name of a trial belongs to these spaces."""
        if parameter == FAMILY:
            return True
        family, _, name = parameter.partition(".")
        if family in self and name in self[family]:
            return True
        return len(self) == 1 and parameter in self._only

    def value(self, candidate: Candidate, parameter: str) -> Any:
        """What a candidate says of a parameter of a trial; ``MISSING`` where it says nothing."""
        if parameter == FAMILY:
            return candidate.family
        prefix = f"{candidate.family}."
        if parameter.startswith(prefix) and parameter[len(prefix) :] in candidate.config:
            return candidate.config[parameter[len(prefix) :]]
        return candidate.config.get(parameter, MISSING) if len(self) == 1 else MISSING

    def candidate(self, params: Mapping[str, Any], *, fill: bool = True) -> Candidate | None:
        """The candidate of a trial's parameters; ``None`` where they are of another space.

        Parameters
        ----------
        params : mapping
            As in ``trial.params``.
        fill : bool
            Take parameters that are not there from the default, and draw numbers into the range. Without it the
            result is ``None`` when one is missing.
        """
        family = params.get(FAMILY, next(iter(self)) if len(self) == 1 else None)
        if not isinstance(family, str) or family not in self:
            return None
        space, config = self[family], dict(self.defaults[family].config)
        named = {name: params.get(f"{family}.{name}", self._plain(params, name)) for name in space}
        found = {name: value for name, value in named.items() if value is not MISSING}
        if (len(space) and not found) or (not fill and len(found) < len(space)):
            return None
        for name, value in found.items():
            fitted = _fitted(space[name], value)
            if fitted is MISSING:
                return None
            config[name] = fitted
        return Candidate(family, space.canonical(config))

    def canonical(self, candidate: Candidate) -> Candidate:
        """The same candidate with values as Optuna gives them back, so that equal ones have equal keys."""
        return Candidate(candidate.family, self[candidate.family].canonical(candidate.config))

    def is_valid(self, candidate: Candidate) -> bool:
        """Whether a candidate lies in its family's space."""
        try:
            self[candidate.family].validate(candidate.config)
        except (KeyError, ValueError):
            return False
        return True

    def vectors(self, candidates: Sequence[Candidate]) -> Floats:
        """One row per candidate, shape (len(candidates), n_dims): family one-hot, then a block per family.

        Blocks of other families hold the middle of their space, so that distances between families do not depend on
        hyperparameters that play no part.
        """
        if len(self._vectors) > _MAX_REMEMBERED:
            self._vectors.clear()
        for candidate in candidates:
            if candidate not in self._vectors:
                self._vectors[candidate] = self._vector(candidate)
        found = [self._vectors[candidate] for candidate in candidates]
        return np.stack(found) if found else np.zeros((0, self.n_dims))

    def _vector(self, candidate: Candidate) -> Floats:
        row = self._centre.copy()
        row[list(self).index(candidate.family)] = 1.0
        start = self._starts[candidate.family]
        encoded = self[candidate.family].encode(candidate.config)
        row[start : start + len(encoded)] = encoded
        return row

    @property
    def _only(self) -> SearchSpace:
        return next(iter(self._spaces.values()))

    def _plain(self, params: Mapping[str, Any], name: str) -> Any:
        return params.get(name, MISSING) if len(self) == 1 else MISSING


def _middle(space: SearchSpace) -> dict[str, Any]:
    return space.decode(np.full(space.n_dims, 0.5))


def _middle_vector(space: SearchSpace) -> Floats:
    widths = [len(d.choices) if isinstance(d, CategoricalDistribution) else 1 for d in space.values()]
    return np.concatenate([np.full(w, 1.0 / w if w > 1 else 0.5) for w in widths]) if widths else np.zeros(0)


def _fitted(distribution: BaseDistribution, value: Any) -> Any:
    """A value drawn into the range of a distribution; ``MISSING`` where it has none that is near."""
    try:
        inside = distribution._contains(distribution.to_internal_repr(value))
    except (TypeError, ValueError):
        return MISSING
    if inside:
        return value
    if isinstance(distribution, CategoricalDistribution) or isinstance(value, str | bool) or value is None:
        return MISSING
    space = SearchSpace({"value": distribution})
    return space.decode(space.encode({"value": value}))["value"]
