"""Whether ``fit`` keeps its time budget and what it does with it, cold: every fit in a new process, imports stated.

    OMP_NUM_THREADS=1 AUTOMETA_DATA=... python experiments/benchmarks/budget.py --budgets 5 10 --repeats 9
    OMP_NUM_THREADS=1 AUTOMETA_DATA=... python experiments/benchmarks/budget.py --budgets 60 --out rows.jsonl

Tables of scikit-learn, made ones that are wide, large, full of text or of 50 classes, and, where AUTOMETA_DATA is set,
the first of the collection ``dev``. With ``NAME:slow`` only families take part whose fits are long there (support
vector machines, CatBoost, a net). ``--repeats`` fits each of them with further seeds; ``--out`` names a file of rows to
which fits are added and from which those done before are read, so that a run may be cut off and gone on with.

One line per fit: seconds over the budget (``wall`` starts with the call of ``fit`` and so includes the workers' start,
PyTorch's import and the reading of the meta-model), seconds until a first model was there (``first``) and until the
first trial had ended (``trial``), seconds from the end of the last trial to the end (``after``), trials by status,
members, share of the workers' time spent in fits and predictions of candidates (``busy``), score on held-out rows, and
the load of the machine (runnable processes per core). In the end, per budget: the quantiles of the overrun up to the
99th, and the fits beyond 5 % + 1 s with the upper end of a one-sided 95 % interval of their share (Clopper and Pearson,
1934): below .01 with none of 299. Figures with a load well above 1 say little.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import beta

_SKLEARN = ("iris", "wine", "breast_cancer", "digits", "diabetes")
_MADE = ("wide", "large", "text", "classes")
_SLOW = ("breast_cancer:slow", "digits:slow", "wide:slow", "large:slow", "classes:slow")
_SLOW_FAMILIES = ("svm", "catboost", "mlp")
_OWN_SOURCES = ("first", "refit", "folds", "storage", "recall", "fine_tune", "")


def load_table(name: str) -> Any:
    """A dataset by name: made, of scikit-learn, or of the collection ``dev``."""
    from autometa.collection import load_collection
    from autometa.data import Dataset

    if name not in _MADE:
        return load_collection("smoke" if name in _SKLEARN else "dev").load(name)
    rng = np.random.default_rng(0)
    n_rows, n_columns = {"wide": (1_000, 2_000), "large": (100_000, 30), "text": (5_000, 4), "classes": (6_000, 20)}[
        name
    ]
    numbers = rng.normal(size=(n_rows, n_columns)).astype(np.float32)
    signal = numbers[:, 0] + numbers[:, 1] * numbers[:, 2]
    table = pd.DataFrame(numbers).rename(columns=lambda i: f"x{i}")
    if name == "text":
        words = np.array([f"word{i}" for i in range(500)])
        for column in ("note", "remark"):
            table[column] = [" ".join(words[rng.integers(500, size=6)]) for _ in range(n_rows)]
    quantiles = np.quantile(signal, np.linspace(0, 1, 51 if name == "classes" else 3)[1:-1])
    return Dataset.from_arrays(table, np.array([f"c{i}" for i in np.digitize(signal, quantiles)]), name=name)


def fit_once(name: str, budget: float, seed: int) -> dict[str, Any]:
    """One fit in this process."""
    started = time.perf_counter()
    from sklearn.model_selection import train_test_split

    from autometa import AutoMetaClassifier, AutoMetaRegressor
    from autometa.data import TaskType
    from autometa.opening import worker_count
    from autometa.tuning import Budget

    imports = time.perf_counter() - started
    table, _, kind = name.partition(":")
    dataset = load_table(table)
    labels = dataset.labels
    classify = dataset.task is not TaskType.REGRESSION
    train, test = train_test_split(
        np.arange(dataset.n_rows), test_size=0.25, random_state=seed, stratify=labels if classify else None
    )
    face = AutoMetaClassifier if classify else AutoMetaRegressor
    families = list(_SLOW_FAMILIES) if kind == "slow" else None
    began = time.perf_counter()
    model = face(budget, families=families, random_state=seed).fit(dataset.X.iloc[train], labels[train])
    wall = time.perf_counter() - began
    ledger = model.ledger_.to_frame()
    trials = ledger[~ledger["source"].isin(_OWN_SOURCES) & ledger["family"].ne("")]
    first = ledger[ledger["source"].eq("first")]
    good = trials[trials["status"].eq("ok")]
    raw = model.predictor_.predict_raw(dataset.X.iloc[test])
    codes = np.searchsorted(model.classes_, labels[test]) if classify else labels[test]
    busy = sum(evaluation.seconds for evaluation in model._state.result.evaluations)
    statuses = {status: int(trials["status"].eq(status).sum()) for status in ("ok", "pruned", "timeout", "failed")}
    return {
        "dataset": name, "rows": dataset.n_rows, "budget": budget, "seed": seed, "wall": wall, "over": wall - budget,
        "wall/budget": wall / budget, "imports": imports, "ranked": float(model.selection_.seconds),
        "first": float((first["started"] + first["seconds"]).min()) if len(first) else float("nan"),
        "trial": float((good["started"] + good["seconds"]).min()) if len(good) else float("nan"),
        "after": wall - float((trials["started"] + trials["seconds"]).max()) if len(trials) else float("nan"),
        **statuses, "cut": int(trials["reason"].str.startswith("stopped after").sum()),
        "members": len(model.predictor_.members), "busy": busy / wall / worker_count(None, Budget(budget)),
        "metric": model.metric_.name, "held_out": model.metric_.from_score(model.metric_.score(codes, raw)),
        "stopped_early": bool(ledger["reason"].str.startswith("Stopped early").any()),
    }  # fmt: skip


def cold(name: str, budget: float, seed: int) -> dict[str, Any]:
    """One fit in a process of its own."""
    command = [sys.executable, __file__, "--one", name, "--budgets", str(budget), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20 * budget + 600, check=False)
    load = os.getloadavg()[0] / len(os.sched_getaffinity(0))
    if done.returncode:
        error = done.stderr.strip().splitlines()[-1]
        return {"dataset": name, "budget": budget, "seed": seed, "error": error, "load": load}
    return {**json.loads(done.stdout.strip().splitlines()[-1]), "load": load}


def read_rows(path: Path | None) -> list[dict[str, Any]]:
    """What was measured before."""
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def summary(frame: pd.DataFrame) -> str:
    """Quantiles by budget, and how many fits were beyond the contract."""
    known = frame.dropna(subset=["over"])
    columns = ["over", "first", "trial", "after", "busy"]
    text = [known.groupby("budget")[columns].quantile([0.5, 0.9, 0.99, 1.0]).round(2).to_string(), ""]
    for budget, rows in known.groupby("budget"):
        n, beyond = len(rows), int((rows["over"] > 0.05 * float(budget) + 1.0).sum())
        upper = beta.ppf(0.95, beyond + 1, n - beyond) if beyond < n else 1.0
        text.append(f"{budget:g} s: {beyond} of {n} fits beyond 5 % + 1 s (share at most {upper:.3f})")
    failed = frame["error"].notna().sum() if "error" in frame else 0
    return "\n".join([*text, f"{failed} fits failed"])


def main() -> None:
    """Print one line per fit and the quantiles of the overrun."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budgets", type=float, nargs="+", default=[5.0, 10.0, 60.0])
    parser.add_argument("--n-dev", type=int, default=10)
    parser.add_argument("--names", nargs="*", help="these tables only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--out", type=Path, help="file of rows to go on with")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(fit_once(options.one, options.budgets[0], options.seed)))
        return
    names = list(options.names or (*_SKLEARN, *_MADE, *_SLOW))
    if not options.names and os.environ.get("AUTOMETA_DATA"):
        from autometa.collection import load_collection

        names += [entry.name for entry in load_collection("dev").entries[: options.n_dev]]
    rows = read_rows(options.out)
    done = {(row["dataset"], row["budget"], row["seed"]) for row in rows}
    for seed in range(options.seed, options.seed + options.repeats):
        for budget in options.budgets:
            for name in names:
                if (name, budget, seed) in done:
                    continue
                rows.append(cold(name, budget, seed))
                if options.out is not None:
                    with options.out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(rows[-1]) + "\n")
                print(pd.DataFrame(rows[-1:]).round(3).to_string(index=False, header=len(rows) == 1), flush=True)
    frame = pd.DataFrame(rows)
    print()
    print(frame.round(3).to_string(index=False))
    if "over" in frame:
        print(summary(frame))


if __name__ == "__main__":
    main()
