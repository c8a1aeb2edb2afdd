"""What a trial costs beside the model: overhead per trial and start-up of workers.

    python experiments/benchmarks/evaluation.py

The overhead is the wall time of ``Evaluator.evaluate`` less the seconds of fits and predictions, on a table of 300
rows (10 splits) and one of 2,000 rows (3 splits), with a model that costs nothing. Minimum and median of 30 trials.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.dummy import DummyClassifier

from autometa.data import Dataset
from autometa.evaluation import Evaluator
from autometa.family import Candidate, MatrixShape, ModelFamily
from autometa.search_space import SearchSpace
from autometa.workers import WorkerPool

CANDIDATE = Candidate("prior")


class Prior(ModelFamily):
    """Class shares; fits in no time."""

    name = "prior"
    search_space = SearchSpace({})
    default_config: Mapping[str, Any] = {}

    def build(
        self, config: Mapping[str, Any], shape: MatrixShape, *, random_state: int = 0, n_threads: int = 1
    ) -> DummyClassifier:
        return DummyClassifier()


def overhead(evaluator: Evaluator, repeats: int = 30) -> list[float]:
    """Milliseconds of each trial that are neither fit nor prediction."""
    evaluator.evaluate(CANDIDATE)
    found = []
    for _ in range(repeats):
        started = time.perf_counter()
        evaluation = evaluator.evaluate(CANDIDATE)
        found.append(1000 * (time.perf_counter() - started - evaluation.seconds))
    return found


def main() -> None:
    rng = np.random.default_rng(0)
    started = time.perf_counter()
    with WorkerPool(1) as pool:
        made = time.perf_counter()
        pool.submit(pow, 1, 1).result()
        print(f"pool made in {1000 * (made - started):.0f} ms, first task after {time.perf_counter() - made:.2f} s")
        tasks = []
        for _ in range(200):
            started = time.perf_counter()
            pool.submit(pow, 1, 1).result()
            tasks.append(1000 * (time.perf_counter() - started))
        print(f"empty task: min {min(tasks):.2f} ms, median {statistics.median(tasks):.2f} ms")
        print(f"{'rows':>6} {'metrics':>9} {'where':>11} {'min ms':>8} {'median ms':>10}")
        for n_rows in (300, 2000):
            X = rng.normal(size=(n_rows, 10))
            dataset = Dataset.from_arrays(X, X[:, 0] > 0)
            for metrics in (["log_loss"], None):
                for where, workers in (("in process", None), ("worker", pool)):
                    with Evaluator(dataset, families=[Prior()], metrics=metrics, workers=workers) as evaluator:
                        found = overhead(evaluator)
                    label = "all five" if metrics is None else "log_loss"
                    print(f"{n_rows:>6} {label:>9} {where:>11} {min(found):>8.1f} {statistics.median(found):>10.1f}")
        started = time.perf_counter()
        pool.submit(time.sleep, 60, time_limit=0.5, finish=lambda outcome: outcome).result()
        killed = time.perf_counter() - started
        pool.submit(pow, 1, 1).result()
        print(f"killed {1000 * (killed - 0.5):.0f} ms after the limit, ", end="")
        print(f"replaced and warm after another {time.perf_counter() - started - killed:.2f} s")


if __name__ == "__main__":
    main()
