"""The candidates that a meta-model was trained on, and how any other candidate is read through them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from autometa.family import Candidate
from autometa.meta_dataset import candidate_key, canonical_config
from autometa.meta_model.belief import Floats, kernel
from autometa.meta_model.encoders import ConfigEncoder

_NUGGET = 1e-2


class View(NamedTuple):
    """Candidates (C) seen from a pool (P): interpolation weights and what they leave open."""

    member: NDArray[np.int64]
    """Position in the pool, -1 outside, shape (C,)."""
    blocks: list[tuple[NDArray[np.intp], NDArray[np.intp], Floats]]
    """For each family with candidates outside the pool: these (n), its pool members (k), weights (n, k)."""
    bridge: Floats
    """Whitened kernel between candidates and pool, zeros inside, shape (C, P)."""
    vectors: Floats
    family: NDArray[np.int64]
    """Number of the family; families unknown to the pool come after the known ones."""


class CandidatePool:
    """A fixed list of candidates with an encoder of their configurations.

    Parameters
    ----------
    candidates : sequence of (family, config)
    encoder : ConfigEncoder, optional
        Default: fitted on the candidates.
    length_scale : float
        Of the kernel over configurations.
    """

    def __init__(
        self,
        candidates: Sequence[tuple[str, Mapping[str, Any]]],
        encoder: ConfigEncoder | None = None,
        *,
        length_scale: float = 0.5,
    ) -> None:
        self.candidates = [(family, canonical_config(config)) for family, config in candidates]
        self.encoder = encoder or ConfigEncoder.fit(self.candidates)
        self.length_scale = length_scale
        self.families = list(dict.fromkeys(family for family, _ in self.candidates))
        self.family = np.array([self.families.index(family) for family, _ in self.candidates], dtype=np.int64)
        self._position = {_quick_key(f, c): i for i, (f, c) in enumerate(self.candidates)}
        self.vectors = np.zeros((len(self.candidates), self.encoder.n_outputs))
        for number, name in enumerate(self.families):
            at = np.flatnonzero(self.family == number)
            self.vectors[at] = self.encoder.encode(name, [self.candidates[i][1] for i in at])

    def __len__(self) -> int:
        return len(self.candidates)

    def view(self, candidates: Sequence[Candidate], usable: NDArray[np.bool_]) -> View:
        """Read candidates through the pool members marked in ``usable``, shape (P,)."""
        member = np.array([self._position.get(_quick_key(c.family, c.config), -1) for c in candidates], dtype=np.int64)
        member = np.where((member >= 0) & usable[member], member, -1)
        numbers = {name: i for i, name in enumerate(self.families)}
        family = np.array([numbers.setdefault(c.family, len(numbers)) for c in candidates], dtype=np.int64)
        n = len(candidates)
        bridge = np.zeros((n, len(self)))
        blocks: list[tuple[NDArray[np.intp], NDArray[np.intp], Floats]] = []
        vectors = np.zeros((n, self.vectors.shape[1]))
        inside = np.flatnonzero(member >= 0)
        vectors[inside] = self.vectors[member[inside]]
        for number in np.unique(family[member < 0]):
            at = np.flatnonzero((family == number) & (member < 0))
            group = [candidates[int(i)] for i in at]
            vectors[at] = self.encoder.encode(group[0].family, [c.config for c in group])
            known = np.flatnonzero((self.family == number) & usable)
            if len(known):
                weights, bridge[np.ix_(at, known)] = self._interpolate(vectors[at], self.vectors[known])
                blocks.append((at, known, weights))
        return View(member, blocks, bridge, vectors, family)

    def _interpolate(self, new: Floats, known: Floats) -> tuple[Floats, Floats]:
        within = kernel(known, known, self.length_scale) + _NUGGET * np.eye(len(known))
        root = np.linalg.cholesky(within)
        bridge = np.linalg.solve(root, kernel(known, new, self.length_scale))  # (K, n)
        return np.linalg.solve(root.T, bridge).T, bridge.T


def _quick_key(family: str, config: Mapping[str, Any]) -> Hashable:
    """A key by which equal candidates meet: cheaper than canonical text for thousands of them."""
    try:
        return family, frozenset(item for item in config.items() if item[1] is not None and item[1] == item[1])
    except (TypeError, ValueError):
        return candidate_key(family, config)
