"""The experiment engine: runs the open cells of a study, resumable, on any joblib backend.

The unit of parallel work is a chunk: one dataset and several candidates, so that the table is read and encoded once.
Only the calling process writes; every finished chunk is one Parquet shard in the folder of the study.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import islice, product
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from autometa.collection import CollectionEntry
from autometa.exceptions import LeakageError
from autometa.experiment.chunks import Chunk, ChunkResult, run_chunk
from autometa.experiment.shards import append_shard, exclusive, read_shards, write_atomically
from autometa.experiment.study import (
    FEATURE_SCHEMA,
    ROW_SCHEMA,
    Measure,
    Plan,
    Study,
    load_study,
    make_plan,
    read_rows,
)
from autometa.experiment.summary import StudyStatus, compact, status
from autometa.family import ModelFamily
from autometa.interrupts import terminable
from autometa.meta_features import VERSION as FEATURES_VERSION
from autometa.records import Status

_MAX_RESTARTS = 20
_COMPACT_ABOVE = 2_000
_SLICE_PER_WORKER = 8


def run_experiment(
    config: str | Path | Study,
    *,
    n_jobs: int = 2,
    resume: bool = True,
    backend: str | None = None,
    scheduler: str | None = None,
    families: Sequence[ModelFamily] | None = None,
    retry: Sequence[str] = (),
    data_folder: str | Path | None = None,
    console: Console | None = None,
) -> StudyStatus:
    """Run the open cells of a study; stop it and call it again as often as you like.

    Parameters
    ----------
    config : path or Study
    n_jobs : int, default 2
    resume : bool, default True
        With False, rows of an earlier run are an error.
    backend : str or None
        joblib backend: ``None`` (processes), ``"threading"``, ``"sequential"``, ``"dask"``, ``"ray"``.
    scheduler : str or None
        Address of a Dask scheduler or of a Ray cluster; ``None``: one is started here for the run.
    families : sequence of ModelFamily or None
        Families that the study may name; ``None``: the shipped ones.
    retry : sequence of str
        Statuses whose cells are run again, for example ``["failed"]``.
    data_folder : path or None
        Folder of the tables; ``None``: ``AUTOMETA_DATA`` or the user's cache.
    console : rich Console or None

    Returns
    -------
    StudyStatus

    Raises
    ------
    LeakageError
        A test study holds a dataset that the meta-model was trained on.
    ValueError
        The folder holds rows that were measured in another way.
    RuntimeError
        Another run is writing to the folder.
    """
    study = config if isinstance(config, Study) else load_study(config, families=families)
    check_leakage(study)
    problems: list[str] = []
    with exclusive(study.shards), terminable():
        _check_measure(study, resume)
        folder = None if data_folder is None else str(data_folder)
        for restart in range(_MAX_RESTARTS):
            plan = make_plan(study, retry=retry if restart == 0 else ())
            chunks = list(make_chunks(plan))
            try:
                problems = _run_chunks(study, plan, chunks, n_jobs, backend, scheduler, folder, console or Console())
                break
            except joblib.externals.loky.process_executor.TerminatedWorkerError as error:
                warnings.warn(
                    f"A worker process died and the rest is started again: {error}", RuntimeWarning, stacklevel=2
                )
        if len(list(study.shards.glob("*.parquet"))) > _COMPACT_ABOVE:
            compact(study)
    return replace(status(study), problems=tuple(problems))


def check_leakage(study: Study) -> None:
    """Raise ``LeakageError`` where a test study holds a dataset, or a relative of one, that was learned from."""
    if study.purpose != "test":
        return
    if study.trained_on is None:
        raise ValueError("A test study must say trained_on = <card of the meta-model>, so that leakage can be checked.")
    card = json.loads(study.trained_on.read_text(encoding="utf-8"))
    fingerprints, groups = set(card["fingerprints"]), set(card["groups"])
    leaks = [e.name for e in study.collection if e.fingerprint in fingerprints or e.group in groups]
    if leaks:
        raise LeakageError(
            f"{len(leaks)} datasets of the test study {study.name!r} are in the meta-model's trained_on "
            f"(by fingerprint or group): {', '.join(leaks[:8])}. Test on others, or on a meta-model without them."
        )


def _check_measure(study: Study, resume: bool) -> None:
    """One folder holds rows of one way of measuring."""
    path, now = study.shards / "measure.json", json.dumps(study.measure.conditions, sort_keys=True)
    if path.is_file():
        before = path.read_text(encoding="utf-8")
        if before != now:
            raise ValueError(f"{study.shards} holds rows measured with {before}. Got {now}: use a new folder.")
        if not resume:
            raise ValueError(f"{study.shards} holds rows of an earlier run. Use resume=True or a new folder.")
    else:
        write_atomically(path, lambda temporary: _write_text(temporary, now))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def make_chunks(plan: Plan) -> Iterator[Chunk]:
    """The open cells as chunks: wave by wave, the longest-expected chunk of a wave first; extra candidates last."""
    study, options = plan.study, plan.study.run
    n_core = len(study.candidates)
    seconds, featured = _family_seconds(study), _featured(study)
    for part in (slice(0, n_core), slice(n_core, len(plan.candidates))):
        for start in range(0, len(study.collection), options.wave_size):
            rows = range(start, min(start + options.wave_size, len(study.collection)))
            wave = [chunk for d in rows for chunk in _dataset_chunks(plan, d, part, seconds, featured)]
            yield from sorted(wave, key=lambda chunk: -chunk.expected_seconds)


def _featured(study: Study) -> set[str]:
    """Fingerprints with meta-features of the present version."""
    known = read_shards(study.shards, "features", FEATURE_SCHEMA, ["fingerprint", "version"]).to_pydict()
    pairs = zip(known["fingerprint"], known["version"], strict=True)
    return {fingerprint for fingerprint, version in pairs if version == FEATURES_VERSION}


def _dataset_chunks(
    plan: Plan, d: int, part: slice, seconds: Mapping[str, float], featured: set[str]
) -> Iterator[Chunk]:
    """Chunks of one dataset; the first also brings its meta-features, without candidates if none is open."""
    study, entry = plan.study, plan.study.collection.entries[d]
    wants_features = study.run.meta_features and entry.fingerprint not in featured
    featured.add(entry.fingerprint)
    for (s, seed), (t, n) in product(enumerate(study.seeds), enumerate(study.measure.train_rows)):
        columns = np.flatnonzero(plan.open[d, part, s, t]) + part.start
        for start in range(0, max(len(columns), int(wants_features)), study.run.chunk_size):
            candidates = tuple(plan.candidates[c] for c in columns[start : start + study.run.chunk_size])
            expected = 0.5 + sum(seconds.get(candidate.family, 1.0) for candidate in candidates)
            expected *= _relative_size(entry, study.measure, n)
            yield Chunk(
                entry, candidates, seed, study.measure, n, wants_features, study.run.keep_predictions, expected
            )  # fmt: skip
            wants_features = False


def _relative_size(entry: CollectionEntry, measure: Measure, train_rows: int) -> float:
    """Expected time relative to a table of 1,000 rows and 10 columns; half of it is overhead."""
    rows = min(entry.n_rows, measure.max_rows or entry.n_rows, train_rows or entry.n_rows)
    return 0.5 + 0.5 * rows * entry.n_features / 10_000


def _family_seconds(study: Study) -> dict[str, float]:
    """Median seconds of a cell by family, as far as known."""
    rows = read_rows(study, ["family", "wall_seconds"]).to_pandas()
    return {str(name): float(value) for name, value in rows.groupby("family")["wall_seconds"].median().items()}


def _run_chunks(
    study: Study,
    plan: Plan,
    chunks: Sequence[Chunk],
    n_jobs: int,
    backend: str | None,
    scheduler: str | None,
    folder: str | None,
    console: Console,
) -> list[str]:
    problems: list[str] = []
    families = {family.name: family for family in study.families}
    with ExitStack() as stack:
        stack.enter_context(_parallel_backend(backend, scheduler, n_jobs))
        report = stack.enter_context(_Report(console, study.name, chunks, int(plan.done[plan.wanted].sum())))
        n_threads, owner = (n_jobs if backend == "threading" else 1), os.getpid()
        calls = (
            joblib.delayed(run_chunk)(chunk, _needed(families, chunk), folder, n_threads, owner) for chunk in chunks
        )
        for result in _answers(calls, n_jobs):
            _store(study, result)
            if result.error:
                problems.append(f"{result.chunk.entry.name}: {result.error}")
            report.advance(result)
    return problems


def _answers(calls: Iterator[Any], n_jobs: int) -> Iterator[ChunkResult]:
    """Results as they come; from backends that answer with lists only (Ray), one slice of the calls after the other."""
    try:
        parallel = joblib.Parallel(n_jobs=n_jobs, return_as="generator_unordered", batch_size=1)
    except ValueError:
        with joblib.Parallel(n_jobs=n_jobs, batch_size=1) as parallel:
            while part := list(islice(calls, _SLICE_PER_WORKER * abs(n_jobs))):
                yield from parallel(part)
    else:
        yield from parallel(calls)


@contextmanager
def _parallel_backend(name: str | None, scheduler: str | None, n_jobs: int) -> Iterator[None]:
    """Let joblib use a backend; Dask and Ray are connected to (``None``: started here) for the time of the run."""
    options: dict[str, Any] = {}
    with ExitStack() as stack:
        if name == "dask":
            from dask.distributed import Client

            stack.enter_context(Client(scheduler))  # type: ignore[no-untyped-call]
        if name == "ray":
            stack.callback(_join_ray(scheduler, n_jobs))
            options["ray_remote_args"] = {"max_restarts": -1, "max_task_retries": -1}  # a lost worker costs its chunk
        if name is not None:
            stack.enter_context(joblib.parallel_config(backend=name, **options))
        yield


def _join_ray(address: str | None, n_jobs: int) -> Callable[[], None]:
    """Make Ray known to joblib and connect to a cluster, or start one here; answers what ends that."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    import ray
    from ray.util.joblib import register_ray

    register_ray()
    if ray.is_initialized():
        return lambda: None
    ray.init(address=address, num_cpus=None if address else n_jobs, include_dashboard=None if address else False)
    return ray.shutdown  # type: ignore[no-any-return]


def _needed(families: Mapping[str, ModelFamily], chunk: Chunk) -> dict[str, ModelFamily]:
    return {name: families[name] for name in {candidate.family for candidate in chunk.candidates}}


def _store(study: Study, result: ChunkResult) -> None:
    """Predictions first, rows last: a row says that all of its cell is there."""
    fingerprint = result.chunk.entry.fingerprint
    if result.predictions:
        folder = study.run.cache or study.folder / "predictions"
        rows = f"r{result.chunk.train_rows}" if result.chunk.train_rows else ""
        path = folder / fingerprint / f"{result.chunk.seed}{rows}-{time.time_ns()}.npz"
        write_atomically(path, lambda temporary: _save_npz(temporary, result.predictions))
    if result.features is not None:
        append_shard(study.shards, "features", [result.features], FEATURE_SCHEMA)
    if result.rows:
        append_shard(study.shards, "rows", result.rows, ROW_SCHEMA)


def _save_npz(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    with open(path, "wb") as file:  # a name without .npz would get a suffix
        np.savez_compressed(file, **dict(arrays))  # type: ignore[arg-type]


def load_predictions(study: Study, fingerprint: str, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Out-of-fold predictions of one dataset by config_id, shape (n_rows, n_classes) or (n_rows,) each.

    Rows are those of ``dataset.subsample(max_rows, subsample_seed)``. Empty where none were kept.
    """
    folder = (study.run.cache or study.folder / "predictions") / fingerprint
    found: dict[str, NDArray[Any]] = {}
    for path in sorted(folder.glob(f"{seed}-*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            found.update({key: arrays[key] for key in arrays.files})
    return found


class _Report:
    """Progress with ETA: a bar on a terminal, otherwise a line every half minute."""

    def __init__(self, console: Console, name: str, chunks: Sequence[Chunk], n_done: int) -> None:
        self._console, self._n_done = console, n_done
        self._n_open = sum(len(chunk.candidates) for chunk in chunks)
        self._expected = max(sum(chunk.expected_seconds for chunk in chunks), 1e-9)
        self._passed, self._finished = 0.0, 0
        self._counts: Counter[str] = Counter()
        self._started = self._last_line = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[cells]}"),
                   TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())  # fmt: skip
        self._progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._progress.add_task(name, total=self._expected, cells=self._cells())
        self._console.print(f"{name}: {self._n_open} cells to run, {n_done} done before.", highlight=False)

    def __enter__(self) -> _Report:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, result: ChunkResult) -> None:
        """Count one finished chunk."""
        self._finished += len(result.rows)
        self._passed += result.chunk.expected_seconds
        self._counts.update(row["status"] for row in result.rows)
        if result.error:
            self._counts["not run"] += len(result.chunk.candidates)
            self._console.print(f"not run: {result.chunk.entry.name}: {result.error}", highlight=False, markup=False)
        self._progress.update(self._task, completed=self._passed, cells=self._cells())
        if not self._console.is_terminal and time.monotonic() - self._last_line > 30:
            self._last_line = time.monotonic()
            elapsed = self._last_line - self._started
            left = elapsed * (self._expected / self._passed - 1)
            self._console.print(f"{self._cells()}; {elapsed / 60:.1f} min, about {left / 60:.0f} min left",
                                highlight=False)  # fmt: skip

    def _cells(self) -> str:
        counts = ", ".join(f"{n} {status}" for status, n in self._counts.most_common() if status != Status.OK)
        return f"{self._finished}/{self._n_open} cells" + (f" ({counts})" if counts else "")
