"""Requests per second and latency of a served model: `autometa serve` and its clients on the same machine.

    OMP_NUM_THREADS=1 python experiments/benchmarks/serving.py [MODEL ...] [--seconds 30] [--connections 16]
        [--workers 1]

Without a model, those of ``serving_latency.py`` are fitted (lightgbm and "default", an ensemble of four). Each
connection sends one-row JSON requests one after the other over loopback, keep-alive, written and read by asyncio
without a client library, so that the client takes little of the two cores. Also printed: how many rows were predicted
together on average, CPU seconds of server and client for each request, and the growth of the server's memory between
a tenth of the time and the end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
from serving_latency import ENSEMBLE, fit, table

from autometa.persistence import save


@contextlib.contextmanager
def server(model: Path, workers: int) -> Iterator[tuple[int, psutil.Process]]:
    """A served model; its port and process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "autometa.cli",
        "serve",
        str(model),
        "--port",
        str(port),
        "--workers",
        str(workers),
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=5)
                break
            time.sleep(0.2)
        yield port, psutil.Process(process.pid)
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=60)
    finally:
        process.kill()


async def connection(port: int, body: bytes, stop: float, times: list[float]) -> None:
    """One-row requests one after the other until ``stop``."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
    request = f"{head}{len(body)}\r\n\r\n".encode() + body
    while time.perf_counter() < stop:
        start = time.perf_counter()
        writer.write(request)
        answer = await reader.readuntil(b"\r\n\r\n")
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"The answer must be 200. Got {answer[:60]!r}.")
        length = int(answer.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        times.append(time.perf_counter() - start)
    writer.close()


async def load(port: int, n_connections: int, seconds: float) -> list[float]:
    rows = table(n_connections).to_dict(orient="records")
    times: list[float] = []
    stop = time.perf_counter() + seconds
    await asyncio.gather(*(connection(port, json.dumps(row).encode(), stop, times) for row in rows))
    return times


def usage(process: psutil.Process) -> tuple[float, float]:
    """CPU seconds and megabytes of a process and its children."""
    everyone = [process, *process.children(recursive=True)]
    cpu = sum(sum(one.cpu_times()[:2]) for one in everyone)
    return cpu, sum(one.memory_info().rss for one in everyone) / 1e6


def batch_rows(port: int) -> float:
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    return float(values["autometa_batch_rows_sum"]) / float(values["autometa_batch_rows_count"])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", type=Path, nargs="*")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as home:
        models = options.models or [
            save(fit(ENSEMBLE if name == "default" else (name,)), Path(home) / name) for name in ("lightgbm", "default")
        ]
        print(f"load average before: {os.getloadavg()[0]:.1f}")
        print(f"{'model':20}{'per s':>8}{'p50 ms':>8}{'p99 ms':>8}{'max':>8}{'batch':>7}{'server':>8}{'client':>8}"
              f"{'MB':>7}{'growth':>8}")  # fmt: skip
        for model in models:
            with server(model, options.workers) as (port, process):
                asyncio.run(load(port, options.connections, options.seconds / 10))
                cpu, memory = usage(process)
                own = resource.getrusage(resource.RUSAGE_SELF)
                times = np.array(asyncio.run(load(port, options.connections, options.seconds))) * 1e3
                spent, later = usage(process)
                now = resource.getrusage(resource.RUSAGE_SELF)
                client = now.ru_utime + now.ru_stime - own.ru_utime - own.ru_stime
                p50, p99 = np.quantile(times, (0.5, 0.99))
                print(f"{model.name:20}{len(times) / options.seconds:8.0f}{p50:8.1f}{p99:8.1f}{times.max():8.0f}"
                      f"{batch_rows(port):7.1f}{1e3 * (spent - cpu) / len(times):8.2f}{1e3 * client / len(times):8.2f}"
                      f"{later:7.0f}{later - memory:8.1f}", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
