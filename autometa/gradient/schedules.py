"""How the learning rate runs: alpha(t) over the training, t from 0 (first step) to 1 (last). Needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

SCHEDULES = ("constant", "cosine", "one_cycle", "coslog4")
"""Names of the shapes, see :class:`Schedule`."""

_ONE_CYCLE_RISE = 0.3


@dataclass(frozen=True)
class Schedule:
    """A learning rate schedule: a shape between a floor and a peak.

    Parameters
    ----------
    name : {"constant", "cosine", "one_cycle", "coslog4"}
        - "constant": the peak all the time (the floor matters only where the warm-up starts)
        - "cosine": half a cosine from the peak down to the floor
        - "one_cycle": half a cosine up over the first 30 % of training (longer if the warm-up is), half a cosine down
          over the rest
        - "coslog4": four cycles, each about twice as long as the one before, from floor to peak and back
    peak : float
        Highest learning rate, > 0.
    warmup_fraction : float, default 0.0
        Share of the training over which the rate also rises linearly from the floor, in [0, 1).
    floor_fraction : float, default 0.0
        Lowest rate as a share of the peak, in [0, 1].

    Raises
    ------
    ValueError
        An unknown name or a number out of its range.

    References
    ----------
    "cosine": Loshchilov and Hutter, SGDR, 2017. "one_cycle": Smith and Topin, Super-convergence, 2019.
    "coslog4": Holzmueller et al., Better by default: strong pre-tuned MLPs and boosted trees on tabular data, 2024.

    Examples
    --------
    >>> schedule = Schedule("cosine", peak=0.1)
    >>> [round(schedule.rate(t), 3) for t in (0.0, 0.5, 1.0)]
    [0.1, 0.05, 0.0]
    """

    name: str
    peak: float
    warmup_fraction: float = 0.0
    floor_fraction: float = 0.0

    def __post_init__(self) -> None:
        if self.name not in SCHEDULES:
            raise ValueError(f"The schedule must be one of {', '.join(SCHEDULES)}. Got {self.name!r} instead.")
        if not (math.isfinite(self.peak) and self.peak > 0):
            raise ValueError(f"The peak learning rate must be a positive number. Got {self.peak!r} instead.")
        if not 0 <= self.warmup_fraction < 1:
            raise ValueError(f"warmup_fraction must lie in [0, 1). Got {self.warmup_fraction!r} instead.")
        if not 0 <= self.floor_fraction <= 1:
            raise ValueError(f"floor_fraction must lie in [0, 1]. Got {self.floor_fraction!r} instead.")

    @property
    def floor(self) -> float:
        """Lowest learning rate."""
        return self.peak * self.floor_fraction

    def rate(self, t: float) -> float:
        """Learning rate at the fraction ``t`` of the training; ``t`` is clipped to [0, 1]."""
        t = min(max(float(t), 0.0), 1.0)
        rising = t < self.warmup_fraction and self.name != "one_cycle"
        height = self._height(t) * (t / self.warmup_fraction if rising else 1.0)
        return min(max(self.floor + (self.peak - self.floor) * height, self.floor), self.peak)

    def _height(self, t: float) -> float:
        """Height of the shape between floor (0) and peak (1)."""
        if self.name == "constant":
            return 1.0
        if self.name == "coslog4":
            return 0.5 * (1.0 - math.cos(2.0 * math.pi * math.log2(1.0 + 15.0 * t)))
        rise = self.warmup_fraction
        if self.name == "one_cycle":
            rise = max(rise, _ONE_CYCLE_RISE)
            if t < rise:
                return 0.5 * (1.0 - math.cos(math.pi * t / rise))
        if t < rise:
            return 1.0
        return 0.5 * (1.0 + math.cos(math.pi * (t - rise) / (1.0 - rise)))
