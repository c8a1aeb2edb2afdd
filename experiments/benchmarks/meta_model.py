"""Time and size of the meta-model on a synthetic table: training, belief(), observe() + next().

python experiments/benchmarks/meta_model.py [--no-rehearsals]

Seconds are those of the processor, so that other processes matter less.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from autometa.family import Candidate
from autometa.meta_dataset import MetaDataset
from autometa.meta_training import TrainingOptions, train_meta_model


def table(n: int = 320, n_candidates: int = 220, n_features: int = 60) -> MetaDataset:
    rng = np.random.default_rng(0)
    scores = 0.8 + 0.05 * rng.normal(size=(n, 8)) @ rng.normal(size=(8, n_candidates))
    configs = [{"a": float(a), "b": float(b), "c": int(c)} for a, b, c in rng.random((n_candidates, 3)) * [1, 1, 9]]
    evaluations = pd.DataFrame(
        {
            "dataset": np.repeat([f"d{i}" for i in range(n)], n_candidates),
            "family": np.tile([f"family{j % 11}" for j in range(n_candidates)], n),
            "config": np.tile(np.array(configs, dtype=object), n),
            "score": scores.ravel(),
            "seconds": np.exp(rng.normal(size=scores.size)),
        }
    )
    meta = pd.DataFrame(rng.normal(size=(n, n_features))).add_prefix("f").assign(dataset=[f"d{i}" for i in range(n)])
    return MetaDataset.from_frames(evaluations, meta)


def fastest(call: Callable[[], Any], repeats: int = 20) -> float:
    times = []
    for _ in range(repeats):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return 1000 * min(times)


def main() -> None:
    torch.set_num_threads(1)
    data = table()
    rehearsals = 0 if "--no-rehearsals" in sys.argv else TrainingOptions().n_rehearsals
    start = time.process_time()
    model = train_meta_model(data, options=TrainingOptions(n_rehearsals=rehearsals))
    print(f"train 320 x 220, {rehearsals} rehearsals: {time.process_time() - start:.1f} s")
    with tempfile.TemporaryDirectory() as folder:
        size = sum(path.stat().st_size for path in model.save(folder).iterdir())
        start = time.perf_counter()
        model = type(model).load(Path(folder))
        print(f"saved: {size / 2**20:.2f} MB, loaded in {time.perf_counter() - start:.2f} s")
    meta, rng = data.meta_features.iloc[0], np.random.default_rng(1)
    pool = list(data.candidates.values())
    new = [Candidate(f"family{i % 11}", {"a": a, "b": b, "c": 3}) for i, (a, b) in enumerate(rng.random((1000, 2)))]
    lists = {
        "220 of the pool": pool, "512 mixed": pool + new[:292], "1,000 new": new, "1,000 mixed": pool + new[:780],
    }  # fmt: skip
    for name, candidates in lists.items():
        belief = model.belief(meta, candidates)
        print(f"belief() {name}: {fastest(lambda c=candidates: model.belief(meta, c)):.1f} ms")  # type: ignore[misc]
        for k in range(1, 51):
            index = belief.next()
            if k in (1, 5, 20, 50):
                took = fastest(lambda b=belief, i=index: b.observe(i, 0.8, seconds=1.0).next(), 10)  # type: ignore[misc]
                print(f"  observe() + next() at trial {k}: {took:.1f} ms")
            belief = belief.observe(index, 0.8 + 0.02 * rng.normal(), seconds=1.0)


if __name__ == "__main__":
    main()
