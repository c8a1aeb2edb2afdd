"""Ctrl-C at a bad moment is heard a moment later."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Hold a SIGINT that arrives inside the block back until its end.

    An exception between any two instructions of :class:`threading.Condition` loses a notification, after which a
    thread waits for ever. Only the main thread receives signals, so elsewhere this does nothing.

    Examples
    --------
    >>> with interrupts_deferred():
    ...     pass
    """
    previous = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(previous):
        yield
        return
    held: list[tuple[int, Any]] = []
    signal.signal(signal.SIGINT, lambda number, frame: held.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if held:
            previous(*held[0])
