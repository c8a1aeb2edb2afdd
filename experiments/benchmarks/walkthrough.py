"""select, fit, save, predict, serve, adapt as a new user would, each with a stopwatch: fresh processes, one small CSV.

    python experiments/benchmarks/walkthrough.py [--budget 30] [--fresh]

The table is scikit-learn's breast cancer (400 rows to learn from, 169 to predict). ``--fresh`` first clones the
repository and installs the clone (``make .venv/.installed``, which needs a network), and goes on with that. Prints a
Markdown table; wall-clock seconds, so run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from sklearn.datasets import load_breast_cancer

ROOT = Path(__file__).parents[2]
N_LEARN = 400
N_REQUESTS = 200
LIMIT_SECONDS = 1800.0
SAVE = "import autometa; autometa.save(autometa.load('model'), 'model.zip')"


def timed(name: str, command: list[Any], folder: Path, shown: str = "") -> None:
    """Run a command in a folder and print a row of the table."""
    started = time.perf_counter()
    subprocess.run(list(map(str, command)), cwd=folder, check=True, capture_output=True, timeout=LIMIT_SECONDS)
    row(name, shown or " ".join(map(str, command[2:])), time.perf_counter() - started)


def row(name: str, what: str, seconds: float) -> None:
    print(f"| {name} | `{what}` | {seconds:.3g} |", flush=True)


def install(folder: Path) -> Path:
    """A fresh clone with everything in it; its interpreter."""
    clone = folder / "clone"
    timed("clone", ["git", "clone", "--quiet", ROOT, clone], folder, "git clone")
    timed("install", ["make", ".venv/.installed", f"PYTHON={sys.executable}"], clone, "make .venv/.installed")
    return clone / ".venv" / "bin" / "python"


def write_tables(folder: Path) -> pd.DataFrame:
    """``train.csv`` and ``new.csv``; the rows to predict with their labels."""
    bunch = load_breast_cancer(as_frame=True)
    frame = bunch.frame.assign(target=bunch.target.map(dict(enumerate(bunch.target_names)))).sample(
        frac=1, random_state=0
    )
    frame[:N_LEARN].to_csv(folder / "train.csv", index=False)
    frame[N_LEARN:].drop(columns="target").to_csv(folder / "new.csv", index=False)
    return frame[N_LEARN:]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def ask(url: str, body: Any = None) -> Any:
    """The JSON of an answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def is_ready(url: str) -> bool:
    try:
        return bool(ask(f"{url}/ready")["ready"])
    except OSError:
        return False


def clocked(name: str, what: str, call: Callable[[], Any], n_times: int = 1) -> None:
    """Print the mean seconds of some calls."""
    started = time.perf_counter()
    for _ in range(n_times):
        call()
    row(name, what, (time.perf_counter() - started) / n_times)


def serve(python: Path, folder: Path, labelled: pd.DataFrame) -> None:
    """Start the service, ask it, adapt it, stop it."""
    port = free_port()
    url, rows = f"http://127.0.0.1:{port}", json.loads(labelled.drop(columns="target").to_json(orient="records"))
    started = time.perf_counter()
    command = [str(python), "-m", "autometa.cli", "serve", "model", "--port", str(port)]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL)  # a line of log a request
    try:
        while not is_ready(url):
            if process.poll() is not None or time.perf_counter() - started > LIMIT_SECONDS:
                raise RuntimeError("The service did not start.")
            time.sleep(0.02)
        row("serve, until ready", "autometa serve model --port 8000", time.perf_counter() - started)
        clocked("first request", "POST /predict, 1 row", lambda: ask(f"{url}/predict", rows[:1]))
        clocked(f"mean of {N_REQUESTS}", "POST /predict, 1 row", lambda: ask(f"{url}/predict", rows[:1]), N_REQUESTS)
        body = {"rows": rows[:20], "target": labelled["target"][:20].tolist()}
        clocked("adapt", "POST /adapt, 20 rows", lambda: ask(f"{url}/adapt", body))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=30.0, help="seconds of fit")
    parser.add_argument("--fresh", action="store_true", help="clone and install first")
    options = parser.parse_args()
    print("| step | what is typed | seconds |\n|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = install(folder) if options.fresh else Path(sys.executable)
        labelled = write_tables(folder)
        autometa = [python, "-m", "autometa.cli"]
        steps = {
            "select": ["select", "train.csv", "-t", "target"],
            "fit and save": ["fit", "train.csv", "-t", "target", "-o", "model", "--budget", f"{options.budget:g}"],
            "predict 169 rows": ["predict", "model", "new.csv", "-o", "predictions.csv"],
        }
        for step, arguments in steps.items():
            timed(step, [*autometa, *arguments], folder, f"autometa {' '.join(arguments)}")
        timed("load and save again", [python, "-c", SAVE], folder, 'autometa.save(autometa.load("model"), "model.zip")')
        serve(python, folder, labelled)
        said = pd.read_csv(folder / "predictions.csv")["prediction"]
    print(f"\n{(said.to_numpy() == labelled['target'].to_numpy()).mean():.1%} of the predictions were right.")


if __name__ == "__main__":
    main()
