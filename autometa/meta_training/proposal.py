"""Training of a proposal policy: likelihood of what worked, then policy gradient on what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from autometa.family import Candidate
from autometa.meta_dataset import MetaDataset
from autometa.meta_model.belief import Floats
from autometa.meta_model.encoders import FeatureEncoder
from autometa.meta_model.proposal import ProposalPolicy, Runs, family_weights, improve
from autometa.search_space import SearchSpace

_BANK = 2048


@dataclass(frozen=True)
class ProposalOptions:
    """Choices of :func:`train_proposal_policy`.

    Parameters
    ----------
    n_hidden : int
    n_steps : int
        Gradient steps on the likelihood.
    n_gradient_steps : int
        Steps of policy gradient on the measured rewards of the corpus.
    learning_rate, weight_decay : float
        Of AdamW, for the likelihood.
    temperature : float
        In normalised score: a candidate that is this much worse counts 1 / e as much.
    jitter : float
        Standard deviation, in the unit cube, by which measured configurations are blurred: those between two measured
        ones may be as good.
    uniform_share : float
        Weight of uniform configurations beside the measured ones; it keeps the policy broad.
    """

    n_hidden: int = 64
    n_steps: int = 300
    n_gradient_steps: int = 40
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    temperature: float = 0.3
    jitter: float = 0.15
    uniform_share: float = 0.2


def train_proposal_policy(
    meta_dataset: MetaDataset,
    spaces: Mapping[str, SearchSpace],
    *,
    seed: int = 0,
    options: ProposalOptions | None = None,
) -> ProposalPolicy:
    """Learn from earlier datasets where good configurations lie.

    Parameters
    ----------
    meta_dataset : MetaDataset
    spaces : mapping of str to SearchSpace
        Families to propose. Measured candidates of other families, or outside their space, are ignored.
    seed : int
        The same seed gives the same policy.
    options : ProposalOptions, optional

    Raises
    ------
    ValueError
        No measured candidate lies in one of the spaces.
    """
    options = options or ProposalOptions()
    runs = corpus_runs(meta_dataset, spaces)
    if not runs:
        raise ValueError("The meta-dataset must hold candidates of the search spaces. Got none.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = FeatureEncoder.fit(meta_dataset.meta_features)
        policy = ProposalPolicy(encoder, spaces, n_hidden=options.n_hidden)
        _fit_likelihood(policy, runs, options, np.random.default_rng(seed))
    improve(policy, runs, n_steps=options.n_gradient_steps, learning_rate=options.learning_rate, by_family=True)
    return policy.eval()


def corpus_runs(meta_dataset: MetaDataset, spaces: Mapping[str, SearchSpace]) -> list[Runs]:
    """Measured candidates of each dataset with normalised scores (0 = median, 1 = best), the mean over metrics."""
    valid = {key: c for key, c in meta_dataset.candidates.items() if _fits(c, spaces)}
    total: dict[str, dict[str, list[float]]] = {}
    for metric in meta_dataset.metrics:
        table = meta_dataset.score_table(metric)
        table = table.loc[:, [key for key in table.columns if key in valid]].dropna(how="all")
        if table.empty:
            continue
        scores = _normalised(table.to_numpy(dtype=float))
        for name, row in zip(table.index, scores, strict=True):
            for key, score in zip(table.columns, row, strict=True):
                if np.isfinite(score):
                    total.setdefault(str(name), {}).setdefault(str(key), []).append(float(score))
    runs = []
    for name, cells in total.items():
        if len(cells) > 1:
            features = {str(k): v for k, v in meta_dataset.meta_features.loc[name].to_dict().items()}
            runs.append(Runs(features, [valid[key] for key in cells], [float(np.mean(v)) for v in cells.values()]))
    return runs


def _normalised(raw: Floats) -> Floats:
    """0 = the dataset's median candidate, 1 = its best, at least -1."""
    median = np.nanmedian(raw, axis=1, keepdims=True)
    scale = np.nanmax(raw, axis=1, keepdims=True) - median
    return np.asarray(np.clip((raw - median) / np.maximum(scale, 1e-9), -1, None))


def _fits(candidate: Candidate, spaces: Mapping[str, SearchSpace]) -> bool:
    try:
        spaces[candidate.family].validate(candidate.config)
    except (KeyError, ValueError):
        return False
    return True


def _fit_likelihood(
    policy: ProposalPolicy, runs: list[Runs], options: ProposalOptions, rng: np.random.Generator
) -> None:
    """Weighted likelihood of measured configurations, blurred, beside a share of uniform ones."""
    layout = policy.layout
    x = torch.cat([policy.encoder(r.meta_features) for r in runs])  # (B, D)
    family, vectors = layout.units([c for r in runs for c in r.candidates], policy.spaces)  # (n,), (n, W)
    index = torch.from_numpy(np.repeat(np.arange(len(runs)), [len(r.candidates) for r in runs]))
    weight = torch.from_numpy(np.concatenate([_weights(r, options.temperature) for r in runs])).to(torch.float32)
    weight = (1 - options.uniform_share) * weight / len(runs)
    anywhere = torch.arange(len(runs)).repeat_interleave(2)
    names = list(policy.spaces)
    drawn = [names[i] for i in rng.integers(len(names), size=_BANK)]
    bank = layout.units([Candidate(n, policy.spaces[n].sample(rng)) for n in drawn], policy.spaces)
    policy.train()
    optimiser = torch.optim.AdamW(
        [*policy.trunk.parameters(), *policy.output.parameters()], lr=options.learning_rate,
        weight_decay=options.weight_decay,
    )  # fmt: skip
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, options.n_steps)
    for _ in range(options.n_steps):
        p = policy(x)
        blurred = vectors.clone()
        noise = options.jitter * torch.randn(len(vectors), len(layout.numeric))
        blurred[:, layout.numeric] = _folded(vectors[:, layout.numeric] + noise)
        fit = layout.log_prob(p, index, (family, blurred)) @ weight
        some = torch.randint(_BANK, (len(anywhere),))
        uniform = bank[0][some], bank[1][some]
        loss = -fit - options.uniform_share * layout.log_prob(p, anywhere, uniform).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
    policy.eval()


def _folded(values: torch.Tensor) -> torch.Tensor:
    """Reflected at 0 and 1, so that blurring does not pile up at the ends."""
    values = values.abs()
    return torch.where(values > 1, 2 - values, values).clamp(0, 1)


def _weights(runs: Runs, temperature: float) -> Floats:
    """Weight of each candidate of one dataset, they sum to 1; how many of a family were measured does not count."""
    scores = np.asarray(runs.rewards, dtype=float)
    weight = family_weights(runs.candidates) * np.exp((scores - scores.max()) / temperature)
    return np.asarray(weight / weight.sum())
