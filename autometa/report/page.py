"""The page: words around the facts, then one self-contained HTML file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autometa.html import text_of
from autometa.predictor import Predictor
from autometa.report.charts import WIDTH, all_charts
from autometa.report.facts import Facts, facts_of
from autometa.versions import RESULT_LIBRARIES, installed_versions

if TYPE_CHECKING:
    from jinja2 import Environment

GENERATOR = "autometa report"
_SECTIONS = (
    ("chosen", "Choice"), ("forecast", "Forecast"), ("tried", "Trials"), ("data", "Data"), ("again", "Get it again"),
)  # fmt: skip
_ENDINGS = {"pruned": "given up early", "timeout": "ran out of time", "memory": "ran out of memory"}
_ADAPTED = " It was then adapted to a few later rows; the scores on this page are from before."
_TASKS = {"binary": "Two classes", "multiclass": "Several classes", "regression": "Regression"}


def write_report(predictor: Predictor, path: str | PathLike[str], *, records: Mapping[str, Any] | None = None) -> Path:
    """Write the report of a model as one HTML page that needs no network and no script.

    Parameters
    ----------
    predictor : Predictor
        As :func:`autometa.load` returns it.
    path : path
        A file; one that is there is replaced only if it is such a report.
    records : mapping, optional
        What is kept beside the model; default: ``predictor.records``.

    Returns
    -------
    Path

    Raises
    ------
    FileExistsError
        The file is there and not a report.
    """
    path = Path(path)
    if path.is_dir() or (path.exists() and not _is_report(path)):
        raise FileExistsError(f"{str(path)!r} exists and is not a report of autometa. Choose another name.")
    page = render(predictor, records=records)
    path.write_text(page, encoding="utf-8")
    return path


def render(predictor: Predictor, *, records: Mapping[str, Any] | None = None) -> str:
    """The page as text; see :func:`write_report`."""
    facts = facts_of(predictor, predictor.records if records is None else records)
    for member in facts.members:
        member["share_text"] = f"{member['share']:.0%}"
    versions = dict(facts.libraries) or installed_versions(RESULT_LIBRARIES)
    data = facts.data
    n_rows = max(1, data.get("n_rows", 1))
    return _environment().get_template("page.html").render(
        title=_title(facts), facts=facts, charts=all_charts(facts), width=WIDTH, sections=_SECTIONS,
        generator=GENERATOR, style=_resource("style.css"), task=_TASKS.get(facts.task, facts.task), cards=_cards(facts),
        words={"chosen": _chosen(facts) + (_ADAPTED if facts.adapted else ""), "forecast": _forecast(facts),
               "tried": _tried(facts), "data": _data(facts), "again": _again(facts)},
        code=_code(facts), versions={"autometa": versions.get("autometa-ml", "")},
        version_rows=[{"name": name, "version": version} for name, version in versions.items()],
        neighbours=[{"name": name, "weight": weight} for name, weight in facts.neighbours],
        classes=[{"label": label, "rows": n, "share": f"{n / n_rows:.1%}"} for label, n in data.get("classes", ())],
        target=[{"name": name, "value": value} for name, value in data.get("target", {}).items()],
    )  # fmt: skip


@cache
def _environment() -> Environment:
    from jinja2 import DictLoader, Environment, StrictUndefined

    environment = Environment(
        loader=DictLoader({"page.html": _resource("page.html")}), autoescape=True, undefined=StrictUndefined,
        trim_blocks=False, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["text"] = text_of
    environment.filters["breakable"] = lambda text: str(text).replace("_", "_\u200b")
    return environment


@cache
def _resource(name: str) -> str:
    return (resources.files("autometa.report") / name).read_text("utf-8")


def _is_report(path: Path) -> bool:
    with path.open("rb") as file:
        return f'<meta name="generator" content="{GENERATOR}"'.encode() in file.read(2_000)


def _title(facts: Facts) -> str:
    return "Model report" if facts.name in {"dataset", "table"} else f"Model report: {facts.name}"


def _cards(facts: Facts) -> list[tuple[str, str, str]]:
    """Title, value and small print of the numbers at the top."""
    best, data = facts.best_trial, facts.data
    cards = [("Model", facts.members[0]["family"], f"and {len(facts.members) - 1} more" if facts.members[1:] else "")]
    if facts.best_score is not None:
        small = f"validation, best single configuration ({best['family']})" if best else "validation"
        cards.append((facts.metric, f"{facts.best_score:.4g}", small))
    if facts.lines:
        cards.append(("Configurations measured", str(len(facts.trials)), _endings(facts)))
    if facts.seconds is not None:
        cards.append(("Time", _duration(facts.seconds), "for all of fit"))
    if data:
        cards.append(("Table", f"{data['n_rows']:,} rows", f"{data['n_features']:,} columns"))
        warnings = sum(problem["level"] == "warning" for problem in data["problems"])
        cards.append(("Warnings about the data", str(warnings), f"and {len(data['problems']) - warnings} notes"))
    return cards


def _chosen(facts: Facts) -> str:
    if facts.members[0]["family"] == "constant":
        return "No candidate could be fitted within the limits, so the model predicts the same for every row."
    parts = [f"{m['family']} ({m['share']:.0%})" for m in facts.members]
    best = facts.best_trial
    if len(parts) == 1:
        text = f"The model is a single {parts[0].split(' (')[0]}"
        return text + (", the best configuration in validation." if best else ".")
    measured = f" The best single configuration was {best['family']} with {best['score']:.4g}." if best else ""
    return (
        f"The model is a weighted mean of {len(parts)}: {', '.join(parts)}. Members were added one by one as long as "
        f"the {facts.metric} of the out-of-fold predictions got better in nested validation.{measured}"
    )  # fmt: skip


def _forecast(facts: Facts) -> str:
    pairs = facts.pairs
    if not pairs:
        return "No configuration was both forecast and measured."
    inside = sum(pair["inside"] for pair in pairs)
    miss = sum(abs(pair["miss"]) for pair in pairs) / len(pairs)
    sign = 1 if facts.greater_is_better else -1
    bias = sign * sum(pair["miss"] for pair in pairs) / len(pairs)
    direction = "better" if bias > 0 else "worse"
    return (
        f"{inside} of {len(pairs)} measured scores lie inside the 80 % interval that was forecast before any trial. "
        f"Forecasts were off by {miss:.3g} on average; outcomes were {abs(bias):.3g} {direction} than forecast. The "
        "intervals of one dataset are right or wrong together, because they share what is not known of it."
    )


def _tried(facts: Facts) -> str:
    if not facts.lines:
        return "This model was saved without its ledger."
    n_families = len({trial["family"] for trial in facts.trials})
    notes = [line["reason"] for line in facts.troubles if not line["trial"] and line["reason"] and not line["family"]]
    text = f"{len(facts.trials)} configurations of {n_families} families were measured; "
    text += f"{_endings(facts) or 'none failed'}."
    return " ".join([text, *notes])


def _endings(facts: Facts) -> str:
    """How the trials without a full measurement ended; empty where there are none."""
    counts = Counter(line["status"] for line in facts.troubles if line["trial"])
    return ", ".join(f"{n} {_ENDINGS.get(status, status)}" for status, n in counts.items())


def _data(facts: Facts) -> str:
    data = facts.data
    if not data:
        return f"The table had {len(facts.columns)} columns. This model was saved without a summary of its data."
    kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(data["kinds"].items(), key=lambda item: -item[1]))
    given = f" Validation used {' and '.join(data['row_data'])}." if data["row_data"] else ""
    splits = f" Every configuration was measured on the same {data['n_splits']} splits." if data["n_splits"] else ""
    found = "" if data["problems"] else " Nothing suspicious was found."
    return f"{data['n_rows']:,} rows and {data['n_features']:,} columns: {kinds}.{given}{splits}{found}"


def _again(facts: Facts) -> list[str]:
    sentences = []
    if facts.data:
        sentences.append(
            f"The content fingerprint of the table is {facts.data['fingerprint']}; it is blind to the order of rows "
            "and columns. The same fingerprint, arguments and versions give the same search:"
        )
    seed, trials = facts.parameters.get("random_state"), facts.parameters.get("max_trials")
    if facts.parameters and seed is None:
        sentences.append("No random_state was given, so a new fit draws other splits. Pass one to fix them.")
    if facts.parameters and trials is None:
        measured = f" Pass max_trials={len(facts.trials)} for a search of this length that no clock decides."
        sentences.append(
            "The time budget decided how many trials there were, so a new fit may try more or fewer." + measured
        )
    return sentences


def _code(facts: Facts) -> str:
    face = "AutoMetaRegressor" if facts.task == "regression" else "AutoMetaClassifier"
    arguments = ", ".join(f"{name}={value!r}" for name, value in facts.parameters.items())
    return (
        f"import autometa\n\nmodel = autometa.{face}({arguments}).fit(X, y)\n"
        'autometa.save(model, "model")\nmodel = autometa.load("model")  # predicts, needs no search'
    )


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
