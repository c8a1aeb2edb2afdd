"""How much memory a task takes, how much is free, and an end to tasks that take too much."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

OUT_OF_MEMORY = 87
"""Exit code of a process that :func:`memory_guard` has ended."""

_POLL_SECONDS = 0.05
_MB = 2**20


@dataclass
class MemoryPeak:
    """Highest resident memory seen above the level at the start, in MB."""

    mb: float = 0.0


@contextlib.contextmanager
def memory_guard(limit_mb: float | None = None) -> Iterator[MemoryPeak]:
    """Watch this worker's resident memory, and end the process if it grows by more than ``limit_mb``.

    A thread of the worker looks every 50 ms. It needs the interpreter lock, so native code that holds the lock
    delays it. On Linux the kernel keeps the highest level; elsewhere growth between two looks stays unseen.
    """
    process, peak, lock, done = psutil.Process(), MemoryPeak(), threading.Lock(), threading.Event()
    kept = _forget_earlier_memory()
    idle = process.memory_info().rss

    def look() -> None:
        highest = _highest_resident() if kept else process.memory_info().rss
        peak.mb = max(peak.mb, (highest - idle) / _MB)
        if limit_mb is not None and peak.mb > limit_mb:
            os._exit(OUT_OF_MEMORY)

    def watch() -> None:
        while not done.wait(_POLL_SECONDS):
            with lock:  # never die while the result is on its way: a half-sent one would block the pool
                if not done.is_set():
                    look()

    threading.Thread(target=watch, name="autometa-memory", daemon=True).start()
    try:
        yield peak
    finally:
        with lock:
            look()
            done.set()


def _forget_earlier_memory() -> bool:
    """Give freed memory back to the system and restart the kernel's record of the highest level (Linux with glibc).

    Without it a task that needs no more than an earlier one left behind would seem to need nothing. False where the
    kernel keeps no such record. Source: proc_pid_clear_refs(5), malloc_trim(3).
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        return _highest_resident() > 0
    return False


def _highest_resident() -> int:
    """The kernel's record of the highest resident memory, in bytes; 0 where there is none."""
    mark = re.search(r"^VmHWM:\s*(\d+) kB$", Path("/proc/self/status").read_text(encoding="ascii"), re.MULTILINE)
    return int(mark[1]) * 1024 if mark else 0


def free_memory_mb() -> float:
    """Memory that can be taken without swapping, in MB: of the machine, or of the container where that is less."""
    free = float(psutil.virtual_memory().available)
    folder = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # no container, or "max"
        limit, used = ((folder / name).read_text() for name in ("memory.max", "memory.current"))
        cached = re.search(r"^inactive_file (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
        free = min(free, float(limit) - float(used) + (float(cached[1]) if cached else 0.0))
    return max(0.0, free) / _MB
