"""The report: problems of tables with known faults, charts by hand, one safe self-contained page, a real browser."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

import autometa
from autometa.cli import app
from autometa.data import ColumnKind, Dataset, TaskType
from autometa.family import Candidate
from autometa.metrics import resolve_metric
from autometa.predictor import Column
from autometa.records import Ledger, LedgerEntry, Status
from autometa.report import find_problems, render, run_record, summarise, write_report
from autometa.report.charts import Scale, all_charts, nice_step
from autometa.report.facts import facts_of

N = 300
NASTY = '<script>alert("x")</script>'
QUOTES = "' onclick='alert(1)\" onclick=\"alert(2)"


@pytest.fixture
def clean():
    rng = np.random.default_rng(0)
    X = pd.DataFrame(rng.normal(size=(N, 3)), columns=list("abc"))
    return X, (X["a"] + rng.normal(size=N) > 0).map({True: "yes", False: "no"})


def texts(X, y, **options):
    return [(p.level, p.columns, p.text) for p in find_problems(Dataset.from_arrays(X, y, **options))]


def test_a_clean_table_has_no_problem(clean):
    X, y = clean
    assert texts(X, y) == []
    assert texts(X, X["a"] + X["b"] ** 2) == []


def test_each_fault_is_found_and_named(clean):
    X, y = clean
    rng = np.random.default_rng(1)
    faults = {
        "no value or always the same": X.assign(z=1.0),
        "missing in more than half": X.assign(z=np.where(rng.random(N) < 0.7, np.nan, X["b"])),
        "infinite": X.assign(z=np.where(rng.random(N) < 0.1, np.inf, X["b"])),
        "different value in every row": X.assign(z=rng.permutation(N) + 1_000),
        "equals another one": X.assign(z=X["c"]),
        "target almost alone": X.assign(z=y.map({"yes": "up", "no": "down"})),
        "rows were split at random": X.assign(z=pd.date_range("2020", periods=N)),
    }
    for text, table in faults.items():
        (problem,) = texts(table, y)
        assert text in problem[2]
        assert problem[1] == ("z",)


@pytest.mark.parametrize("kind", ["id", "text"])
def test_keys_of_any_type_are_identifiers(clean, kind):
    X, y = clean
    key = pd.Series(range(N)) if kind == "id" else pd.Series([f"customer-{i:04d}" for i in range(N)])
    assert any("different value" in text for *_, text in texts(X.assign(key=key), y))
    assert not any("different value" in text for *_, text in texts(X.assign(key=X["b"] * 1e6 // 1), y))


def test_a_leak_is_found_for_numbers_too(clean):
    X, _ = clean
    target = X["a"] + 0.1 * X["b"]
    assert texts(X.assign(z=np.exp(target)), target)[0][:2] == ("warning", ("z",))
    assert texts(X.assign(z=target + 0.05 * X["c"]), target) == []


def test_copies_are_a_warning_only_beside_measured_numbers(clean):
    X, y = clean
    twice = pd.concat([X, X.head(30)]), pd.concat([y, y.head(30)])
    ((level, _, text),) = texts(*twice)
    assert (level, "9.1%" in text) == ("warning", True)
    assert texts(*twice, groups=[*range(N), *range(30)]) == []
    codes = X.round().clip(-1, 1)
    assert {level for level, *_ in texts(codes, y)} == {"note"}


def test_few_rows_and_rare_classes(clean):
    X, y = clean
    assert "only 80 rows" in texts(X.head(80), y.head(80))[0][2]
    rare = y.where(np.arange(N) >= 5, "never")
    assert texts(X, rare)[0] == ("warning", (), "1 class has fewer than 10 rows: never.")
    skewed = pd.Series(np.where(np.arange(N) < 12, "x", "y"))
    assert [(level, "4.0%" in text) for level, _, text in texts(X, skewed)] == [("note", True)]


def test_a_heavy_tail_is_noted(clean):
    X, _ = clean
    target = X["a"].copy()
    target.iloc[:2] = 1e4
    assert "squared deviation" in texts(X, target)[0][2]


def test_problems_come_in_bounded_time_for_any_objects():
    X = pd.DataFrame({"lists": [[i] for i in range(60)], "mixed": [1, "a", None] * 20, "x": range(60)})
    summary = summarise(Dataset.from_arrays(X, [0, 1] * 30), n_splits=5)
    assert json.loads(json.dumps(summary.to_json()))["n_splits"] == 5
    assert summary.classes == (("0", 30), ("1", 30))


def test_round_numbers_label_a_scale():
    scale = Scale([0.913, 0.991], 0, 100)
    assert [label for _, label in scale.ticks()] == ["0.92", "0.94", "0.96", "0.98"]
    assert scale(scale.low) == 0
    assert scale(scale.high) == 100
    assert Scale([3.0, 3.0], 0, 10).ticks()


@settings(deadline=None)
@given(span=st.floats(1e-6, 1e9), most=st.integers(2, 9))
def test_steps_are_round_and_few(span, most):
    step = nice_step(span, most)
    assert step * most >= span * (1 - 1e-6)
    assert f"{step:.0e}"[0] in "125"


def member(family, weight):
    return SimpleNamespace(family=family, weight=weight, models=(None,), config={"name": NASTY})


def predictor_of(*members, task=TaskType.BINARY, name=NASTY):
    columns = (Column(name, ColumnKind.NUMERIC, "float64"), Column(QUOTES, ColumnKind.TEXT, "str"))
    return SimpleNamespace(
        members=members, task=task, columns=columns, libraries={NASTY: QUOTES}, records={}, correction=None
    )


def line(family, score=None, *, status="ok", source="search", **more):
    numbers = {"score": score, "seconds": 1.0, "started": more.pop("started", 0.0), "reason": more.pop("reason", "")}
    return {"family": family, "config": {"k": NASTY}, "status": status, "source": source,
            "trial": source != "refit", **numbers, **more}  # fmt: skip


RUN = {
    "metric": {"name": "log_loss", "greater_is_better": False},
    "best_score": 0.2,
    "parameters": {"families": [NASTY], "random_state": 0},
    "data": {
        "name": NASTY, "fingerprint": "f" * 32, "n_rows": 100, "n_features": 2, "n_splits": 5, "kinds": {"numeric": 2},
        "classes": [[NASTY, 60], [QUOTES, 40]], "target": {}, "row_data": [],
        "problems": [{"level": "warning", "text": NASTY, "advice": QUOTES, "columns": [NASTY]}],
    },
    "explanation": [NASTY], "neighbours": [[NASTY, 0.5]],
    "families": [{"family": NASTY, "config": {}, "forecast": 0.3, "low": 0.1, "high": 0.5, "forecast_seconds": 1.0}],
    "lines": [
        line("a", 0.4, forecast=0.3, low=0.1, high=0.5, started=1.0),
        line("b", 0.2, forecast=0.5, low=0.4, high=0.6, started=2.0),
        line("c", status="failed", reason=f"died of {NASTY}"),
        line("b", 1.0, source="refit"),
        {**line("", status="skipped", reason="Stopped early."), "trial": False},
    ],
}  # fmt: skip


def test_facts_by_hand():
    facts = facts_of(predictor_of(member("a", 1.0), member("b", 3.0), member("c", 0.0)), {"run": RUN})
    assert [(m["family"], m["share"]) for m in facts.members] == [("b", 0.75), ("a", 0.25)]
    assert [t["family"] for t in facts.trials] == ["a", "b"]
    assert [t["family"] for t in facts.troubles] == ["c", ""]
    assert [(p["inside"], round(p["miss"], 3)) for p in facts.pairs] == [(True, 0.1), (False, -0.3)]
    assert facts.best_trial["family"] == "b"  # the lower loss
    assert facts.seconds == 3.0


def test_charts_by_hand():
    facts = facts_of(predictor_of(member("a", 1.0), member("b", 3.0)), {"run": RUN})
    charts = all_charts(facts)
    assert set(charts) == {"ranking", "outcome", "shares", "anytime"}
    assert [label for _, label in charts["outcome"].y_ticks] == ["b", "a"]  # best outcome first
    best = next(mark for mark in charts["anytime"].marks if mark.style == "best")
    heights = [y for _, y in best.points]
    assert heights[0] < heights[-1]  # a falling loss falls in the drawing
    assert "went from 0.4 to 0.2" in charts["anytime"].description
    bars = [mark for mark in charts["shares"].marks if mark.kind == "bar"]
    widths = [mark.points[1][0] - mark.points[0][0] for mark in bars]
    assert widths[0] == pytest.approx(3 * widths[1], rel=0.01)


def test_a_run_record_keeps_signs_and_joins_forecasts():
    metric = resolve_metric("log_loss", TaskType.BINARY)
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 2)), rng.integers(0, 2, 60)
    selection = autometa.select(X, y, families=["knn", "linear"])
    tried = next(Candidate("knn", dict(c.config)) for c in selection.ranking if c.family == "knn")
    entries = (
        LedgerEntry(tried, Status.OK, "search", -0.5, 1.0, 0.0),
        LedgerEntry(tried, Status.OK, "refit", 0.7, started=1.0),
        LedgerEntry(None, Status.SKIPPED, "search", reason="no time"),
    )
    data = summarise(Dataset.from_arrays(X, y))
    record = run_record(
        selection, Ledger(entries), metric=metric, data=data, best_score=float("nan"), parameters={"a": X}
    )
    trial, refit, note = json.loads(json.dumps(record))["lines"]
    assert trial["score"] == 0.5
    assert trial["low"] <= trial["forecast"] <= trial["high"]
    assert refit["score"] == 0.7
    assert "forecast" not in refit
    assert (note["family"], note["score"], note["reason"]) == ("", None, "no time")
    assert record["parameters"] == {"a": "ndarray"}
    assert record["best_score"] is None


class Page(HTMLParser):
    """Tags with attributes, headings, identifiers and text, as a browser would read them."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in {"meta", "br", "line", "circle", "rect", "polyline"}:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag in self.open:
            assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data):
        if "style" not in self.open[-1:]:
            self.text += data

    def named(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


@pytest.fixture(scope="module")
def nasty_page():
    return render(predictor_of(member(NASTY, 1.0), member(QUOTES, 3.0)), records={"run": RUN})


def check_page(text: str) -> Page:
    """What must hold for every report: safe, self-contained, well formed, readable without seeing it."""
    page = Page(text)
    assert page.open == []
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "image", "use"}
    attributes = {name for _, attributes in page.tags for name in attributes}
    assert not {name for name in attributes if name.startswith("on")} | attributes & {"src", "style", "srcset"}
    assert all(a["href"].startswith("#") for a in page.named("a"))
    assert not re.search(r"url\(|@import|https?://", text)
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    for _, attributes in page.tags:
        for reference in (attributes.get("aria-labelledby") or "").split():
            assert reference in ids
        if (attributes.get("href") or "#x").startswith("#"):
            assert attributes.get("href", "#main")[1:] in ids
    assert page.named("html")[0]["lang"] == "en"
    assert len(page.named("main")) == len(page.named("h1")) == len(page.named("nav")) == 1
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch(r"h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert len(page.named("table")) == len(page.named("caption"))
    assert all(a.get("scope") in {"col", "row"} for a in page.named("th"))
    drawings = [a for a in page.named("svg") if "aria-hidden" not in a]
    assert all(a["role"] == "img" and a["aria-labelledby"] for a in drawings)
    assert all(a.get("tabindex") == "0" for a in page.named("div") if a.get("class") == "scroll")
    assert page.named("a")[0]["class"] == "skip"
    return page


def test_nothing_from_data_becomes_markup(nasty_page):
    page = check_page(nasty_page)
    assert page.text.count(NASTY) >= 10
    assert page.text.count(QUOTES) >= 4
    assert "died of " + NASTY in page.text


def test_the_page_tells_what_happened(nasty_page):
    text = Page(nasty_page).text
    assert "1 of 2 measured scores lie inside the 80 % interval" in text
    assert "2 configurations of 2 families were measured; 1 failed. Stopped early." in text
    assert "outcomes were 0.1 better than forecast" in text
    assert f"families=['{NASTY}']" in text
    assert "pass max_trials=2" in text.lower()


def test_a_model_without_records_still_has_a_page():
    page = check_page(render(predictor_of(member("linear", 1.0), name="x"), records={}))
    assert "saved without its ledger" in page.text
    assert "saved without a summary of its data" in page.text


@settings(deadline=None, max_examples=30)
@given(text=st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=40))
def test_any_name_is_shown_as_it_is(text):
    run = {**RUN, "explanation": [text], "data": {**RUN["data"], "name": text}}
    page = check_page(render(predictor_of(member("a", 1.0), name=text), records={"run": run}))
    assert text in page.text


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    rng = np.random.default_rng(0)
    X = pd.DataFrame({NASTY: rng.normal(size=90), QUOTES: rng.choice([NASTY, "Größe 日本"], 90), "one": 1})
    y = np.where(X[NASTY] + 0.3 * rng.normal(size=90) > 0, NASTY, "no & yes")
    model = autometa.AutoMetaClassifier(
        max_trials=4, time_budget=120, families=["linear", "knn", "naive_bayes"], random_state=0
    ).fit(X, y)
    folder = tmp_path_factory.mktemp("report")
    autometa.save(model, folder / "model")
    return model, folder


def test_estimator_and_saved_model_tell_the_same(fitted):
    model, folder = fitted
    first = check_page(model.report(folder / "a.html").read_text("utf-8"))
    result = CliRunner().invoke(app, ["report", str(folder / "model"), "-o", str(folder / "b.html")])
    assert result.exit_code == 0, result.output
    second = check_page((folder / "b.html").read_text("utf-8"))
    cut = first.text.index("Versions")  # the versions of the saving and of the reading may differ
    assert first.text[:cut] == second.text[:cut]
    assert f"{model.best_score_:.4g}" in first.text
    assert f"{len(model.leaderboard_)} configurations of" in first.text
    assert model.data_summary_.fingerprint in first.text
    assert "1 column has no value or always the same: one." in first.text


def test_an_adapted_model_says_so(fitted):
    model, _ = fitted
    assert "adapted to a few later rows" not in render(model.predictor_)
    changed = SimpleNamespace(**{**vars(predictor_of(member("a", 1.0))), "correction": object()})
    assert "adapted to a few later rows" in render(changed)


def test_the_same_model_gives_the_same_bytes(fitted):
    model, folder = fitted
    assert model.report(folder / "c.html").read_bytes() == model.report(folder / "c.html").read_bytes()


def test_only_reports_are_replaced(fitted, tmp_path):
    model, _ = fitted
    model.report(tmp_path / "r.html")
    model.report(tmp_path / "r.html")
    (tmp_path / "thesis.html").write_text("precious")
    with pytest.raises(FileExistsError, match="not a report"):
        model.report(tmp_path / "thesis.html")
    with pytest.raises(FileExistsError, match="Choose another name"):
        write_report(model.predictor_, tmp_path)
    assert (tmp_path / "thesis.html").read_text() == "precious"


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")
def test_in_a_browser(fitted, tmp_path):
    """No name runs as script, every link leads somewhere, and a narrow screen is not scrolled sideways."""
    model, _ = fitted
    page = model.report(tmp_path / "page.html").read_text("utf-8")
    probe = """<script>
      const wide = document.documentElement.scrollWidth > window.innerWidth;
      const dead = [...document.querySelectorAll('a')].filter(a => !document.querySelector(a.hash)).length;
      const drawn = [...document.querySelectorAll('figure > svg')];
      const flat = drawn.filter(s => s.getBoundingClientRect().height < 40).length;
      document.title = JSON.stringify({wide, dead, flat, drawings: drawn.length,
        scripts: document.scripts.length, width: window.innerWidth, alerts: window.alerts});
    </script></body>"""
    allowed = page.replace("style-src 'unsafe-inline'", "style-src 'unsafe-inline'; script-src 'unsafe-inline'")
    head = "<head><script>window.alerts = 0; window.alert = () => { window.alerts += 1; };</script>"
    (tmp_path / "probe.html").write_text(allowed.replace("<head>", head).replace("</body>", probe), "utf-8")
    out = subprocess.run(
        [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=500,900", "--dump-dom",
         (tmp_path / "probe.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=False,
    ).stdout  # fmt: skip
    found = json.loads(re.search(r"<title>(\{.*?\})</title>", out)[1])
    assert found["alerts"] == 0
    assert found["scripts"] == 2  # the probe's own
    assert (found["wide"], found["dead"], found["flat"]) == (False, 0, 0)
    assert found["drawings"] >= 2
    assert found["width"] <= 500
