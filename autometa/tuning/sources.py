"""Earlier studies as prior: each is one hypothesis about the new one, and "none of them" is another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from autometa.family import Candidate
from autometa.search_space import SearchSpace
from autometa.tuning.extension import extend
from autometa.tuning.handover import Surrogate
from autometa.tuning.history import Outcome, outcomes
from autometa.tuning.knowledge import Knowledge
from autometa.tuning.neighbourhood import at_random
from autometa.tuning.spaces import FAMILY, Floats, Spaces

_N_BEST = 10
_N_RANDOM = 64
_LOWEST = -1.0
_MIN_STD = 0.3
_LENGTH_SCALE = 0.5
_OFFSET_SCALES = 10.0
_LOG_SCALE_STD = 0.7


@dataclass(frozen=True)
class _Source:
    """One earlier study: its outcomes in normalised units (0 = its median, 1 = its best), and these units."""

    history: list[Outcome]
    offset: float
    scale: float


def knowledge_from_studies(
    studies: Sequence[optuna.Study], knowledge: Knowledge | None = None, *, seed: int = 0
) -> Knowledge:
    """What is known before the first trial, with earlier studies taken into account.

    Their trials are read in the new search space: unknown parameters are dropped, missing ones take the default, and
    numbers are drawn into the range. A Gaussian process carries each study to common candidates. The belief is a
    mixture of one component per study and one that expects nothing; together with a meta-model's belief the studies
    get half of the weight.

    Source: the mixture is in the spirit of ranking-weighted ensembles (Feurer, Letham & Bakshy 2018), with exact
    posterior weights instead of ranks.

    Parameters
    ----------
    studies : sequence of optuna.Study
        Single-objective.
    knowledge : Knowledge or None
        ``None``: the search space is that of the studies.
    seed : int
        Of the candidates drawn at random.

    Raises
    ------
    ValueError
        No study has two scored trials in this search space.
    """
    spaces = knowledge.spaces if knowledge is not None else inferred_spaces(studies)
    sources = [source for study in studies if (source := _read(study, spaces)) is not None]
    if not sources:
        raise ValueError(
            "source_studies must hold a study with at least 2 scored trials in the search space "
            f"({', '.join(spaces) or 'empty'}). Got {len(studies)} without."
        )
    best = [o for s in sources for o in sorted(s.history, key=lambda o: -o.score)[:_N_BEST]]
    candidates = [o.candidate for o in best]
    if knowledge is None or knowledge.belief is None:
        drawn = at_random(spaces, np.random.default_rng(seed), n=_N_RANDOM)
        listed = knowledge.candidates if knowledge is not None else ()
        return _new_knowledge(spaces, list(dict.fromkeys([*listed, *candidates, *drawn])), sources)
    return _merged(knowledge, candidates, sources)


def inferred_spaces(studies: Sequence[optuna.Study]) -> Spaces:
    """The search space of studies: the widest range of every parameter that one of their trials asked for.

    Where trials have a parameter ``family``, parameters called ``<family>.<name>`` belong to that family.
    """
    distributions: dict[str, BaseDistribution] = {}
    for study in studies:
        for trial in study.get_trials(deepcopy=False):
            for name, distribution in trial.distributions.items():
                distributions[name] = _widest(distributions.get(name), distribution)
    family = distributions.pop(FAMILY, None)
    if not isinstance(family, CategoricalDistribution):
        return Spaces({"study": SearchSpace(distributions)})
    own = {
        str(name): {key.partition(".")[2]: d for key, d in distributions.items() if key.startswith(f"{name}.")}
        for name in family.choices
    }
    return Spaces({name: SearchSpace(found) for name, found in own.items()})


def _widest(known: BaseDistribution | None, other: BaseDistribution) -> BaseDistribution:
    """A distribution that holds both; the later one where they are of different kinds."""
    if isinstance(known, CategoricalDistribution) and isinstance(other, CategoricalDistribution):
        return CategoricalDistribution(tuple(dict.fromkeys([*known.choices, *other.choices])))
    if isinstance(known, FloatDistribution) and isinstance(other, FloatDistribution):
        step = known.step if known.step == other.step else None
        return FloatDistribution(min(known.low, other.low), max(known.high, other.high), log=other.log, step=step)
    if isinstance(known, IntDistribution) and isinstance(other, IntDistribution):
        return IntDistribution(min(known.low, other.low), max(known.high, other.high), log=other.log)
    return other


def _read(study: optuna.Study, spaces: Spaces) -> _Source | None:
    known: dict[int, Outcome | None] = {}
    history = [o for o in outcomes(study, spaces, known=known) if o.scored and o.complete]
    if len(history) < 2:
        return None
    scores = np.array([o.score for o in history])
    offset = float(np.median(scores))
    scale = max(float(scores.max()) - offset, 1e-9 * max(abs(offset), 1.0))
    normal = np.maximum((scores - offset) / scale, _LOWEST)
    return _Source([replace(o, score=float(s)) for o, s in zip(history, normal, strict=True)], offset, scale)


def _forecasts(candidates: Sequence[Candidate], sources: Sequence[_Source], spaces: Spaces) -> tuple[Floats, Floats]:
    """Mean of each source at the candidates, shape (S, C), and the mean variance, shape (C,)."""
    found = [Surrogate(spaces, source.history).forecast(candidates) for source in sources]
    return np.stack([f.mean for f in found]), np.mean([f.std**2 for f in found], axis=0)


def _new_knowledge(spaces: Spaces, candidates: list[Candidate], sources: Sequence[_Source]) -> Knowledge:
    from autometa.meta_model.belief import Belief, Covariance, Prior, ScalePrior, kernel

    means, variance = _forecasts(candidates, sources, spaces)
    components = np.vstack([means, np.zeros((1, len(candidates)))])  # the last expects nothing
    vectors = spaces.vectors(candidates)
    families = np.array([list(spaces).index(c.family) for c in candidates])
    std = np.sqrt(np.maximum(variance, _MIN_STD**2))
    matrix = kernel(vectors, vectors, _LENGTH_SCALE) * (families[:, None] == families) * np.outer(std, std)
    logs = np.log([source.scale for source in sources])
    offsets = np.array([source.offset for source in sources])
    scale = ScalePrior(
        offset=float(offsets.mean()),
        offset_std=max(float(offsets.std()), _OFFSET_SCALES * math.exp(float(logs.mean()))),
        slope=0.0, log_scale=float(logs.mean()), log_scale_std=max(float(logs.std()), _LOG_SCALE_STD),
    )  # fmt: skip
    centre = components.mean(axis=0)
    belief = Belief(Prior(centre, Covariance.from_matrix(matrix), scale, shifts=components - centre))
    return Knowledge(spaces, tuple(candidates), belief)


def _merged(knowledge: Knowledge, candidates: Sequence[Candidate], sources: Sequence[_Source]) -> Knowledge:
    """The meta-model's belief with the sources as further components, which get half of the weight."""
    pool, belief = knowledge.pool, knowledge.belief
    assert belief is not None
    new = [c for c in dict.fromkeys(candidates) if c not in set(pool)]
    later = extend(belief, pool, new, knowledge.spaces)
    everyone = [*pool, *new]
    means, _ = _forecasts(everyone, sources, knowledge.spaces)
    prior = later.prior
    shifts: Any = prior.shifts if len(prior.shifts) else np.zeros((1, len(everyone)))
    copies = max(1, round(len(shifts) / len(means)))
    own = np.repeat(means - prior.mean, copies, axis=0)
    listed = knowledge.candidates[len(pool) :]
    merged = type(later)(replace(prior, shifts=np.vstack([shifts, own])), later.seconds_prior)
    return Knowledge(knowledge.spaces, (*everyone, *listed), merged)
