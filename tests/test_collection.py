"""Collections: listed, found, checked by fingerprint; open_test is apart from meta_train."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from autometa import collection as module
from autometa.collection import CollectionEntry, data_folder, load_collection, load_entry
from autometa.data import Dataset, TaskType
from autometa.exceptions import DataError

NAMES = ("smoke", "meta_train", "dev", "open_test")


@pytest.fixture(scope="module")
def collections():
    return {name: load_collection(name) for name in NAMES}


def small_table(seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame({"a": rng.normal(size=40), "b": rng.choice(["x", "y"], 40), "price": rng.normal(size=40)})


def entry_of(frame: pd.DataFrame, **changes: object) -> CollectionEntry:
    dataset = Dataset.from_frame(frame, "price")
    values = {
        "name": "flat", "source": "github:someone/tables:flat.csv@1", "fingerprint": dataset.fingerprint,
        "target": "price", "task": TaskType.REGRESSION, "group": "flat", "n_rows": 40, "n_features": 2,
    }  # fmt: skip
    return CollectionEntry(**{**values, **changes})  # type: ignore[arg-type]


def test_open_test_shares_no_fingerprint_and_no_group_with_meta_train(collections):
    train, test = collections["meta_train"], collections["open_test"]
    assert not train.fingerprints & test.fingerprints
    assert not train.groups & test.groups
    assert not {entry.name for entry in train} & {entry.name for entry in test}


def test_sizes_and_uniqueness(collections):
    assert len(collections["meta_train"]) >= 550
    assert len(collections["open_test"]) == 47
    for collection in collections.values():
        assert len(collection.fingerprints) == len(collection) == len({entry.name for entry in collection})
        assert all(len(entry.fingerprint) == 32 for entry in collection)
        assert all(entry.licence and entry.source for entry in collection)


def test_dev_is_sixty_whole_groups_of_meta_train(collections):
    train, dev = collections["meta_train"], collections["dev"]
    assert len(dev.groups) == 60
    assert set(dev) == {entry for entry in train if entry.group in dev.groups}


@pytest.mark.parametrize("label", ["task", "origin"])
def test_every_prefix_of_meta_train_has_the_shares_of_the_whole(collections, label):
    entries = collections["meta_train"].entries
    assert [entry.wave for entry in entries] == list(range(len(entries)))
    whole = Counter(getattr(entry, label) for entry in entries)
    for size in (60, 120, 240, 480):
        part = Counter(getattr(entry, label) for entry in entries[:size])
        for value, count in whole.most_common(4):
            assert abs(part[value] / size - count / len(entries)) < 0.06


def test_dev_has_about_the_shares_of_meta_train(collections):
    shares = [Counter(e.task for e in collections[name]) for name in ("dev", "meta_train")]
    for task in TaskType:
        dev, train = (counts[task] / sum(counts.values()) for counts in shares)
        assert abs(dev - train) < 0.1


def test_smoke_needs_no_file(collections, tmp_path):
    smoke = collections["smoke"]
    for entry in smoke:
        dataset = smoke.load(entry, folder=tmp_path)
        assert (dataset.n_rows, dataset.n_features, dataset.task) == (entry.n_rows, entry.n_features, entry.task)


@pytest.mark.parametrize("suffix", ["parquet", "csv"])
def test_loads_a_local_table_in_any_order_of_rows_and_columns(tmp_path, suffix):
    frame = small_table()
    entry = entry_of(frame)
    shuffled = frame.sample(frac=1, random_state=1)[["price", "b", "a"]]
    if suffix == "csv":
        shuffled.to_csv(tmp_path / "flat.csv", index=False, float_format="%.17g")
    else:
        shuffled.to_parquet(tmp_path / "flat.parquet", index=False)
    dataset = load_entry(entry, folder=tmp_path)
    assert dataset.name == "flat"
    assert dataset.fingerprint == entry.fingerprint == dataset.subsample(20).fingerprint


def test_another_table_under_the_same_name_is_refused(tmp_path):
    entry = entry_of(small_table())
    small_table(seed=1).to_parquet(tmp_path / "flat.parquet")
    with pytest.raises(DataError, match="not the table that was measured"):
        load_entry(entry, folder=tmp_path)


def test_a_missing_table_is_one_sentence_with_the_way_out(tmp_path):
    with pytest.raises(DataError, match=r"get it from github:someone/tables.*flat\.parquet.*'price'.*AUTOMETA_DATA"):
        load_entry(entry_of(small_table()), folder=tmp_path)
    with pytest.raises(DataError, match="pass fetch=True to get it from OpenML"):
        load_entry(entry_of(small_table(), openml_id=7), folder=tmp_path)


def test_fetches_only_when_asked(tmp_path, monkeypatch):
    frame, asked = small_table(), []

    def fake(entry: CollectionEntry) -> pd.DataFrame:
        asked.append(entry.openml_id)
        return frame

    monkeypatch.setattr(module, "_fetch_openml", fake)
    entry = entry_of(frame, openml_id=7)
    with pytest.raises(DataError):
        load_entry(entry, folder=tmp_path)
    assert asked == []
    assert load_entry(entry, folder=tmp_path, fetch=True).n_rows == 40
    assert asked == [7]


def test_own_collection_by_path_and_unknown_names(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(
        'datasets = [{ name = "a", source = "x", fingerprint = "f", target = "y", task = "binary", group = "a",'
        " n_rows = 3, n_features = 1, note = 'ignored' }]"
    )
    mine = load_collection(path)
    assert (mine.name, len(mine), mine["a"].task) == ("mine", 1, TaskType.BINARY)
    with pytest.raises(KeyError, match="no dataset 'b'"):
        mine["b"]
    with pytest.raises(DataError, match="must be one of dev, meta_train, open_test, smoke"):
        load_collection("nowhere")
    path.write_text("datasets = [{ name = 1 }]")
    with pytest.raises(DataError, match="cannot be read"):
        load_collection(path)


def test_data_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("AUTOMETA_DATA", str(tmp_path))
    assert data_folder() == tmp_path
    monkeypatch.delenv("AUTOMETA_DATA")
    assert data_folder().parts[-2:] == ("autometa", "datasets")


@pytest.mark.skipif("AUTOMETA_DATA" not in os.environ, reason="needs the folder of tables")
def test_listed_tables_are_the_local_ones(collections):
    for name in ("meta_train", "open_test"):
        for entry in collections[name].entries[:5]:
            assert Path(data_folder() / f"{entry.name}.parquet").is_file()
            assert collections[name].load(entry).n_rows == entry.n_rows
