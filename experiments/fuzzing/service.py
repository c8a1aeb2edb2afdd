"""Fuzzed requests to a served model: nothing may end in a 5xx, and memory stays flat.

    pip install schemathesis   # into an environment of its own; it needs nothing of this library
    OMP_NUM_THREADS=1 python experiments/fuzzing/service.py [n_requests] [--bodies N] [--schemathesis PATH]

The model reads numbers, categories, booleans, dates and text, and may be adapted by the requests themselves. First
hypothesis posts N bodies (see ``bodies.py``); then rounds of schemathesis, which reads the OpenAPI document, follow
each other with different seeds until the service has counted ``n_requests`` answers in all. After each round stand the
answers by status and the resident memory of the service. The exit status is 1 after a 5xx, an answer that is not
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
import traceback
import urllib.request
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
from bodies import fuzz_bodies

from autometa.data import Dataset
from autometa.families import resolve_families
from autometa.fitting import EncodedData, fit_model
from autometa.persistence import save
from autometa.predictor import Member, make_predictor
from autometa.preprocessing import encode_dataset

_ROUND_EXAMPLES = 120
_ROUND_SECONDS = 60
_ROUND_BODIES = 500


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
    parser.add_argument("--bodies", type=int, default=5_000, help="How many of them hypothesis writes.")
    options = parser.parse_args()
    if options.schemathesis is None and options.n_requests > options.bodies:
        sys.exit("schemathesis must be installed, or its executable given with --schemathesis.")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    with tempfile.TemporaryDirectory() as home:
        model = make_model(Path(home) / "model")
        command = [sys.executable, "-m", "autometa.cli", "serve", str(model), "--port", url.rsplit(":", 1)[1]]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_until_ready(url)
            bad = post_bodies(url, process, options.bodies)
            bad = bad or fuzz(url, process, options.schemathesis, options.n_requests, home)
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=60)
        finally:
            process.kill()
    sys.exit(1 if bad else 0)


def wait_until_ready(url: str) -> None:
    for _ in range(600):
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{url}/ready", timeout=5)
            return
        time.sleep(0.2)


def resident_megabytes(process: subprocess.Popen[bytes]) -> float:
    return float(psutil.Process(process.pid).memory_info().rss / 1e6)


def post_bodies(url: str, process: subprocess.Popen[bytes], n_requests: int) -> bool:
    """Rounds of hypothesis; whether anything went wrong."""
    for start in range(0, n_requests, _ROUND_BODIES):
        before = resident_megabytes(process)
        try:
            found = fuzz_bodies(url, min(_ROUND_BODIES, n_requests - start), first_seed=start)
        except Exception:  # hypothesis has noted the smallest request that fails
            traceback.print_exc()
            return True
        print(f"bodies {start + found.total():6d}: {dict(sorted(found.items()))}, "
              f"{before:.0f} -> {resident_megabytes(process):.0f} MB", flush=True)  # fmt: skip
    return process.poll() is not None


def fuzz(url: str, process: subprocess.Popen[bytes], schemathesis: str, n_requests: int, home: str) -> bool:
    """Rounds until enough answers were counted; whether anything went wrong. Schemathesis writes its files to home."""
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
        memory = resident_megabytes(process)
        failures = re.findall(r"^- (?!.*Check)(.*)$", run.stdout, re.MULTILINE) if run.returncode else []
        bad = bad or run.returncode != 0 or any(status >= "500" for status in seen)
        print(f"round {seed}: {seen.total():6d} answers {dict(sorted(seen.items()))}, {memory:.0f} MB, "
              f"{Counter(failures).most_common(3)}", flush=True)  # fmt: skip
        if run.returncode:
            print(run.stdout[-4000:], flush=True)
    return bad or process.poll() is not None


if __name__ == "__main__":
    main()
