"""A supplement joined to a corpus: its candidates are added, what both have stays as it was, at the same speed."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from autometa.experiment.joining import join_corpora
from autometa.meta_dataset import MetaDataset


def write_corpus(folder, cells, *, slowness=1.0, max_rows=2000, name="corpus", version=1):
    """A corpus of (dataset, candidate number, score) cells that took ``slowness`` seconds per candidate number."""
    folder.mkdir()
    rows = [
        {"dataset": d, "group": f"g_{d}", "task": "binary", "family": "knn", "config": json.dumps({"k": k}),
         "config_id": f"id{k}", "seed": 0, "metric": "roc_auc", "score": s, "standard_error": 0.01, "scores": [s, s],
         "seconds": slowness * (1 + k), "predict_seconds": slowness, "peak_memory_mb": 1.0, "n_train_rows": 80,
         "status": "ok"}
        for d, k, s in cells
    ]  # fmt: skip
    names = list(dict.fromkeys(d for d, _, _ in cells))
    pd.DataFrame(rows).to_parquet(folder / "evaluations.parquet")
    pd.DataFrame({"dataset": names, "rows": 100.0, "machine_seconds": 0.1}).to_parquet(folder / "meta_features.parquet")
    pd.DataFrame({"dataset": names, "group": [f"g_{d}" for d in names]}).to_parquet(folder / "groups.parquet")
    pd.DataFrame({"name": names, "n_rows": 100}).to_parquet(folder / "datasets.parquet")
    card = {
        "name": name, "measure": {"max_rows": max_rows, "subsample_seed": 0}, "meta_features_version": version,
        "n_datasets": len(names), "fingerprints": names, "groups": [f"g_{d}" for d in names],
    }  # fmt: skip
    (folder / "card.json").write_text(json.dumps(card))
    return folder


def test_cells_are_added_and_those_of_the_corpus_stay(tmp_path):
    corpus = write_corpus(tmp_path / "a", [("x", 1, 0.5), ("x", 2, 0.6), ("y", 1, 0.7)])
    (corpus / "small_rows.parquet").write_bytes(b"as it is")
    more = write_corpus(
        tmp_path / "b", [("x", 1, 0.9), ("x", 3, 0.8), ("z", 1, 0.4), ("z", 3, 0.3)], slowness=4.0, name="births"
    )  # fmt: skip
    about = join_corpora(corpus, more, tmp_path / "joined")
    assert about["n_cells_added"] == 3
    assert about["seconds_divided_by"] == pytest.approx(4.0)
    rows = pd.read_parquet(tmp_path / "joined" / "evaluations.parquet").set_index(["dataset", "config_id"])
    assert rows.loc[("x", "id1"), "score"] == 0.5
    assert rows.loc[("x", "id3"), "seconds"] == pytest.approx(4.0)  # as the machine of the corpus would have taken
    assert rows.loc[("z", "id3"), "predict_seconds"] == pytest.approx(1.0)
    card = json.loads((tmp_path / "joined" / "card.json").read_text())
    assert card["fingerprints"] == ["x", "y", "z"]
    assert card["n_datasets"] == 3
    assert (card["n_candidates"], card["candidates_by_family"], card["status"]) == (3, {"knn": 3}, {"ok": 6})
    features = pd.read_parquet(tmp_path / "joined" / "meta_features.parquet").set_index("dataset")
    assert features["machine_seconds"].isna().to_dict() == {"x": False, "y": False, "z": True}
    assert set(card["supplements"]) == {"births"}
    assert (tmp_path / "joined" / "small_rows.parquet").read_bytes() == b"as it is"


def test_joining_in_place_and_twice_changes_nothing_more(tmp_path):
    corpus = write_corpus(tmp_path / "a", [("x", 1, 0.5)])
    more = write_corpus(tmp_path / "b", [("x", 2, 0.9)], name="births")
    assert join_corpora(corpus, more, corpus)["n_cells_added"] == 1
    once = pd.read_parquet(corpus / "evaluations.parquet")
    assert join_corpora(corpus, more, corpus)["n_cells_added"] == 0
    pd.testing.assert_frame_equal(pd.read_parquet(corpus / "evaluations.parquet"), once)
    assert len(MetaDataset.from_parquet(corpus).candidates) == 2


@pytest.mark.parametrize(("options", "match"), [({"max_rows": 500}, "max_rows"), ({"version": 2}, "version")])
def test_what_was_measured_otherwise_is_refused(tmp_path, options, match):
    corpus = write_corpus(tmp_path / "a", [("x", 1, 0.5)])
    more = write_corpus(tmp_path / "b", [("x", 2, 0.9)], **options)
    with pytest.raises(ValueError, match=match):
        join_corpora(corpus, more, tmp_path / "joined")
