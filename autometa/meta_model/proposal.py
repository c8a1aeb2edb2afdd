"""Writing configurations from a dataset's features: a policy over families and their hyperparameters.

It is the proposal distribution for configurations outside the meta-model's pool: the policy says where good ones may
lie, the belief says which of them to try, and what was measured improves the policy (policy gradient: Williams, 1992,
with the clipped ratios of Schulman et al., 2017).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributions import Beta, kl_divergence

from autometa.exceptions import ArtefactError
from autometa.family import Candidate
from autometa.meta_model.belief import Floats
from autometa.meta_model.encoders import FeatureEncoder
from autometa.meta_model.saved import read_saved
from autometa.search_space import SearchSpace

FORMAT_VERSION = 1
_UNIFORM_SHARE = 0.1
_MAX_CONCENTRATION = 30.0
_START = -4.0  # softplus of it is nearly 0: a Beta(1, 1), which is uniform
_CLIP = 0.2
_EDGE = 1e-3


@dataclass(frozen=True, eq=False)
class Runs:
    """Measured candidates of one dataset, what :meth:`ProposalPolicy.update` learns from.

    Parameters
    ----------
    meta_features : Series or mapping
    candidates : sequence of Candidate
    rewards : sequence of float
        Scores, higher = better, comparable within this dataset only; NaN is a failure.
    """

    meta_features: pd.Series | Mapping[str, Any]
    candidates: Sequence[Candidate]
    rewards: Sequence[float]


class ProposalPolicy(nn.Module):
    """pi(candidate | dataset): a family, then its hyperparameters, independent given family and dataset.

    Numbers follow a Beta distribution on their unit interval, choices a categorical one; a tenth of the proposals is
    uniform. A policy without training is uniform altogether.

    Parameters
    ----------
    encoder : FeatureEncoder
    spaces : mapping of str to SearchSpace
        Search space of each family.
    n_hidden : int
    dropout : float
        Of the hidden units, in training.
    """

    def __init__(
        self, encoder: FeatureEncoder, spaces: Mapping[str, SearchSpace], *, n_hidden: int = 64, dropout: float = 0.5
    ) -> None:
        super().__init__()
        if not spaces:
            raise ValueError("spaces must hold the search space of at least one family. Got none.")
        self.encoder = encoder
        self.spaces = dict(spaces)
        self.layout = _Layout.of(self.spaces)
        self.trunk = nn.Sequential(nn.Linear(encoder.n_outputs, n_hidden), nn.ReLU(), nn.Dropout(dropout))
        self.output = nn.Linear(n_hidden, self.layout.n_outputs)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        self.eval()

    def forward(self, x: Tensor) -> Parameters:
        """Parameters of the distribution for encoded meta-features (B, D)."""
        return self.layout.parameters(self.output(self.trunk(x)))

    @torch.no_grad()
    def sample(
        self,
        meta_features: pd.Series | Mapping[str, Any],
        n: int,
        *,
        rng: np.random.Generator,
        families: Iterable[str] | None = None,
    ) -> list[Candidate]:
        """Draw candidates for a dataset; fewer than ``n`` where a small space has no more different ones.

        Parameters
        ----------
        n : int
        rng : Generator
        families : iterable of str, optional
            Those that may be proposed. Default: all of the policy.

        Raises
        ------
        ValueError
            A family that the policy does not know.
        """
        p = self(self.encoder(meta_features))
        chances = self._family_chances(p, families)
        drawn: dict[Candidate, None] = {}
        for _ in range(20 * n):
            if len(drawn) == n:
                break
            uniform = rng.random() < _UNIFORM_SHARE
            number = int(rng.choice(len(chances), p=(chances > 0) / (chances > 0).sum() if uniform else chances))
            name, space = list(self.spaces.items())[number]
            config = space.sample(rng) if uniform else space.decode(self.layout.draw(number, p, rng))
            drawn[Candidate(name, config)] = None
        return list(drawn)

    @torch.no_grad()
    def log_prob(self, meta_features: pd.Series | Mapping[str, Any], candidates: Sequence[Candidate]) -> Floats:
        """Logarithm of the density of candidates in family and unit cube, shape (n,)."""
        p = self(self.encoder(meta_features))
        index = torch.zeros(len(candidates), dtype=torch.long)
        log_prob: Tensor = self.layout.log_prob(p, index, self.layout.units(candidates, self.spaces))
        return np.asarray(log_prob.numpy(), dtype=float)

    def _family_chances(self, p: Parameters, families: Iterable[str] | None) -> Floats:
        allowed = list(self.spaces if families is None else families)
        unknown = [name for name in allowed if name not in self.spaces]
        if unknown or not allowed:
            raise ValueError(f"families must be among {', '.join(self.spaces)}. Got {unknown or 'none'} instead.")
        chances = np.exp(p.family[0].numpy().astype(float))
        chances[[name not in allowed for name in self.spaces]] = 0.0
        return np.asarray(chances / chances.sum())

    def update(self, runs: Sequence[Runs], *, n_steps: int = 40, learning_rate: float = 0.02) -> ProposalPolicy:
        """A policy that has learned from measured runs, close to this one. Only its output layer moves.

        Runs of families that the policy does not know are ignored, and so is a dataset with fewer than two runs.
        """
        known = [_known(r, self.spaces) for r in runs]
        known = [r for r in known if len(r.candidates) > 1]
        policy = copy.deepcopy(self)
        if known:
            improve(policy, known, n_steps=n_steps, learning_rate=learning_rate)
        return policy

    def save(self, folder: str | Path) -> Path:
        """Write ``proposal.safetensors`` and ``proposal.json`` into a folder, the one of its meta-model say."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / "proposal.safetensors")
        card = {
            "format": "autometa-proposal", "format_version": FORMAT_VERSION, "encoder": self.encoder.spec,
            "n_hidden": self.output.in_features, "spaces": _describe(self.spaces),
        }  # fmt: skip
        (folder / "proposal.json").write_text(json.dumps(card, indent=1), "utf-8")
        return folder

    @classmethod
    def load(cls, folder: str | Path, spaces: Mapping[str, SearchSpace]) -> ProposalPolicy:
        """What :meth:`save` wrote, given the search spaces of the same families.

        Raises
        ------
        ArtefactError
            A file is missing, damaged, or a search space has changed since.
        """
        state, card = read_saved(
            folder, weights="proposal.safetensors", card="proposal.json", kind="proposal", format_version=FORMAT_VERSION
        )
        try:
            described = dict(card["spaces"])
            changed = [n for n in described if n not in spaces or _describe({n: spaces[n]})[n] != described[n]]
            if changed:
                raise ArtefactError(f"The search space of {changed} must be the one the policy was trained on.")
            encoder = FeatureEncoder(**card["encoder"])
            policy = cls(encoder, {n: spaces[n] for n in described}, n_hidden=int(card["n_hidden"]))
            policy.load_state_dict(state)
        except ArtefactError:
            raise
        except Exception as error:
            raise ArtefactError(f"The proposal policy in {str(folder)!r} cannot be read: {error}") from error
        return policy.eval()


@dataclass(frozen=True, eq=False)
class Parameters:
    """Of the distribution for B datasets: log-probabilities of families (B, F) and choices (B, Q), Betas (B, U)."""

    family: Tensor
    beta: Beta
    choice: Tensor


@dataclass(frozen=True, eq=False)
class _Layout:
    """Where the hyperparameters of all families lie in one long unit vector (W).

    Attributes
    ----------
    starts : list of int
        First coordinate of each family, and W.
    numeric, choice : Tensor of int
        Coordinates of numbers (U) and of choices (Q).
    owner : Tensor of shape (U,)
        Family of each number.
    group : Tensor of shape (Q,)
        Which categorical hyperparameter a choice belongs to.
    log_uniform : Tensor of shape (F,)
        Log-density of a uniform candidate of each family.
    """

    starts: list[int]
    numeric: Tensor
    choice: Tensor
    owner: Tensor
    group: Tensor
    log_uniform: Tensor

    @classmethod
    def of(cls, spaces: Mapping[str, SearchSpace]) -> _Layout:
        starts, log_uniform = [0], []
        numeric: list[int] = []
        owner: list[int] = []
        choice: list[int] = []
        group: list[str] = []
        for number, space in enumerate(spaces.values()):
            log_density, at = -np.log(len(spaces)), starts[-1]
            for name, d in space.items():
                choices = getattr(d, "choices", None)
                if choices is None:
                    numeric.append(at)
                    owner.append(number)
                else:
                    choice += range(at, at + len(choices))
                    group += [f"{number}.{name}"] * len(choices)
                    log_density -= np.log(len(choices))
                at += 1 if choices is None else len(choices)
            starts.append(starts[-1] + space.n_dims)
            log_uniform.append(log_density)
        codes = pd.factorize(np.array(group, dtype=object))[0] if group else np.zeros(0)
        return cls(
            starts, _longs(numeric), _longs(choice), _longs(owner), _longs(codes),
            torch.tensor(log_uniform, dtype=torch.float32),
        )  # fmt: skip

    @property
    def n_outputs(self) -> int:
        return len(self.starts) - 1 + 2 * len(self.numeric) + len(self.choice)

    def parameters(self, outputs: Tensor) -> Parameters:
        """From the outputs of the net (B, F + 2 U + Q)."""
        n_families, n_numeric = len(self.starts) - 1, len(self.numeric)
        sizes = [n_families, n_numeric, n_numeric, len(self.choice)]
        family, centre, width, choice = torch.split(outputs, sizes, dim=1)
        mode = torch.sigmoid(centre)  # (B, U)
        concentration = nn.functional.softplus(width + _START).clamp(max=_MAX_CONCENTRATION)
        total = torch.zeros(len(choice), int(self.group.max()) + 1 if len(self.group) else 0).to(choice)
        total = total.index_add(1, self.group, choice.exp())  # (B, categorical hyperparameters)
        return Parameters(
            torch.log_softmax(family, dim=1), Beta(1 + mode * concentration, 1 + (1 - mode) * concentration),
            choice - total[:, self.group].log(),
        )  # fmt: skip

    def units(self, candidates: Sequence[Candidate], spaces: Mapping[str, SearchSpace]) -> tuple[Tensor, Tensor]:
        """Families (n,) and long unit vectors (n, W), zeros outside the own family."""
        names = list(spaces)
        unknown = sorted({c.family for c in candidates} - set(names))
        if unknown:
            raise ValueError(f"The family of a candidate must be one of {', '.join(names)}. Got {unknown} instead.")
        numbers = [names.index(c.family) for c in candidates]
        long = np.zeros((len(candidates), self.starts[-1]))
        for row, number, candidate in zip(long, numbers, candidates, strict=True):
            row[self.starts[number] : self.starts[number + 1]] = spaces[candidate.family].encode(candidate.config)
        return _longs(numbers), torch.from_numpy(long).to(torch.float32)

    def log_prob(self, p: Parameters, index: Tensor, units: tuple[Tensor, Tensor]) -> Tensor:
        """Log-density (n,) of candidates in their families and unit vectors, for the datasets ``index`` (n,)."""
        family, vectors = units
        chosen = p.family[index, family]  # (n,)
        numbers = vectors[:, self.numeric].clamp(_EDGE, 1 - _EDGE)  # (n, U)
        beta = Beta(p.beta.concentration1[index], p.beta.concentration0[index])
        own = self.owner[None, :] == family[:, None]
        log_numbers: Tensor = beta.log_prob(numbers)  # type: ignore[no-untyped-call]
        inside = (log_numbers * own).sum(dim=1) + (p.choice[index] * vectors[:, self.choice]).sum(dim=1)
        return torch.logaddexp(
            np.log1p(-_UNIFORM_SHARE) + chosen + inside, np.log(_UNIFORM_SHARE) + self.log_uniform[family]
        )

    def draw(self, number: int, p: Parameters, rng: np.random.Generator) -> Floats:
        """A unit vector of one family for the first dataset."""
        start, end = self.starts[number], self.starts[number + 1]
        unit = np.zeros(self.starts[-1])
        a, b = (c[0].numpy() for c in (p.beta.concentration1, p.beta.concentration0))
        unit[self.numeric.numpy()] = rng.beta(a, b)
        # The largest of Gumbel-disturbed log-probabilities is a draw, and `decode` takes the largest coordinate.
        unit[self.choice.numpy()] = p.choice[0].numpy() + rng.gumbel(size=len(self.choice))
        return unit[start:end]

    def divergence(self, p: Parameters, old: Parameters) -> Tensor:
        """KL divergence from ``old`` to ``p`` without the uniform share, averaged over datasets."""
        chance = old.family.exp()  # (B, F)
        family = (chance * (old.family - p.family)).sum(dim=1)
        numbers = (kl_divergence(old.beta, p.beta) * chance[:, self.owner]).sum(dim=1)
        owners = torch.searchsorted(torch.tensor(self.starts[1:]), self.choice, right=True)
        choices = (chance[:, owners] * old.choice.exp() * (old.choice - p.choice)).sum(dim=1)
        return (family + numbers + choices).mean()


def improve(
    policy: ProposalPolicy,
    runs: Sequence[Runs],
    *,
    n_steps: int,
    learning_rate: float,
    caution: float = 0.1,
    by_family: bool = False,
) -> None:
    """Clipped policy gradient on measured rewards, in place, with a penalty on leaving the starting policy.

    Rewards become standardised ranks within their dataset, so that offset, scale and outliers of its scores do not
    matter; failures rank last.

    Parameters
    ----------
    caution : float
        Weight of the KL divergence from the starting policy.
    by_family : bool
        Every family of a dataset counts the same, for candidates that the policy did not draw.
    """
    layout = policy.layout
    with torch.no_grad():
        x = torch.cat([policy.encoder(r.meta_features) for r in runs])  # (B, D)
        hidden = policy.trunk(x)  # (B, H)
        start = layout.parameters(policy.output(hidden))
    units = layout.units([c for r in runs for c in r.candidates], policy.spaces)
    index = _longs(np.repeat(np.arange(len(runs)), [len(r.candidates) for r in runs]))
    parts = [_weighted_ranks(r, family_weights(r.candidates) if by_family else None) for r in runs]
    advantage = torch.from_numpy(np.concatenate(parts) / len(runs)).to(torch.float32)  # every dataset counts the same
    before = layout.log_prob(start, index, units)
    optimiser = torch.optim.Adam(policy.output.parameters(), lr=learning_rate)
    for _ in range(n_steps):
        p = layout.parameters(policy.output(hidden))
        ratio = (layout.log_prob(p, index, units) - before).exp()  # (n,)
        gain = torch.minimum(ratio * advantage, ratio.clamp(1 - _CLIP, 1 + _CLIP) * advantage)
        loss = caution * layout.divergence(p, start) - gain.sum()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()


def standard_ranks(rewards: Sequence[float]) -> Floats:
    """Ranks with mean 0 and standard deviation 1, ties averaged, NaN last; zeros where all are equal."""
    values = np.asarray(rewards, dtype=float)
    ranks = pd.Series(np.where(np.isfinite(values), values, -np.inf)).rank().to_numpy(dtype=float)
    return np.asarray((ranks - ranks.mean()) / max(ranks.std(), 1e-9))


def family_weights(candidates: Sequence[Candidate]) -> Floats:
    """Weights that sum to 1 and give every family the same share, shape (n,)."""
    families = pd.Series([c.family for c in candidates])
    counts = families.map(families.value_counts()).to_numpy(dtype=float)
    return np.asarray(1.0 / counts / families.nunique())


def _weighted_ranks(runs: Runs, weights: Floats | None) -> Floats:
    """Advantages: weights times ranks about their weighted mean."""
    weight = np.full(len(runs.candidates), 1.0 / len(runs.candidates)) if weights is None else weights
    ranks = standard_ranks(runs.rewards)
    return np.asarray(weight * (ranks - weight @ ranks))


def _known(runs: Runs, spaces: Mapping[str, SearchSpace]) -> Runs:
    at = [i for i, c in enumerate(runs.candidates) if c.family in spaces]
    return Runs(runs.meta_features, [runs.candidates[i] for i in at], [runs.rewards[i] for i in at])


def _describe(spaces: Mapping[str, SearchSpace]) -> dict[str, list[str]]:
    """What makes a search space the same: its distributions, as text."""
    return {family: [f"{name}: {d!r}" for name, d in space.items()] for family, space in spaces.items()}


def _longs(values: Any) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.int64))
