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


class _Deferral:
    """What the main thread's blocks of :func:`interrupts_deferred` hold back, and the handler outside of them."""

    depth = 0
    held: tuple[int, Any] | None = None
    outside: Any = None

    def hold(self, number: int, frame: Any) -> None:
        """Keep an interrupt for later; a second one is not kept waiting."""
        again, self.held = self.held is not None, (signal.SIGINT, frame)
        if again:
            self.deliver()

    def deliver(self) -> None:
        """Let what is held be heard now."""
        if self.held is not None:
            heard, self.held = self.held, None
            if not callable(self.outside):
                raise KeyboardInterrupt
            self.outside(*heard)


_deferral = _Deferral()


@contextlib.contextmanager
def interrupts_deferred() -> Iterator[None]:
    """Hold an interrupt that arrives inside the block back until its end, or until :func:`wait_for_first` hears it.

    An exception between any two instructions of :class:`threading.Condition` loses a notification or leaves a lock
    behind, after which a thread waits for ever: whoever waits for futures in the main thread does so in such a block.
    Only the main thread receives signals, so elsewhere this does nothing. A second interrupt is heard at once.

    Examples
    --------
    >>> with interrupts_deferred():
    ...     pass
    """
    if threading.current_thread() is not threading.main_thread() or _deferral.depth:
        yield
        return
    previous = _deferral.outside = signal.getsignal(signal.SIGINT)
    _deferral.depth = 1
    if callable(previous):
        signal.signal(signal.SIGINT, _deferral.hold)
    try:
        yield
    finally:
        if callable(previous):
            signal.signal(signal.SIGINT, previous)
        _deferral.depth = 0
        _deferral.deliver()


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Within, SIGTERM does what Ctrl-C does. Only in the main thread; the previous handler comes back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        if _deferral.depth:
            _deferral.hold(number, frame)
        elif callable(signal.getsignal(signal.SIGINT)):
            signal.raise_signal(signal.SIGINT)
        else:
            raise KeyboardInterrupt

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
        if threading.current_thread() is threading.main_thread():
            _deferral.deliver()
        if done or not late or left <= _HEARD_EVERY:
            return done, late
