"""Whether ``fit`` keeps its time budget and what it does with it, cold: every fit in a new process, imports stated.

    OMP_NUM_THREADS=1 AUTOMETA_DATA=... python experiments/benchmarks/budget.py --budgets 5 10

Tables of scikit-learn and, where AUTOMETA_DATA is set, the first of the collection ``dev``. One line per fit: seconds
over the budget (``wall`` starts with the call of ``fit`` and so includes the workers' start, PyTorch's import and the
reading of the meta-model), seconds until a first model was there (``first``) and until the first trial had ended
(``trial``), trials by status, members, share of the wall time spent in fits and predictions of candidates (``busy``),
score on held-out rows, and the load of the machine (runnable processes per core). Figures with a load well above 1 say
little.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pandas as pd

_SKLEARN = ("iris", "wine", "breast_cancer", "digits", "diabetes")


def fit_once(name: str, budget: float, seed: int) -> dict[str, Any]:
    """One fit in this process."""
    started = time.perf_counter()
    from sklearn.model_selection import train_test_split

    from autometa import AutoMetaClassifier, AutoMetaRegressor
    from autometa.collection import load_collection
    from autometa.data import TaskType

    imports = time.perf_counter() - started
    dataset = load_collection("smoke" if name in _SKLEARN else "dev").load(name)
    labels = dataset.y if dataset.classes is None else dataset.classes[dataset.y]
    classify = dataset.task is not TaskType.REGRESSION
    train, test = train_test_split(
        np.arange(dataset.n_rows), test_size=0.25, random_state=seed, stratify=labels if classify else None
    )
    face = AutoMetaClassifier if classify else AutoMetaRegressor
    began = time.perf_counter()
    model = face(budget, random_state=seed).fit(dataset.X.iloc[train], labels[train])
    wall = time.perf_counter() - began
    ledger = model.ledger_.to_frame()
    trials = ledger[ledger["source"].isin(["selection", "default", "listed", "search"]) & ledger["family"].ne("")]
    first = ledger[ledger["source"].eq("first")]
    good = trials[trials["status"].eq("ok")]
    raw = model.predictor_.predict_raw(dataset.X.iloc[test])
    codes = np.searchsorted(model.classes_, labels[test]) if classify else labels[test]
    busy = sum(evaluation.seconds for evaluation in model._state.result.evaluations)
    statuses = {status: int(trials["status"].eq(status).sum()) for status in ("ok", "pruned", "timeout", "failed")}
    return {
        "dataset": name, "rows": dataset.n_rows, "budget": budget, "wall": wall, "over": wall - budget,
        "wall/budget": wall / budget, "imports": imports, "ranked": float(model.selection_.seconds),
        "first": float((first["started"] + first["seconds"]).min()) if len(first) else float("nan"),
        "trial": float((good["started"] + good["seconds"]).min()) if len(good) else float("nan"),
        **statuses, "members": len(model.predictor_.members), "busy": busy / wall,
        "metric": model.metric_.name, "held_out": model.metric_.from_score(model.metric_.score(codes, raw)),
        "stopped_early": bool(ledger["reason"].str.startswith("Stopped early").any()),
    }  # fmt: skip


def cold(name: str, budget: float, seed: int) -> dict[str, Any]:
    """One fit in a process of its own."""
    command = [sys.executable, __file__, "--one", name, "--budgets", str(budget), "--seed", str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20 * budget + 600, check=False)
    load = os.getloadavg()[0] / len(os.sched_getaffinity(0))
    if done.returncode:
        return {"dataset": name, "budget": budget, "error": done.stderr.strip().splitlines()[-1], "load": load}
    return {**json.loads(done.stdout.strip().splitlines()[-1]), "load": load}


def main() -> None:
    """Print one line per fit and the quantiles of the overrun."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budgets", type=float, nargs="+", default=[5.0, 10.0])
    parser.add_argument("--n-dev", type=int, default=10)
    parser.add_argument("--names", nargs="*", help="these tables only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(fit_once(options.one, options.budgets[0], options.seed)))
        return
    names = list(options.names or _SKLEARN)
    if not options.names and os.environ.get("AUTOMETA_DATA"):
        from autometa.collection import load_collection

        names += [entry.name for entry in load_collection("dev").entries[: options.n_dev]]
    rows = []
    for budget in options.budgets:
        for name in names:
            rows.append(cold(name, budget, options.seed))
            print(pd.DataFrame(rows[-1:]).round(3).to_string(index=False, header=len(rows) == 1), flush=True)
    frame = pd.DataFrame(rows)
    print()
    print(frame.round(3).to_string(index=False))
    if "over" in frame:
        print(
            frame.groupby("budget")[["over", "first", "trial", "busy"]].quantile([0.5, 0.9, 1.0]).round(2).to_string()
        )


if __name__ == "__main__":
    main()
