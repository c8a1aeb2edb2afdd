"""Meta-training on synthetic worlds with known truth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from autometa.exceptions import ArtefactError
from autometa.family import Candidate
from autometa.meta_dataset import MetaDataset
from autometa.meta_model import Belief, MetaModel, estimation
from autometa.meta_model.explanation import counterfactual, moved_by, nearest_winners
from autometa.meta_training import TrainingOptions, train_meta_model

SMALL = TrainingOptions(n_trees=60, n_rehearsals=0)
EVERY = TrainingOptions(
    learners=("ridge", "forest", "mlp"), n_trees=20, n_members=2, n_hidden=16, n_steps=20, n_rehearsals=0
)


def world(n: int = 90, n_candidates: int = 24, seed: int = 0, missing: float = 0.0) -> MetaDataset:
    """Low-rank scores whose factors are half visible in the meta-features, with an offset and scale per dataset."""
    rng = np.random.default_rng(seed)
    factors, loadings = rng.normal(size=(n, 4)), np.random.default_rng(99).normal(size=(4, n_candidates))
    scores = factors @ loadings + 0.3 * rng.normal(size=(n, n_candidates))
    scores = rng.uniform(0.6, 0.9, (n, 1)) + np.exp(rng.normal(-4, 0.5, (n, 1))) * scores
    rows = [
        (
            f"d{i}",
            f"family{j % 3}",
            {"a": j, "b": "xyz"[j % 3] if j % 2 else None},
            scores[i, j],
            0.1 * (j + 1) * (1 + i),
        )
        for i in range(n)
        for j in range(n_candidates)
        if rng.random() >= missing
    ]
    evaluations = pd.DataFrame(rows, columns=["dataset", "family", "config", "score", "seconds"])
    visible = np.column_stack([factors[:, :2], rng.normal(size=(n, 2)), np.log1p(np.arange(n))])
    meta = pd.DataFrame(visible, columns=["u", "v", "w", "x", "rows"]).assign(dataset=[f"d{i}" for i in range(n)])
    meta.loc[::7, "w"] = np.nan
    meta["kind"] = np.where(np.arange(n) % 2, "left", "right")
    return MetaDataset.from_frames(evaluations, meta)


@pytest.fixture(scope="module")
def data() -> MetaDataset:
    return world()


@pytest.fixture(scope="module")
def train(data: MetaDataset) -> MetaDataset:
    return data.subset(data.datasets[:60])


@pytest.fixture(scope="module")
def model(train: MetaDataset) -> MetaModel:
    return train_meta_model(train, options=SMALL)


@pytest.fixture(scope="module")
def rehearsed(train: MetaDataset) -> MetaModel:
    return train_meta_model(train, options=replace(SMALL, n_trees=30, n_rehearsals=4))


def regrets(model: MetaModel, data: MetaDataset, n: int = 5) -> np.ndarray:
    """Normalised score of the best of the first n proposals on the datasets that the model has not seen."""
    table, result = data.score_table(), []
    candidates = [data.candidates[key] for key in table.columns]
    for name in [d for d in data.datasets if d not in model.trained_on]:
        raw = table.loc[name].to_numpy()
        belief = model.belief(data.meta_features.loc[name], candidates)
        found = []
        for _ in range(n):
            found.append(belief.next())
            belief = belief.observe(found[-1], raw[found[-1]])
        path = np.maximum.accumulate(raw[found])
        result.append((path - np.median(raw)) / (raw.max() - np.median(raw)))
    return np.array(result)


def test_a_trained_belief_beats_the_portfolio_mean(model: MetaModel, data: MetaDataset, train: MetaDataset) -> None:
    blind = train_meta_model(train, options=replace(SMALL, learners=()))
    gain = regrets(model, data) - regrets(blind, data)
    assert gain[:, 0].mean() > 0.1
    assert gain.mean() > 0.02
    assert regrets(blind, data)[:, 4].mean() > regrets(blind, data)[:, 0].mean() + 0.2


def test_public_interface(model: MetaModel, data: MetaDataset) -> None:
    candidates = list(data.candidates.values())
    belief = model.belief(data.meta_features.iloc[-1], candidates)
    assert isinstance(belief, Belief)
    for values in (belief.mean, belief.std, belief.seconds, belief.seconds_std, belief.expected_improvement()):
        assert values.shape == (len(candidates),)
        assert np.isfinite(values).all()
    assert model.trained_on == frozenset(data.datasets[:60])
    assert 0.3 < belief.mean.mean() < 1.2
    assert len(model.neighbours(data.meta_features.iloc[-1], 3)) == 3


def test_seconds_follow_the_size_of_the_dataset(model: MetaModel, data: MetaDataset) -> None:
    candidates = list(data.candidates.values())
    seconds = [model.belief(data.meta_features.iloc[i], candidates).seconds for i in (1, 50)]
    assert (seconds[1] > 3 * seconds[0]).mean() > 0.9
    assert np.corrcoef(np.log(seconds[1]), np.log(np.arange(24) + 1))[0, 1] > 0.95


def test_seconds_of_larger_tables_grow_as_their_family_was_seen_to(data: MetaDataset, tmp_path: Path) -> None:
    sized = data.meta_features.assign(log_rows=np.log10(1.0 + np.arange(len(data.datasets))))
    few = data.evaluations[data.evaluations["dataset"].isin(data.datasets[:40])]
    power = few["family"].map({"family0": 0.5, "family1": 2.0})  # family2 was not measured
    n_rows = 10 ** (few["dataset"].map(sized["log_rows"]) + 1)
    more = few.assign(table=few["dataset"], seconds=few["seconds"] * 10**power, n_rows=n_rows)
    known = replace(data, meta_features=sized).with_large_rows(more[power.notna()])
    model = MetaModel.load(train_meta_model(known, options=SMALL).save(tmp_path / "model"))
    candidates = list(data.candidates.values())
    largest, features = float(sized["log_rows"].max()), dict(sized.iloc[0].items())
    usual, beyond = (
        model.belief(features | {"log_rows": largest + powers}, candidates).seconds for powers in (0.0, 1.0)
    )
    expected = [{"family0": 0.5, "family1": 2.0, "family2": 1.0}[c.family] for c in candidates]
    np.testing.assert_allclose(np.log10(beyond / usual), expected, atol=0.15)


def test_save_and_load_give_the_same_belief(model: MetaModel, data: MetaDataset, tmp_path: Path) -> None:
    again = MetaModel.load(model.save(tmp_path / "model"))
    candidates = [*data.candidates.values(), Candidate("family1", {"a": 4.5}), Candidate("unknown", {"q": None})]
    one, other = (m.belief(data.meta_features.iloc[-1], candidates).observe(3, 0.7) for m in (model, again))
    np.testing.assert_allclose(one.mean, other.mean, rtol=1e-6)
    np.testing.assert_allclose(one.std, other.std, rtol=1e-6)
    assert again.trained_on == model.trained_on
    assert sum(f.stat().st_size for f in (tmp_path / "model").iterdir()) < 5 * 2**20


def test_every_learner_survives_saving(train: MetaDataset, tmp_path: Path) -> None:
    model = train_meta_model(train, options=EVERY)
    again = MetaModel.load(model.save(tmp_path))
    candidates = list(train.candidates.values())
    one, other = (m.belief(train.meta_features.iloc[0], candidates).mean for m in (model, again))
    np.testing.assert_allclose(one, other, rtol=1e-6)


def test_damaged_files_are_named(model: MetaModel, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"must hold card.json"):
        MetaModel.load(tmp_path)
    folder = model.save(tmp_path / "m")
    (folder / "card.json").write_text("{")
    with pytest.raises(ArtefactError, match="cannot be read"):
        MetaModel.load(folder)
    (folder / "card.json").write_text('{"format_version": 99}')
    with pytest.raises(ArtefactError, match="format version"):
        MetaModel.load(folder)


def test_the_same_seed_gives_the_same_model(train: MetaDataset) -> None:
    one, other, third = (train_meta_model(train, seed=s, options=EVERY).state_dict() for s in (1, 1, 2))
    assert all((one[k] == other[k]).all() for k in one)
    assert any(one[k].shape != third[k].shape or (one[k] != third[k]).any() for k in one)


def test_unknown_candidates_are_wide_and_near_ones_close(model: MetaModel, data: MetaDataset) -> None:
    known = data.candidates[next(iter(data.candidates))]
    near = Candidate(known.family, {**known.config, "a": known.config["a"] + 0.1})
    odd = [
        Candidate("family0", {"a": None, "new": [1, 2], "b": True}),
        Candidate("family0"),
        Candidate("alien", {"x": "y"}),
    ]
    belief = model.belief(data.meta_features.iloc[-1], [known, near, *odd])
    assert np.isfinite([belief.mean, belief.std]).all()
    assert abs(belief.normalised_mean[0] - belief.normalised_mean[1]) < 0.3
    assert belief.std[4] > 0.9 * belief.std[:2].max()
    later = belief.observe(0, belief.mean[0] + 3 * belief.std[0])
    assert later.normalised_mean[1] - later.normalised_mean[4] > belief.normalised_mean[1] - belief.normalised_mean[4]


def test_a_family_or_configuration_never_measured_gets_a_wide_interval(rehearsed: MetaModel, data: MetaDataset) -> None:
    known = list(data.candidates.values())
    far = Candidate("family0", {"a": 500, "b": "never"})
    belief = rehearsed.belief(data.meta_features.iloc[-1], [*known, far, Candidate("alien", {"x": 1})])
    low, high = belief.interval(0.8)
    inside = (high - low)[: len(known)]
    assert np.isfinite([low, high]).all()
    assert (high - low)[-1] > 0.9 * inside.max()
    assert (high - low)[-2] > np.median(inside)
    observed = belief
    for i in range(6):
        observed = observed.observe(i, 0.7 + 0.001 * i)
    low, high = observed.interval(0.8)
    assert (high - low)[-1] > np.median((high - low)[6 : len(known)])


def test_intervals_cover_what_is_measured_on_unseen_groups(rehearsed: MetaModel, data: MetaDataset) -> None:
    table, seconds = data.score_table(), data.seconds_table()
    candidates = [data.candidates[key] for key in table.columns]
    covered: dict[str, list[float]] = {"prior": [], "after 4": [], "seconds": []}
    for name in data.datasets[60:]:
        raw = table.loc[name].to_numpy()
        belief = rehearsed.belief(data.meta_features.loc[name], candidates)
        low, high = belief.interval(0.8)
        covered["prior"].append(np.mean((raw >= low) & (raw <= high)))
        fast, slow = belief.seconds_interval(0.8)
        assert (fast < belief.seconds).all()
        covered["seconds"].append(np.mean((seconds.loc[name] >= fast) & (seconds.loc[name] <= slow)))
        for _ in range(4):
            index = belief.next()
            belief = belief.observe(index, raw[index])
        rest = np.setdiff1d(np.arange(len(raw)), belief.tried)
        low, high = belief.interval(0.8)
        covered["after 4"].append(np.mean(((raw >= low) & (raw <= high))[rest]))
    means = {name: np.mean(values) for name, values in covered.items()}
    assert 0.68 < means["prior"] < 0.95
    assert 0.68 < means["after 4"] < 0.95
    assert means["seconds"] > 0.7


def test_rehearsals_trust_meta_features_that_tell_and_not_those_that_do_not(
    rehearsed: MetaModel, train: MetaDataset
) -> None:
    assert rehearsed.head().settings["shrink"][""] > 0.5
    noise = np.random.default_rng(0).normal(size=train.meta_features.shape)
    features = pd.DataFrame(noise, index=train.meta_features.index, columns=train.meta_features.columns)
    deaf = train_meta_model(
        MetaDataset(train.evaluations, features, train.groups), options=replace(SMALL, n_trees=30, n_rehearsals=4)
    )
    candidates = list(train.candidates.values())
    told = deaf.forecast(features.iloc[0], candidates) - deaf.head().portfolio.numpy()
    heard = rehearsed.forecast(train.meta_features.iloc[0], candidates) - rehearsed.head().portfolio.numpy()
    assert np.abs(told).max() < 0.3 * np.abs(heard).max()


def test_a_dataset_unlike_all_known_ones_gets_the_portfolio(rehearsed: MetaModel, data: MetaDataset) -> None:
    candidates, usual = list(data.candidates.values()), data.meta_features.iloc[-1]
    odd = usual.copy()
    odd[["u", "v", "w", "x"]] = [40.0, -40.0, 40.0, -40.0]
    near, far = (rehearsed.belief(features, candidates).prior for features in (usual, odd))
    assert near.novelty < 1.0 == far.novelty
    assert far.trust == 0.0 < near.trust
    np.testing.assert_allclose(far.mean, rehearsed.head().portfolio.numpy(), atol=1e-6)


def test_machine_speed_moves_the_seconds_and_trials_correct_it() -> None:
    data = world(n=40)
    data.meta_features["machine_seconds"] = np.exp(np.random.default_rng(0).normal(-5, 0.1, 40))
    model = train_meta_model(data, options=SMALL)
    assert "machine_seconds" not in model.encoder.numeric
    candidates, features = list(data.candidates.values()), data.meta_features.iloc[3]
    same, slow = (model.belief(features, candidates, machine_seconds=s) for s in (np.exp(-5), 10 * np.exp(-5)))
    assert np.median(slow.seconds / same.seconds) > 5
    assert same.seconds_std.max() < model.belief(features, candidates).seconds_std.max()
    corrected = slow
    for i in (0, 5, 9):
        corrected = corrected.observe_seconds(i, float(same.seconds[i]))
    assert np.median(corrected.seconds / same.seconds) < 2


def test_explanations_name_winners_what_moved_and_what_would(rehearsed: MetaModel, data: MetaDataset) -> None:
    candidates, features = list(data.candidates.values()), data.meta_features.iloc[-1]
    table = data.score_table()
    for name, weight, winner in nearest_winners(rehearsed, features, "score"):
        assert weight > 0
        assert winner == data.candidates[table.loc[name].idxmax()]
    moves: dict[str, list[float]] = {"told": [], "noise": []}
    for name in data.datasets[-12:]:
        row = data.meta_features.loc[name]
        best = candidates[int(np.argmax(rehearsed.forecast(row, candidates)))]
        for group, move in moved_by(
            rehearsed, row, best, metric="score", groups={"told": ["u", "v"], "noise": ["w", "x"], "absent": ["y"]}
        ):
            moves[group].append(abs(move))
    assert np.mean(moves["told"]) > 2 * np.mean(moves["noise"])
    assert counterfactual(rehearsed, dict(features), candidates, metric="score") is None


def test_meta_features_may_be_absent_or_strange(model: MetaModel, data: MetaDataset) -> None:
    candidates = list(data.candidates.values())
    for features in (pd.Series(dtype=float), {"u": np.inf, "kind": "middle", "w": "text", "extra": 3}):
        assert np.isfinite(model.belief(features, candidates).mean).all()


def test_missing_cells_do_little_harm() -> None:
    data = world(seed=1, missing=0.3)
    model = train_meta_model(data.subset(data.datasets[:60]), options=SMALL)
    full = world(seed=1)
    assert np.mean(regrets(model, full)[:, 4]) > 0.6


def test_metrics_and_tasks_share_a_model() -> None:
    rows = world(n=40).evaluations.drop(columns="key")
    number = rows["dataset"].str[1:].astype(int)
    error = rows[number >= 20].assign(metric="rmse", score=lambda f: (f["score"] - 2) * 10.0 ** (number[f.index] % 7))
    frame = pd.concat([rows[number < 25].assign(metric="auc"), error[error["family"] != "family2"]])
    meta = world(n=40).meta_features.reset_index()
    model = train_meta_model(MetaDataset.from_frames(frame, meta), options=SMALL)
    assert model.metrics == ("auc", "rmse")
    candidates = list(world(n=5).candidates.values())
    belief = model.belief(meta.iloc[30], candidates, metric="rmse")
    assert belief.prior.scale.relative
    assert np.isfinite(belief.observe(belief.next(), -5e6).mean).all()
    with pytest.raises(ValueError, match="metric must be one of auc, rmse"):
        model.belief(meta.iloc[0], candidates, metric="f1")


@pytest.mark.parametrize("scores", [0.5, [0.5, 0.5, 0.5, 0.9] * 2])
def test_flat_and_tiny_tables_can_be_trained_on(scores: object) -> None:
    frame = pd.DataFrame({"dataset": list("aabbccdd"), "family": ["x", "y"] * 4, "score": scores})
    meta = pd.DataFrame({"dataset": list("abcd"), "constant": 1.0, "empty": np.nan})
    model = train_meta_model(MetaDataset.from_frames(frame, meta), options=SMALL)
    belief = model.belief(meta.iloc[0], [Candidate("x"), Candidate("y")])
    belief = belief.observe(belief.next(), 0.5)
    assert np.isfinite([belief.mean, belief.std]).all()


def test_bad_arguments_are_explained(model: MetaModel, data: MetaDataset) -> None:
    with pytest.raises(ValueError, match="at least 4 datasets"):
        train_meta_model(data.subset(data.datasets[:3]))
    with pytest.raises(ValueError, match="at least one candidate"):
        model.belief(data.meta_features.iloc[0], [])


def test_normalising_fills_holes_with_what_others_say() -> None:
    rng = np.random.default_rng(0)
    truth = np.sort(rng.normal(size=9)) + 0.05 * rng.normal(size=(40, 9))
    raw = 5 + 2 * truth
    raw[0, :4] = np.nan  # only good candidates were measured on the first dataset
    table = estimation.normalise(raw, np.zeros(9, dtype=np.int64))
    assert table.offset[0] == pytest.approx(np.median(5 + 2 * truth[0]), abs=0.5)
    assert table.known[0].sum() == 5


def test_filling_follows_correlations() -> None:
    rng = np.random.default_rng(0)
    errors = rng.normal(size=(200, 1)) @ np.ones((1, 5)) + 0.1 * rng.normal(size=(200, 5))
    holes = errors.copy()
    holes[:50, 0] = np.nan
    filled = estimation.fill(holes)
    assert np.corrcoef(filled[:50, 0], errors[:50, 0])[0, 1] > 0.95
