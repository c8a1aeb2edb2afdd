"""A study that outlives its process and may have several: claims, heartbeats and what a trial carries.

Every process runs its own search on one Optuna study. A trial is created together with its parameters, so that of two
processes with the same idea the one with the lower trial number goes on. Out-of-fold predictions and models are not
stored: whoever needs those of another process measures that candidate again.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

import optuna
import psutil
from optuna.trial import FrozenTrial, TrialState

from autometa.evaluation import Evaluator
from autometa.exceptions import StorageError
from autometa.family import Candidate, ModelFamily
from autometa.metrics import Metric
from autometa.records import Evaluation, Status
from autometa.tuning.history import CANDIDATE, RETRY_OF, WORKER
from autometa.tuning.proposals import OUTCOMES, suggest
from autometa.tuning.storage import as_storage
from autometa.tuning.study import new_study, quiet_optuna, study_name

EVALUATION = "autometa:evaluation"
"""User attribute of a trial: what was measured."""
_ALIVE = "autometa:alive:"

BEAT_SECONDS = 5.0
GRACE_SECONDS = 60.0
"""After so long without a sign a process on another machine counts as dead; the clocks must agree that far."""


@dataclass(frozen=True)
class News:
    """What other processes did since the last look.

    Parameters
    ----------
    ended : list of Evaluation
        Of their finished trials, in the order of their numbers.
    running : list of Candidate
        That they work on now.
    """

    ended: list[Evaluation] = field(default_factory=list)
    running: list[Candidate] = field(default_factory=list)


@dataclass
class SharedStudy:
    """One process's view of a study in a storage. Within ``with`` it gives signs of life.

    Parameters
    ----------
    study : optuna.Study
    families : sequence of ModelFamily
    fingerprint : str
        Of the dataset.
    metric : str
        That decides.
    further : bool, default=False
        Whether a limit on trials counts from now on; otherwise it holds for the study.
    worker : str
        Name of this process: machine, process number, start of the process and a random part.
    """

    study: optuna.Study
    families: Sequence[ModelFamily]
    fingerprint: str
    metric: str
    further: bool = False
    worker: str = field(default_factory=lambda: _worker_name())
    others: int = 0
    _own: set[int] = field(default_factory=set, repr=False)
    _known: set[int] = field(default_factory=set, repr=False)
    _looked: float = field(default=-math.inf, repr=False)
    _stop: threading.Event = field(default_factory=threading.Event, repr=False)

    @classmethod
    def open(
        cls,
        storage: Any,
        evaluator: Evaluator,
        metric: Metric,
        *,
        n_jobs: int = 1,
        further: bool = False,
    ) -> Self:
        """The study of this table, task, metric, families and splits; a new one where the storage has none.

        Raises
        ------
        StorageError
            The storage cannot be opened.
        """
        name = study_name(evaluator, metric)
        with quiet_optuna():
            opened = as_storage(storage)
            try:
                names = optuna.get_all_study_names(opened)
                study = new_study(evaluator.seed, n_jobs, storage=opened, name=name)
            except Exception as error:
                raise StorageError(f"The storage cannot be read: {error}") from error
        others = len(names) - (name in names)
        families, fingerprint = tuple(evaluator.families.values()), evaluator.dataset.fingerprint
        return cls(study, families, fingerprint, metric.name, further, others=others)

    def __enter__(self) -> Self:
        self._stop.clear()
        self.beat()
        threading.Thread(target=self._beat_on, name="autometa-heartbeat", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        with contextlib.suppress(Exception):
            self.study.set_user_attr(_ALIVE + self.worker, 0.0)

    def beat(self) -> None:
        """A sign of life that others see."""
        self.study.set_user_attr(_ALIVE + self.worker, time.time())

    def _beat_on(self) -> None:
        while not self._stop.wait(BEAT_SECONDS):
            with contextlib.suppress(Exception):  # a storage out of reach shows where a trial is told
                self.beat()

    def claim(self, trial: optuna.Trial, candidate: Candidate) -> bool:
        """Whether the candidate of this running trial is for this process; otherwise the trial is given back.

        A trial that was created with its parameters yields to lower numbers only, one that was sampled step by step
        to all others with the same candidate: so never two go on.
        """
        attributes = trial.user_attrs
        whole = attributes.get(CANDIDATE) == candidate.key
        if not whole:
            trial.set_user_attr(CANDIDATE, candidate.key)
        if attributes.get(WORKER) != self.worker:
            trial.set_user_attr(WORKER, self.worker)
        for other in self.study.get_trials(deepcopy=False):
            if other.number == trial.number or other.user_attrs.get(CANDIDATE) != candidate.key:
                continue
            taken = EVALUATION in other.user_attrs or not other.state.is_finished()
            if taken and (other.number < trial.number or (not whole and other.state is not TrialState.WAITING)):
                self.study.tell(trial, state=TrialState.FAIL)
                return False
        self._own.add(trial.number)
        return True

    def waiting(self) -> Iterator[tuple[optuna.Trial, Candidate]]:
        """Trials that wait to be run: those of dead processes, and what somebody put into the study's queue."""
        while any(True for _ in self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))):
            trial = self.study.ask()
            yield trial, suggest(trial, self.families)

    def tell(self, trial: optuna.Trial, evaluation: Evaluation, candidate: Candidate) -> None:
        """Keep what was measured with its trial, before it is told to have ended."""
        trial.set_user_attr(EVALUATION, record(evaluation, candidate))

    def news(self) -> News:
        """What others did since the last look; trials of dead processes are queued again, once."""
        if time.monotonic() - self._looked > BEAT_SECONDS:
            self._looked = time.monotonic()
            self._retry_dead()
        found = News()
        for trial in self.study.get_trials(deepcopy=False):
            if trial.number in self._own or trial.number in self._known:
                continue
            candidate = candidate_of(_params(trial))
            if trial.state.is_finished():
                self._known.add(trial.number)
                if candidate is not None and EVALUATION in trial.user_attrs:
                    found.ended.append(restore(trial.user_attrs[EVALUATION], candidate, self.fingerprint))
            elif trial.state is TrialState.RUNNING and candidate is not None:
                found.running.append(candidate)
        return found

    def _retry_dead(self) -> None:
        """End the trials of dead processes: as measured where that was written down, else to be run again once."""
        signs = self.study.user_attrs
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.number in self._own or _alive(trial.user_attrs.get(WORKER), signs, trial):
                continue
            candidate, kept = candidate_of(_params(trial)), trial.user_attrs.get(EVALUATION)
            state, values = TrialState.FAIL, None
            if candidate is not None and kept is not None:
                evaluation = restore(kept, candidate, self.fingerprint)
                state = OUTCOMES.get(evaluation.status, TrialState.FAIL)
                values = [evaluation.score(self.metric)] if evaluation.ok else None
            try:
                ended = self.study._storage.set_trial_state_values(trial._trial_id, state, values)
            except optuna.exceptions.UpdateFinishedTrialError:  # another process was faster
                continue
            if ended and candidate is not None and kept is None and RETRY_OF not in trial.system_attrs:
                self._queue_again(trial)

    def _queue_again(self, trial: FrozenTrial) -> None:
        attributes = {key: value for key, value in trial.user_attrs.items() if key != WORKER}
        system = {RETRY_OF: trial.number, "fixed_params": _params(trial)}
        self.study.add_trial(
            optuna.trial.create_trial(state=TrialState.WAITING, user_attrs=attributes, system_attrs=system)
        )


def record(evaluation: Evaluation, candidate: Candidate) -> dict[str, Any]:
    """An evaluation as JSON, without predictions; ``candidate`` is the trial's own."""
    kept: dict[str, Any] = {
        "status": str(evaluation.status),
        "scores": {name: list(values) for name, values in evaluation.scores.items()},
        "fit_seconds": list(evaluation.fit_seconds), "predict_seconds": list(evaluation.predict_seconds),
        "peak_memory_mb": evaluation.peak_memory_mb, "n_train_rows": evaluation.n_train_rows,
        "done_share": evaluation.done_share, "seed": evaluation.seed, "reason": evaluation.reason,
    }  # fmt: skip
    return kept if evaluation.candidate == candidate else {**kept, "config": dict(evaluation.candidate.config)}


def restore(kept: Mapping[str, Any], candidate: Candidate, fingerprint: str) -> Evaluation:
    """The evaluation that :func:`record` kept."""
    if "config" in kept:
        candidate = replace(candidate, config=kept["config"])
    return Evaluation(
        fingerprint, candidate, Status(kept["status"]),
        scores={name: tuple(values) for name, values in kept["scores"].items()},
        fit_seconds=tuple(kept["fit_seconds"]), predict_seconds=tuple(kept["predict_seconds"]),
        peak_memory_mb=kept["peak_memory_mb"], n_train_rows=kept["n_train_rows"],
        done_share=kept.get("done_share", 1.0), seed=kept["seed"], reason=kept["reason"],
    )  # fmt: skip


def candidate_of(params: Mapping[str, Any]) -> Candidate | None:
    """The candidate that a trial's parameters name, ``None`` where they name none."""
    family = params.get("family")
    if family is None:
        return None
    prefix = f"{family}."
    return Candidate(family, {k.removeprefix(prefix): v for k, v in params.items() if k.startswith(prefix)})


def _params(trial: FrozenTrial) -> dict[str, Any]:
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


def _machine() -> str:
    """This machine, or this container of it."""
    space = ""
    with contextlib.suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return hashlib.blake2b(f"{platform.node()}{uuid.getnode()}{space}".encode(), digest_size=6).hexdigest()


def _worker_name() -> str:
    return f"{_machine()}-{os.getpid()}-{psutil.Process().create_time():.2f}-{uuid.uuid4().hex[:6]}"


def _alive(worker: str | None, signs: Mapping[str, Any], trial: FrozenTrial) -> bool:
    """Whether the process that runs a trial is at work: asked of the system on this machine, else by its signs."""
    if worker is None:  # a trial of somebody who does not say who
        return trial.datetime_start is None or time.time() - trial.datetime_start.timestamp() < GRACE_SECONDS
    machine, number, born, _ = worker.split("-")
    last = float(signs.get(_ALIVE + worker, 0.0))
    if last and machine == _machine():
        with contextlib.suppress(psutil.Error):
            return abs(psutil.Process(int(number)).create_time() - float(born)) < 0.1
        return False
    return time.time() - last < GRACE_SECONDS
