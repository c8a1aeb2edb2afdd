"""House prices end to end: a new market with 20 sales gets a model that adapts, is served, and follows new sales.

The markets are the council areas of Melbourne with 45 sales or more (``melbourne_housing``, log price). In each of four
folds a birth is meta-trained on the other markets (``MetaInitializer``); every market of the fold gives 20 sales, its
adapted net is saved and put behind the service, sales are posted to ``/adapt`` in batches of 20, and after each batch
``/predict`` is asked for the sales that were not posted. RMSE is in units of the market's own standard deviation;
intervals by bootstrap over markets. About 140 CPU seconds:

    AUTOMETA_DATA=... OMP_NUM_THREADS=1 python experiments/house_prices/run.py

``--summary`` reads ``markets.csv`` instead of measuring again.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import torch
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from sklearn.ensemble import RandomForestRegressor

from autometa import Dataset, MetaInitializer, save
from autometa.adaptation import adapt
from autometa.collection import data_folder
from autometa.experiment.simulation import bootstrap_interval
from autometa.families import resolve_families
from autometa.families._net_estimators import NetRegressor
from autometa.fitting import EncodedData, fit_model
from autometa.persistence import load
from autometa.predictor import Member, Predictor, make_predictor
from autometa.preprocessing import TableEncoder, encode_dataset
from autometa.serving import ServiceSettings
from autometa.serving.app import create_app

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "initialisation"))
from same_columns import EPOCHS, FAMILIES, MIN_ROWS, Table, alone  # noqa: E402

MARKET = "CouncilArea"
N_FOLDS = 4
BATCH = 20
MAX_POSTED = 100
MIN_REST = 25
"""Sales of a market that are never posted, at least."""
META = {"n_shots": (10, 100), "n_meta_steps": 500}


def markets() -> dict[str, Table]:
    """The tables of ``same_columns.py`` with their names."""
    tables = FAMILIES["melbourne, council"]()
    column = pd.read_parquet(data_folder() / "melbourne_housing.parquet", columns=[MARKET])[MARKET].dropna()
    names = sorted(name for name, n_rows in column.value_counts().items() if n_rows >= MIN_ROWS)
    assert len(names) == len(tables), "the tables must be those of the named markets"
    return dict(zip(names, tables, strict=True))


def fold_of(name: str, names: Sequence[str]) -> int:
    """The fold in which a market is held out."""
    return list(names).index(name) % N_FOLDS


def shuffled(table: Table, name: str) -> Table:
    """The sales in the order in which they come."""
    order = np.random.default_rng(list(name.encode())).permutation(len(table[1]))
    return table[0].iloc[order].reset_index(drop=True), table[1][order]


def records(X: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as a client sends them."""
    found: list[dict[str, Any]] = json.loads(X.to_json(orient="records", double_precision=15))
    return found


def ask(client: httpx.Client, path: str, body: Any) -> Any:
    """The JSON of an answer; an exception where there is none."""
    answer = client.post(path, json=body)
    answer.raise_for_status()
    return answer.json()


def predicted(client: httpx.Client, X: pd.DataFrame) -> NDArray[np.float64]:
    """What the service says of some sales."""
    return np.array(ask(client, "/predict", records(X))["predictions"])


def n_posted(table: Table) -> int:
    """Sales of a market that are posted, in whole batches."""
    return BATCH * min(MAX_POSTED // BATCH, (len(table[1]) - MIN_REST) // BATCH)


def replay(client: httpx.Client, table: Table) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Number of known sales and predictions of all sales, before and after each posted batch."""
    X, y = table
    yield BATCH, predicted(client, X)
    for start in range(BATCH, n_posted(table), BATCH):
        batch = slice(start, start + BATCH)
        ask(client, "/adapt", {"rows": records(X[batch]), "target": y[batch].tolist()})
        yield start + BATCH, predicted(client, X)


def served(model: Predictor, table: Table) -> dict[int, NDArray[np.float64]]:
    """Adapt to the first 20 sales, save, serve, and post the rest; predictions by number of known sales."""
    X, y = table
    with tempfile.TemporaryDirectory() as folder:
        path = save(adapt(model, X[:BATCH], y[:BATCH]), Path(folder) / "model")
        with TestClient(create_app(ServiceSettings(str(path)))) as client:
            return dict(replay(client, table))


def pooled_boosting(X: pd.DataFrame, y: NDArray[np.float64]) -> Predictor:
    """LightGBM's default of this library on the sales of all earlier markets."""
    (family,) = resolve_families(["lightgbm"])
    dataset = Dataset.from_arrays(X, y)
    encoder, matrix = encode_dataset(dataset, family.matrix)
    data = EncodedData(matrix, dataset.y, dataset.task, 0, encoder.n_categorical_)
    model = fit_model(family, family.default_config, data=data)
    member = Member(family.name, family.default_config, family.matrix, (model,))
    return make_predictor(dataset, (member,), encoders={family.matrix: encoder})


def run_fold(train: list[Table], test: dict[str, Table], birth: Path) -> list[dict[str, Any]]:
    """One row for each held-out market, number of known sales and arm."""
    X, y = pd.concat([table[0] for table in train], ignore_index=True), np.concatenate([table[1] for table in train])
    save(MetaInitializer(**META, task="regression").fit(train), birth)
    boosting, linear, net_encoder = pooled_boosting(X, y), TableEncoder("linear").fit(X), TableEncoder("net").fit(X)
    net = NetRegressor(config=EPOCHS, n_categorical=net_encoder.n_categorical_).fit(net_encoder.transform(X), y)
    rows = []
    for name, table in test.items():
        X_new, y_new = shuffled(table, name)
        told = served(load(birth), (X_new, y_new)), served(boosting, (X_new, y_new))
        fixed = {"pooled net": net.predict(net_encoder.transform(X_new)), "pooled boosting": boosting.predict(X_new)}
        for known in told[0]:
            few = (X_new[:known], y_new[:known])
            arms = {"adapted": told[0][known], "pooled boosting, corrected": told[1][known], **fixed}
            arms |= few_shot(linear, few, X_new) if known == BATCH else {}
            for arm, said in arms.items():
                rows.append({"market": name, "known": known, "arm": arm, **errors(said, y_new, known, n_posted(table))})
    return rows


def few_shot(encoder: TableEncoder, few: Table, X: pd.DataFrame) -> dict[str, NDArray[np.float64]]:
    """Models of the first 20 sales only."""
    forest = RandomForestRegressor(200, random_state=0).fit(encoder.transform(few[0]), few[1])
    return {**alone(encoder, few, X), "alone, forest": forest.predict(encoder.transform(X))}


def errors(said: NDArray[np.float64], y: NDArray[np.float64], known: int, end: int) -> dict[str, float]:
    """RMSE on the sales not posted yet, and on those that are never posted, in units of the market's spread."""
    missed = (said - y) ** 2 / y.std() ** 2
    return {"error": float(np.sqrt(missed[known:].mean())), "error_end": float(np.sqrt(missed[end:].mean()))}


def summary(rows: pd.DataFrame) -> dict[str, Any]:
    """Gain over each rival at 20 sales with its interval, and the curve of the markets with all batches."""
    first = rows[rows["known"] == BATCH].pivot(index="market", columns="arm", values="error")
    gains = {
        arm: bootstrap_interval((first[arm] - first["adapted"]).to_numpy(), first.index)
        for arm in first.columns.drop("adapted")
    }
    whole = rows.groupby("market")["known"].transform("max") == MAX_POSTED
    curve = rows[whole].pivot_table(index="known", columns="arm", values="error_end")[
        ["adapted", "pooled boosting, corrected", "pooled net", "pooled boosting"]
    ]
    last = rows[whole & (rows["arm"] == "adapted")].pivot(index="market", columns="known", values="error_end")
    fall = {
        str(known): bootstrap_interval((last[BATCH] - last[known]).to_numpy(), last.index)
        for known in last.columns.drop(BATCH)
    }
    return {
        "markets": len(first), "markets_of_curve": len(last), "mean_error_at_20": first.mean().to_dict(),
        "wins_at_20": {arm: int((first["adapted"] < first[arm]).sum()) for arm in gains},
        "gain_at_20": gains, "curve": curve.T.to_dict(), "fall_of_adapted": fall,
    }  # fmt: skip


def cards_that_name_melbourne() -> list[str]:
    """Shipped weights and corpora that have seen the table; none of them is used here."""
    shipped = Path(sys.modules["autometa"].__file__ or "").parent / "pretrained"
    files = [file for file in sorted(shipped.rglob("*")) if file.suffix in {".json", ".safetensors", ".parquet"}]
    return [str(file.relative_to(shipped)) for file in files if b"melbourne" in file.read_bytes()]


def measure() -> pd.DataFrame:
    """Every fold in turn; ``markets.csv`` is written after each."""
    tables, rows = markets(), []
    for fold in range(N_FOLDS):
        held = {name: table for name, table in tables.items() if fold_of(name, list(tables)) == fold}
        train = [table for name, table in tables.items() if name not in held]
        with tempfile.TemporaryDirectory() as folder:
            rows += run_fold(train, held, Path(folder) / "birth")
        pd.DataFrame(rows).to_csv(HERE / "markets.csv", index=False, float_format="%.4f")
        print(f"fold {fold}: {len(held)} markets held out, {len(train)} learned from", flush=True)
    return pd.DataFrame(rows)


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = pd.read_csv(HERE / "markets.csv") if "--summary" in sys.argv else measure()
    result = {**summary(rows), "seen_by_shipped_files": cards_that_name_melbourne()}
    text = json.dumps(json.loads(json.dumps(result), parse_float=lambda number: round(float(number), 4)), indent=1)
    (HERE / "results.json").write_text(f"{text}\n")
    print(text)


if __name__ == "__main__":
    main()
