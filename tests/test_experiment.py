"""The engine: every cell exactly once, whatever happens in between."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import psutil
import pyarrow.parquet as pq
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor
from waiting import wait_until

from autometa.collection import Collection, load_collection
from autometa.data import TaskType
from autometa.exceptions import LeakageError
from autometa.experiment import compact, load_predictions, run_experiment, status
from autometa.experiment.corpus import collect
from autometa.experiment.engine import make_chunks
from autometa.experiment.study import KEYS, Study, config_id, load_study, make_plan, read_rows
from autometa.family import CLASSIFICATION_TASKS, Candidate, ModelFamily
from autometa.meta_dataset import MetaDataset
from autometa.search_space import SearchSpace


class Tree(ModelFamily):
    name = "toy_tree"
    search_space = SearchSpace({"depth": IntDistribution(1, 10)})
    default_config: ClassVar = {"depth": 3}

    def build(self, config, shape, *, random_state=0, n_threads=1):
        cls = DecisionTreeClassifier if shape.task.is_classification else DecisionTreeRegressor
        return cls(max_depth=config["depth"], random_state=random_state)


class Sleeper(ModelFamily):
    """Waits, then predicts a constant."""

    name = "toy_sleeper"
    search_space = SearchSpace({"seconds": FloatDistribution(0.0, 60.0)})
    default_config: ClassVar = {"seconds": 0.0}

    def build(self, config, shape, *, random_state=0, n_threads=1):
        base = DummyClassifier if shape.task.is_classification else DummyRegressor
        return (SlowClassifier if base is DummyClassifier else SlowRegressor)(seconds=config["seconds"])


class SlowClassifier(DummyClassifier):
    def __init__(self, seconds=0.0):
        super().__init__(strategy="prior")
        self.seconds = seconds

    def fit(self, X, y, sample_weight=None):
        time.sleep(self.seconds)
        return super().fit(X, y)


class SlowRegressor(DummyRegressor):
    def __init__(self, seconds=0.0):
        super().__init__()
        self.seconds = seconds

    def fit(self, X, y, sample_weight=None):
        time.sleep(self.seconds)
        return super().fit(X, y)


class Broken(ModelFamily):
    name = "toy_broken"
    tasks = CLASSIFICATION_TASKS
    search_space = SearchSpace({})
    default_config: ClassVar = {}

    def build(self, config, shape, *, random_state=0, n_threads=1):
        return BrokenClassifier()


class BrokenClassifier(ClassifierMixin, BaseEstimator):
    def fit(self, X, y):
        raise ValueError("this model never works")


FAMILIES = (Tree(), Sleeper(), Broken())

BASE = """
name = "toy"
collection = "smoke"
n_datasets = 3
[measure]
max_rows = 150
time_limit = 20.0
[run]
chunk_size = 3
wave_size = 2
meta_features = false
"""


def write_config(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.toml"
    path.write_text(text)
    return path


def run(path, **options):
    return run_experiment(path, families=FAMILIES, **{"n_jobs": 1, "backend": "sequential", **options})


def frame_of(path) -> pd.DataFrame:
    return read_rows(load_study(path, families=FAMILIES)).to_pandas()


@pytest.mark.parametrize("backend", ["sequential", "loky"])
def test_each_cell_once_and_nothing_on_a_second_run(tmp_path, backend):
    path = write_config(tmp_path, BASE + "[pool]\ntoy_tree = 5")
    state = run(path, backend=backend, n_jobs=2)
    assert (state.n_cells, state.n_done, state.by_status) == (15, 15, {"ok": 15})
    rows = frame_of(path)
    assert not rows.duplicated(list(KEYS)).any()
    assert set(rows["dataset"]) == {"iris", "wine", "breast_cancer"}
    first = rows.iloc[0]
    assert len(first["score_accuracy"]) == len(first["fit_seconds"]) == 10  # 2 x 5 folds below 500 rows
    assert json.loads(first["config"]).keys() == {"depth"}
    assert json.loads(first["versions"])["scikit-learn"]
    before = sorted(file.name for file in (tmp_path / "shards").iterdir())
    assert run(path, backend=backend).n_done == 15
    assert sorted(file.name for file in (tmp_path / "shards").iterdir()) == before


def test_backends_give_the_same_scores(tmp_path):
    frames = []
    for backend in ("threading", "sequential"):
        path = write_config(tmp_path / backend, BASE + "[pool]\ntoy_tree = 3")
        run(path, backend=backend, n_jobs=2)
        frames.append(frame_of(path).sort_values(list(KEYS)))
    for a, b in zip(frames[0]["score_log_loss"], frames[1]["score_log_loss"], strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_longer_pool_and_more_seeds_only_add_cells(tmp_path):
    path = write_config(tmp_path, BASE + "[pool]\ntoy_tree = 3")
    run(path)
    finished = frame_of(path)["finished"]
    path.write_text(BASE.replace("[measure]", "seeds = [0, 1]\n[measure]") + "[pool]\ntoy_tree = 5")
    study = load_study(path, families=FAMILIES)
    plan = make_plan(study)
    assert (plan.wanted.sum(), plan.done.sum()) == (30, 9)
    assert sum(len(chunk.candidates) for chunk in make_chunks(plan)) == 21
    assert run(path).n_done == 30
    assert set(finished) <= set(frame_of(path)["finished"])


def test_failures_and_timeouts_are_recorded_and_can_be_tried_again(tmp_path):
    text = BASE.replace("20.0", "1.5").replace("n_datasets = 3", "n_datasets = 1") + "[pool]\ntoy_broken = 1\n"
    text += '[[candidate]]\nfamily = "toy_sleeper"\nconfig = { seconds = 30.0 }\n'
    path = write_config(tmp_path, text)
    state = run(path)
    assert state.by_status == {"failed": 1, "timeout": 1}
    assert any("this model never works" in reason for reason in state.reasons)
    rows = frame_of(path).set_index("family")
    assert rows.loc["toy_sleeper", "score_accuracy"] is None or len(rows.loc["toy_sleeper", "score_accuracy"]) == 0
    assert rows.loc["toy_sleeper", "wall_seconds"] < 15
    run(path, retry=["failed"])
    again = frame_of(path).set_index("family")
    assert len(again) == 2
    assert again.loc["toy_broken", "finished"] > rows.loc["toy_broken", "finished"]
    assert again.loc["toy_sleeper", "finished"] == rows.loc["toy_sleeper", "finished"]


KILLED = """
import sys
sys.path.insert(0, sys.argv[1])
from test_experiment import FAMILIES
from autometa.experiment import run_experiment
run_experiment(sys.argv[2], n_jobs=2, families=FAMILIES)
"""


def test_a_run_that_is_killed_resumes_with_no_lost_and_no_doubled_row(tmp_path):
    configs = "".join(
        f'[[candidate]]\nfamily = "toy_sleeper"\nconfig = {{ seconds = {0.02 + i / 1000} }}\n' for i in range(12)
    )
    path = write_config(tmp_path, BASE.replace("chunk_size = 3", "chunk_size = 2") + configs)
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(path)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 150
    while len(list((tmp_path / "shards").glob("rows-*.parquet"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = frame_of(path)
    assert 0 < len(kept) < 36
    assert run(path).n_done == 36
    rows = pd.concat(pq.read_table(shard).to_pandas() for shard in (tmp_path / "shards").glob("rows-*.parquet"))
    assert len(rows) == 36
    assert not rows.duplicated(list(KEYS)).any()
    assert set(kept["finished"]) <= set(rows["finished"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_ended_leaves_no_process_behind(tmp_path, number):
    path = write_config(tmp_path, BASE + '[[candidate]]\nfamily = "toy_sleeper"\nconfig = { seconds = 5.0 }\n')
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    command = [sys.executable, "-c", KILLED, str(Path(__file__).parent), str(path)]
    environment = os.environ | {"TMPDIR": str(scratch)}
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    wait_until(lambda: list(scratch.glob("autometa-*/*.jsonl")))
    family = process.children(recursive=True)
    assert len(family) >= 2
    process.send_signal(number)
    process.wait(60)
    wait_until(lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in family))


def test_a_dask_cluster_that_loses_a_worker_ends_with_each_cell_once(tmp_path):
    distributed = pytest.importorskip("distributed")
    import dask

    configs = "".join(
        f'[[candidate]]\nfamily = "toy_sleeper"\nconfig = {{ seconds = {0.03 + i / 1000} }}\n' for i in range(8)
    )
    path = write_config(tmp_path, BASE.replace("chunk_size = 3", "chunk_size = 1") + configs)

    def kill_one(cluster) -> None:
        while len(list((tmp_path / "shards").glob("rows-*.parquet"))) < 2:
            time.sleep(0.02)
        os.kill(next(iter(cluster.workers.values())).pid, signal.SIGKILL)

    with (
        dask.config.set({"distributed.worker.daemon": False}),  # daemons may not have the guarded child processes
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
    ):
        threading.Thread(target=kill_one, args=(cluster,), daemon=True).start()
        state = run(path, backend="dask", n_jobs=2, scheduler=cluster.scheduler_address)
    assert (state.n_done, state.problems) == (24, ())
    rows = pd.concat(pq.read_table(shard).to_pandas() for shard in (tmp_path / "shards").glob("rows-*.parquet"))
    assert len(rows) == 24
    assert not rows.duplicated(list(KEYS)).any()


def test_a_damaged_shard_is_ignored_with_a_warning_and_its_cells_run_again(tmp_path):
    path = write_config(tmp_path, BASE + "[pool]\ntoy_tree = 3")
    run(path)
    first, second, third = sorted((tmp_path / "shards").glob("rows-*.parquet"))
    first.write_bytes(first.read_bytes()[:200])
    second.write_bytes(b"")
    (tmp_path / "shards" / "rows-1-a.parquet.123.tmp").write_bytes(b"half")
    with pytest.warns(RuntimeWarning, match="is damaged and is ignored"):
        assert status(path, families=FAMILIES).n_done == 3
    with pytest.warns(RuntimeWarning, match="is damaged and is ignored"):
        assert run(path).n_done == 9
    assert third.is_file()
    assert not list((tmp_path / "shards").glob("*.tmp"))


def test_shards_of_an_older_release_keep_counting(tmp_path):
    path = write_config(tmp_path, BASE + "[pool]\ntoy_tree = 3")
    run(path)
    for shard in (tmp_path / "shards").glob("rows-*.parquet"):
        pq.write_table(pq.read_table(shard).drop_columns(["machine_load", "curve"]), shard)
    assert status(path, families=FAMILIES).n_done == 9
    assert frame_of(path)["machine_load"].isna().all()


def test_a_full_disk_stops_the_run_and_leaves_whole_shards(tmp_path, monkeypatch):
    path = write_config(tmp_path, BASE + "[pool]\ntoy_tree = 3")
    written, real = [], pq.write_table

    def write_table(table, where, **options):
        if len(written) == 2:
            Path(where).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        written.append(where)
        return real(table, where, **options)

    monkeypatch.setattr(pq, "write_table", write_table)
    with pytest.raises(OSError, match="No space left"):
        run(path)
    monkeypatch.undo()
    assert len(frame_of(path)) == 6
    assert run(path).n_done == 9


def test_rows_of_another_way_of_measuring_are_not_mixed(tmp_path):
    path = write_config(tmp_path, BASE + "[pool]\ntoy_tree = 1")
    run(path)
    with pytest.raises(ValueError, match="resume=True"):
        run(path, resume=False)
    path.write_text((BASE + "[pool]\ntoy_tree = 1").replace("max_rows = 150", "max_rows = 100"))
    with pytest.raises(ValueError, match="use a new folder"):
        run(path)


def test_a_new_version_of_a_family_is_measured_again(tmp_path, monkeypatch):
    path = write_config(tmp_path, BASE + "[pool]\ntoy_tree = 2")
    run(path)
    monkeypatch.setattr(Tree, "version", 2)
    assert status(path, families=FAMILIES).n_done == 0


def test_a_table_that_is_not_there_is_a_problem_not_a_result(tmp_path):
    toml = tmp_path / "mine.toml"
    toml.write_text(
        'datasets = [{ name = "gone", source = "x", fingerprint = "f", target = "y", task = "binary", group = "a",'
        " n_rows = 30, n_features = 1 }]"
    )
    text = BASE.replace('"smoke"', '"mine.toml"') + "[pool]\ntoy_tree = 2"
    state = run(write_config(tmp_path, text), data_folder=tmp_path)
    assert state.n_done == 0
    assert "gone" in state.problems[0]
    assert not list((tmp_path / "shards").glob("rows-*.parquet"))


@pytest.mark.parametrize("by", ["fingerprint", "group"])
def test_a_test_study_refuses_what_was_learned_from(tmp_path, by):
    wine = load_collection("smoke")["wine"]
    card = {"fingerprints": [wine.fingerprint], "groups": []} if by == "fingerprint" else {
        "fingerprints": [], "groups": [wine.group]}  # fmt: skip
    (tmp_path / "card.json").write_text(json.dumps(card))
    head = 'purpose = "test"\ntrained_on = "card.json"\n'
    path = write_config(tmp_path, head + BASE + "[pool]\ntoy_tree = 1")
    with pytest.raises(LeakageError, match="wine"):
        run(path)
    path.write_text(head + BASE.replace("n_datasets = 3", "n_datasets = 1") + "[pool]\ntoy_tree = 1")
    assert run(path).n_done == 1
    path.write_text('purpose = "test"\n' + BASE + "[pool]\ntoy_tree = 1")
    with pytest.raises(ValueError, match="trained_on"):
        run(path)


def test_a_million_cells_are_listed_lazily(tmp_path):
    entries = load_collection("meta_train").entries[:500]
    candidates = tuple(Candidate("toy_tree", {"depth": i}) for i in range(2_000))
    study = Study("big", tmp_path, Collection("big", entries), (Tree(),), candidates)
    plan = make_plan(study)
    assert plan.wanted.sum() == 1_000_000
    assert plan.wanted.nbytes + plan.done.nbytes <= 2_000_000
    listed = plan.to_frame()
    assert len(listed) == 1_000_000
    assert listed.memory_usage(deep=True).sum() < 100e6


def test_waves_follow_the_collection_and_extra_candidates_come_last(tmp_path):
    text = (
        BASE.replace("n_datasets = 3", "n_datasets = 4") + "[pool]\ntoy_tree = 4\n[extra]\nshare = 0.5\ntoy_tree = 6\n"
    )
    study = load_study(write_config(tmp_path, text), families=FAMILIES)
    assert (len(study.candidates), len(study.extra)) == (4, 2)
    chunks = list(make_chunks(make_plan(study)))
    names = [entry.name for entry in study.collection]
    assert {chunk.entry.name for chunk in chunks[:4]} == set(names[:2])
    assert chunks[0].expected_seconds == max(chunk.expected_seconds for chunk in chunks[:4])
    assert [len(chunk.candidates) for chunk in chunks] == [3, 3, 1, 1, 3, 3, 1, 1, 2, 2]
    assert {chunk.entry.name for chunk in chunks[8:]} == set(names[:2])


def test_predictions_are_kept_beside_the_rows(tmp_path):
    text = BASE.replace("n_datasets = 3", "n_datasets = 1").replace("wave_size", "keep_predictions = true\nwave_size")
    path = write_config(tmp_path, text + "[pool]\ntoy_tree = 4")
    run(path)
    study = load_study(path, families=FAMILIES)
    kept = load_predictions(study, study.collection.entries[0].fingerprint)
    assert set(kept) == {config_id(candidate) for candidate in study.candidates}
    for values in kept.values():
        assert values.shape == (150, 3)
        np.testing.assert_allclose(values.astype(float).sum(axis=1), 1.0, atol=1e-2)


def test_compacting_changes_nothing_but_the_files(tmp_path):
    path = write_config(tmp_path, BASE + "[pool]\ntoy_tree = 4")
    run(path)
    before = frame_of(path)
    assert compact(path, families=FAMILIES) == 12
    assert len(list((tmp_path / "shards").glob("rows-*.parquet"))) == 1
    pd.testing.assert_frame_equal(before, frame_of(path))
    assert run(path).n_done == 12


def test_collected_corpus_is_a_meta_dataset_with_its_card(tmp_path):
    text = BASE.replace("meta_features = false", "").replace("n_datasets = 3", "n_datasets = 4").replace("20.0", "1.5")
    text += "[pool]\ntoy_tree = 3\n"
    text += '[[candidate]]\nfamily = "toy_sleeper"\nconfig = { seconds = 30.0 }\n'
    path = write_config(tmp_path / "study", text)
    run(path)
    study = load_study(path, families=FAMILIES)
    card = collect(study, tmp_path / "corpus")
    assert card["n_datasets"] == 4
    assert card["status"] == {"ok": 12, "timeout": 4}
    assert card["gaps"]["open_cells"] == 0
    full_card = json.loads((tmp_path / "corpus" / "card.json").read_text())
    assert set(full_card["fingerprints"]) == study.collection.fingerprints
    table = MetaDataset.from_parquet(tmp_path / "corpus")
    assert len(table.datasets) == 4
    assert table.score_table("rmse").shape == (1, 3)
    assert table.score_table("log_loss").shape == (3, 3)
    rows = pd.read_parquet(tmp_path / "corpus" / "evaluations.parquet")
    censored = rows[rows["status"] == "timeout"]
    assert censored["score"].isna().all()
    assert (censored["seconds"] >= 1.4).all()
    ok = rows[rows["status"] == "ok"]
    np.testing.assert_allclose(ok["score"], [np.mean(s) for s in ok["scores"]], rtol=1e-4)


def test_a_corpus_leaves_out_what_no_longer_lies_in_the_search_space(tmp_path, monkeypatch):
    path = write_config(tmp_path, BASE.replace("n_datasets = 3", "n_datasets = 1") + "[pool]\ntoy_tree = 6")
    run(path)
    study = load_study(path, families=FAMILIES)
    depths = [candidate.config["depth"] for candidate in study.candidates]
    monkeypatch.setattr(Tree, "search_space", SearchSpace({"depth": IntDistribution(1, 5)}))
    assert collect(study, tmp_path / "corpus")["n_candidates"] == sum(depth <= 5 for depth in depths) < len(depths)


def test_open_test_cannot_be_collected(tmp_path):
    path = write_config(tmp_path, BASE.replace('"smoke"', '"open_test"') + "[pool]\ntoy_tree = 1")
    with pytest.raises(LeakageError, match="open_test"):
        collect(load_study(path, families=FAMILIES), tmp_path / "corpus")


def test_one_writer_at_a_time(tmp_path):
    from autometa.experiment.shards import exclusive

    path = write_config(tmp_path, BASE + "[pool]\ntoy_tree = 1")
    with exclusive(tmp_path / "shards"), pytest.raises(RuntimeError, match="Another run is writing"):
        run(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pools = 1\n", "may hold the keys"),
        ('purpose = "play"\n', "train, dev or test"),
        ("[pool]\nnonsense = 3\n", "family must be one of"),
    ],
)
def test_mistakes_in_a_study_are_named(tmp_path, text, message):
    base = BASE if text.startswith("[") else ""
    path = write_config(tmp_path, base + text if base else text + BASE)
    with pytest.raises(ValueError, match=message):
        load_study(path, families=FAMILIES)


def test_the_shipped_corpus_study_has_at_least_sixty_candidates():
    path = Path(__file__).parents[1] / "experiments" / "corpus" / "config.toml"
    study = load_study(path)
    assert len(study.candidates) >= 60
    assert study.measure.max_rows == 2_000
    assert all(entry.task in set(TaskType) for entry in study.collection)


METHODS = """
[[method]]
kind = "default"
family = "lightgbm"
folds = 2

[[method]]
kind = "select"
folds = 1

[[method]]
kind = "fit"
time_budget = 3.0
folds = 1
"""


def test_methods_are_measured_on_raw_tables_beside_candidates(tmp_path):
    path = write_config(tmp_path, BASE + "\n[pool]\ntoy_tree = 1\n" + METHODS)
    state = run(path)
    assert state.by_status == {"ok": state.n_cells}
    rows = frame_of(path)
    methods = rows[rows["family"].str.startswith("method_")]
    assert set(methods["family"]) == {"method_default", "method_select", "method_fit"}
    options = methods.groupby("family")["config"].first().map(json.loads)
    assert options["method_default"] == {"family": "lightgbm", "folds": 2}
    assert options["method_select"] == {"folds": 1}
    fits = methods[methods["family"] == "method_fit"]
    assert (fits["fit_seconds"].map(lambda values: values[0]) > 0.5).all()
    assert set(fits["score_accuracy"].map(lambda values: 0 if values is None else len(values))) <= {0, 1}
    assert run(path).n_done == state.n_cells  # done cells are not run again
    collected = collect(load_study(path, families=FAMILIES), tmp_path / "corpus")
    assert set(collected["candidates_by_family"]) == {"toy_tree"}


@pytest.mark.parametrize(
    ("text", "message"),
    [('kind = "guess"', "must be one of fit, select, default"), ('kind = "fit"\nbudget = 3', "time_budget")],
)
def test_a_method_that_is_not_known_gets_one_sentence(tmp_path, text, message):
    path = write_config(tmp_path, BASE + f"\n[[method]]\n{text}\n")
    with pytest.raises(ValueError, match=message):
        load_study(path, families=FAMILIES)


def test_a_wave_that_is_still_running_can_be_left_out_of_the_corpus(tmp_path):
    def study_of(n_datasets, n_candidates):
        text = BASE.replace("n_datasets = 3", f"n_datasets = {n_datasets}") + f"[pool]\ntoy_tree = {n_candidates}\n"
        return load_study(write_config(tmp_path, text), families=FAMILIES)

    run(study_of(5, 1))
    run(study_of(4, 3))  # the fifth dataset, one of three multiclass ones, keeps one cell of three
    study = study_of(5, 3)
    assert collect(study, tmp_path / "all")["n_datasets"] == 5
    assert collect(study, tmp_path / "part", min_coverage=0.9)["n_datasets"] == 4
