"""What of a fit's budget is neither fitting nor predicting a candidate, imports apart.

    OMP_NUM_THREADS=1 python experiments/benchmarks/machinery.py --budgets 10 60

Every fit runs in a new process that has imported everything and whose workers are warm; how long that took is stated
apart (``imports`` in the main process, ``worker`` until a worker had imported what trials need). The rest is read from
the ledger and the evaluations of the fit:

- ``fitting``: seconds in which a worker, or this process for the first model, fitted or predicted; of trials that were
  killed all their seconds
- ``opening``: from the call of ``fit`` to the first trial, less the first model
- ``trials``: what trials took beside fitting and predicting: sending, scoring, freezing and storing models
- ``between``: from the end of a trial to the beginning of the next one
- ``closing``: from the end of the last trial to the end, less new fits
- ``share``: all but ``fitting``, of the wall time; the issue asks for at most .10 of 10 s and .05 of 60 s
- ``cpu``: CPU seconds of the main process, most of which are spent while a worker fits

One worker, so that seconds add up. Figures with a load of the machine (runnable processes per core) above 1 say little
but ``cpu``.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pandas as pd
from budget import load_table

_MODULES = (
    "autometa.estimator", "autometa.selection", "autometa.meta_model.model", "autometa.families.neural", "torch",
    "optuna", "lightgbm", "catboost", "xgboost", "skrub",
)  # fmt: skip
_IN_WORKER = ("autometa.folds", "autometa.families._net_estimators", "torch", "lightgbm", "catboost", "xgboost")
_WHOLE = ("first", "refit", "folds", "recall", "fine_tune")


def fit_once(name: str, budget: float, seed: int) -> dict[str, Any]:
    """One fit in this process, after all imports."""
    started = time.perf_counter()
    for module in _MODULES:
        importlib.import_module(module)
    imports = time.perf_counter() - started
    from autometa import AutoMetaClassifier, AutoMetaRegressor
    from autometa.data import TaskType
    from autometa.workers import shared_workers

    started = time.perf_counter()
    for purpose in ("trials", "refit"):
        pool = shared_workers(1, purpose=purpose)
        pool.warm_up(_IN_WORKER)
        pool.submit(pow, 2, 2).result()
    worker = (time.perf_counter() - started) / 2
    dataset = load_table(name)
    face = AutoMetaRegressor if dataset.task is TaskType.REGRESSION else AutoMetaClassifier
    cpu, began = time.process_time(), time.perf_counter()
    model = face(budget, n_jobs=1, random_state=seed).fit(dataset.X, dataset.labels)
    wall, cpu = time.perf_counter() - began, time.process_time() - cpu
    return {
        "dataset": name, "rows": dataset.n_rows, "budget": budget, "seed": seed, "imports": imports, "worker": worker,
        "wall": wall, **parts(model, wall), "cpu": cpu,
    }  # fmt: skip


def parts(model: Any, wall: float) -> dict[str, Any]:
    """The seconds of a fit by what they were spent on."""
    measured = {evaluation.candidate.key: evaluation.seconds for evaluation in model._state.result.evaluations}
    entries = [entry for entry in model.ledger_ if entry.candidate is not None and np.isfinite(entry.seconds)]
    whole = {source: sum(e.seconds for e in entries if e.source == source) for source in _WHOLE}
    trials = [e for e in entries if e.source not in {*_WHOLE, "storage"} and e.status != "skipped"]
    killed = {"timeout", "memory"}
    fits = [e.seconds if e.status in killed else min(measured.get(e.candidate.key, 0.0), e.seconds) for e in trials]
    ends = [entry.started + entry.seconds for entry in trials]
    gaps = [max(0.0, later.started - end) for later, end in zip(trials[1:], ends, strict=False)]
    fitting = sum(fits) + sum(whole.values())
    return {
        "trials_done": len(trials), "fitting": fitting,
        "opening": trials[0].started - whole["first"] if trials else float("nan"),
        "trials": sum(entry.seconds for entry in trials) - sum(fits), "between": sum(gaps),
        "closing": wall - max(ends, default=float("nan")) - sum(whole.values()) + whole["first"],
        "share": 1.0 - fitting / wall,
    }  # fmt: skip


def main() -> None:
    """Print one line per fit and the means by budget."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budgets", type=float, nargs="+", default=[10.0, 60.0])
    parser.add_argument("--names", nargs="+", default=["iris", "breast_cancer", "digits", "diabetes", "large", "wide"])
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(fit_once(options.one, options.budgets[0], options.seed)))
        return
    rows = []
    for seed in range(options.seed, options.seed + options.repeats):
        for budget in options.budgets:
            for name in options.names:
                command = [sys.executable, __file__, "--one", name, "--budgets", str(budget), "--seed", str(seed)]
                done = subprocess.run(command, capture_output=True, text=True, timeout=20 * budget + 600, check=True)
                load = os.getloadavg()[0] / len(os.sched_getaffinity(0))
                rows.append({**json.loads(done.stdout.strip().splitlines()[-1]), "load": load})
                print(pd.DataFrame(rows[-1:]).round(3).to_string(index=False, header=len(rows) == 1), flush=True)
    frame = pd.DataFrame(rows)
    columns = ["imports", "worker", "fitting", "opening", "trials", "between", "closing", "share", "cpu"]
    print()
    print(frame.groupby("budget")[columns].mean().round(3).to_string())


if __name__ == "__main__":
    main()
