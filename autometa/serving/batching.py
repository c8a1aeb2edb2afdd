"""Requests that arrive while a prediction runs are predicted together when it ends: no waiting, no timer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from autometa.serving.problems import RequestProblem

T = TypeVar("T")
R = TypeVar("R")
_MAX_WAITING = 1_024


@dataclass(frozen=True, eq=False)
class _Job(Generic[T, R]):
    item: T
    size: int
    answer: asyncio.Future[R] = field(repr=False)


class Batcher(Generic[T, R]):
    """One thread that works, and a queue before it.

    Parameters
    ----------
    work : callable
        ``work(items) -> answers``, one per item; an answer that is an exception is raised to whoever asked. Runs in
        a thread of its own, never twice at a time.
    max_size : int
        Items are put together up to this total size; a larger item runs alone.
    """

    def __init__(self, work: Callable[[Sequence[T]], Sequence[R | Exception]], *, max_size: int) -> None:
        self._work, self._max_size = work, max_size
        self._queue: asyncio.Queue[_Job[T, R]] = asyncio.Queue(_MAX_WAITING)
        self._held: _Job[T, R] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="autometa-predict")
        self._runner: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to work; called inside the event loop."""
        self._runner = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Answer what is queued, then end."""
        await self._queue.join()
        if self._runner is not None:
            self._runner.cancel()
        self._thread.shutdown(wait=True)

    async def ask(self, item: T, *, size: int = 1, timeout_seconds: float) -> R:
        """The answer to one item.

        Raises
        ------
        RequestProblem
            429 where too many wait, 408 where the time is over.
        """
        job: _Job[T, R] = _Job(item, size, asyncio.get_running_loop().create_future())
        try:
            self._queue.put_nowait(job)
            return await asyncio.wait_for(job.answer, timeout_seconds)
        except asyncio.QueueFull:
            raise RequestProblem(429, "Too many requests are waiting. Try again in a moment.") from None
        except TimeoutError:
            raise RequestProblem(408, f"The answer took longer than {timeout_seconds:g} s: send fewer rows.") from None

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            jobs = await self._next_jobs()
            wanted = [job for job in jobs if not job.answer.done()]
            try:
                items = [job.item for job in wanted]
                answers = await loop.run_in_executor(self._thread, self._work, items) if items else []
            except Exception as error:
                answers = [error] * len(wanted)
            for job, answer in zip(wanted, answers, strict=True):
                if job.answer.done():
                    continue
                if isinstance(answer, Exception):
                    job.answer.set_exception(answer)
                else:
                    job.answer.set_result(answer)
            for _ in jobs:
                self._queue.task_done()

    async def _next_jobs(self) -> list[_Job[T, R]]:
        jobs = [self._held or await self._queue.get()]
        self._held, size = None, jobs[0].size
        while not self._queue.empty():
            job = self._queue.get_nowait()
            if size + job.size > self._max_size:
                self._held = job
                break
            jobs.append(job)
            size += job.size
        return jobs
