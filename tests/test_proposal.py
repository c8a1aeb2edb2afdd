"""The proposal policy: a proper distribution, learned from what worked, improved by own runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from autometa.exceptions import ArtefactError
from autometa.family import Candidate
from autometa.meta_dataset import MetaDataset
from autometa.meta_model.encoders import FeatureEncoder
from autometa.meta_model.proposal import ProposalPolicy, Runs, standard_ranks
from autometa.meta_training.proposal import ProposalOptions, train_proposal_policy
from autometa.search_space import SearchSpace

SPACES = {
    "net": SearchSpace(
        {
            "learning_rate": FloatDistribution(1e-4, 1.0, log=True),
            "optimizer": CategoricalDistribution(["sgd", "adam", "rmsprop"]),
        }
    ),
    "tree": SearchSpace({"depth": IntDistribution(1, 9)}),
    "plain": SearchSpace({}),
}


def features(size: float) -> dict[str, float]:
    return {"size": size}


def world(n: int = 40, seed: int = 0) -> MetaDataset:
    """Nets win on large tables with a high rate and adam, trees with depth 9 on small ones."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        size = i / n
        for _ in range(12):
            config = SPACES["net"].sample(rng)
            unit = SPACES["net"].encode(config)[0]
            score = (1.0 if size > 0.5 else 0.3) - (unit - 0.8) ** 2 + 0.3 * (config["optimizer"] == "adam")
            rows.append((f"d{i}", "net", config, score))
        for depth in (1, 5, 9):
            rows.append((f"d{i}", "tree", {"depth": depth}, (0.3 if size > 0.5 else 1.0) + 0.05 * depth))
        rows += [(f"d{i}", "plain", {}, 0.0), (f"d{i}", "stranger", {}, 9.0)]
    frame = pd.DataFrame(rows, columns=["dataset", "family", "config", "score"])
    meta = pd.DataFrame({"dataset": [f"d{i}" for i in range(n)], "size": np.arange(n) / n})
    return MetaDataset.from_frames(frame, meta)


@pytest.fixture(scope="module")
def policy() -> ProposalPolicy:
    return train_proposal_policy(world(), SPACES, options=ProposalOptions(n_steps=120))


@pytest.fixture
def untrained() -> ProposalPolicy:
    encoder = FeatureEncoder.fit(pd.DataFrame({"size": np.arange(9.0)}))
    return ProposalPolicy(encoder, SPACES)


def share(candidates: list[Candidate], family: str) -> float:
    return float(np.mean([c.family == family for c in candidates]))


def test_without_training_it_is_uniform(untrained: ProposalPolicy) -> None:
    rng = np.random.default_rng(0)
    low, high = (Candidate("net", {"learning_rate": r, "optimizer": "sgd"}) for r in (0.001, 0.3))
    tree = Candidate("tree", {"depth": 4})
    a, b, c = untrained.log_prob(features(3.0), [low, high, tree])
    assert a == pytest.approx(np.log(1 / 3 / 3), abs=0.05)
    assert b == pytest.approx(a, abs=0.05)
    assert c == pytest.approx(np.log(1 / 3), abs=0.05)
    rates = [c.config["learning_rate"] for c in untrained.sample(features(3.0), 300, rng=rng, families=["net"])]
    assert np.median(np.log10(rates)) == pytest.approx(-2.0, abs=0.3)


def test_samples_are_valid_distinct_and_reproducible(policy: ProposalPolicy) -> None:
    candidates = policy.sample(features(0.9), 60, rng=np.random.default_rng(1))
    assert len(set(candidates)) == len(candidates) == 60
    for candidate in candidates:
        SPACES[candidate.family].validate(candidate.config)
    assert candidates == policy.sample(features(0.9), 60, rng=np.random.default_rng(1))
    assert np.isfinite(policy.log_prob(features(0.9), candidates)).all()


def test_a_small_space_runs_out(policy: ProposalPolicy) -> None:
    assert len(policy.sample(features(0.9), 5, rng=np.random.default_rng(0), families=["plain"])) == 1


def test_the_density_integrates_to_one(policy: ProposalPolicy) -> None:
    rng, x = np.random.default_rng(0), features(0.7)
    total = np.exp(policy.log_prob(x, [Candidate("plain")])).item()
    for name, n_cells in (("net", 3.0), ("tree", 1.0)):
        uniform = [Candidate(name, SPACES[name].sample(rng)) for _ in range(4000)]
        total += n_cells * np.exp(policy.log_prob(x, uniform)).mean()
    # A depth is a cell of a continuous density: its centre stands for it.
    assert total == pytest.approx(1.0, abs=0.06)


def test_it_learns_family_and_hyperparameters_from_the_dataset(policy: ProposalPolicy) -> None:
    rng = np.random.default_rng(0)
    # One at a time: a list holds no candidate twice, and there are only nine trees.
    large, small = ([policy.sample(features(x), 1, rng=rng)[0] for _ in range(150)] for x in (0.9, 0.1))
    assert share(large, "net") > share(small, "net") + 0.2
    nets = policy.sample(features(0.9), 150, rng=rng, families=["net"])
    assert np.mean([c.config["optimizer"] == "adam" for c in nets]) > 0.45
    assert np.mean([SPACES["net"].encode(c.config)[0] for c in nets]) > 0.6


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_own_runs_improve_it_on_what_the_corpus_got_wrong(policy: ProposalPolicy, seed: int) -> None:
    """Here sgd with a tiny rate wins, the contrary of the corpus."""
    rng, x = np.random.default_rng(seed), features(0.9)

    def reward(candidate: Candidate) -> float:
        if candidate.family != "net":
            return -1.0
        return float((candidate.config["optimizer"] == "sgd") - SPACES["net"].encode(candidate.config)[0])

    runs = policy.sample(x, 20, rng=rng)
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    later = policy.update([Runs(x, runs, [reward(c) for c in runs])])
    assert all(torch.equal(tensor, before[name]) for name, tensor in policy.state_dict().items())
    old = np.mean([reward(c) for c in policy.sample(x, 300, rng=np.random.default_rng(9))])
    new = np.mean([reward(c) for c in later.sample(x, 300, rng=np.random.default_rng(9))])
    assert new > old + 0.05


def test_failures_rank_last_and_useless_runs_change_nothing(policy: ProposalPolicy) -> None:
    assert standard_ranks([0.3, np.nan, 0.5]).argmin() == 1
    assert standard_ranks([1.0, 1.0]).tolist() == [0.0, 0.0]
    x, tree = features(0.5), Candidate("tree", {"depth": 3})
    same = policy.update([Runs(x, [tree, Candidate("stranger")], [0.2, 0.9])])
    assert same.log_prob(x, [tree]) == pytest.approx(policy.log_prob(x, [tree]))


def test_training_is_reproducible() -> None:
    options = ProposalOptions(n_steps=10, n_gradient_steps=5)
    a, b = (train_proposal_policy(world(8), SPACES, seed=3, options=options) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def test_it_survives_saving(policy: ProposalPolicy, tmp_path: Path) -> None:
    loaded = ProposalPolicy.load(policy.save(tmp_path), {**SPACES, "further": SPACES["tree"]})
    candidates = policy.sample(features(0.3), 20, rng=np.random.default_rng(0))
    assert loaded.log_prob(features(0.3), candidates) == pytest.approx(policy.log_prob(features(0.3), candidates))


def test_damage_and_changed_spaces_are_refused(policy: ProposalPolicy, tmp_path: Path) -> None:
    policy.save(tmp_path)
    changed = {**SPACES, "tree": SearchSpace({"depth": IntDistribution(1, 10)})}
    with pytest.raises(ArtefactError, match="search space"):
        ProposalPolicy.load(tmp_path, changed)
    card = json.loads((tmp_path / "proposal.json").read_text())
    (tmp_path / "proposal.json").write_text(json.dumps({**card, "n_hidden": 3}))
    with pytest.raises(ArtefactError, match="cannot be read"):
        ProposalPolicy.load(tmp_path, SPACES)
    (tmp_path / "proposal.safetensors").unlink()
    with pytest.raises(ArtefactError, match="must hold"):
        ProposalPolicy.load(tmp_path, SPACES)


def test_bad_requests_have_an_answer(policy: ProposalPolicy) -> None:
    with pytest.raises(ValueError, match="families must be among"):
        policy.sample(features(0.1), 3, rng=np.random.default_rng(0), families=["stranger"])
    with pytest.raises(ValueError, match="family of a candidate"):
        policy.log_prob(features(0.1), [Candidate("stranger")])
    with pytest.raises(ValueError, match="search spaces"):
        train_proposal_policy(world(5), {"other": SearchSpace({})})
