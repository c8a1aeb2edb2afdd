"""The studies of the meta-model, on a small corpus made here."""

import json

import numpy as np
import pandas as pd
import pytest

from autometa.meta_dataset import MetaDataset

TASKS = {"binary": "roc_auc", "regression": "rmse"}
N_DATASETS, N_SPLITS = 24, 6
CONFIGS = [(family, float(strength)) for family in ("linear", "knn") for strength in range(6)]
LATE, MISSING = (3, 4), (5, 2)
"""A cell that timed out and one that was never run, as (dataset, candidate)."""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    rng = np.random.default_rng(0)
    cells, features = [], []
    for d in range(N_DATASETS):
        task = list(TASKS)[d % 2]
        x = rng.uniform()
        features.append({"dataset": f"d{d}", "task": task, "x": x, "landmark_linear": x + 0.1 * rng.normal()})
        features[-1] |= {"constant_log_rmse": 0.0} if task == "regression" else {"constant_log_loss": 0.7}
        for c, (family, strength) in enumerate(CONFIGS):
            if (d, c) == MISSING:
                continue
            scores = 0.7 - 0.2 * abs(x - c / 11) + rng.normal(0, 0.01, N_SPLITS)
            late = (d, c) == LATE
            cells.append({
                "dataset": f"d{d}", "group": f"g{d}", "task": task, "family": family,
                "config": json.dumps({"strength": strength}), "config_id": f"c{c:02d}", "seed": 0,
                "metric": TASKS[task],
                "score": np.nan if late else scores.mean(), "standard_error": np.nan if late else 0.004,
                "scores": [] if late else list(scores), "seconds": 10.0 if late else 0.1 * (c + 1),
                "status": "timeout" if late else "ok",
            })  # fmt: skip
    folder = tmp_path_factory.mktemp("corpus")
    pd.DataFrame(cells).to_parquet(folder / "evaluations.parquet")
    pd.DataFrame(features).set_index("dataset").to_parquet(folder / "meta_features.parquet")
    (folder / "card.json").write_text(json.dumps({"measure": {"time_limit": 10.0}}))
    return folder


@pytest.fixture(scope="module")
def own_corpus(load_experiment):
    return load_experiment("meta_model/own_corpus.py")


def test_a_candidate_that_was_not_run_is_no_choice_and_one_that_timed_out_is(own_corpus, corpus):
    _, worlds = own_corpus.load_worlds(corpus, 0)
    late, missing = (next(w for w in worlds if w.task == list(TASKS)[d % 2]) for d, _ in (LATE, MISSING))
    assert len(missing.case(f"d{MISSING[0]}").candidates) == len(CONFIGS) - 1
    case = late.case(f"d{LATE[0]}")
    assert len(case.candidates) == len(CONFIGS)
    assert np.flatnonzero(np.isnan(case.raw)).tolist() == [LATE[1]]
    table = own_corpus.training_table(late, [f"d{LATE[0]}"])
    assert table[0, LATE[1]] == own_corpus.FLOOR


def test_what_no_training_dataset_ran_is_filled_with_means(own_corpus, corpus):
    _, worlds = own_corpus.load_worlds(corpus, 0)
    world = next(w for w in worlds if w.task == list(TASKS)[MISSING[0] % 2])
    table = own_corpus.training_table(world, list(world.choose.index))
    row, column = list(world.choose.index).index(f"d{MISSING[0]}"), MISSING[1]
    assert table[row, column] == pytest.approx(np.delete(table[:, column], row).mean())


def test_scores_lie_between_the_floor_and_the_oracle(own_corpus, corpus):
    meta, worlds = own_corpus.load_worlds(corpus, 0)
    outcomes = own_corpus.run(meta, worlds, {}, n_folds=2, seed=0, limit=10.0, ablate=True)
    assert {o.dataset for o in outcomes} == {f"d{d}" for d in range(N_DATASETS)}
    last = {way: np.mean([o.curves[way][-1] for o in outcomes]) for way in outcomes[0].curves}
    assert set(last) == {"portfolio", "belief", "oracle", "single", "belief, no meta-features", "belief, full trust"}
    assert last["single"] < last["belief"] <= last["oracle"]
    report = own_corpus.summarise(outcomes)
    assert {"pooled", *TASKS} == set(report)
    assert 0 <= report["pooled"]["coverage@0"][0] <= 1


def test_ablations_take_away_what_they_say(load_experiment, corpus, own_corpus, monkeypatch):
    monkeypatch.syspath_prepend(str(own_corpus.HERE))
    ablations = load_experiment("meta_model/ablations.py")
    meta, worlds = own_corpus.load_worlds(corpus, 0)
    rows = list(ablations.run(meta, worlds, n_folds=2, seed=0, limit=10.0))
    report = ablations.summarise(rows)
    assert set(report) >= {"whole model", "mean only", "no landmarkers", "memory shuffled", "portfolio"}
    assert report["whole model"]["difference"]["mean"] == [0.0, 0.0, 0.0]
    assert report["whole model"]["score"]["@1"] == pytest.approx(report["mean only"]["score"]["@1"])
    assert report["no meta-features"]["score"]["@1"] < report["whole model"]["score"]["@1"]
    assert ablations.table(report).count("\n") == len(report) + 1
    quick = {row["way"] for row in ablations.run(meta, worlds, n_folds=2, seed=0, limit=10.0, quick=True)}
    assert quick == set(report) - {row for row in report if row.startswith(("no meta", "no land", "a "))}
    fewer = ablations.some_groups(meta, 1 / 4, 0)
    assert len(fewer.datasets) == 8


def test_settings_are_judged_between_the_best_and_the_constant(load_experiment, corpus, own_corpus, monkeypatch):
    monkeypatch.syspath_prepend(str(own_corpus.HERE))
    study = load_experiment("meta_model/neural_settings.py")
    monkeypatch.setattr(study, "NEURAL", ("linear", "knn"))
    monkeypatch.setattr(study, "SETTINGS", ("strength",))
    meta, worlds = own_corpus.load_worlds(corpus, 0)
    assert {len(part) for part in study.choices(worlds[0].candidates)["strength alone"]} == {6}
    rows = list(study.run(meta, worlds, n_folds=2, seed=0))
    assert len({row["dataset"] for row in rows}) == N_DATASETS
    assert sum(row["among"] == "strength alone" for row in rows) == 2 * N_DATASETS
    report = study.summarise(rows)
    whole = report["all neural candidates"]["loss"]
    assert -0.05 < whole["predicted"][0] < whole["fixed"][0] < whole["random"][0]
    assert study.table(report).count("\n") == len(report) + 1


def test_large_rows_are_learned_from_other_groups_only(load_experiment, corpus, tmp_path):
    study = load_experiment("meta_model/large_rows.py")
    for file in corpus.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    features = pd.read_parquet(corpus / "meta_features.parquet").assign(log_rows=np.linspace(2, 3, N_DATASETS))
    features.to_parquet(tmp_path / "meta_features.parquet")
    cells = pd.read_parquet(corpus / "evaluations.parquet")
    cells = cells[cells["dataset"].isin([f"d{i}" for i in range(8)])]
    more = cells.assign(dataset=cells["dataset"] + "@10000", table=cells["dataset"], n_rows=10_000)
    more.assign(seconds=10 * more["seconds"]).to_parquet(tmp_path / "large_rows.parquet")

    assert study.measured(MetaDataset.from_parquet(tmp_path))["dataset"].nunique() == 8
    rows = study.run(tmp_path, n_folds=3, seed=0)
    assert len(rows) == 16
    assert rows["group"].nunique() == 8
    assert rows.groupby("way")["seconds"].mean()["with"] >= 0.5
    found = study.summarise(rows)
    assert list(found.index) == ["without", "with", "gain"]
    middle, low, high = found.loc["gain", "choice"]
    assert low <= middle <= high
