"""Wall-clock seconds of ``import autometa`` and of ``autometa select`` on a 10,000-row CSV, fresh processes.

Usage: python experiments/benchmarks/command_line.py [--repeats 5]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd


def table(n_rows: int = 10_000, n_numeric: int = 30) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(n_rows, n_numeric))).add_prefix("number_")
    frame["kind"] = rng.choice(list("abcdef"), n_rows)
    frame["gaps"] = np.where(rng.random(n_rows) < 0.1, np.nan, rng.normal(size=n_rows))
    signal = frame["number_0"] + frame["number_1"] * frame["number_2"] + rng.normal(size=n_rows)
    return frame.assign(y=np.where(signal > 0, "yes", "no"))


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    repeats = parser.parse_args().repeats
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.csv"
        table().to_csv(path, index=False)
        select = [sys.executable, "-m", "autometa.cli", "select", str(path), "--target", "y"]
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "import autometa": [sys.executable, "-c", "import autometa"],
            "autometa select, 10,000 x 32": select,
        }
        print(f"{'command':32s} min      median   max      (seconds)")
        for name, command in commands.items():
            times = [seconds(command) for _ in range(repeats)]
            print(f"{name:32s} {min(times):.3f}    {statistics.median(times):.3f}    {max(times):.3f}")


if __name__ == "__main__":
    main()
