"""Evaluations and ledgers: means and standard errors by hand, frames, escaped HTML."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autometa.family import Candidate
from autometa.records import Evaluation, Ledger, LedgerEntry, Status

NAN = float("nan")


def evaluation_of(*scores, **changes):
    return Evaluation("f" * 32, Candidate("knn"), Status.OK, {"accuracy": scores}, **changes)


def test_score_and_standard_error_by_hand():
    evaluation = evaluation_of(0.5, 0.7, 0.9)
    assert evaluation.score("accuracy") == pytest.approx(0.7)
    assert evaluation.standard_error("accuracy") == pytest.approx(0.2 / math.sqrt(3))


@pytest.mark.parametrize(
    ("scores", "score", "error"),
    [
        ((), NAN, NAN),
        ((0.5,), 0.5, NAN),
        ((NAN, NAN), NAN, NAN),
        ((0.4, NAN, 0.6), 0.5, 0.1),
        ((0.5, -np.inf), 0.5, NAN),
    ],
)
def test_what_was_not_measured_does_not_count(scores, score, error):
    evaluation = evaluation_of(*scores)
    assert evaluation.score("accuracy") == pytest.approx(score, nan_ok=True)
    assert evaluation.standard_error("accuracy") == pytest.approx(error, nan_ok=True)
    assert math.isnan(evaluation.score("rmse"))
    assert math.isnan(evaluation.standard_error("rmse"))


@settings(deadline=None)
@given(scores=st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=10), shift=st.floats(-100, 100))
def test_a_shift_moves_the_score_and_not_its_error(scores, shift):
    one, two = evaluation_of(*scores), evaluation_of(*(s + shift for s in scores))
    assert two.score("accuracy") == pytest.approx(one.score("accuracy") + shift, abs=1e-6)
    assert two.standard_error("accuracy") == pytest.approx(one.standard_error("accuracy"), abs=1e-6)


def test_seconds_and_status():
    evaluation = evaluation_of(fit_seconds=(1.0, 2.0), predict_seconds=(0.25,))
    assert evaluation.seconds == 3.25
    assert evaluation.ok
    assert not Evaluation("f", Candidate("knn"), Status.TIMEOUT, reason="60 s").ok
    assert [str(s) for s in Status] == ["ok", "timeout", "memory", "failed", "pruned", "skipped"]


def test_predictions_are_not_compared():
    assert evaluation_of(0.5, predictions=np.zeros(3)) == evaluation_of(0.5, predictions=np.ones(3))


ENTRIES = (
    LedgerEntry(Candidate("knn", {"p": 2}), Status.OK, "default", score=0.8, seconds=0.5, started=0.1),
    LedgerEntry(Candidate("svm", {"kernel": "<rbf>"}), Status.FAILED, "search", reason="<b>a & b</b>"),
    LedgerEntry(None, Status.SKIPPED, "selection", reason="no time"),
)


def test_a_ledger_only_grows():
    empty = Ledger()
    ledger = empty
    for entry in ENTRIES:
        ledger = ledger.add(entry)
    assert len(empty) == 0
    assert tuple(ledger) == ENTRIES
    assert (ledger.count(Status.OK), ledger.count(Status.PRUNED)) == (1, 0)
    with pytest.raises(AttributeError):
        ledger.entries = ()


def test_ledger_frame():
    frame = Ledger(ENTRIES).to_frame()
    assert list(frame) == ["family", "config", "status", "source", "score", "seconds", "started", "reason"]
    assert frame["family"].tolist() == ["knn", "svm", ""]
    assert frame["config"].tolist() == [{"p": 2}, {"kernel": "<rbf>"}, {}]
    assert frame["status"].tolist() == ["ok", "failed", "skipped"]
    assert frame["score"].isna().tolist() == [False, True, True]
    assert Ledger().to_frame().empty
    assert isinstance(Ledger().to_frame(), pd.DataFrame)


def test_ledger_text():
    assert str(Ledger(ENTRIES)).startswith("Ledger: 1 ok, 1 failed\n")  # a note about the run is no trial
    assert str(Ledger()).startswith("Ledger: empty")


def test_ledger_html_is_escaped():
    html = Ledger(ENTRIES)._repr_html_()
    assert "<b>" not in html
    assert "&lt;b&gt;a &amp; b&lt;/b&gt;" in html
    assert "&lt;rbf&gt;" in html
    assert html.startswith("<p>Ledger: 1 ok")
