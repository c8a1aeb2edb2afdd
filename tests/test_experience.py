"""The store of a person's own runs: what goes in comes out, writers do not lose rows, damage has a name."""

from __future__ import annotations

import copy
import pickle
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer

from autometa.data import Dataset
from autometa.estimator import AutoMetaClassifier
from autometa.exceptions import ExperienceError
from autometa.experience import Experience
from autometa.family import Candidate
from autometa.meta_dataset import MetaDataset
from autometa.records import Evaluation, Status
from autometa.selection import Selection, select, shipped_meta_model

FEATURES = {"n_rows": 100.0, "skewness": float("nan"), "task": "binary"}


def evaluation(dataset: str = "table", k: int = 5, score: float = 0.8, status: Status = Status.OK) -> Evaluation:
    scores = {"roc_auc": (score, score + 0.02), "accuracy": (score - 0.1,)}
    return Evaluation(
        dataset, Candidate("knn", {"k": k}), status, scores if status is Status.OK else {}, (0.5, 1.5), (0.2, 0.2)
    )


@pytest.fixture
def store(tmp_path: Path) -> Experience:
    return Experience(tmp_path / "folder" / "runs.sqlite")


def test_what_goes_in_comes_out(store: Experience) -> None:
    assert store.add(FEATURES, [evaluation(k=1), evaluation(k=2, score=0.9)], task="binary") == 4
    data = store.to_meta_dataset()
    assert data.datasets == ("table",)
    assert len(store) == 1
    assert set(data.metrics) == {"roc_auc", "accuracy"}
    table = data.score_table("roc_auc")
    assert sorted(table.loc["table"]) == pytest.approx([0.81, 0.91])
    features = data.meta_features.loc["table"]
    assert features["n_rows"] == 100
    assert features["task"] == "binary"
    assert pd.isna(features["skewness"])
    assert data.seconds_table().loc["table"].tolist() == [1.2, 1.2]
    errors = data.standard_error_table("roc_auc").loc["table"]
    assert errors.tolist() == pytest.approx([0.01, 0.01])
    assert data.standard_error_table("accuracy").loc["table"].isna().all()


def test_measuring_again_replaces_and_failures_are_left_out(store: Experience) -> None:
    store.add(FEATURES, [evaluation(score=0.5)], task="binary")
    store.add(FEATURES, [evaluation(score=0.7), evaluation(k=9, status=Status.FAILED)], task="binary")
    data = store.to_meta_dataset()
    assert len(data.candidates) == 1
    assert data.score_table("roc_auc").to_numpy().item() == pytest.approx(0.71)
    assert store.add(FEATURES, [evaluation(status=Status.TIMEOUT)], task="binary") == 0


def test_evaluations_of_several_datasets_are_refused(store: Experience) -> None:
    with pytest.raises(ValueError, match="must be of one dataset"):
        store.add(FEATURES, [evaluation("a"), evaluation("b")], task="binary")


def test_merging_recognises_known_datasets(store: Experience) -> None:
    rows = pd.DataFrame(
        [("iris", "knn", {"k": 5}, "roc_auc", 0.6), ("wine", "knn", {"k": 5}, "roc_auc", 0.4)],
        columns=["dataset", "family", "config", "metric", "score"],
    )
    features = pd.DataFrame({"dataset": ["iris", "wine"], "n_rows": [150.0, 178.0], "task": "multiclass"})
    corpus = MetaDataset.from_frames(rows, features, {"iris": "flowers", "wine": "drinks"})
    store.add(FEATURES, [evaluation("f1", k=5), evaluation("f1", k=7)], task="multiclass")
    store.add(FEATURES, [evaluation("f2")], task="binary")
    merged = store.merged_with(corpus, fingerprints={"f1": "iris"})
    assert merged.datasets == ("iris", "wine", "f2")
    assert merged.groups.to_dict() == {"iris": "flowers", "wine": "drinks", "f2": "f2"}
    table = merged.score_table("roc_auc")
    assert table.loc["iris"].tolist() == pytest.approx([0.6, 0.81])  # the corpus wins its own cell
    assert merged.meta_features.loc["iris", "n_rows"] == 150
    assert store.merged_with(corpus).datasets == ("iris", "wine", "f1", "f2")


def test_an_empty_store_says_so(store: Experience) -> None:
    assert len(store) == 0
    with pytest.raises(ExperienceError, match="at least one run"):
        store.to_meta_dataset()


def test_a_damaged_file_has_a_name(tmp_path: Path) -> None:
    path = tmp_path / "runs.sqlite"
    path.write_bytes(b"this is not a database, only text that is long enough to be read as a header" * 9)
    before = path.read_bytes()
    for act in (lambda s: len(s), lambda s: s.add(FEATURES, [evaluation()], task="binary")):
        with pytest.raises(ExperienceError, match="cannot be used: file is not a database"):
            act(Experience(path))
    assert path.read_bytes() == before


def test_a_truncated_database_has_a_name(store: Experience) -> None:
    store.add(FEATURES, [evaluation(k=k) for k in range(200)], task="binary")
    path = Path(str(store.url))
    path.write_bytes(path.read_bytes()[:6000])
    with pytest.raises(ExperienceError):
        store.to_meta_dataset()


def test_a_locked_database_has_a_name_and_a_later_try_works(store: Experience) -> None:
    store.add(FEATURES, [evaluation()], task="binary")
    other = sqlite3.connect(str(store.url), isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    impatient = Experience(store.url, lock_seconds=0.05)
    with pytest.raises(ExperienceError, match="locked"):
        impatient.add(FEATURES, [evaluation(k=6)], task="binary")
    other.execute("COMMIT")
    other.close()
    assert impatient.add(FEATURES, [evaluation(k=6)], task="binary") == 2


def test_another_format_or_place_is_refused(store: Experience, tmp_path: Path) -> None:
    store.add(FEATURES, [evaluation()], task="binary")
    with sqlite3.connect(str(store.url)) as connection:
        connection.execute("UPDATE autometa_schema SET version = 99")
    with pytest.raises(ExperienceError, match="schema version 1"):
        len(store)
    with pytest.raises(ExperienceError, match="SQLite or PostgreSQL"):
        len(Experience("mysql://user:secret@host/name"))
    with pytest.raises(ExperienceError, match="must be a file"):
        len(Experience("sqlite://"))
    with pytest.raises(ExperienceError, match="cannot be used"):
        len(Experience(tmp_path))  # a folder


def test_passwords_are_not_shown() -> None:
    store = Experience("postgresql+nodriver://user:secret@host/name")
    assert "secret" not in repr(store)
    with pytest.raises(ExperienceError) as caught:
        len(store)
    assert "secret" not in str(caught.value)


def test_nothing_is_written_before_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOMETA_EXPERIENCE", str(tmp_path / "own.sqlite"))
    store = Experience()
    assert not (tmp_path / "own.sqlite").exists()
    store.add(FEATURES, [evaluation()], task="binary")
    path = tmp_path / "own.sqlite"
    assert path.exists()
    if sys.platform != "win32":
        assert path.stat().st_mode & 0o077 == 0


def test_it_travels_to_other_processes(store: Experience) -> None:
    store.add(FEATURES, [evaluation()], task="binary")
    assert len(pickle.loads(pickle.dumps(store))) == 1


WRITER = """
import sys
from autometa.experience import Experience
from autometa.family import Candidate
from autometa.records import Evaluation, Status
store, writer = Experience(sys.argv[1]), sys.argv[2]
print("ready", flush=True)
sys.stdin.readline()
for i in range(6):
    own = Evaluation(f"w{writer}-{i}", Candidate("knn", {"k": i}), Status.OK, {"roc_auc": (0.5,)})
    common = Evaluation("common", Candidate("knn", {"k": i}), Status.OK, {"roc_auc": (0.5,)})
    store.add({"n": float(i)}, [own], task="binary")
    store.add({"n": 1.0}, [common], task="binary")
"""


def test_concurrent_writers_lose_nothing(store: Experience) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(store.url), str(w)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for w in range(3)
    ]  # fmt: skip
    for process in writers:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    outcomes = []
    for process in writers:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in writers:
        _, errors = process.communicate(timeout=120)
        outcomes.append((process.returncode, errors))
    assert all(code == 0 for code, _ in outcomes), outcomes
    data = store.to_meta_dataset()
    assert len(data.datasets) == 3 * 6 + 1
    assert (data.evaluations["dataset"] == "common").sum() == 6
    assert np.isfinite(data.evaluations["score"]).all()


# In the front door


@pytest.fixture(scope="module")
def tables() -> tuple[Dataset, Dataset]:
    """Two halves of one table."""
    frame = load_breast_cancer(as_frame=True).frame
    one, other = frame.iloc[::2].reset_index(drop=True), frame.iloc[1::2].reset_index(drop=True)
    return Dataset.from_frame(one, "target"), Dataset.from_frame(other, "target")


def favour(dataset: Dataset, selection: Selection, family: str) -> list[Evaluation]:
    """Runs in which this family did far better than all others."""
    return [
        Evaluation(dataset.fingerprint, c, Status.OK, {"roc_auc": (0.99, 0.98) if c.family == family else (0.7, 0.71)})
        for c in selection.ranking
    ]


def leader(selection: Selection) -> str:
    """Family with the highest expected score."""
    return selection.candidates[int(np.argmax(selection.belief.mean))].family


FAMILIES = ["linear", "knn", "random_forest", "naive_bayes"]


def test_a_selection_expects_what_surprised_on_a_similar_table(store: Experience, tables) -> None:
    one, other = tables
    cold = select(other, families=FAMILIES)
    store.add(cold.meta_features.to_series(), favour(one, cold, "naive_bayes"), task="binary")
    warm = select(other, families=FAMILIES, experience=store)
    assert leader(cold) != "naive_bayes"
    assert leader(warm) == "naive_bayes"
    assert "Own runs on 1 dataset were read as memory." in warm.explain()
    assert "memory" not in cold.explain()
    same = select(one, families=FAMILIES, experience=store)
    assert "this table among them" in str(same)


def test_runs_that_the_meta_model_knows_are_not_counted_again(store: Experience, tables) -> None:
    one, other = tables
    cold = select(other, families=FAMILIES)
    store.add(cold.meta_features.to_series(), favour(one, cold, "naive_bayes"), task="binary")
    model = copy.copy(shipped_meta_model())
    model.card = {**model.card, "fingerprints": [*model.card.get("fingerprints", []), one.fingerprint]}
    warm = select(other, families=FAMILIES, experience=store, meta_model=model)
    np.testing.assert_allclose(warm.belief.mean, cold.belief.mean)
    assert "are all on datasets that the meta-model knows" in str(warm)


def test_an_empty_store_and_foreign_families_change_nothing(store: Experience, tables) -> None:
    one, other = tables
    cold = select(other, families=FAMILIES)
    empty = select(other, families=FAMILIES, experience=store)
    assert "holds none by roc_auc yet" in str(empty)
    store.add(FEATURES, [evaluation(one.fingerprint, k=k, score=s) for k, s in ((3, 0.6), (7, 0.9))], task="binary")
    strange = Evaluation(one.fingerprint, Candidate("my_own", {"depth": 3}), Status.OK, {"roc_auc": (0.9, 0.8)})
    store.add(FEATURES, [strange], task="binary")
    mixed = select(other, families=FAMILIES, experience=store)
    assert np.isfinite(mixed.belief.mean).all()
    np.testing.assert_allclose(empty.belief.mean, cold.belief.mean)


def test_a_store_that_cannot_be_read_is_an_error_of_the_selection(tmp_path: Path, tables) -> None:
    path = tmp_path / "broken.sqlite"
    path.write_text("this is no database, and long enough to be seen as such" * 10)
    with pytest.raises(ExperienceError, match="cannot be used"):
        select(tables[0], families=FAMILIES, experience=path)


def test_fits_keep_their_runs_and_the_next_selection_reads_them(tmp_path: Path, tables) -> None:
    path, names = tmp_path / "runs.sqlite", ["linear", "naive_bayes"]
    one, other = tables
    model = AutoMetaClassifier(max_trials=2, families=names, experience=path, random_state=0, ensemble=False)
    model.fit(one.X, one.y)
    assert "holds none" in str(model.selection_)
    kept = Experience(path).to_meta_dataset()
    assert {c.family for c in kept.candidates.values()} <= set(names)
    again = clone(model).fit(one.X, one.y)
    assert "this table among them" in str(again.selection_)
    assert len(Experience(path)) == 1
    AutoMetaClassifier(max_trials=1, families=names, experience=str(path), random_state=0).fit(other.X, other.y)
    assert len(Experience(path)) == 2
    assert "Own runs on 2 datasets" in str(select(other, families=names, experience=path))


def test_a_fit_whose_runs_cannot_be_kept_still_ends(tables) -> None:
    class Full(Experience):
        def add(self, *_: object, **__: object) -> int:
            raise ExperienceError("The disk is full.")

        def __len__(self) -> int:
            return 0

    model = AutoMetaClassifier(max_trials=1, families=["linear"], experience=Full("x.sqlite"), random_state=0)
    with pytest.warns(UserWarning, match="disk is full"):
        model.fit(tables[0].X, tables[0].y)
    assert model.predict(tables[1].X).shape == (len(tables[1].X),)
