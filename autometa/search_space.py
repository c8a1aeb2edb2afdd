"""Search spaces: named Optuna distributions with a fixed map to the unit cube.

A family's search space is a constant. The same configuration means the same thing on every dataset, and its unit
vector is what the meta-model and the samplers see.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

if TYPE_CHECKING:
    from optuna.trial import Trial

Config = Mapping[str, Any]


class SearchSpace(Mapping[str, BaseDistribution]):
    """An immutable mapping from hyperparameter name to Optuna distribution.

    Parameters
    ----------
    distributions : mapping of str to BaseDistribution
        Float, integer and categorical distributions. Numeric ones take one coordinate of the unit vector
        (logarithmic where the distribution is), categorical ones one coordinate per choice.

    Examples
    --------
    >>> from optuna.distributions import CategoricalDistribution, FloatDistribution
    >>> C = FloatDistribution(0.01, 100, log=True)
    >>> space = SearchSpace({"C": C, "kernel": CategoricalDistribution(["a", "b"])})
    >>> space.encode({"C": 1.0, "kernel": "b"}).round(2).tolist()
    [0.5, 0.0, 1.0]
    >>> space.decode([0.5, 0.0, 1.0])
    {'C': 1.0, 'kernel': 'b'}
    """

    def __init__(self, distributions: Mapping[str, BaseDistribution]) -> None:
        for name, distribution in distributions.items():
            if not isinstance(distribution, FloatDistribution | IntDistribution | CategoricalDistribution):
                raise TypeError(
                    f"The distribution of {name!r} must be a float, integer or categorical Optuna distribution. "
                    f"Got {distribution!r} instead."
                )
        self._distributions = dict(distributions)

    def __getitem__(self, name: str) -> BaseDistribution:
        return self._distributions[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._distributions)

    def __len__(self) -> int:
        return len(self._distributions)

    def __repr__(self) -> str:
        return f"SearchSpace({self._distributions!r})"

    @property
    def n_dims(self) -> int:
        """Length of the unit vector."""
        return sum(_width(d) for d in self.values())

    @property
    def unit_names(self) -> tuple[str, ...]:
        """Name of each coordinate of the unit vector; ``name=choice`` for categorical hyperparameters."""
        names: list[str] = []
        for name, d in self.items():
            names += [f"{name}={c}" for c in d.choices] if isinstance(d, CategoricalDistribution) else [name]
        return tuple(names)

    def validate(self, config: Config) -> None:
        """Raise ``ValueError`` unless ``config`` names exactly this space's hyperparameters with allowed values."""
        missing, unknown = sorted(set(self) - set(config)), sorted(set(config) - set(self))
        if missing or unknown:
            raise ValueError(f"The configuration must name {sorted(self)}. Missing: {missing}; unknown: {unknown}.")
        for name, d in self.items():
            try:
                allowed = d._contains(d.to_internal_repr(config[name]))
            except (TypeError, ValueError):
                allowed = False
            if not allowed:
                raise ValueError(f"The hyperparameter {name!r} must lie in {d}. Got {config[name]!r} instead.")

    def canonical(self, config: Config) -> dict[str, Any]:
        """The same configuration with values of the types that Optuna gives back, in the order of the space.

        JSON turns 1.0 into 1; candidates are equal when their canonical configurations are.
        """
        return {name: d.to_external_repr(d.to_internal_repr(config[name])) for name, d in self.items()}

    def encode(self, config: Config) -> NDArray[np.float64]:
        """Unit vector of a configuration, shape (n_dims,). Values outside the range are clipped to it."""
        parts = [_encode(d, config[name]) for name, d in self.items()]
        return np.concatenate(parts) if parts else np.zeros(0)

    def decode(self, vector: Any) -> dict[str, Any]:
        """Configuration of a unit vector, shape (n_dims,). The largest coordinate of a categorical one wins."""
        vector = np.asarray(vector, dtype=float)
        if vector.shape != (self.n_dims,):
            raise ValueError(f"The unit vector must have shape ({self.n_dims},). Got {vector.shape} instead.")
        config, start = {}, 0
        for name, d in self.items():
            config[name] = _decode(d, vector[start : start + _width(d)])
            start += _width(d)
        return config

    def sample(self, rng: np.random.Generator) -> dict[str, Any]:
        """One configuration, uniform in the unit cube."""
        return self.from_cube(rng.random(len(self)))

    def from_cube(self, point: Any) -> dict[str, Any]:
        """Configuration of a point with one uniform coordinate per hyperparameter, shape (len(self),).

        This is what low-discrepancy sequences produce; a categorical choice takes an equal slice of its coordinate.
        """
        config = {}
        for (name, d), u in zip(self.items(), np.asarray(point, dtype=float), strict=True):
            if isinstance(d, CategoricalDistribution):
                config[name] = d.choices[min(int(u * len(d.choices)), len(d.choices) - 1)]
            else:
                config[name] = _decode(d, np.array([u]))
        return config

    def suggest(self, trial: Trial, prefix: str = "") -> dict[str, Any]:
        """Ask an Optuna trial for every hyperparameter, each under the name ``prefix + name``."""
        return {name: trial._suggest(prefix + name, d) for name, d in self.items()}


def _width(d: BaseDistribution) -> int:
    return len(d.choices) if isinstance(d, CategoricalDistribution) else 1


def _bounds(d: FloatDistribution | IntDistribution) -> tuple[float, float]:
    """Ends of the unit interval; integers get half a step on each side so that rounding is fair."""
    low, high = float(d.low), float(d.high)
    if isinstance(d, IntDistribution):
        low, high = low - 0.5 * d.step, high + 0.5 * d.step
    return (math.log(low), math.log(high)) if d.log else (low, high)


def _encode(d: BaseDistribution, value: Any) -> NDArray[np.float64]:
    if isinstance(d, CategoricalDistribution):
        unit = np.zeros(len(d.choices))
        unit[int(d.to_internal_repr(value))] = 1.0
        return unit
    assert isinstance(d, FloatDistribution | IntDistribution)
    low, high = _bounds(d)
    number = min(max(float(value), float(d.low)), float(d.high))
    position = math.log(number) if d.log else number
    return np.array([(position - low) / (high - low) if high > low else 0.5])


def _decode(d: BaseDistribution, unit: NDArray[np.float64]) -> Any:
    if isinstance(d, CategoricalDistribution):
        return d.choices[int(np.argmax(unit))]
    assert isinstance(d, FloatDistribution | IntDistribution)
    low, high = _bounds(d)
    number = low + float(np.clip(unit[0], 0.0, 1.0)) * (high - low)
    number = math.exp(number) if d.log else number
    if isinstance(d, IntDistribution):
        number = d.low + d.step * round((number - d.low) / d.step)
        return int(min(max(number, d.low), d.high))
    if d.step is not None:
        number = d.low + d.step * round((number - d.low) / d.step)
    return float(min(max(_tidy(number), d.low), d.high))


def _tidy(number: float) -> float:
    """Twelve significant digits: a decoded value reads well and survives a JSON round trip unchanged."""
    return float(f"{number:.12g}")
