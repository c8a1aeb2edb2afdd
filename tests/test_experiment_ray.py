"""The engine on a Ray cluster. Ray is not among the packages that the tests install (240 MB): skipped without it."""

import os
import signal
import threading
import time
import uuid
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from test_experiment import BASE, run, write_config

from autometa.experiment.study import KEYS

pytest.importorskip("ray")


def workers_of_this_test(mark: str) -> list[int]:
    """Ray's worker processes that carry our mark in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            mine = mark.encode() in (folder / "environ").read_bytes()
            if mine and (folder / "cmdline").read_bytes().startswith(b"ray::PoolActor"):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds the workers in /proc")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(400)
def test_a_ray_cluster_that_loses_a_worker_ends_with_each_cell_once(tmp_path, monkeypatch):
    mark = uuid.uuid4().hex
    monkeypatch.setenv("AUTOMETA_TEST_MARK", mark)
    monkeypatch.setenv("RAY_worker_niceness", "0")  # Ray's own 15 starves on a busy machine
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))  # where the workers find the families of the study
    configs = "".join(
        f'[[candidate]]\nfamily = "toy_sleeper"\nconfig = {{ seconds = {0.03 + i / 1000} }}\n' for i in range(8)
    )
    path = write_config(tmp_path, BASE.replace("chunk_size = 3", "chunk_size = 1") + configs)
    killed: list[int] = []

    def kill_one() -> None:
        deadline = time.monotonic() + 240
        while len(list((tmp_path / "shards").glob("rows-*.parquet"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(1.0)  # the next slice of chunks is under way
        killed.extend(workers_of_this_test(mark)[:1])
        os.kill(killed[0], signal.SIGKILL)

    thread = threading.Thread(target=kill_one, daemon=True)
    thread.start()
    state = run(path, backend="ray", n_jobs=2)
    thread.join(10)
    assert len(killed) == 1
    assert (state.n_done, state.problems) == (24, ())
    rows = pd.concat(pq.read_table(shard).to_pandas() for shard in (tmp_path / "shards").glob("rows-*.parquet"))
    assert len(rows) == 24
    assert not rows.duplicated(list(KEYS)).any()
