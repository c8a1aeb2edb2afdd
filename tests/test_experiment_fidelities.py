"""Cells at other sizes: fewer training rows, more rows, earlier stages; and cells that are missing by design."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_experiment import BASE, FAMILIES, frame_of, run, write_config

from autometa.collection import load_collection
from autometa.data import TaskType
from autometa.evaluation import Evaluator
from autometa.experiment import run_experiment, status
from autometa.experiment.chunks import nested_order, shortened_splits
from autometa.experiment.corpus import collect
from autometa.experiment.study import KEYS, Measure, config_id, load_study, make_plan, read_rows
from autometa.families import resolve_families
from autometa.family import Candidate
from autometa.meta_dataset import MetaDataset
from autometa.splitting import make_splits

CORPUS = Path(__file__).parents[1] / "experiments" / "corpus"
SIZES = BASE.replace("[measure]", "[measure]\ntrain_rows = [0, 40, 110]")  # folds of 150 rows train on 120


@given(st.lists(st.integers(1, 60), min_size=2, max_size=6), st.integers(0, 99), st.floats(0.1, 1.0))
def test_every_beginning_of_the_order_has_the_class_shares(counts, seed, share):
    y = np.repeat(np.arange(len(counts)), counts)
    order = nested_order(y, TaskType.MULTICLASS, seed)
    assert sorted(order) == list(range(len(y)))
    n = max(len(counts), round(share * len(y)))
    found = np.bincount(y[order[:n]], minlength=len(counts))
    assert (found >= 1).all()
    assert (np.abs(found - n * np.array(counts) / len(y)) <= len(counts)).all()


@pytest.mark.parametrize("name", ["wine", "diabetes"])
def test_shorter_training_parts_are_nested_and_test_parts_stay(name):
    smoke = load_collection("smoke")
    dataset = smoke.load(smoke[name])
    whole, few, more = make_splits(dataset, 3), shortened_splits(dataset, 3, 20), shortened_splits(dataset, 3, 60)
    assert len(whole) == len(few) == len(more)
    for (train, test), (a, test_a), (b, test_b) in zip(whole, few, more, strict=True):
        np.testing.assert_array_equal(test, test_a)
        np.testing.assert_array_equal(test, test_b)
        assert (len(a), len(b)) == (20, 60)
        assert set(a) < set(b) < set(train)


def test_a_cell_is_measured_once_for_each_number_of_training_rows(tmp_path):
    path = write_config(tmp_path, SIZES + "[pool]\ntoy_tree = 2")
    state = run(path)
    assert (state.n_cells, state.by_status) == (18, {"ok": 18})
    rows = frame_of(path)
    assert not rows.duplicated(list(KEYS)).any()
    sizes = rows["train_rows"].fillna(0).astype(int)
    assert sizes.value_counts().to_dict() == {0: 6, 40: 6, 110: 6}
    assert set(rows.loc[sizes > 0, "n_train_rows"] - sizes[sizes > 0]) == {0}
    assert set(rows.loc[sizes == 0, "n_train_rows"]) == {120}
    assert run(path).n_done == 18
    listed = make_plan(load_study(path, families=FAMILIES)).to_frame()
    assert listed["done"].all()
    assert set(listed["train_rows"]) == {0, 40, 110}


def test_sizes_are_added_to_a_study_that_was_measured_before_there_were_any(tmp_path):
    path = write_config(tmp_path, BASE + "[pool]\ntoy_tree = 2")
    run(path)
    for shard in (tmp_path / "shards").glob("rows-*.parquet"):
        pq.write_table(pq.read_table(shard).drop_columns(["train_rows"]), shard)
    before = frame_of(path)
    assert before["train_rows"].isna().all()
    write_config(tmp_path, SIZES + "[pool]\ntoy_tree = 2")
    state = status(path, families=FAMILIES)
    assert (state.n_cells, state.n_done) == (18, 6)
    assert run(path).n_done == 18
    assert set(before["finished"]) <= set(frame_of(path)["finished"])


def test_sizes_that_a_fold_does_not_have_are_not_planned():
    measure = Measure(max_rows=2_000, train_rows=(128, 512))
    assert not measure.has_rows(159, 128)  # 5 folds of 159 rows: the largest test part has 32
    assert measure.has_rows(160, 128)
    assert not measure.has_rows(638, 512)
    assert measure.has_rows(640, 512)
    assert measure.has_rows(10**6, 1_333)  # 3 folds of 2,000
    assert not measure.has_rows(10**6, 1_334)
    for n_rows in (100, 159, 499, 500, 1_500, 1_501, 2_000):
        smallest = min(len(train) for train, _ in make_splits(_dataset(n_rows)))
        assert measure.has_rows(n_rows, smallest)
        assert not measure.has_rows(n_rows, smallest + 1)


def _dataset(n_rows):
    from autometa.data import Dataset

    return Dataset.from_arrays(pd.DataFrame({"x": np.arange(n_rows)}), pd.Series(np.arange(n_rows) * 1.5))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[measure]\ntrain_rows = []", "train_rows must be"),
        ("[measure]\ntrain_rows = [1]", "train_rows must be"),
        ('[measure]\ntrain_rows = [64]\n[[method]]\nkind = "select"', "all training rows"),
        ('[extra]\ngrid = [{ family = "toy_tree", width = [1] }]', "must name its hyperparameters"),
    ],
)
def test_mistakes_about_sizes_and_grids_are_named(tmp_path, text, message):
    path = write_config(tmp_path, 'name = "toy"\ncollection = "smoke"\n' + text)
    with pytest.raises(ValueError, match=message):
        load_study(path, families=FAMILIES)


def test_rows_at_another_fidelity_stay_apart_from_the_corpus(tmp_path):
    text = BASE.replace("meta_features = false", "").replace("n_datasets = 3", "n_datasets = 4")
    full = write_config(tmp_path / "full", text + "[pool]\ntoy_tree = 3")
    run(full)
    collect(load_study(full, families=FAMILIES), tmp_path / "corpus")
    before = (tmp_path / "corpus" / "evaluations.parquet").read_bytes()

    head = text.replace("[measure]", 'fidelity = "small_rows"\n[measure]\ntrain_rows = [40, 119]')
    small = write_config(tmp_path / "small", head + "[pool]\ntoy_tree = 2")
    run(small)
    summary = collect(load_study(small, families=FAMILIES), tmp_path / "corpus")
    assert summary["missing_by_design"] == {"40": 0, "119": 0}

    head = text.replace("max_rows = 150", "max_rows = 400").replace("[measure]", 'fidelity = "large_rows"\n[measure]')
    large = write_config(tmp_path / "large", head + "[pool]\ntoy_tree = 2")
    run(large)
    collect(load_study(large, families=FAMILIES), tmp_path / "corpus")

    assert (tmp_path / "corpus" / "evaluations.parquet").read_bytes() == before
    card = json.loads((tmp_path / "corpus" / "card.json").read_text())
    assert set(card["fidelities"]) == {"small_rows", "large_rows"}
    rows = pd.read_parquet(tmp_path / "corpus" / "small_rows.parquet")
    expected = {
        "dataset",
        "family",
        "config",
        "config_id",
        "train_rows",
        "metric",
        "score",
        "standard_error",
        "seconds",
    }
    assert expected <= set(rows.columns)
    assert rows.groupby(["dataset", "config_id", "metric"], observed=True)["train_rows"].apply(set).map(
        {40, 119}.__eq__
    ).all()  # fmt: skip
    corpus = pd.read_parquet(tmp_path / "corpus" / "evaluations.parquet")
    assert set(rows["config_id"]) < set(corpus["config_id"])

    with pytest.raises(ValueError, match="with_small_rows"):  # never averaged with the scores of full fits
        MetaDataset.from_frames(
            pd.concat([corpus, rows]), pd.read_parquet(tmp_path / "corpus" / "meta_features.parquet")
        )
    known = MetaDataset.from_parquet(tmp_path / "corpus")
    assert known.train_sizes("log_loss") == (40, 119)

    larger = pd.read_parquet(tmp_path / "corpus" / "large_rows.parquet")
    assert larger["train_rows"].isna().all()
    assert (larger["table"].astype(str) + "@400" == larger["dataset"].astype(str)).all()
    plain = MetaDataset.from_frames(corpus, pd.read_parquet(tmp_path / "corpus" / "meta_features.parquet"))
    assert known.datasets == plain.datasets
    assert known.score_table("log_loss").equals(plain.score_table("log_loss"))
    rows_of = {entry.name: entry.n_rows for entry in load_study(large, families=FAMILIES).collection}
    assert known.large_rows.groupby("dataset")["n_rows"].first().to_dict() == {
        name: min(n_rows, 400) for name, n_rows in rows_of.items()
    }
    for name, n_rows in rows_of.items():
        assert known.meta_features.loc[name, "log_rows"] == pytest.approx(np.log10(min(n_rows, 150)))
    wide = known.meta_features["log_columns_per_row"] + known.meta_features["log_rows"]
    assert wide.to_numpy() == pytest.approx(known.meta_features["log_columns"].to_numpy())
    collect(load_study(full, families=FAMILIES), tmp_path / "corpus")  # collecting again keeps the other files' cards
    assert set(json.loads((tmp_path / "corpus" / "card.json").read_text())["fidelities"]) == {
        "small_rows",
        "large_rows",
    }


def test_a_grid_crosses_the_named_values_and_takes_the_rest_from_the_pool(tmp_path):
    text = BASE + '[pool]\nmlp = 2\n[extra]\nshare = 0.5\nmlp = 4\n[[extra.grid]]\nfamily = "mlp"\n'
    text += 'optimizer = ["sgd", "adam"]\nlearning_rate = [0.001, 0.01, 0.05]\ninit = ["random"]\n'
    study = load_study(write_config(tmp_path, text))
    crossed = [candidate.config for candidate in study.extra[2:]]
    assert len(study.extra) == 2 + 6
    pairs = {(config["optimizer"], config["learning_rate"]) for config in crossed}
    assert len(pairs) == 6
    assert len({config["width"] for config in crossed}) > 3
    assert load_study(write_config(tmp_path, text)).extra == study.extra


def test_large_tables_are_chosen_and_ordered_by_size(tmp_path):
    text = BASE.replace("n_datasets = 3", "n_datasets = 2\nmin_rows = 400\nsmallest_first = true")
    study = load_study(write_config(tmp_path, text + "[pool]\ntoy_tree = 1"), families=FAMILIES)
    assert [entry.name for entry in study.collection] == ["diabetes", "breast_cancer"]


def test_cells_that_timed_out_are_run_again_on_request(tmp_path):
    text = BASE.replace("20.0", "1.5").replace("n_datasets = 3", "n_datasets = 1") + "[pool]\ntoy_tree = 1\n"
    path = write_config(tmp_path, text + '[[candidate]]\nfamily = "toy_sleeper"\nconfig = { seconds = 30.0 }\n')
    assert run(path).by_status == {"ok": 1, "timeout": 1}
    rows = frame_of(path).set_index("family")
    state = run(path, retry=["timeout"])
    assert (state.n_cells, state.n_done, state.by_status) == (2, 2, {"ok": 1, "timeout": 1})
    again = frame_of(path).set_index("family")
    assert again.loc["toy_sleeper", "finished"] > rows.loc["toy_sleeper", "finished"]
    assert again.loc["toy_tree", "finished"] == rows.loc["toy_tree", "finished"]


BOOSTED = {"hist_gradient_boosting": "max_iter", "lightgbm": "n_estimators", "xgboost": "n_estimators",
           "catboost": "iterations"}  # fmt: skip


@pytest.mark.parametrize("name", ["wine", "breast_cancer", "diabetes"])
@pytest.mark.parametrize("family", BOOSTED)
def test_staged_scores_of_boosting_are_those_of_shorter_fits(family, name):
    smoke = load_collection("smoke")
    dataset = smoke.load(smoke[name]).subsample(120)
    splits = make_splits(dataset)[:2]
    whole = resolve_families([family])[0]
    config = {**whole.default_config, BOOSTED[family]: 40}
    with Evaluator(dataset, families=[whole], splits=splits, staged=True) as evaluator:
        long = evaluator.evaluate(Candidate(family, config))
        short = evaluator.evaluate(Candidate(family, {**config, BOOSTED[family]: 10}))
    metric = evaluator.metrics[0].name
    assert long.curve["rounds"] == [4, 10, 20, 40]
    assert long.curve[metric][-1] == pytest.approx(long.score(metric))
    assert long.curve[metric][1] == pytest.approx(short.score(metric), abs=1e-6)


def test_staged_scores_of_a_net_are_its_best_so_far_and_others_have_none():
    smoke = load_collection("smoke")
    dataset = smoke.load(smoke["diabetes"]).subsample(150)
    families = resolve_families(["mlp", "knn"])
    with Evaluator(dataset, families=families, splits=make_splits(dataset)[:1], staged=True) as evaluator:
        slow = {**families[0].default_config, "learning_rate": 3e-4}  # still improving after the first stage
        net, knn = (evaluator.evaluate(c) for c in (Candidate("mlp", slow), families[1].default_candidate()))
    assert net.curve["epochs"] == [6, 16, 32, 64]
    losses = net.curve["negative_validation_loss"]
    assert losses == sorted(losses)
    assert losses[0] < losses[-1]
    assert knn.curve == {}


def test_stages_are_kept_beside_the_rows_and_do_not_ask_for_another_folder(tmp_path):
    text = BASE.replace("n_datasets = 3", "n_datasets = 1") + "[pool]\nhist_gradient_boosting = 1\n"
    path = write_config(tmp_path, text)
    run_experiment(path, n_jobs=1, backend="sequential")
    write_config(
        tmp_path, text.replace("[measure]", "[measure]\nstaged = true").replace("boosting = 1", "boosting = 2")
    )
    run_experiment(path, n_jobs=1, backend="sequential")
    curves = read_rows(load_study(path), ["curve"]).to_pandas()["curve"]
    assert curves.notna().sum() == 1
    assert set(json.loads(curves.dropna().iloc[0])) == {"rounds", "log_loss"}


def test_candidates_missing_by_design_do_not_count_as_gaps(tmp_path):
    text = (
        BASE.replace("n_datasets = 3", "n_datasets = 4") + "[pool]\ntoy_tree = 1\n[extra]\nshare = 0.5\ntoy_tree = 3\n"
    )
    path = write_config(tmp_path, text)
    assert run(path).n_done == 4 + 2 * 2
    card = collect(load_study(path, families=FAMILIES), tmp_path / "corpus", min_coverage=1.0)
    assert card["n_datasets"] == 4
    assert card["gaps"]["open_cells"] == 0
    assert "2 extra candidates are run on the first 2 of 4 datasets" in card["gaps"]["missing_by_design"]


def test_the_second_wave_crosses_nets_and_is_disjoint_from_the_first():
    first, second = (load_study(CORPUS / name) for name in ("config.toml", "wave_2.toml"))
    assert second.candidates == first.candidates
    assert second.measure.conditions == first.measure.conditions
    assert second.shards == first.shards
    assert not {config_id(c) for c in second.extra} & {config_id(c) for c in first.candidates}
    counts = Counter(candidate.family for candidate in second.extra)
    assert all(counts[family] == 25 for family in BOOSTED)
    assert all(8 <= counts[family] <= 12 for family in ("svm", "random_forest", "extra_trees", "linear", "knn"))
    nets = {(c.config["optimizer"], c.config["learning_rate"], c.config["schedule"])
            for c in second.extra if c.family == "mlp"}  # fmt: skip
    assert len(nets) == 36
    share = make_plan(second).wanted[:, len(first.candidates) :].any(axis=(1, 2, 3)).mean()
    assert share == pytest.approx(0.4, abs=0.01)


def test_what_ships_is_a_part_of_the_first_wave():
    core, first = (load_study(CORPUS / name) for name in ("core.toml", "config.toml"))
    assert {config_id(c) for c in core.candidates} < {config_id(c) for c in first.candidates}
    assert (core.shards, core.measure) == (first.shards, first.measure)
    assert core.collection == first.collection


@pytest.mark.parametrize(("name", "n_candidates"), [("small_rows.toml", 8), ("large_rows.toml", 10)])
def test_other_fidelities_measure_candidates_of_the_first_wave(name, n_candidates):
    first, other = load_study(CORPUS / "config.toml"), load_study(CORPUS / name)
    assert {config_id(c) for c in other.candidates} <= {config_id(c) for c in first.candidates}
    assert len(other.candidates) == n_candidates
    assert other.fidelity + ".toml" == name
    assert other.shards != first.shards
    large = name == "large_rows.toml"
    assert (len(other.collection) >= 60, min(e.n_rows for e in other.collection) >= 8_000) == (True, large)
    assert (other.measure.max_rows == first.measure.max_rows) != large
