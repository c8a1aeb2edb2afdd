"""Notebook fragments: everything that comes from data is escaped, tables can be read by a screen reader."""

from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from autometa import AutoMetaClassifier, AutoMetaRegressor
from autometa.family import Candidate
from autometa.html import details, fitted_html, ledger_html, paragraphs, selection_html, table, text_of
from autometa.records import Ledger, LedgerEntry, Status
from autometa.selection import select

NASTY = [
    '<script>alert("x")</script>',
    "' onmouseover='alert(1)",
    '"><img src=x onerror=alert(1)>',
    "Größe 日本 \u202e",
    "a&b",
]


class Reader(HTMLParser):
    """Tags, attributes and text as a browser would see them."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


ALLOWED = {"table", "caption", "thead", "tbody", "tr", "th", "td", "p", "details", "summary"}


def check(page: str, *texts: str) -> None:
    """Only the tags and attributes that this library writes, and every text as it was."""
    seen = Reader(page)
    assert set(seen.tags) <= ALLOWED
    assert {name for name, _ in seen.attributes} <= {"class", "scope"}
    for text in texts:
        assert text in seen.text


@settings(deadline=None, max_examples=60)
@given(name=st.text(min_size=1, max_size=50), value=st.text(max_size=50))
def test_a_table_shows_any_text_and_runs_none(name, value):
    page = table(pd.DataFrame({name: [value]}), caption=name)
    check(page)
    cells = Reader(page.replace("\n", ""))
    assert cells.tags.count("td") == 1
    assert value.replace("\n", "").replace("\r", "") in cells.text.replace("\r", "")


@pytest.mark.parametrize("text", NASTY)
def test_every_fragment_escapes(text):
    board = pd.DataFrame({"family": [text], "config": [{text: text}]}, index=pd.RangeIndex(1, 2, name="rank"))
    check(paragraphs([text]), text)
    check(details(text, ""), text)
    check(fitted_html(text, best_score=0.5, metric=text, members=[(text, 1.0)], ledger=text, board=board), text)
    frame = pd.DataFrame({"family": [text], "reason": [text], "config": [{text: text}]})
    check(ledger_html(frame, summary=text), text, f"{text}={text}")
    ranking = pd.DataFrame(
        [(text, 0.9, 0.8, 0.95, 1.0, {text: text})],
        columns=["family", text, f"{text}_low", f"{text}_high", "fit_seconds", "config"],
        index=pd.RangeIndex(1, 2, name="rank"),
    )
    check(selection_html(ranking, dataset=text, metric=text, seconds=1.0, explanation=text), text, "0.8 .. 0.95")


def test_cells_as_text():
    assert text_of(np.float32(0.5)) == "0.5"
    assert text_of(None) == text_of(pd.NA) == text_of(float("nan")) == ""
    assert text_of(True) == "True"
    assert text_of((1, 2.5)) == "1, 2.5"
    assert len(text_of("x" * 10_000)) == 300


def test_long_tables_say_that_they_are_cut():
    page = table(pd.DataFrame({"n": range(100)}), caption="Numbers", max_rows=7)
    assert "the first 7 of 100" in page
    assert page.count("<td>") == 7


@pytest.fixture(scope="module")
def nasty_table():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(60, 2)), columns=NASTY[:2])
    frame["group"] = rng.choice(NASTY, 60)
    return frame, pd.Series(np.where(frame.iloc[:, 0] > 0, NASTY[0], NASTY[2]), name=NASTY[1])


def test_a_selection_of_a_table_with_scripts_for_names(nasty_table):
    selection = select(*nasty_table, families=["linear", "knn"], name=NASTY[0])
    check(selection._repr_html_(), NASTY[0], "Why", *selection.explain().splitlines())


def test_both_estimators_show_what_was_found(nasty_table):
    X, y = nasty_table
    codes = y.eq(NASTY[0]).to_numpy(dtype=float)
    for face, target in ((AutoMetaClassifier, y), (AutoMetaRegressor, X.iloc[:, 0] + codes)):
        model = face(max_trials=1, families=["linear"], random_state=0)
        assert "fitted. Model" not in model._repr_html_()  # sklearn's diagram alone
        model.fit(X, target)
        page = model._repr_mimebundle_()["text/html"]
        assert f"{face.__name__}, fitted. Model: linear (100%)." in page
        assert "The best of the leaderboard" in page
        assert not any(text in page for text in NASTY[:3])


def test_a_ledger_shows_reasons():
    entry = LedgerEntry(Candidate("svm", {"kernel": NASTY[0]}), Status.FAILED, "search", reason=NASTY[2])
    page = Ledger((entry,))._repr_html_()
    check(page, "Ledger: 1 failed", NASTY[2], NASTY[0])
