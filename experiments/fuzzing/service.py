"""Fuzzed requests to a served model: schemathesis reads its OpenAPI document, and nothing may end in a 5xx.

    pip install schemathesis   # into an environment of its own; it needs nothing of this library
    OMP_NUM_THREADS=1 python experiments/fuzzing/service.py [n_requests] [--schemathesis PATH]

The model reads numbers, categories, booleans, dates and text, and may be adapted by the requests themselves. Rounds of
schemathesis with different seeds follow each other until the service has counted enough answers; after each round
stand the answers by status and the memory of the service. The exit status is 1 after a 5xx, an answer that is not
listed in the document, or the death of the process.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import psutil

from autometa.data import Dataset
from autometa.families import resolve_families
from autometa.fitting import EncodedData, fit_model
from autometa.persistence import save
from autometa.predictor import Member, make_predictor
from autometa.preprocessing import encode_dataset

_ROUND_EXAMPLES = 120
_ROUND_SECONDS = 60


def make_model(path: Path) -> Path:
    """A linear model of 200 rows with a column of each kind."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "number": rng.normal(size=200),
            "größe": rng.integers(0, 9, 200),
            "town": rng.choice(["Rome", "Oslo", "Łódź"], 200),
            "garden": rng.random(200) < 0.5,
            "sold": pd.date_range("2020-01-01", periods=200).strftime("%Y-%m-%d"),
            "words": [
                " ".join(rng.choice(["red", "old", "big", "new", "wet", "dry"], 6)) + f" {i}" for i in range(200)
            ],
        }
    )
    dataset = Dataset.from_arrays(frame, np.where(frame["number"] + frame["garden"] > 0.5, "yes", "no"))
    (family,) = resolve_families(["linear"])
    encoder, matrix = encode_dataset(dataset, family.matrix)
    data = EncodedData(matrix, dataset.y, dataset.task, dataset.n_classes, encoder.n_categorical_)
    member = Member(
        family.name, family.default_config, family.matrix, (fit_model(family, family.default_config, data=data),)
    )
    return save(make_predictor(dataset, (member,), encoders={family.matrix: encoder}), path)


def statuses(url: str) -> Counter[str]:
    """Answers so far by status, without those to this script."""
    text = urllib.request.urlopen(f"{url}/metrics", timeout=30).read().decode()
    found: Counter[str] = Counter()
    for status, count in re.findall(
        r'^autometa_requests_total\{path="[^"]*",status="(\d+)"\} (\S+)$', text, re.MULTILINE
    ):
        found[status] += int(float(count))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("n_requests", type=int, nargs="?", default=10_000)
    parser.add_argument("--schemathesis", default=shutil.which("schemathesis"), help="Its executable.")
    options = parser.parse_args()
    if options.schemathesis is None:
        sys.exit("schemathesis must be installed, or its executable given with --schemathesis.")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with tempfile.TemporaryDirectory() as home:
        model = make_model(Path(home) / "model")
        command = [sys.executable, "-m", "autometa.cli", "serve", str(model), "--port", url.rsplit(":", 1)[1]]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            bad = fuzz(url, process, options.schemathesis, options.n_requests, home)
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
        finally:
            process.kill()
    sys.exit(1 if bad else 0)


def fuzz(url: str, process: subprocess.Popen[bytes], schemathesis: str, n_requests: int, home: str) -> bool:
    """Rounds until enough answers were counted; whether anything went wrong. Schemathesis writes its files to home."""
    for _ in range(600):
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{url}/ready", timeout=5)
            break
        time.sleep(0.2)
    seen, seed, bad = statuses(url), 0, False
    while seen.total() < n_requests and process.poll() is None:
        command = [
            schemathesis, "run", f"{url}/openapi.json", "--seed", str(seed), "--max-examples", str(_ROUND_EXAMPLES),
            "--max-time", str(_ROUND_SECONDS), "--continue-on-failure", "--no-color", "--checks",
            "not_a_server_error,status_code_conformance,content_type_conformance", "--phases", "coverage,fuzzing",
            "--suppress-health-check", "all", "--exclude-path", "/metrics",
        ]  # fmt: skip
        run = subprocess.run(
            command, capture_output=True, text=True, timeout=10 * _ROUND_SECONDS, check=False, cwd=home
        )
        seen, seed = statuses(url), seed + 1
        memory = psutil.Process(process.pid).memory_info().rss / 1e6
        failures = re.findall(r"^- (?!.*Check)(.*)$", run.stdout, re.MULTILINE) if run.returncode else []
        bad = bad or run.returncode != 0 or any(status >= "500" for status in seen)
        print(f"round {seed}: {seen.total():6d} answers {dict(sorted(seen.items()))}, {memory:.0f} MB, "
              f"{Counter(failures).most_common(3)}", flush=True)  # fmt: skip
        if run.returncode:
            print(run.stdout[-4000:], flush=True)
    return bad or process.poll() is not None


if __name__ == "__main__":
    main()
