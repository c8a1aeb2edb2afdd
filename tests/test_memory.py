"""The task memory: reading, writing at once, and knowing what the meta-model does not, on worlds with known truth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from autometa.exceptions import ArtefactError
from autometa.experience import Experience
from autometa.family import Candidate
from autometa.meta_dataset import MetaDataset
from autometa.meta_model import MetaModel
from autometa.meta_model.memory import TaskMemory
from autometa.meta_model.own_runs import shift, surprise, write_tasks
from autometa.meta_training import TrainingOptions, train_meta_model
from autometa.meta_training.memory import MemoryOptions, residual_rows, train_memory
from autometa.records import Evaluation, Status

# No learners: the meta-model is the portfolio, so everything that depends on the dataset is left to the memory.
BLIND = TrainingOptions(learners=(), memory=None, n_rehearsals=0)
QUICK = MemoryOptions(n_heads=4, n_keys=8, n_episodes=60)


def world(n: int = 80, n_candidates: int = 12, *, kinds: int = 4, first: int = 0, seed: int = 0) -> MetaDataset:
    """Datasets of a few kinds, far apart in their meta-features; each kind has scores of its own."""
    rng = np.random.default_rng([seed, first])
    truth = np.random.default_rng(seed).normal(size=(kinds, n_candidates))
    kind = rng.integers(kinds, size=n)
    scores = 0.7 + 0.05 * (truth[kind] + 0.2 * rng.normal(size=(n, n_candidates)))
    names = [f"d{first + i}" for i in range(n)]
    rows = [
        (names[i], f"family{j % 2}", {"a": j}, scores[i, j])
        for i in range(n) for j in range(n_candidates)
    ]  # fmt: skip
    features = np.eye(kinds)[kind] * 3 + 0.3 * rng.normal(size=(n, kinds))
    meta = pd.DataFrame(features, columns=[f"m{k}" for k in range(kinds)]).assign(dataset=names)
    return MetaDataset.from_frames(pd.DataFrame(rows, columns=["dataset", "family", "config", "score"]), meta)


@pytest.fixture(scope="module")
def train() -> MetaDataset:
    return world()


@pytest.fixture(scope="module")
def model(train: MetaDataset) -> MetaModel:
    return train_meta_model(train, options=BLIND)


@pytest.fixture(scope="module")
def memory(train: MetaDataset, model: MetaModel) -> TaskMemory:
    return train_memory(train, model, options=QUICK)


@pytest.fixture(scope="module")
def test() -> MetaDataset:
    return world(25, first=1000)


def errors(memory: TaskMemory | None, model: MetaModel, data: MetaDataset) -> np.ndarray:
    """Squared error of the forecast of each dataset, normalised units."""
    table, result = data.score_table(), []
    candidates = [data.candidates[key] for key in table.columns]
    for name, raw in zip(table.index, table.to_numpy(), strict=True):
        belief = model.with_memory(memory).belief(data.meta_features.loc[name], candidates)
        truth = np.clip((raw - np.median(raw)) / (raw.max() - np.median(raw)), -1, None)
        result.append(np.square(belief.normalised_mean - truth).mean())
    return np.array(result)


def test_a_memory_beats_none_and_shuffled_values_do_not(
    memory: TaskMemory, model: MetaModel, test: MetaDataset
) -> None:
    none, with_memory, shuffled = (errors(m, model, test) for m in (None, memory, memory.shuffled()))
    assert with_memory.mean() < 0.7 * none.mean()
    assert shuffled.mean() > 1.2 * with_memory.mean()


def test_training_improves_the_reading(
    train: MetaDataset, model: MetaModel, memory: TaskMemory, test: MetaDataset
) -> None:
    untrained = train_memory(train, model, options=MemoryOptions(n_heads=4, n_keys=8, n_episodes=0))
    assert errors(memory, model, test).mean() < errors(untrained, model, test).mean()


def test_a_stream_of_tasks_teaches_a_new_kind_without_a_gradient_step() -> None:
    """The fifth kind of dataset was never seen in training."""
    everything = world(150, kinds=5)
    kind = everything.meta_features.to_numpy().argmax(axis=1)
    start = everything.subset(np.array(everything.datasets)[kind < 4])
    new = np.array(everything.datasets)[kind == 4]
    stream, held_out = everything.subset(new[:12]), everything.subset(new[12:])
    model = train_meta_model(start, options=BLIND)
    memory = train_memory(start, model, options=QUICK)
    before = {name: p.clone() for name, p in memory.named_parameters()}
    later = write_tasks(memory, model, stream)
    assert len(later) == len(memory) + 12
    assert all(torch.equal(p, before[name]) for name, p in later.named_parameters())
    assert errors(later, model, held_out).mean() < 0.8 * errors(memory, model, held_out).mean()


def test_a_write_is_seen_at_once_and_the_same_task_is_not_counted_twice(
    memory: TaskMemory, model: MetaModel, test: MetaDataset
) -> None:
    x = model.encoder(test.meta_features.iloc[0])
    row = np.zeros(len(model.pool))
    row[3] = 5.0
    once = memory.write("mine", x, {"score": row})
    twice = once.write("mine", x, {"score": row})
    assert len(memory) == 80
    assert len(once) == len(twice) == 81
    assert once(x)[0, 3] > memory(x)[0, 3]
    assert torch.equal(once(x), twice(x))
    assert once.nearest(x, n=1)[0][0] == "mine"
    assert once.nearest(x, n=1)[0][1] > 1 / 81


def test_a_memory_grows_from_nothing(model: MetaModel, memory: TaskMemory, test: MetaDataset) -> None:
    empty = memory.subset([])
    features = test.meta_features.iloc[0]
    candidates = [Candidate(f, c) for f, c in model.pool.candidates]
    alone = model.belief(features, candidates)
    assert np.array_equal(model.with_memory(empty).belief(features, candidates).mean, alone.mean)
    assert len(write_tasks(empty, model, test)) == 25


def test_the_same_evidence_more_often_does_not_drown_the_share_of_nothing(memory: TaskMemory) -> None:
    x = memory.inputs[:1]
    allowed = torch.ones(1, len(memory), dtype=torch.bool)
    once = memory.attention(x, memory.inputs, allowed).sum(dim=2)
    many = memory.attention(x, memory.inputs.repeat(5, 1), allowed.repeat(1, 5)).sum(dim=2)
    assert torch.allclose(once, many, atol=1e-5)
    assert (once < 1).all()


def test_what_is_not_allowed_is_not_read(memory: TaskMemory) -> None:
    allowed = torch.zeros(2, len(memory), dtype=torch.bool)
    allowed[0, 5] = True
    weights = memory.attention(memory.inputs[:2], memory.inputs, allowed)
    assert (weights[:, 0, :5] == 0).all()
    assert (weights[:, 0, 5] > 0).all()
    assert (weights[:, 1] == 0).all()


def test_surprise_is_what_the_forecast_got_wrong(model: MetaModel, train: MetaDataset, test: MetaDataset) -> None:
    table = test.score_table()
    candidates = [test.candidates[key] for key in table.columns]
    full, partial, truths = [], [], []
    centre = train.score_table().mean().to_numpy()
    for name, raw in zip(table.index, table.to_numpy(), strict=True):
        features = test.meta_features.loc[name]
        full.append(surprise(model, features, candidates=candidates, raw_scores=raw))
        partial.append(surprise(model, features, candidates=candidates[:6], raw_scores=raw[:6]))
        truths.append(raw - centre)
    assert np.corrcoef(np.ravel(full), np.ravel(truths))[0, 1] > 0.8
    assert np.corrcoef(np.array(partial)[:, :6].ravel(), np.array(truths)[:, :6].ravel())[0, 1] > 0.6
    assert surprise(model, features, candidates=candidates[:2], raw_scores=np.array([np.nan, 0.7])).shape == (12,)


def test_candidates_outside_the_pool_are_read_through_their_neighbours(
    memory: TaskMemory, model: MetaModel, test: MetaDataset
) -> None:
    features = test.meta_features.iloc[0]
    smooth = np.array([config["a"] / 11 for _, config in model.pool.candidates])
    one = memory.subset([]).write("one", model.encoder(features), {"score": smooth})
    candidates = [Candidate("family1", {"a": a}) for a in (3, 6, 9)] + [Candidate("stranger", {})]
    low, between, high, unknown = shift(one, model, meta_features=features, candidates=candidates)
    assert 0 < low < between < high
    assert between == pytest.approx((low + high) / 2, rel=0.15)
    assert unknown == 0


def test_own_runs_reach_the_memory_through_the_store(
    memory: TaskMemory, model: MetaModel, test: MetaDataset, tmp_path: Path
) -> None:
    features, store = test.meta_features.iloc[0], Experience(tmp_path / "own.sqlite")
    raw = np.linspace(0.6, 0.8, 12)
    candidates = [Candidate(family, config) for family, config in model.pool.candidates]
    runs = [
        Evaluation("mine", c, Status.OK, {"score": (s,), "unknown": (1.0,)})
        for c, s in zip(candidates, raw, strict=True)
    ]
    store.add(features, runs, task="regression")
    later = write_tasks(memory, model, store.to_meta_dataset())
    assert later.names[-1] == "mine"
    change = (later(model.encoder(features)) - memory(model.encoder(features)))[0].detach().numpy()
    assert np.corrcoef(change, raw)[0, 1] > 0.5


def test_training_is_reproducible_and_needs_its_own_datasets(train: MetaDataset, model: MetaModel) -> None:
    few = MemoryOptions(n_episodes=5)
    a, b, c = (train_memory(train, model, seed=s, options=few) for s in (0, 0, 1))
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert not torch.equal(a.projection, c.projection)
    with pytest.raises(ValueError, match="must have been trained on this meta-dataset"):
        train_memory(train.subset(train.datasets[:9]), model)
    assert residual_rows(train, model)["score"].shape == (80, 12)


def test_it_is_part_of_the_meta_model_and_survives_saving(
    train: MetaDataset, test: MetaDataset, tmp_path: Path
) -> None:
    model = train_meta_model(train, options=TrainingOptions(learners=("ridge",), memory=QUICK, n_rehearsals=0))
    assert model.memory is not None
    assert model.memory.names == train.datasets
    candidates, features = [Candidate(f, c) for f, c in model.pool.candidates], test.meta_features.iloc[0]
    mean = model.belief(features, candidates).mean
    assert not np.allclose(mean, model.with_memory(None).belief(features, candidates).mean)
    loaded = MetaModel.load(model.save(tmp_path))
    assert np.array_equal(loaded.belief(features, candidates).mean, mean)
    longer = model.with_memory(model.memory.write("new", model.encoder(features), {"score": np.ones(12)}))
    assert MetaModel.load(longer.save(tmp_path)).memory.names[-1] == "new"  # type: ignore[union-attr]
    assert model.memory.names == train.datasets


def test_a_damaged_memory_has_a_name(train: MetaDataset, tmp_path: Path) -> None:
    model = train_meta_model(train, options=TrainingOptions(learners=("ridge",), memory=QUICK, n_rehearsals=0))
    card = json.loads((model.save(tmp_path) / "card.json").read_text())
    card["structure"]["memory"]["names"] = ["one"]
    (tmp_path / "card.json").write_text(json.dumps(card))
    with pytest.raises(ArtefactError, match="cannot be read"):
        MetaModel.load(tmp_path)


def test_a_forecast_that_is_not_trusted_recalls_nothing(
    memory: TaskMemory, model: MetaModel, test: MetaDataset
) -> None:
    candidates, features = [Candidate(f, c) for f, c in model.pool.candidates], test.meta_features.iloc[0]
    none, half, full = (model.with_memory(memory).forecast(features, candidates, trust=t) for t in (0.0, 0.5, 1.0))
    np.testing.assert_array_equal(none, model.forecast(features, candidates))
    np.testing.assert_allclose(half, (none + full) / 2, atol=1e-6)


def test_bad_values_and_metrics_are_refused(memory: TaskMemory) -> None:
    with pytest.raises(ValueError, match="must hold finite numbers"):
        memory.write("x", memory.inputs[0], {"score": np.full(12, np.nan)})
    with pytest.raises(ValueError, match="must hold finite numbers"):
        memory.write("x", memory.inputs[0], {"other": np.zeros(12)})
    with pytest.raises(ValueError, match="metric must be one of score"):
        memory(memory.inputs[:1], "other")
