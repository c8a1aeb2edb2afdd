"""What the experiment engine costs: listing a plan of a million cells, overhead per cell, speed-up on two workers.

    OMP_NUM_THREADS=1 python experiments/benchmarks/engine.py

The models do nothing or sleep, so that the figures are the engine's. Overhead is elapsed time outside ``evaluate``
per cell, once the workers are up; ``evaluate`` itself is measured apart.
"""

from __future__ import annotations

import io
import resource
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from optuna.distributions import FloatDistribution
from rich.console import Console
from sklearn.dummy import DummyClassifier, DummyRegressor

from autometa.collection import Collection, load_collection
from autometa.experiment.engine import make_chunks, run_experiment
from autometa.experiment.study import Measure, RunOptions, Study, make_plan, read_rows
from autometa.family import Candidate, ModelFamily
from autometa.search_space import SearchSpace


class Sleep(ModelFamily):
    """Sleeps once per fit, then predicts a constant."""

    name = "sleep"
    search_space = SearchSpace({"seconds": FloatDistribution(0.0, 10.0)})
    default_config: ClassVar = {"seconds": 0.0}

    def build(self, config: Any, shape: Any, *, random_state: int = 0, n_threads: int = 1) -> Any:
        time.sleep(config["seconds"])
        return DummyClassifier(strategy="prior") if shape.task.is_classification else DummyRegressor()


def plan_of_a_million() -> dict[str, Any]:
    """Seconds and memory to list 500 datasets x 2,000 candidates and to cut them into chunks."""
    entries = load_collection("meta_train").entries[:500]
    candidates = tuple(Candidate("sleep", {"seconds": i / 1e6}) for i in range(2_000))
    with tempfile.TemporaryDirectory() as folder:
        study = Study("plan", Path(folder), Collection("plan", entries), (Sleep(),), candidates)
        started = time.perf_counter()
        plan = make_plan(study)
        n_rows = len(plan.to_frame())
        n_chunks = sum(1 for _ in make_chunks(plan))
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "what": f"plan of {n_rows:,} cells, {n_chunks:,} chunks",
        "value": seconds,
        "unit": f"s, peak {peak:.0f} MiB",
    }


def run_sleepers(n_candidates: int, seconds: float, n_jobs: int, limit: float | None) -> pd.DataFrame:
    """Rows in the order in which they were finished."""
    smoke = load_collection("smoke")
    entries = tuple(smoke[name] for name in ("iris", "wine", "breast_cancer", "diabetes"))
    candidates = tuple(Candidate("sleep", {"seconds": seconds + i / 1e6}) for i in range(n_candidates))
    with tempfile.TemporaryDirectory() as folder:
        study = Study(
            "sleep", Path(folder), Collection("smoke", entries), (Sleep(),), candidates,
            measure=Measure(max_rows=200, time_limit=limit), run=RunOptions(meta_features=False),
        )  # fmt: skip
        run_experiment(study, n_jobs=n_jobs, console=Console(file=io.StringIO()))
        return read_rows(study).to_pandas().sort_values("finished")


def main() -> None:
    """Print one line per figure."""
    lines = [plan_of_a_million()]
    rows = run_sleepers(160, 0.0, 1, 10.0)
    steady = rows.iloc[32:]  # the first two chunks start the workers
    elapsed = steady["finished"].iloc[-1] - rows["finished"].iloc[31]
    lines.append({"what": "engine, per cell", "unit": "ms",
                  "value": 1e3 * (elapsed - steady["wall_seconds"].sum()) / len(steady)})  # fmt: skip
    lines.append({"what": "guarded evaluate of nothing, 10 folds", "value": 1e3 * steady["wall_seconds"].median(),
                  "unit": "ms"})  # fmt: skip
    rows = run_sleepers(64, 0.02, 2, 10.0)
    steady = rows.iloc[64:-32]
    elapsed = steady["finished"].iloc[-1] - rows["finished"].iloc[63]
    share = steady["wall_seconds"].sum() / elapsed / 2
    lines.append({"what": "busy share of 2 workers (1 = ideal speed-up)", "value": share, "unit": ""})
    print(pd.DataFrame(lines)[["what", "value", "unit"]].round(3).to_string(index=False))


if __name__ == "__main__":
    main()
