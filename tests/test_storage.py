"""Studies in a storage: resumed, shared by processes, and never mixed up."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from sklearn.datasets import load_wine
from test_tuning import Keeper
from waiting import wait_until

from autometa import AutoMetaClassifier
from autometa.data import Dataset
from autometa.evaluation import Evaluator
from autometa.exceptions import StorageError
from autometa.family import Candidate
from autometa.metrics import METRICS
from autometa.records import Evaluation, Status
from autometa.tuning import Budget, WarmStart, tune
from autometa.tuning.history import CANDIDATE, WORKER
from autometa.tuning.proposals import start_trial
from autometa.tuning.shared_study import EVALUATION, SharedStudy, record, restore
from autometa.tuning.storage import as_storage
from autometa.tuning.study import study_name

RMSE = METRICS["rmse"]


def table(seed=0):
    x = np.random.default_rng(seed).normal(size=(60, 2))
    return Dataset.from_arrays(x, x[:, 0])


def search(storage, n_trials, *, dataset=None, metric=RMSE, further=False, family=None, seed=0):
    family = family or Keeper()
    with Evaluator(dataset or table(), families=[family], metrics=[metric], seed=seed) as evaluator:
        shared = SharedStudy.open(storage, evaluator, metric, further=further)
        start = WarmStart([family.default_candidate()])
        budget = Budget(max_trials=n_trials)
        return tune(evaluator, start, families=[family], metric=metric, budget=budget, shared=shared)


def measured(study):
    return [t for t in study.trials if EVALUATION in t.user_attrs]


@pytest.mark.parametrize("name", ["study.db", "folder/study.journal"])
def test_a_search_goes_on_from_its_storage(tmp_path, name):
    first = search(tmp_path / name, 4)
    second = search(tmp_path / name, 7)
    assert len(measured(second.study)) == len(second.evaluations) == 7
    before = {e.candidate: e.scores for e in first.evaluations}
    assert all(before[e.candidate] == e.scores for e in second.evaluations if e.candidate in before)
    assert second.ledger.entries[0].source == "storage"
    assert any("holds 4 trials" in entry.reason for entry in second.ledger)


def test_what_went_with_a_process_is_measured_again_for_the_models(tmp_path):
    search(tmp_path / "a.journal", 5)
    result = search(tmp_path / "a.journal", 5)
    assert len(measured(result.study)) == 5
    ranked = result.ranked("rmse")
    assert all(e.predictions is not None for e in ranked)
    assert result.usable("rmse") == ranked
    assert [entry.source for entry in result.ledger].count("recall") == len(ranked) > 1


def test_further_trials_count_from_now_on(tmp_path):
    search(tmp_path / "a.journal", 3)
    assert len(search(tmp_path / "a.journal", 3, further=True).evaluations) == 6


def test_another_table_or_setting_begins_a_study_of_its_own(tmp_path):
    path = tmp_path / "a.db"
    search(path, 2)
    others = [
        search(path, 2, dataset=table(seed=1)),
        search(path, 2, metric=METRICS["mae"]),
        search(path, 2, seed=5),
    ]
    for number, result in enumerate(others, 1):
        assert len(result.evaluations) == 2
        assert f"Begun anew: the {number} studies" in result.ledger.entries[0].reason
    assert len(optuna.get_all_study_names(as_storage(path))) == 4


def test_an_evaluation_survives_its_record():
    candidate = Candidate("keeper", {"keep": 0.1})
    evaluation = Evaluation(
        "abc", candidate, Status.OK, scores={"rmse": (-0.1, -0.2)}, fit_seconds=(0.1, 0.2),
        predict_seconds=(0.01, 0.02), peak_memory_mb=3.5, n_train_rows=48, done_share=0.5, seed=7, reason="why",
    )  # fmt: skip
    assert restore(record(evaluation, candidate), candidate, "abc") == evaluation
    shorter = Candidate("keeper", {"keep": 0.05})
    assert restore(record(evaluation, shorter), shorter, "abc") == evaluation


def test_the_storage_must_be_a_storage(tmp_path):
    with pytest.raises(ValueError, match=r"storage must be a file, the URL of a database or an Optuna storage\. Got 3"):
        as_storage(3)
    with pytest.raises(StorageError, match=r"'nodb://user:\*\*\*@host/name' cannot be opened"):
        as_storage("nodb://user:secret@host/name")
    (tmp_path / "no.db").write_text("this is no database, and long enough to be told from an empty one")
    with pytest.raises(StorageError, match="cannot be opened"):
        as_storage(tmp_path / "no.db")
    own = optuna.storages.InMemoryStorage()
    assert as_storage(own) is own


def test_a_journal_that_a_power_cut_left_unfinished_is_read(tmp_path):
    path = tmp_path / "a.journal"
    search(path, 3)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code":4,"worker_')
    assert len(search(path, 4).evaluations) == 4


def shared_pair(storage):
    """Two views of one study, as of two processes."""
    with Evaluator(table(), families=[Keeper()], metrics=[RMSE]) as evaluator:
        return [SharedStudy.open(storage, evaluator, RMSE) for _ in range(2)]


@pytest.mark.parametrize("name", ["a.db", "a.journal"])
def test_the_same_idea_of_two_processes_is_run_once(tmp_path, name):
    ours, theirs = shared_pair(tmp_path / name)
    ours.beat()
    candidate = Candidate("keeper", {"keep": 0.5})
    trials = [start_trial(s.study, candidate, s.families, s.worker) for s in (ours, theirs)]
    assert not theirs.claim(trials[1], candidate)  # whoever asks first
    assert ours.claim(trials[0], candidate)
    assert ours.study.trials[1].state is TrialState.FAIL
    assert theirs.news().running == [candidate]


def test_a_sampled_trial_yields_to_any_other_with_its_candidate(tmp_path):
    ours, theirs = shared_pair(tmp_path / "a.journal")
    sampled = ours.study.ask()
    candidate = Candidate("keeper", {"keep": sampled.suggest_float("keeper.keep", -1.0, 2.0)})
    claimed = start_trial(theirs.study, candidate, theirs.families, theirs.worker)
    assert theirs.claim(claimed, candidate)
    assert not ours.claim(sampled, candidate)


def test_the_trial_of_a_dead_process_is_run_again_once(tmp_path):
    ours, theirs = shared_pair(tmp_path / "a.journal")
    candidate = Candidate("keeper", {"keep": 0.5})
    assert theirs.claim(start_trial(theirs.study, candidate, theirs.families, theirs.worker), candidate)
    theirs.beat()
    assert ours.news().running == [candidate]  # its process lives: it is this one
    theirs.study.set_user_attr(f"autometa:alive:{theirs.worker}", time.time() - 3600)
    machine, *rest = theirs.worker.split("-")
    dead = "-".join([machine, "999999999", *rest[1:]])
    theirs.study.set_user_attr(f"autometa:alive:{dead}", time.time())
    theirs.study._storage.set_trial_user_attr(theirs.study.trials[0]._trial_id, WORKER, dead)
    ours._looked = -np.inf
    ours.news()
    assert [t.state for t in ours.study.trials] == [TrialState.FAIL, TrialState.WAITING]
    (trial, found), *_ = ours.waiting()
    assert found == candidate
    assert ours.claim(trial, candidate)
    ours.tell(trial, Evaluation("abc", candidate, Status.OK, scores={"rmse": (-1.0,)}), candidate)
    ours.study.tell(trial, -1.0)
    assert [e.candidate for e in theirs.news().ended] == [candidate]


def test_a_process_elsewhere_is_dead_after_a_while_without_a_sign(tmp_path):
    ours, theirs = shared_pair(tmp_path / "a.journal")
    theirs.worker = "elsewhere-1-2.0-abc"
    candidate = Candidate("keeper", {"keep": 0.5})
    assert theirs.claim(start_trial(theirs.study, candidate, theirs.families, theirs.worker), candidate)
    theirs.beat()
    assert ours.news().running == [candidate]
    theirs.study.set_user_attr(f"autometa:alive:{theirs.worker}", time.time() - 120)
    ours._looked = -np.inf
    assert ours.news().running == []
    assert [t.state for t in ours.study.trials] == [TrialState.FAIL, TrialState.WAITING]


def test_a_storage_that_fails_ends_the_search_and_keeps_what_was_found(tmp_path):
    family = Keeper()
    with Evaluator(table(), families=[family], metrics=[RMSE]) as evaluator:
        shared = SharedStudy.open(tmp_path / "a.journal", evaluator, RMSE)

        def broken(ledger):
            def fail(*args, **kwargs):
                raise OSError("No space left on device")

            if len(ledger) == 3:
                shared.study._storage._backend.append_logs = fail

        result = tune(
            evaluator, WarmStart([family.default_candidate()]), families=[family], metric=RMSE,
            budget=Budget(max_trials=10), shared=shared, on_trial=broken,
        )  # fmt: skip
    assert len(result.evaluations) == 3
    assert result.usable("rmse")
    assert "No space left on device" in result.ledger.entries[-1].reason


def test_the_name_tells_what_may_not_be_mixed():
    def name(dataset, **options):
        with Evaluator(dataset, families=[Keeper()], metrics=[RMSE], **options) as evaluator:
            return study_name(evaluator, RMSE)

    dataset = table()
    turned = Dataset.from_arrays(dataset.X.iloc[::-1].to_numpy(), dataset.y[::-1])
    assert turned.fingerprint == dataset.fingerprint
    names = [name(dataset), name(turned), name(dataset, seed=1), name(table(1))]
    assert len(set(names)) == 4
    assert name(dataset) == names[0]


QUICK = {"families": ["linear", "knn"], "meta_model": "none", "random_state": 0}
FIT = """
    import sys
    from sklearn.datasets import load_wine
    from autometa import AutoMetaClassifier
    X, y = load_wine(return_X_y=True)
    options = {"families": ["linear", "knn"], "meta_model": "none", "random_state": 0}
    model = AutoMetaClassifier(max_trials=int(sys.argv[2]), **options).fit(X, y, storage=sys.argv[1])
    print(model.score(X, y))
"""


def fitting(storage, n_trials):
    """A process that fits with this storage."""
    command = [sys.executable, "-c", textwrap.dedent(FIT), str(storage), str(n_trials)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def only_study(storage):
    """The study in the storage, once it is there."""
    opened = as_storage(storage)
    wait_until(lambda: optuna.get_all_study_names(opened), 100.0)
    return optuna.load_study(study_name=optuna.get_all_study_names(opened)[0], storage=opened)


def times_evaluated(study):
    return Counter(t.user_attrs[CANDIDATE] for t in measured(study))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX signals")
def test_a_fit_that_was_killed_is_resumed_without_a_lost_or_doubled_trial(tmp_path):
    path = tmp_path / "study.journal"
    process = fitting(path, 400)
    try:
        study = only_study(path)
        wait_until(lambda: len(measured(study)) >= 3, 100.0)
    finally:
        process.kill()
        process.wait(30)
    done = times_evaluated(study)
    n_trials = sum(done.values()) + 3
    X, y = load_wine(return_X_y=True)
    model = AutoMetaClassifier(max_trials=n_trials, **QUICK).fit(X, y, storage=path)
    after = times_evaluated(model.study_)
    assert sum(after.values()) == n_trials
    assert set(after.values()) == {1}
    assert not done - after
    assert not [t for t in model.study_.trials if t.state in (TrialState.RUNNING, TrialState.WAITING)]
    whole = AutoMetaClassifier(max_trials=n_trials, **QUICK).fit(X, y)
    assert model.best_score_ == pytest.approx(whole.best_score_, abs=0.03)
    assert model.score(X, y) > whole.score(X, y) - 0.03


@contextlib.contextmanager
def postgres():
    """The URL of a PostgreSQL server of its own, from Debian's package."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not found:
        pytest.skip("PostgreSQL is not installed")
    pytest.importorskip("psycopg")
    nobody = 65534  # the server refuses to run as root
    user = ["setpriv", f"--reuid={nobody}", f"--regid={nobody}", "--clear-groups"] if os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory(prefix="autometa-pg-") as folder, socket.socket() as free:
        if user:
            os.chown(folder, nobody, nobody)
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        options = {"check": True, "timeout": 100, "stdout": subprocess.DEVNULL, "cwd": folder}
        data = f"{folder}/data"
        subprocess.run([*user, found[-1] / "initdb", "-D", data, "-A", "trust", "-U", "test", "--no-sync"], **options)
        command = [*user, found[-1] / "pg_ctl", "-D", data, "-l", f"{folder}/log", "-w"]
        settings = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder} -c fsync=off"
        subprocess.run([*command, "-o", settings, "start"], **options)
        try:
            yield f"postgresql+psycopg://test@127.0.0.1:{port}/postgres"
        finally:
            subprocess.run([*command, "-m", "immediate", "stop"], **options)


@pytest.mark.parametrize("kind", ["journal", "postgres"])
def test_two_processes_share_one_study(tmp_path, kind):
    n_trials = 40
    with postgres() if kind == "postgres" else contextlib.nullcontext(tmp_path / "a.journal") as storage:
        process = fitting(storage, n_trials)
        try:
            study = only_study(storage)
            wait_until(lambda: measured(study), 100.0)
            X, y = load_wine(return_X_y=True)
            model = AutoMetaClassifier(max_trials=n_trials, **QUICK).fit(X, y, storage=storage)
            answer, _ = process.communicate(timeout=100)
        finally:
            process.kill()
        found = measured(study)
    assert process.returncode == 0
    assert float(answer) > 0.9
    assert model.score(X, y) > 0.9
    assert max(Counter(t.user_attrs[CANDIDATE] for t in found).values()) == 1
    assert n_trials <= len(found) <= n_trials + 1  # both may begin the last one
    assert len({t.user_attrs[WORKER] for t in found}) == 2


def test_a_warm_start_extends_the_last_fit():
    X, y = load_wine(return_X_y=True)
    model = AutoMetaClassifier(max_trials=3, **QUICK)
    assert len(model.fit(X, y, warm_start=True).study_.trials) == 3
    first = model.best_score_
    assert len(model.fit(X, y, warm_start=True).study_.trials) == 6
    assert model.best_score_ <= first  # log loss
    with pytest.raises(ValueError, match="warm_start must be given the table"):
        model.fit(X[:100], y[:100], warm_start=True)
    assert len(model.fit(X, y).study_.trials) == 3
    loaded = pickle.loads(pickle.dumps(model))
    with pytest.raises(ValueError, match="refine and warm_start must follow a fit in the same process"):
        loaded.fit(X, y, warm_start=True)


def test_a_fitted_model_does_not_hold_its_storage(tmp_path):
    X, y = load_wine(return_X_y=True)
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/secret.db")
    model = AutoMetaClassifier(max_trials=2, **QUICK).fit(X, y, storage=storage)
    content = pickle.dumps(model)
    assert b"secret.db" not in content
    assert len(pickle.loads(content).study_.trials) == 2
    assert len(model.refine(1e-3).study_.trials) >= 2


def test_without_a_seed_the_storage_still_finds_its_study(tmp_path):
    X, y = load_wine(return_X_y=True)
    options = QUICK | {"random_state": None}
    for n_trials in (2, 4):
        model = AutoMetaClassifier(max_trials=n_trials, **options).fit(X, y, storage=tmp_path / "a.journal")
        assert len(measured(model.study_)) == n_trials
