"""The same story for one held-out market by the command line alone, with a service behind a real socket.

``autometa meta-initialize`` on the other markets, ``autometa adapt`` to 20 sales, ``autometa serve``; then sales are
posted, predictions asked for, and the last adaptation is rolled back. About one CPU minute:

    AUTOMETA_DATA=... OMP_NUM_THREADS=1 python experiments/house_prices/live.py
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
from run import BATCH, MARKET, META, Table, ask, errors, fold_of, markets, n_posted, predicted, replay, shuffled

HELD_OUT = "Banyule"
"""The first market by name."""
WAIT_SECONDS = 900.0


def autometa(*arguments: str | Path | int) -> list[str]:
    """A command line."""
    return [sys.executable, "-m", "autometa.cli", *map(str, arguments)]


def run(folder: Path, *arguments: str | int) -> None:
    """Run a command in a folder, show it and what it says."""
    started = time.perf_counter()
    done = subprocess.run(
        autometa(*arguments), cwd=folder, capture_output=True, text=True, timeout=WAIT_SECONDS, check=True
    )
    seconds = time.perf_counter() - started
    print(f"$ autometa {' '.join(map(str, arguments))}   ({seconds:.1f} s)\n{done.stdout.strip()}", flush=True)


@contextmanager
def service(model: Path) -> Iterator[httpx.Client]:
    """``autometa serve`` on a free port, ended by SIGTERM."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(autometa("serve", model, "--port", port))
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60.0) as client:
            wait_until_ready(client)
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def wait_until_ready(client: httpx.Client) -> None:
    """Return when /ready says so; RuntimeError if it never does."""
    end = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < end:
        try:
            if client.get("/ready").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise RuntimeError("The service did not start.")


def write_tables(folder: Path) -> Table:
    """``markets.csv`` and ``new.csv``; the held-out market."""
    tables = markets()
    names = list(tables)
    parts = [
        tables[name][0].assign(**{MARKET: name, "log_price": tables[name][1]})
        for name in names
        if fold_of(name, names) != fold_of(HELD_OUT, names)
    ]
    pd.concat(parts).to_csv(folder / "markets.csv", index=False)
    X, y = shuffled(tables[HELD_OUT], HELD_OUT)
    X[:BATCH].assign(log_price=y[:BATCH]).to_csv(folder / "new.csv", index=False)
    return X, y


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        X, y = write_tables(folder)
        low, high = META["n_shots"]
        run(folder, "meta-initialize", "markets.csv", "-t", "log_price", "--by", MARKET, "-o", "birth",
            "--min-shots", low, "--max-shots", high, "--n-meta-steps", META["n_meta_steps"])  # fmt: skip
        run(folder, "adapt", "birth", "new.csv", "-t", "log_price", "-o", "model")
        with service(folder / "model") as client:
            print("$ autometa serve model")
            told = {}
            for known, said in replay(client, (X, y)):
                told[known] = said
                error = errors(said, y, known, n_posted((X, y)))
                rest, end = error["error"], error["error_end"]
                print(f"{known:4} sales known: error {rest:.3f} on the rest, {end:.3f} on those never posted")
            answer = ask(client, "/rollback", None)
            back = predicted(client, X)
            before = sorted(told)[-2]
            print(f"POST /rollback: {json.dumps(answer)}; the answers of {before} sales are back: "
                  f"{np.array_equal(back, told[before])}")  # fmt: skip


if __name__ == "__main__":
    main()
