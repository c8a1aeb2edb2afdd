"""Counters for Prometheus, of one process or, where PROMETHEUS_MULTIPROC_DIR is set, of all workers together."""

from __future__ import annotations

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 256, 1024, 10_000)


class ServiceMetrics:
    """What a service counts. Each application has a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "autometa_requests", "Answers by path and status.", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "autometa_request_seconds", "Seconds to an answer.", ["path"], buckets=_SECONDS, registry=self.registry
        )
        self.rows = Counter("autometa_predicted_rows", "Rows predicted.", registry=self.registry)
        self.batches = Histogram(
            "autometa_batch_rows", "Rows predicted together.", buckets=_ROWS, registry=self.registry
        )
        self.version = Gauge(
            "autometa_model_version", "Version that serves.", registry=self.registry, multiprocess_mode="max"
        )

    def text(self) -> bytes:
        """The exposition format of Prometheus."""
        if FOLDER_VARIABLE not in os.environ:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        MultiProcessCollector(together)  # type: ignore[no-untyped-call]
        return generate_latest(together)

    @staticmethod
    def forget_process() -> None:
        """Take the gauges of this process out of the common numbers, when it ends."""
        if FOLDER_VARIABLE in os.environ:
            mark_process_dead(os.getpid())  # type: ignore[no-untyped-call]
