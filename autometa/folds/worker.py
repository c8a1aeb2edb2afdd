"""A candidate in a worker process: finished splits and good models outlive the worker."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from autometa.fitting import FittedModel
from autometa.fold_models import FoldModels
from autometa.folds.progress import Tally
from autometa.folds.request import Job, Request
from autometa.folds.rival import Rival
from autometa.folds.splits import run_splits
from autometa.records import Evaluation, Status
from autometa.resident_memory import memory_guard
from autometa.shared_files import SharedFile
from autometa.splitting import Split
from autometa.workers import Failure


def run_in_worker(
    files: tuple[SharedFile, SharedFile], request: Request, progress: SharedFile, models: SharedFile | None
) -> Evaluation:
    """All splits in a worker; finished ones are written down at once, in case the worker is killed."""
    job: Job = files[0].load()
    job = replace(job, data=replace(job.data, matrix=files[1].load()))
    with (
        memory_guard(request.memory_limit_mb) as peak,
        open(progress.path, "a", encoding="utf-8") as file,
        FoldModels(None if models is None else models.path) as store,
    ):
        keeper = _Keeper(store, request.rival, len(job.splits))

        def report(model: FittedModel, scores: Mapping[str, float], *seconds: float) -> None:
            keeper.see(model, scores)
            file.write(json.dumps([scores, *seconds, peak.mb]) + "\n")
            file.flush()

        evaluation = run_splits(job, request, report)
        keeper.end(evaluation)
    return replace(evaluation, peak_memory_mb=peak.mb)


@dataclass
class _Keeper:
    """Decides whose models are written: all of a first candidate, later only of those that will be among the best.

    There are other models then, and freezing and writing these may not be worth it. It begins after half of the folds,
    where the mean so far would do.
    """

    store: FoldModels
    rival: Rival | None
    n_splits: int
    waiting: list[FittedModel] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    def see(self, model: FittedModel, scores: Mapping[str, float]) -> None:
        """One more fold is done."""
        self.waiting.append(model)
        if self.rival is None:
            self._write()
            self.store.wait()  # before its line: a line promises a model
            return
        self.scores.append(scores.get(self.rival.metric, math.nan))
        if 2 * len(self.scores) >= self.n_splits and np.mean(self.scores) >= self.rival.keep_from:
            self._write()

    def end(self, evaluation: Evaluation) -> None:
        """All folds are done, or the candidate was given up."""
        if self.rival is None:
            return
        if evaluation.ok and evaluation.score(self.rival.metric) >= self.rival.keep_from:
            self._write()
        else:
            self.store.discard()

    def _write(self) -> None:
        for model in self.waiting:
            self.store.add(model)
        self.waiting.clear()


def finished_part(request: Request, progress: SharedFile, failure: Failure, splits: Sequence[Split]) -> Evaluation:
    """What a dead worker had finished."""
    tally, peak = Tally(), float("nan")
    with contextlib.suppress(OSError):
        for line in Path(progress.path).read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # the last line may be cut
                *split, peak = json.loads(line)
                tally.add(*split)
    if failure.status is Status.MEMORY and request.memory_limit_mb is not None:
        peak = float(np.fmax(peak, request.memory_limit_mb))  # it needed at least that
    return tally.evaluation(request, splits, status=failure.status, reason=failure.reason, peak_memory_mb=peak)
