"""The worker pool: tasks end, are killed or crash alone, and nothing stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import psutil
import pytest
from waiting import wait_until

from autometa.records import Status
from autometa.resident_memory import memory_guard
from autometa.workers import Failure, WorkerError, WorkerPool, shared_workers


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    with WorkerPool(1, modules=()) as pool:
        yield pool


def sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


def grow(limit_mb: float) -> None:
    with memory_guard(limit_mb):
        kept = []
        for _ in range(200):
            kept.append(np.ones(1_000_000))
            time.sleep(0.01)


def write_pid_and_sleep(path: str) -> None:
    Path(path).write_text(str(os.getpid()))
    time.sleep(300)


def test_values_and_closures_travel(pool):
    factor = 3
    assert pool.submit(lambda x: factor * x, 14).result() == 42


def test_a_worker_persists_over_tasks(pool):
    assert pool.submit(os.getpid).result() == pool.submit(os.getpid).result()
    assert pool.submit(os.getpid).result() != os.getpid()


def test_an_error_is_told_in_one_sentence(pool):
    class Odd(Exception):
        def __init__(self, a, b):  # cannot be unpickled from its message
            super().__init__(f"{a}\n{b}")

    def fail():
        raise Odd("first", "second")

    with pytest.raises(WorkerError, match=r"^Odd: first second$") as caught:
        pool.submit(fail).result()
    assert caught.value.failure.status is Status.FAILED
    assert pool.submit(pow, 2, 3).result() == 8


def test_a_memory_error_is_a_memory_failure(pool):
    def fail():
        raise MemoryError

    assert pool.submit(fail, finish=lambda outcome: outcome).result() == Failure(Status.MEMORY, "MemoryError")


def test_finish_turns_the_outcome_into_the_result(pool):
    assert pool.submit(pow, 2, 3, finish=lambda value: value + 1).result() == 9


def test_the_time_limit_kills_native_code_and_the_worker_is_replaced(pool):
    before = pool.submit(os.getpid).result()
    started = time.monotonic()
    slow_match = "__import__('re').match(r'(a+)+$', 'a' * 60 + 'b')"  # years inside one call that keeps the lock
    outcome = pool.submit(eval, slow_match, time_limit=0.5, finish=lambda outcome: outcome).result()
    assert time.monotonic() - started < 60
    assert outcome.status is Status.TIMEOUT
    assert "0.5 seconds" in outcome.reason
    assert pool.submit(os.getpid).result() != before
    assert not psutil.pid_exists(before)


@pytest.mark.parametrize("time_limit", [0.0, -1.0])
def test_no_time_left_is_a_timeout(pool, time_limit):
    outcome = pool.submit(sleep, 5.0, time_limit=time_limit, finish=lambda outcome: outcome).result()
    assert outcome.status is Status.TIMEOUT


def test_a_crash_has_a_status(pool):
    exits = pool.submit(os._exit, 3, finish=lambda outcome: outcome).result()
    assert exits == Failure(Status.FAILED, "The worker ended by itself with exit code 3.")
    crashes = pool.submit(lambda: os.kill(os.getpid(), signal.SIGSEGV), finish=lambda outcome: outcome).result()
    assert crashes.status is Status.FAILED
    assert "signal 11" in crashes.reason
    killed = pool.submit(lambda: os.kill(os.getpid(), signal.SIGKILL), finish=lambda outcome: outcome).result()
    assert killed.status is Status.MEMORY
    assert pool.submit(pow, 2, 3).result() == 8


def test_the_memory_limit_ends_the_worker(pool):
    outcome = pool.submit(grow, 100.0, finish=lambda outcome: outcome).result()
    assert outcome.status is Status.MEMORY
    assert pool.submit(pow, 2, 3).result() == 8


def test_the_memory_guard_sees_the_peak():
    with memory_guard() as peak:
        block = np.ones(8_000_000)
        time.sleep(0.2)
        del block
    assert 50 < peak.mb < 500


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux keeps the highest level")
def test_the_memory_guard_sees_again_what_an_earlier_task_has_freed():
    peaks = []
    for _ in range(2):
        with memory_guard() as peak:
            blocks = [np.ones(1024) for _ in range(4000)]  # small enough for the allocator to keep
            del blocks
        peaks.append(peak.mb)
    assert all(25 < mb < 60 for mb in peaks)


def test_cancelling_a_running_task_kills_its_worker(pool, tmp_path):
    path = tmp_path / "pid"
    future = pool.submit(write_pid_and_sleep, str(path))
    assert wait_until(lambda: path.exists() and path.read_text())
    assert future.cancel()
    assert future.cancel()
    assert wait_until(lambda: not psutil.pid_exists(int(path.read_text())))
    with pytest.raises(CancelledError):
        future.result()
    assert pool.submit(pow, 2, 3).result() == 8


def test_an_idle_worker_that_is_killed_from_outside_is_replaced(pool):
    worker = pool.submit(os.getpid).result()
    os.kill(worker, signal.SIGKILL)
    assert wait_until(lambda: not psutil.pid_exists(worker))
    time.sleep(0.2)
    assert pool.submit(os.getpid).result() != worker


def test_only_the_worker_of_the_killed_task_dies():
    with WorkerPool(2, modules=()) as pool:
        long = pool.submit(sleep, 2.0)
        short = pool.submit(sleep, 30.0, time_limit=0.5, finish=lambda outcome: outcome)
        assert short.result().status is Status.TIMEOUT
        assert long.result() == 2.0


def test_arrays_are_mapped_once_and_their_files_go(pool):
    array = np.arange(12.0).reshape(3, 4)
    shared = pool.share(array)
    path = Path(shared.path)

    def look(file):
        values = file.load()
        return float(values.sum()), values.flags.writeable, file.load() is values

    assert pool.submit(look, shared).result() == (66.0, False, True)
    assert pool.share(np.zeros((3, 0))).load().shape == (3, 0)
    assert path.exists()
    del shared
    assert wait_until(lambda: not path.exists())


def test_warm_up_imports_in_the_background_and_in_replacements(pool):
    assert not pool.submit(lambda: "wave" in sys.modules).result()
    pool.warm_up(["wave", "no_such_module"])
    assert pool.submit(lambda: "wave" in sys.modules).result()
    pool.submit(os._exit, 1, finish=lambda outcome: outcome).result()
    assert pool.submit(lambda: "wave" in sys.modules).result()


def test_workers_run_one_native_thread(pool):
    assert pool.submit(lambda: os.environ.get("OMP_NUM_THREADS")).result() == "1"


def test_run_waits_and_gives_up_in_time(pool):
    assert pool.run(pow, 2, 3) == 8
    worker = pool.run(os.getpid)
    with pytest.raises((TimeoutError, WorkerError)):
        pool.run(sleep, 60.0, time_limit=0.2)
    assert wait_until(lambda: not psutil.pid_exists(worker))


def test_a_task_may_return_nothing(pool):
    assert pool.submit(lambda: None).result() is None


def test_closing_cancels_ends_and_cleans():
    pool = WorkerPool(1, modules=())
    worker, folder = pool.submit(os.getpid).result(), Path(pool.share(np.ones(3)).path).parent
    running = pool.submit(sleep, 60.0)
    pool.close()
    pool.close()
    assert pool.closed
    assert running.cancelled()
    assert not psutil.pid_exists(worker)
    assert not folder.exists()
    with pytest.raises(RuntimeError, match="is closed"):
        pool.submit(pow, 2, 3)


def test_shared_workers_are_one_pool_per_size():
    first = shared_workers(1)
    assert shared_workers(1) is first
    first.close()
    second = shared_workers(1)
    assert second is not first
    second.close()


@pytest.mark.parametrize("n_workers", [0, -1])
def test_a_pool_needs_a_worker(n_workers):
    with pytest.raises(ValueError, match="at least 1"):
        WorkerPool(n_workers)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_an_interrupted_or_killed_parent(tmp_path, number):
    pid_file = tmp_path / "pid"
    code = f"""
        import os, time
        from autometa.workers import WorkerPool
        def work():
            open({str(pid_file)!r}, "w").write(str(os.getpid()))
            time.sleep(300)
        pool = WorkerPool(1, modules=())
        pool.submit(work).result()
    """
    parent = subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stderr=subprocess.DEVNULL)
    assert wait_until(lambda: pid_file.exists() and pid_file.read_text())
    children = psutil.Process(parent.pid).children(recursive=True)
    assert int(pid_file.read_text()) in {child.pid for child in children}
    parent.send_signal(number)
    assert parent.wait(timeout=60) != 0
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not alive


@pytest.mark.parametrize("from_stdin", [False, True])
def test_the_main_module_runs_once(tmp_path, from_stdin):
    code = """
        print("main runs")
        from autometa.workers import WorkerPool
        class Mine:
            def double(self):
                return 2 * factor
        factor = 21
        with WorkerPool(1, modules=()) as pool:
            print(pool.submit(Mine().double).result())
    """
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(code))
    arguments = [sys.executable, "-" if from_stdin else str(script)]
    source = script.read_text() if from_stdin else None
    done = subprocess.run(arguments, input=source, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout.split() == ["main", "runs", "42"], done.stderr
    assert done.stderr == ""
