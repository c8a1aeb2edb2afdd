import io

import numpy as np
import pytest
import sklearn
from rich.console import Console
from sklearn.datasets import load_iris
from sklearn.utils.fixes import parse_version

from autometa import AutoMetaClassifier, progress
from autometa.family import Candidate
from autometa.metrics import METRICS
from autometa.progress import Watch, progress_line
from autometa.records import Ledger, LedgerEntry, Status
from autometa.tuning import Budget

LEDGER = Ledger(
    (
        LedgerEntry(Candidate("linear"), Status.OK, "selection", score=-0.5, seconds=0.1),
        LedgerEntry(Candidate("knn"), Status.OK, "default", score=-0.4, seconds=0.1),
        LedgerEntry(None, Status.SKIPPED, "search", reason="a note is no trial"),
        LedgerEntry(Candidate("svm"), Status.FAILED, "local", reason="no luck"),
    )
)


def test_the_line_says_time_best_forecast_and_candidate():
    watch = Watch(Budget(60.0, clock=lambda: 0.0), METRICS["log_loss"])
    assert watch.line() == "selecting ..."
    watch.begin(Candidate("lightgbm"), -0.31)
    watch(LEDGER)
    assert watch.line() == "60 s left, 3 trials, best log_loss 0.4 (knn), 0.31 expected, now lightgbm"
    watch.begin(Candidate("mlp"), -0.9)  # no forecast is worse than what is there
    assert "0.4 expected, now mlp" in watch.line()
    watch.begin(Candidate("mlp"), float("nan"))
    assert "expected" not in watch.line()
    trials = Watch(Budget(max_trials=9), METRICS["roc_auc"])
    trials(LEDGER)
    assert trials.line().startswith("no time limit, 3/9 trials")


def test_silence_unless_asked(capsys):
    with progress_line(Budget(5.0), METRICS["rmse"], enabled=False) as watch:
        assert watch is None
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_one_line(monkeypatch):
    out = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda **_: Console(file=out, force_terminal=True, width=120))
    with progress_line(Budget(5.0, clock=lambda: 0.0), METRICS["log_loss"], enabled=True) as watch:
        watch(LEDGER)
    last = out.getvalue().rstrip("\n\x1b[?25h").splitlines()[-1]
    assert "5 s left, 3 trials, best log_loss 0.4 (knn)" in last


def test_a_notebook_gets_one_output_whose_text_is_replaced(monkeypatch):
    display = pytest.importorskip("IPython.display")
    shown = []

    class Handle:
        def update(self, content, raw):
            shown.append(content["text/plain"])

    monkeypatch.setattr(progress, "Console", lambda **_: Console(file=io.StringIO(), force_jupyter=True))
    monkeypatch.setattr(display, "display", lambda *args, **options: Handle())
    with progress_line(Budget(5.0, clock=lambda: 0.0), METRICS["log_loss"], enabled=True) as watch:
        watch.begin(Candidate("linear"), float("nan"))
        watch(LEDGER)
    assert shown == [
        "5 s left, 0 trials, now linear",
        "5 s left, 3 trials, best log_loss 0.4 (knn), now linear",
    ]


@pytest.mark.skipif(parse_version(sklearn.__version__) < parse_version("1.9"), reason="callbacks came with 1.9")
def test_scikit_learn_callbacks_are_told_of_trials_and_can_stop():
    class Counter:
        def __init__(self, stop_after):
            self.stop_after, self.events = stop_after, []

        def setup(self, estimator, context):
            self.events.append("setup")

        def on_fit_task_begin(self, estimator, context):
            pass

        def on_fit_task_end(self, estimator, context):
            self.events.append(context.task_name)
            return self.events.count("trial") >= self.stop_after

        def teardown(self, estimator, context):
            self.events.append("teardown")

    X, y = load_iris(return_X_y=True)
    counter = Counter(stop_after=2)
    model = AutoMetaClassifier(max_trials=6, families=["linear", "knn"], random_state=0).set_callbacks(counter)
    model.fit(X, y)
    assert counter.events == ["setup", "trial", "trial", "fit", "teardown"]
    assert any("Stopped by a callback" in entry.reason for entry in model.ledger_)
    assert np.mean(model.predict(X) == y) > 0.9
