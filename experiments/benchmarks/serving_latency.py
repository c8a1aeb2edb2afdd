"""Milliseconds of one row, milliseconds of saving and loading, and the cold start of a fresh process.

    OMP_NUM_THREADS=1 python experiments/benchmarks/serving_latency.py [family ...]

Median and least of many repeats on one table of 2,000 rows, 10 numbers and 2 categories. The row arrives as a
DataFrame of one row. "default" is an ensemble of four members.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from autometa.data import Dataset
from autometa.families import resolve_families
from autometa.fitting import EncodedData, fit_model
from autometa.persistence import load, save
from autometa.predictor import Member, Predictor, make_predictor
from autometa.preprocessing import encode_dataset

ENSEMBLE = ("random_forest", "lightgbm", "xgboost", "linear")
COLD = (
    "import sys, time, pandas as pd; from autometa.persistence import load; model = load(sys.argv[1]);"
    "model.predict(pd.read_json(sys.argv[2], orient='records'));"
    "print(','.join(name for name in ('torch', 'optuna', 'skops') if name in sys.modules) or '-')"
)


def table(n_rows: int) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(n_rows, 10)), columns=[f"n{i}" for i in range(10)])
    return frame.assign(town=rng.choice(list("abcde"), n_rows), kind=rng.choice(list("xyz"), n_rows))


def fit(names: tuple[str, ...]) -> Predictor:
    """An unweighted ensemble of the default configurations."""
    frame = table(2_000)
    noise = np.random.default_rng(1).normal(size=len(frame))
    dataset = Dataset.from_arrays(frame, np.where(frame["n0"] * frame["n1"] + noise > 0, "yes", "no"))
    encoded = {}
    members = []
    for family in resolve_families(names):
        if family.matrix not in encoded:
            encoded[family.matrix] = encode_dataset(dataset, family.matrix)
        encoder, matrix = encoded[family.matrix]
        data = EncodedData(matrix, dataset.y, dataset.task, dataset.n_classes, encoder.n_categorical_)
        model = fit_model(family, family.default_config, data=data)
        members.append(Member(family.name, family.default_config, family.matrix, (model,)))
    return make_predictor(dataset, tuple(members), encoders={kind: pair[0] for kind, pair in encoded.items()})


def milliseconds(call: object, repeats: int) -> np.ndarray:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()  # type: ignore[operator]
        times.append((time.perf_counter() - start) * 1e3)
    return np.array(times)


def cpu_seconds() -> float:
    """CPU seconds of finished child processes: what a cold start costs on a busy machine too."""
    times = os.times()
    return times.children_user + times.children_system


def main() -> None:
    warnings.simplefilter("ignore")
    chosen = sys.argv[1:] or [
        "linear", "random_forest", "hist_gradient_boosting", "lightgbm", "xgboost", "catboost", "knn", "svm", "mlp",
        "default",
    ]  # fmt: skip
    print(
        f"{'model':24}{'row ms':>8}{'least':>8}{'1000 rows':>9}{'save':>9}{'load':>9}{'kB':>8}{'cold s':>8}{'CPU s':>7}"
    )
    with tempfile.TemporaryDirectory() as home:
        row = table(1)
        row.to_json(f"{home}/row.json", orient="records")
        for name in chosen:
            model = fit(ENSEMBLE if name == "default" else (name,))
            path, many = Path(home) / name, table(1_000)
            saving = milliseconds(lambda m=model, p=path: save(m, p, overwrite=True), 3)
            loading = milliseconds(lambda p=path: load(p), 3)
            loaded = load(path)
            one = milliseconds(lambda m=loaded: m.predict_raw(row), 200)
            batch = milliseconds(lambda m=loaded, t=many: m.predict_raw(t), 5)
            size = sum(file.stat().st_size for file in path.iterdir()) / 1e3
            cold, imports = [], ""
            for _ in range(3):
                start, spent = time.perf_counter(), cpu_seconds()
                run = subprocess.run(
                    [sys.executable, "-W", "ignore", "-c", COLD, str(path), f"{home}/row.json"],
                    capture_output=True, text=True, check=True,
                )  # fmt: skip
                cold.append((time.perf_counter() - start, cpu_seconds() - spent))
                imports = run.stdout.strip()
            print(
                f"{name:24}{np.median(one):8.2f}{one.min():8.2f}{batch.min():9.1f}{saving.min():9.0f}"
                f"{loading.min():9.0f}{size:8.0f}{min(cold)[0]:8.2f}"
                f"{min(cpu for _, cpu in cold):7.2f}  {imports}",
                flush=True,
            )


if __name__ == "__main__":
    main()
