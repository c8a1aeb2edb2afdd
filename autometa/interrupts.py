"""Ctrl-C at a bad moment is heard a moment later."""

from __future__ import annotations

import contextlib
import math
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any

_HEARD_EVERY = 0.1


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


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Within, SIGTERM does what Ctrl-C does. Only in the main thread; the previous handler comes back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        if not callable(signal.getsignal(signal.SIGINT)):
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)  # whose handler waits where an exception would do harm

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if previous is None else previous)


def wait_for_first(futures: Iterable[Future[Any]], timeout: float | None = None) -> tuple[set[Any], set[Any]]:
    """:func:`concurrent.futures.wait` for the first to be done, in which Ctrl-C does no harm.

    The original takes the locks of all futures; an exception in between leaves some locked, and whoever sets their
    results waits for ever. Here Ctrl-C is heard every tenth of a second.

    Parameters
    ----------
    futures : iterable of Future
    timeout : float or None
        Seconds; ``None`` waits for ever.

    Returns
    -------
    done, late : set of Future
        ``done`` is empty when the time is up.

    Examples
    --------
    >>> future = Future()
    >>> future.set_result(1)
    >>> done, late = wait_for_first([future])
    >>> len(done), len(late)
    (1, 0)
    """
    futures = set(futures)
    end = math.inf if timeout is None else time.monotonic() + timeout
    while True:
        left = max(0.0, end - time.monotonic())
        with interrupts_deferred():
            done, late = wait(futures, timeout=min(_HEARD_EVERY, left), return_when=FIRST_COMPLETED)
        if done or not late or left <= _HEARD_EVERY:
            return done, late
