"""Worker processes that stay warm and can be killed one at a time.

The pool is pebble's, whose tasks can be killed alone; its processes are started by joblib's loky, which neither forks
nor imports the caller's main module. So it works from a script without a main guard, from a notebook and from
standard input. Functions and arguments travel as cloudpickle bytes, tables as files that every worker maps once.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future, InvalidStateError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cache
from multiprocessing.util import Finalize
from typing import Any

import cloudpickle
from joblib.externals.loky.backend.context import LokyContext
from joblib.externals.loky.backend.process import LokyProcess
from pebble import ProcessExpired, ProcessPool

from autometa.exceptions import AutometaError
from autometa.interrupts import interrupts_deferred, wait_for_first
from autometa.records import Status
from autometa.resident_memory import OUT_OF_MEMORY
from autometa.shared_files import SharedFile, SharedFolder

WARM_MODULES = (
    "pandas",
    "sklearn.ensemble",
    "sklearn.linear_model",
    "sklearn.naive_bayes",
    "sklearn.neighbors",
    "sklearn.svm",
    "lightgbm",
)
"""What every worker imports before its first task. Heavier ones (torch) come with :meth:`WorkerPool.warm_up`."""

THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)


@dataclass(frozen=True)
class Failure:
    """Why a task has no result: ``TIMEOUT``, ``MEMORY`` or ``FAILED``, and the reason in one sentence."""

    status: Status
    reason: str


class WorkerError(AutometaError, RuntimeError):
    """A task in a worker process has no result; ``failure`` says why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


class TaskFuture(Future[Any]):
    """The coming result of a task. Cancelling it while it runs kills its worker, which is then replaced."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self._inner = inner

    def cancel(self) -> bool:
        with interrupts_deferred():
            if self.cancelled():
                return True
            if not super().cancel():
                return False
            self.set_running_or_notify_cancel()  # tells concurrent.futures.wait
            self._inner.cancel()
        return True


class _WorkerContext(LokyContext):
    """Starts loky processes with an environment, which native libraries read when they are loaded."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment

    def Process(self, *args: Any, **kwargs: Any) -> LokyProcess:  # noqa: N802
        return LokyProcess(*args, env=self._environment, **kwargs)


class WorkerPool:
    """Processes that run one task each, persist over tasks and are replaced when they die.

    They start and import in the background as soon as the pool is made. Close the pool, or use it in ``with``.

    Parameters
    ----------
    n_workers : int, default=1
    n_threads : int, default=1
        Native threads (OpenMP, BLAS) that a worker starts with.
    modules : iterable of str
        Imported by every worker before its first task.

    Examples
    --------
    >>> with WorkerPool(1, modules=()) as pool:
    ...     pool.submit(pow, 2, 5).result()
    32
    """

    def __init__(self, n_workers: int = 1, *, n_threads: int = 1, modules: Iterable[str] = WARM_MODULES) -> None:
        if n_workers < 1 or n_threads < 1:
            raise ValueError(f"n_workers and n_threads must be at least 1. Got {n_workers} and {n_threads} instead.")
        self.n_workers = n_workers
        self.n_threads = n_threads
        self._modules = list(dict.fromkeys(modules))
        self._lock = threading.RLock()
        self._futures: weakref.WeakSet[TaskFuture] = weakref.WeakSet()
        self._files = SharedFolder()
        self._closed = False
        self._pool = self._start()

    def submit(
        self,
        function: Callable[..., Any],
        *args: Any,
        time_limit: float | None = None,
        finish: Callable[[Any], Any] | None = None,
    ) -> TaskFuture:
        """Run ``function(*args)`` in a worker.

        Parameters
        ----------
        function : callable
            Anything that cloudpickle can carry, also from a script or a notebook.
        time_limit : float or None
            Seconds from the moment a worker takes the task; then the worker is killed.
        finish : callable or None
            Called in this process with the value or a :class:`Failure`; what it returns is the future's result.

        Returns
        -------
        TaskFuture
            Without ``finish``, a failure is raised as :class:`WorkerError`.
        """
        payload = cloudpickle.dumps((function, args))
        seconds = None if time_limit is None else max(time_limit, 1e-3)  # pebble reads 0 as no limit
        with interrupts_deferred(), self._lock:
            inner = self._running_pool().schedule(_run, args=(payload,), timeout=seconds)
            future = TaskFuture(inner)
            self._futures.add(future)
            inner.add_done_callback(lambda done: _settle(future, done, time_limit, finish))
        return future

    def run(self, function: Callable[..., Any], *args: Any, time_limit: float | None = None) -> Any:
        """Run ``function(*args)`` in a worker and wait for it; whatever ends the wait early kills the worker.

        Raises
        ------
        TimeoutError
            There is no answer after ``time_limit`` seconds, counted from now.
        WorkerError
            The task failed.
        """
        with interrupts_deferred():
            future = self.submit(function, *args, time_limit=time_limit)
            try:
                wait_for_first([future], time_limit)
                return future.result(0)
            finally:
                future.cancel()

    def warm_up(self, modules: Iterable[str]) -> None:
        """Import further modules in every worker, and in each one that replaces it. Does not wait."""
        with interrupts_deferred(), self._lock:
            new = [module for module in dict.fromkeys(modules) if module not in self._modules]
            if new:
                self._modules.extend(new)
                for _ in range(self.n_workers):
                    self.submit(_import, new)

    def share(self, value: Any) -> SharedFile:
        """Write an array or an object to a file that every worker reads once (arrays are mapped, not copied)."""
        with interrupts_deferred(), self._lock:
            return self._files.share(value)

    def new_file(self, suffix: str = "") -> SharedFile:
        """A name in the pool's folder that is not in use; nothing is written."""
        with interrupts_deferred(), self._lock:
            return self._files.new_file(suffix)

    @property
    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        """Cancel what runs, end the processes and remove the files. Closing twice is fine."""
        with interrupts_deferred():
            with self._lock:
                if self._closed:
                    return
                self._closed = True
            for future in list(self._futures):
                future.cancel()
            self._pool.stop()
            self._pool.join()
            self._files.cleanup()

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"WorkerPool(n_workers={self.n_workers}, n_threads={self.n_threads})"

    def _start(self) -> Any:
        environment = dict.fromkeys(THREAD_VARIABLES, str(self.n_threads))
        pool: Any = ProcessPool(
            max_workers=self.n_workers,
            initializer=_initialize,
            initargs=(os.getpid(), self._modules),  # the list itself: replaced workers see what warm_up added
            context=_WorkerContext(environment),
        )
        assert pool.active  # asking starts the processes
        return pool

    def _running_pool(self) -> Any:
        """Pebble gives up its pool when an idle worker is killed from outside; a new one takes over."""
        if self._closed:
            raise RuntimeError("The worker pool is closed. Make a new WorkerPool.")
        if not self._pool.active:
            self._pool.stop()
            self._pool.join()
            self._pool = self._start()
        return self._pool


def shared_workers(n_workers: int = 1, *, purpose: str = "trials") -> WorkerPool:
    """The process-wide pool of this size and purpose, started on the first call and closed when the interpreter ends.

    A second purpose keeps a warm worker at hand while those of the first are busy or being replaced.
    """
    with _SHARED_LOCK:
        pool = _shared_pool(n_workers, purpose, os.getpid())
        if pool.closed:
            _shared_pool.cache_clear()
            pool = _shared_pool(n_workers, purpose, os.getpid())
        return pool


_SHARED_LOCK = threading.Lock()


@cache
def _shared_pool(n_workers: int, purpose: str, owner: int) -> WorkerPool:
    # by owner: a forked child must not use the parent's
    pool = WorkerPool(n_workers)
    # Not atexit: a worker of joblib ends without it, and would wait for ever for the processes of its pool.
    Finalize(None, lambda: pool.close() if os.getpid() == owner else None, exitpriority=100)
    return pool


def _initialize(parent: int, modules: list[str]) -> None:
    """First thing in a worker: die at once when told to, die with the parent, import."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # pebble's handler would wait for native code to return
    end_with_parent(parent)
    _import(modules)


@cache
def end_with_parent(parent: int) -> None:
    """End this process as soon as ``parent`` is not, or no longer, its parent."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, name="autometa-parent", daemon=True).start()


def _import(modules: Iterable[str]) -> None:
    for module in modules:
        with contextlib.suppress(Exception):  # a missing or broken package shows where it is used
            importlib.import_module(module)


def _run(payload: bytes) -> bytes:
    """The task in the worker. Errors travel as text: not every exception survives pickling."""
    try:
        function, args = cloudpickle.loads(payload)
        return bytes(cloudpickle.dumps(function(*args)))
    except Exception as error:
        status = Status.MEMORY if isinstance(error, MemoryError) else Status.FAILED
        return bytes(cloudpickle.dumps(Failure(status, one_line(error))))


def one_line(error: BaseException, most: int = 300) -> str:
    """Type and message of an error as one line of text."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:most]}" if text else type(error).__name__


def _settle(
    future: TaskFuture, inner: Future[bytes], time_limit: float | None, finish: Callable[[Any], Any] | None
) -> None:
    """Hand the outcome of pebble's future on to ours, unless that was cancelled."""
    try:
        outcome = _outcome(inner, time_limit)
    except CancelledError:
        future.cancel()
        return
    error: Exception | None = None
    try:
        if finish is not None:
            outcome = finish(outcome)
        elif isinstance(outcome, Failure):
            error = WorkerError(outcome)
    except Exception as raised:
        error = raised
    with contextlib.suppress(InvalidStateError):  # cancelled in the meantime
        if error is None:
            future.set_result(outcome)
        else:
            future.set_exception(error)


def _outcome(inner: Future[bytes], time_limit: float | None) -> Any:
    """Value of a task or a Failure; CancelledError when it was cancelled."""
    try:
        return cloudpickle.loads(inner.result())
    except CancelledError:
        raise
    except TimeoutError:
        return Failure(Status.TIMEOUT, f"It did not finish within the time limit of {time_limit:g} seconds.")
    except ProcessExpired as error:
        return _expired(error.exitcode)
    except BrokenProcessPool as error:
        return Failure(Status.FAILED, f"The worker processes broke down: {one_line(error)}")
    except Exception as error:
        return Failure(Status.FAILED, one_line(error))


def _expired(exit_code: int) -> Failure:
    if exit_code == OUT_OF_MEMORY:
        return Failure(Status.MEMORY, "It needed more memory than the limit allows.")
    if exit_code == -getattr(signal, "SIGKILL", 9):
        return Failure(Status.MEMORY, "The worker was killed by the system, most likely because memory ran out.")
    if exit_code < 0:
        return Failure(Status.FAILED, f"The worker crashed with signal {-exit_code}.")
    return Failure(Status.FAILED, f"The worker ended by itself with exit code {exit_code}.")
