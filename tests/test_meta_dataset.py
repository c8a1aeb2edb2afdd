"""Meta-datasets: any table in, one canonical table out, split by group only."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autometa.exceptions import ArtefactError
from autometa.family import Candidate
from autometa.meta_dataset import MetaDataset, candidate_key, canonical_config, group_folds


def runs(n_datasets: int = 6) -> pd.DataFrame:
    rows = [
        {"dataset": f"d{d}", "family": family, "config_id": i, "config": config, "score": d + i, "seconds": 1.0 + i}
        for d in range(n_datasets)
        for i, (family, config) in enumerate([("knn", {"k": 5}), ("knn", {"k": 7, "p": None}), ("tree", {})])
    ]
    return pd.DataFrame(rows)


def features(n_datasets: int = 6) -> pd.DataFrame:
    return pd.DataFrame({"dataset": [f"d{d}" for d in range(n_datasets)], "rows": np.arange(n_datasets) * 10.0})


def test_score_table_has_one_row_per_dataset_and_one_column_per_candidate() -> None:
    data = MetaDataset.from_frames(runs(), features())
    assert data.score_table().shape == (6, 3)
    assert data.score_table().loc["d2"].tolist() == [2, 3, 4]
    assert data.seconds_table().loc["d0"].tolist() == [1, 2, 3]
    assert list(data.candidates.values()) == [
        Candidate("knn", {"k": 5}), Candidate("knn", {"k": 7}), Candidate("tree"),
    ]  # fmt: skip


def test_configs_as_text_and_as_mappings_give_the_same() -> None:
    as_text = runs().assign(config=lambda f: [json.dumps(c) for c in f["config"]])
    first, second = MetaDataset.from_frames(runs(), features()), MetaDataset.from_frames(as_text, features())
    pd.testing.assert_frame_equal(first.score_table(), second.score_table())


@pytest.mark.parametrize("empty", [None, "", float("nan"), "null", "{}"])
def test_configs_may_be_empty_in_any_way(empty: object) -> None:
    data = MetaDataset.from_frames(runs()[lambda f: f["family"] == "tree"].assign(config=empty), features())
    assert list(data.candidates.values()) == [Candidate("tree")]


def test_columns_for_config_and_seconds_may_be_absent() -> None:
    frame = runs()[["dataset", "family", "score"]].drop_duplicates(["dataset", "family"])
    data = MetaDataset.from_frames(frame, features())
    assert data.score_table().shape == (6, 2)
    assert data.seconds_table().isna().all(axis=None)


def test_seconds_of_the_prediction_are_added_to_those_of_the_fit() -> None:
    table = runs().assign(predict_seconds=[0.5, *[np.nan] * (len(runs()) - 1)])
    data = MetaDataset.from_frames(table, features())
    assert data.seconds_table().loc["d0"].tolist() == [1.5, 2, 3]


def test_equal_configurations_have_equal_keys() -> None:
    assert candidate_key("a", {"x": 5.0, "y": None}) == candidate_key("a", {"x": np.int64(5)})
    assert candidate_key("a", {"x": float("nan")}) == candidate_key("a", {})
    assert candidate_key("a", {"x": True}) != candidate_key("b", {"x": True})
    assert canonical_config({"b": 1, "a": "t"}) == {"a": "t", "b": 1}


def test_missing_and_repeated_cells() -> None:
    frame = pd.concat([runs().iloc[1:], runs().iloc[1:2].assign(score=101.0)])
    frame.iloc[4, frame.columns.get_loc("score")] = np.nan
    table = MetaDataset.from_frames(frame, features()).score_table()
    assert np.isnan(table.loc["d0", candidate_key("knn", {"k": 5})])
    assert table.isna().sum().sum() == 2
    assert table.loc["d0", candidate_key("knn", {"k": 7})] == pytest.approx((1 + 101) / 2)


def test_several_metrics_and_tasks() -> None:
    frame = pd.concat([runs().assign(metric="auc", task="binary"), runs().assign(metric="loss", score=-1.0)])
    data = MetaDataset.from_frames(frame, features())
    assert data.metrics == ("auc", "loss")
    assert (data.score_table("loss") == -1).all(axis=None)
    assert data.meta_features["task"].eq("binary").all()
    with pytest.raises(ValueError, match="metric must be one of auc, loss"):
        data.score_table("nothing")


@pytest.mark.parametrize(
    ("evaluations", "meta", "message"),
    [
        (runs().drop(columns="score"), features(), "Missing: score"),
        ([1, 2], features(), "must be a pandas DataFrame"),
        (runs(), [1], "meta_features must be a pandas DataFrame"),
        (runs().assign(score=np.nan), features(), "at least one finite score"),
        (runs(), features(4), "needs a row in meta_features"),
        (runs(), pd.concat([features(), features()]), "one row per dataset"),
        (runs(), features().drop(columns="dataset"), "must have a column 'dataset'"),
        (runs().assign(config="[1]"), features(), "must be a mapping or the JSON text of one"),
        (runs().assign(config="{oops"), features(), "must be a mapping or the JSON text of one"),
    ],
)
def test_bad_tables_are_explained_in_one_sentence(evaluations: object, meta: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MetaDataset.from_frames(evaluations, meta)  # type: ignore[arg-type]


def test_groups_must_cover_every_dataset() -> None:
    with pytest.raises(ValueError, match="group of every dataset"):
        MetaDataset.from_frames(runs(), features(), groups={"d0": "a"})


def test_parquet_round_trip(tmp_path: object) -> None:
    data = MetaDataset.from_frames(runs(), features(), groups={f"d{i}": i // 2 for i in range(6)})
    again = MetaDataset.from_parquet(data.to_parquet(f"{tmp_path}/table"))
    pd.testing.assert_frame_equal(data.evaluations, again.evaluations)
    pd.testing.assert_frame_equal(data.meta_features, again.meta_features)
    assert data.groups.to_dict() == again.groups.to_dict()
    with pytest.raises(ArtefactError, match=r"must hold evaluations.parquet"):
        MetaDataset.from_parquet(f"{tmp_path}/nowhere")


def test_subset() -> None:
    data = MetaDataset.from_frames(runs(), features())
    assert data.subset(["d3", "d1"]).datasets == ("d1", "d3")
    with pytest.raises(ValueError, match="must be among"):
        data.subset(["other"])
    with pytest.raises(ValueError, match="at least one"):
        data.subset([])


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=6, max_size=14), st.integers(0, 100))
def test_no_group_is_split_and_every_dataset_is_tested_once(groups: list[int], seed: int) -> None:
    n = len(groups)
    data = MetaDataset.from_frames(runs(n), features(n), groups={f"d{i}": g for i, g in enumerate(groups)})
    if len(set(groups)) < 2:
        with pytest.raises(ValueError, match="n_folds must be between"):
            list(data.split_by_group(2))
        return
    tested: list[str] = []
    for train, test in data.split_by_group(2, seed=seed):
        assert not set(train.groups) & set(test.groups)
        assert len(train.datasets) + len(test.datasets) == n
        tested += test.datasets
    assert sorted(tested) == sorted(data.datasets)


def test_folds_are_balanced() -> None:
    folds = group_folds(pd.Series(list("aaaabbccdd")), 2)
    assert folds[0] != folds[1] or folds[0] != folds[2]
    assert sorted(set(folds)) == [0, 1]


def large_rows() -> pd.DataFrame:
    return pd.DataFrame(
        {"dataset": ["d1@9", "d1@9", "d1@9", "other@9"], "table": ["d1", "d1", "d1", "other"], "n_rows": 10_000,
         "family": ["knn", "tree", "tree", "knn"], "config": ['{"k": 5}', "{}", '{"d": 2}', "{}"],
         "score": [0.5, 0.7, np.nan, 0.1], "seconds": [10.0, 300.0, 99.0, 5.0]}
    )  # fmt: skip


def test_measurements_at_more_rows_tell_how_seconds_grow(tmp_path) -> None:
    plain = MetaDataset.from_frames(runs(), features().assign(log_rows=3.0))
    data = plain.with_large_rows(large_rows())
    assert data.datasets == plain.datasets
    pd.testing.assert_frame_equal(data.score_table(), plain.score_table())
    growth = data.growth_table()  # ten times the rows: 1 second becomes 10, 3 become 300
    assert growth.index.tolist() == ["d1"]
    assert growth.loc["d1"].dropna().tolist() == pytest.approx([1.0, 2.0])
    late = runs().assign(score=lambda f: f["score"].where((f["dataset"] != "d1") | (f["family"] != "tree")))
    stopped = MetaDataset.from_frames(late, features().assign(log_rows=3.0)).with_large_rows(large_rows())
    assert stopped.growth_table().loc["d1"].dropna().tolist() == [1.0]
    again = MetaDataset.from_parquet(data.to_parquet(tmp_path))
    pd.testing.assert_frame_equal(again.growth_table(), growth)
    assert data.subset(["d0", "d2"]).growth_table().empty
    assert plain.growth_table().empty
    assert plain.with_large_rows(large_rows()[3:]) is plain
    near = plain.with_large_rows(large_rows().assign(n_rows=1_200))  # hardly more rows: says nothing
    assert near.growth_table().isna().all(axis=None)


@pytest.mark.parametrize("name", ["table", "n_rows"])
def test_large_rows_say_whose_they_are_and_how_many(name: str) -> None:
    data = MetaDataset.from_frames(runs(), features().assign(log_rows=2.0))
    with pytest.raises(ValueError, match=f"must have a column {name!r}"):
        data.with_large_rows(large_rows().drop(columns=name))
