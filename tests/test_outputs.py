"""Auxiliary outputs: closed forms, and worlds in which a second output is known to follow from the first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file

from autometa.families import resolve_families
from autometa.family import Candidate
from autometa.meta_dataset import MetaDataset
from autometa.meta_model import MetaModel
from autometa.meta_model.belief import Belief, Covariance, Prior, ScalePrior
from autometa.meta_model.estimation import normalise
from autometa.meta_model.outputs import Output, Relation, TrainRows, levels
from autometa.meta_training import TrainingOptions, train_meta_model
from autometa.meta_training.relations import relate
from autometa.tuning.extension import extend
from autometa.tuning.spaces import Spaces

RELATION = Relation(0.8, 0.05, 0.0, 1.0, 0.0, 0.1, 0.5, 1e-9, 0.0)
KNOWN = ScalePrior(offset=0.7, offset_std=1e-9, slope=0.0, log_scale=np.log(0.1), log_scale_std=0.0)
VAGUE = ScalePrior(offset=0.7, offset_std=0.2, slope=0.0, log_scale=np.log(0.1), log_scale_std=0.8)
N = 6


def covariance() -> np.ndarray:
    root = np.random.default_rng(0).normal(size=(N, 3))
    return root @ root.T / 3 + 0.1 * np.eye(N)


def make(scale: ScalePrior = VAGUE, relation: Relation = RELATION) -> Belief:
    outputs = {"other": Output(relation, np.linspace(0, 0.3, N)), "@128": Output(relation, np.zeros(N))}
    return Belief(Prior(np.linspace(-0.5, 0.8, N), Covariance.from_matrix(covariance()), scale, outputs=outputs))


def test_the_posterior_is_that_of_the_joint_gaussian() -> None:
    belief = make(KNOWN).observe(4, 0.81).observe(1, 0.42, output="other")
    S, m = covariance(), np.linspace(-0.5, 0.8, N)
    loading = np.array([1.0, 0.8])
    within = S[np.ix_([4, 1], [4, 1])] * np.outer(loading, loading) + np.diag([1e-2, 0.05 + 1e-2])
    # offset .1 + .5 * .7, scale .1, centre .06 for the second candidate
    seen = np.array([(0.81 - 0.7) / 0.1, (0.42 - 0.45) / 0.1 - np.linspace(0, 0.3, N)[1]])
    gain = S[:, [4, 1]] * loading @ np.linalg.inv(within)
    np.testing.assert_allclose(belief.mean, 0.7 + 0.1 * (m + gain @ (seen - loading * m[[4, 1]])), rtol=1e-5)
    variance = np.diag(S - gain @ (S[:, [4, 1]] * loading).T)
    np.testing.assert_allclose(belief.std, 0.1 * np.sqrt(variance), rtol=1e-4)


def test_an_auxiliary_score_says_less_than_the_score_itself_and_does_not_count_as_a_trial() -> None:
    belief = make()
    hinted = belief.observe(5, 0.75, output="other")
    assert hinted.std[5] < belief.std[5]
    assert belief.observe(5, 0.9).std[5] < hinted.std[5]
    assert hinted.tried == belief.tried == ()
    assert hinted.observe(0, 0.7).next() != 0
    assert hinted.next() == int(np.argmax(hinted.mean))


def test_a_better_auxiliary_score_raises_the_candidate() -> None:
    start = make().observe(2, 0.7).observe(2, 0.45, output="other")
    low, high = (start.observe(4, score, output="other").mean[4] for score in (0.40, 0.52))
    assert high > low + 0.02


def test_the_order_of_observations_does_not_matter() -> None:
    one = (
        make().observe(2, 0.7).observe(4, 0.5, output="other").observe_failure(0).observe(4, 0.4, output=TrainRows(128))
    )
    two = (
        make().observe(4, 0.4, output=TrainRows(128)).observe_failure(0).observe(4, 0.5, output="other").observe(2, 0.7)
    )
    np.testing.assert_allclose(one.mean, two.mean)
    np.testing.assert_allclose(one.std, two.std)


def test_an_output_of_unknown_level_says_only_differences() -> None:
    free = replace(RELATION, offset_std=1e4)
    ends = [
        make(relation=free).observe(2, 0.7).observe(4, level + 0.1, output="other").observe(2, level, output="other")
        for level in (0.3, 55.0)
    ]
    np.testing.assert_allclose(ends[0].mean, ends[1].mean, atol=1e-3)
    assert ends[0].mean[4] > make(relation=free).observe(2, 0.7).mean[4]


def test_a_belief_over_more_candidates_keeps_what_the_outputs_said() -> None:
    spaces = Spaces.of_families(resolve_families(["naive_bayes"]))
    pool = [Candidate("naive_bayes", {"var_smoothing": 10.0**-k}) for k in range(1, N + 1)]
    belief = make().observe(4, 0.5, output="other").observe(1, 0.4, 0.02, output=TrainRows(128))
    wider = extend(belief, pool, [Candidate("naive_bayes", {"var_smoothing": 3e-3})], spaces)
    assert wider.hints == belief.hints
    np.testing.assert_allclose(wider.mean[:N], belief.mean, atol=1e-6)
    assert np.isfinite(wider.observe(N, 0.5, output="other").mean).all()


def test_noise_that_two_scores_share_is_not_averaged_away() -> None:
    shared = replace(RELATION, noise_correlation=0.95, residual=1e-4, loading=1.0)
    apart = replace(shared, noise_correlation=0.0)
    first, second = (
        make(KNOWN, relation).observe(3, 0.72, 0.05).observe(3, 0.47, 0.05, output="other")
        for relation in (shared, apart)
    )
    assert second.std[3] < 0.95 * first.std[3]


def test_an_output_that_nobody_learned_is_refused() -> None:
    with pytest.raises(ValueError, match=r"output must be one of other, @128\. Got 'f1'"):
        make().observe(0, 0.5, output="f1")
    with pytest.raises(ValueError, match="rows must be > 0"):
        TrainRows(0)


@pytest.mark.parametrize("n", [0, 1, 2, 4, 6])
def test_the_grid_of_scales_has_no_direction(n: int) -> None:
    grid = levels(n)
    assert grid.shape[1] == n
    np.testing.assert_allclose(grid.mean(axis=0), 0, atol=1e-9)
    used = min(n, 4)
    np.testing.assert_allclose((grid.T @ grid / len(grid))[:used, :used], np.eye(used), atol=1e-9)


def world(n: int = 60, n_candidates: int = 12, seed: int = 0, *, noise: float = 0.15) -> tuple[np.ndarray, np.ndarray]:
    """Raw scores of two outputs, the second follows from the first with loading 1 and a scale three times as large."""
    rng = np.random.default_rng(seed)
    f = rng.normal(size=(n, 3)) @ rng.normal(size=(3, n_candidates)) + rng.normal(size=n_candidates)
    offset, scale = rng.uniform(0.5, 0.8, (n, 1)), rng.uniform(0.02, 0.06, (n, 1))
    other = f + noise * rng.normal(size=f.shape)
    return offset + scale * f, 2 * offset + rng.normal(0, 0.3, (n, 1)) + 3 * scale * other


def test_a_known_relation_is_found() -> None:
    first, second = world(200)
    family = np.zeros(first.shape[1], dtype=np.int64)
    tasks = np.array(["a", "b"] * 100)
    related = relate(normalise(first, family), normalise(second, family), tasks)
    assert related is not None
    assert set(related.relations) == {"", "a", "b"}
    for relation in related.relations.values():
        assert relation.loading == pytest.approx(1.0, abs=0.1)
        assert relation.log_scale_slope == pytest.approx(0.9, abs=0.2)
        assert relation.residual < 0.05
        assert relation.offset_std == pytest.approx(0.3, abs=0.1)
    assert relate(normalise(first[:5], family), normalise(second[:5], family), tasks[:5]) is None


def long(table: np.ndarray, names: list[str], **columns: object) -> pd.DataFrame:
    rows = [(n, "knn", {"k": k}, v) for n, row in zip(names, table, strict=True) for k, v in enumerate(row)]
    return pd.DataFrame(rows, columns=["dataset", "family", "config", "score"]).assign(**columns)


@pytest.fixture(scope="module")
def corpus() -> MetaDataset:
    first, second = world()
    names = [f"d{i}" for i in range(len(first))]
    runs = pd.concat([long(first, names, metric="main"), long(second, names, metric="other")])
    features = pd.DataFrame({"dataset": names, "size": np.arange(len(names)) % 7})
    few = long(first - 0.1, names, metric="main", train_rows=128)
    return MetaDataset.from_frames(runs, features).with_small_rows(few)


@pytest.fixture(scope="module")
def model(corpus: MetaDataset) -> MetaModel:
    train = corpus.subset(corpus.datasets[:40])
    return train_meta_model(train, options=TrainingOptions(learners=(), n_rehearsals=0))


@pytest.mark.parametrize("output", ["other", TrainRows(128)])
def test_scores_in_another_output_inform_on_datasets_never_seen(corpus, model, output) -> None:
    first = corpus.score_table("main")
    other = corpus.score_table("other") if output == "other" else corpus.score_table("main", train_rows=128)
    candidates = [corpus.candidates[key] for key in first.columns]
    without, with_it = [], []
    for name in corpus.datasets[40:]:
        truth = first.loc[name].to_numpy()
        belief = model.belief(corpus.meta_features.loc[name], candidates, metric="main").observe(0, truth[0])
        hinted = belief
        for i in range(0, 12, 2):
            hinted = hinted.observe(i, float(other.loc[name].iloc[i]), output=output)
        without.append(np.abs(belief.mean - truth).mean() / truth.std())
        with_it.append(np.abs(hinted.mean - truth).mean() / truth.std())
    assert np.mean(with_it) < 0.7 * np.mean(without)


def test_intervals_after_probes_are_calibrated_by_rehearsals_that_probed(corpus) -> None:
    train = corpus.subset(corpus.datasets[:40])
    model = train_meta_model(train, options=TrainingOptions(learners=(), n_rehearsals=3))
    few, first = corpus.score_table("main", train_rows=128), corpus.score_table("main")
    candidates = [corpus.candidates[key] for key in first.columns]
    covered, covered_before = [], []
    for name in corpus.datasets[40:]:
        belief = model.belief(corpus.meta_features.loc[name], candidates, metric="main")
        truth = first.loc[name].to_numpy()
        for i in range(0, 12, 4):
            belief = belief.observe(i, float(few.loc[name].iloc[i]), output=TrainRows(128))
        assert belief.prior.calibration.probed is not None
        before = replace(belief.prior.calibration, probed=None)
        for found, one in (
            (covered, belief),
            (covered_before, replace(belief, prior=replace(belief.prior, calibration=before))),
        ):
            low, high = one.interval(0.8)
            found.append(np.mean((truth >= low) & (truth <= high)))
    assert abs(np.mean(covered) - 0.8) <= max(0.12, abs(np.mean(covered_before) - 0.8))


def test_a_saved_model_keeps_its_outputs_and_one_without_holds_none(corpus, model, tmp_path: Path) -> None:
    again = MetaModel.load(model.save(tmp_path / "two"))
    candidate = [Candidate("knn", {"k": 3})]
    prior = again.belief({"size": 2}, candidate, metric="main").prior
    assert tuple(prior.outputs) == ("other", "@128")
    before = model.belief({"size": 2}, candidate, metric="main").prior.outputs
    assert prior.outputs["@128"].relation == before["@128"].relation
    np.testing.assert_allclose(prior.outputs["other"].centre, before["other"].centre, atol=1e-6)
    runs = corpus.evaluations[corpus.evaluations["metric"] == "main"]
    alone = train_meta_model(
        MetaDataset(runs, corpus.meta_features, corpus.groups), options=TrainingOptions(learners=(), n_rehearsals=0)
    )
    folder = alone.save(tmp_path / "one")
    assert not any("auxiliary" in name for name in load_file(folder / "weights.safetensors"))
    assert MetaModel.load(folder).belief({"size": 2}, candidate).outputs == ()


def test_scores_on_few_rows_travel_with_the_meta_dataset(corpus: MetaDataset, tmp_path: Path) -> None:
    again = MetaDataset.from_parquet(corpus.to_parquet(tmp_path))
    assert again.train_sizes("main") == (128,)
    assert again.train_sizes("other") == ()
    part = again.subset(corpus.datasets[:3])
    pd.testing.assert_frame_equal(
        part.score_table("main", train_rows=128), corpus.score_table("main", train_rows=128).iloc[:3]
    )
    (tmp_path / "small_rows.parquet").unlink()
    assert MetaDataset.from_parquet(tmp_path).small_rows is None
    with pytest.raises(ValueError, match="column 'train_rows'"):
        corpus.with_small_rows(corpus.evaluations)
    with pytest.raises(ValueError, match="train_rows must be one of"):
        corpus.score_table("main", train_rows=512)
